"""The packets one origin shares, as set reconciliation sees them: (seconds, packet id), in order.

Reconciliation asks four questions, of up to a million items, many times a frame: which item is the
first at or after a bound, how many lie in a range, what do their ids add up to, which ids are they.

Items lie in blocks. A block packs its ids into one run of bytes and its seconds as offsets from a
base, in the narrowest of 2, 4 or 8 bytes that spans them: 34 to 36 bytes an item. Each block keeps
the sum of its ids. A list of separators, one a block, leads to the block of an item. Tables of the
counts and sums before each block, rebuilt at the first question after a change, make a range one
subtraction and at most two part-blocks that numpy adds up.

A set belongs to one thread: whoever changes it and whoever reconciles it take turns, so that each
frame is computed over one consistent view. Between frames it may change freely.

Source: docs/protocol.md, section 6; Negentropy Protocol V1 (order, fingerprint).
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from federation.protocol.limits import MAX_SAFE_INTEGER
from federation.protocol.negentropy import ID_BYTES, Bound, fingerprint_of_sum

__all__ = ["MAX_SECONDS", "Item", "ItemSet"]

# The second of the latest `created_at` that a packet can carry.
MAX_SECONDS: Final = MAX_SAFE_INTEGER // 1000

# A block that would grow past this is halved: it bounds what one insert moves (32 KiB).
BLOCK_ITEMS: Final = 1_024
# Items a block is built with, so that the next inserts find room.
BUILT_ITEMS: Final = 512
# A block that shrinks to this joins its neighbour: discards leave no trail of near-empty blocks.
SPARSE_ITEMS: Final = 128

# array typecode -> largest offset it holds; narrowest first. The last one holds any difference of seconds.
OFFSET_LIMITS: Final = {"H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1}

# To add ids up, each is read as eight digits of 32 bits; 64 bits hold the sum of four billion such digits.
DIGITS: Final = 8
DIGIT: Final = np.dtype("<u4")
DIGIT_SUM: Final = np.dtype("<u8")

SecondsArray = npt.NDArray[np.integer[Any]]
IdArray = npt.NDArray[np.uint8]


class Item(NamedTuple):
    """One packet as reconciliation orders it: whole seconds of its `created_at`, then its id bytewise."""

    seconds: int
    packet_id: bytes


class ItemSet:
    """An ordered set of items that answers for any range of itself.

    A *rank* is the number of items before a place: 0 to len(set). Ranges are given as two ranks, lower
    inclusive, upper exclusive, and hold until the next change. Seconds lie within 0 and `MAX_SECONDS`, ids
    are 32 bytes; anything else raises ValueError.
    """

    __slots__ = ("_blocks", "_count", "_digest", "_ranks", "_separators", "_sum", "_sums")

    def __init__(self) -> None:
        # There is always a block, and nothing sorts before the first separator.
        self._blocks: list[_Block] = [_Block()]
        # Block i holds the items from separator i up to separator i+1; its first item may lie well past it.
        self._separators: list[Item] = [Item(0, b"")]
        self._count = 0
        self._sum = 0  # of all ids; like every sum here not reduced modulo 2^256
        self._digest: bytes | None = None
        # Items and sums before each block and, last, of all; no ranks: to be rebuilt.
        self._ranks: list[int] = []
        self._sums: list[int] = []

    @classmethod
    def from_arrays(cls, seconds: SecondsArray, ids: IdArray) -> Self:
        """Return the set of the items given in any order; an item given twice counts once.

        Args:
            seconds: Shape (n,).
            ids: Shape (n, 32), bytes.
        """
        items = cls()
        items._build(*_sort(seconds, ids))
        return items

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item: Item | tuple[int, bytes]) -> bool:
        seconds, packet_id = item
        block = self._blocks[self._block_of(seconds, packet_id)]
        return block.holds(block.find(seconds, packet_id), seconds, packet_id)

    def __iter__(self) -> Iterator[Item]:
        for block in self._blocks:
            for position in range(len(block)):
                yield block.item(position)

    def add(self, seconds: int, packet_id: bytes) -> bool:
        """Put an item in; return False when it was there already."""
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"item of {seconds!r} seconds, expected 0 to {MAX_SECONDS}")
        if len(packet_id) != ID_BYTES:
            raise ValueError(f"item with an id of {len(packet_id)} bytes, expected {ID_BYTES}")
        index = self._block_of(seconds, packet_id)
        block = self._blocks[index]
        position = block.find(seconds, packet_id)
        if block.holds(position, seconds, packet_id):
            return False
        self._changed(1, block.insert(position, seconds, packet_id))
        if len(block) > BLOCK_ITEMS:
            upper = block.halve()
            self._blocks.insert(index + 1, upper)
            self._separators.insert(index + 1, upper.item(0))
        return True

    def discard(self, seconds: int, packet_id: bytes) -> bool:
        """Take an item out; return False when it was not there."""
        index = self._block_of(seconds, packet_id)
        block = self._blocks[index]
        position = block.find(seconds, packet_id)
        if not block.holds(position, seconds, packet_id):
            return False
        self._changed(-1, -block.delete(position))
        if len(block) <= SPARSE_ITEMS and len(self._blocks) > 1:
            lower = max(index - 1, 0)
            if len(self._blocks[lower]) + len(self._blocks[lower + 1]) <= BLOCK_ITEMS:
                self._blocks[lower].join(self._blocks.pop(lower + 1))
                del self._separators[lower + 1]
        return True

    def add_many(self, seconds: SecondsArray, ids: IdArray) -> int:
        """Put items in, in arrays as `from_arrays` takes them; return how many were new."""
        before = self._count
        # From an eighth on, sorting everything anew is cheaper than finding each place.
        if len(seconds) * 8 >= before:
            parts = [block.arrays() for block in self._blocks]
            self._build(
                *_sort(
                    np.concatenate([part[0] for part in parts] + [_checked_seconds(seconds)]),
                    np.concatenate([part[1] for part in parts] + [_checked_ids(ids, len(seconds))]),
                )
            )
        else:
            for second, packet_id in zip(_checked_seconds(seconds).tolist(), _checked_ids(ids, len(seconds)), strict=True):
                self.add(second, packet_id.tobytes())
        return self._count - before

    def replace_with(self, other: "ItemSet") -> None:
        """Take over the items of `other`, which must not be used afterwards; who holds this set keeps holding it."""
        for name in ItemSet.__slots__:
            setattr(self, name, getattr(other, name))

    def fingerprint(self) -> bytes:
        """Return the 16-byte fingerprint of the whole set."""
        if self._digest is None:
            self._digest = fingerprint_of_sum(self._sum, self._count)
        return self._digest

    def range_fingerprint(self, lower: int, upper: int) -> bytes:
        """Return the 16-byte fingerprint of a range."""
        return fingerprint_of_sum(self._sum_before(upper) - self._sum_before(lower), upper - lower)

    def part_fingerprints(self, ranks: Sequence[int]) -> list[bytes]:
        """Return the fingerprints of the ranges between each two neighbours of ascending ranks, none of them empty."""
        lower, upper = ranks[0], ranks[-1]
        if upper - lower > BLOCK_ITEMS:
            before = [self._sum_before(rank) for rank in ranks]
            sums = [end - start for start, end in pairwise(before)]
        else:
            # Narrow parts of few blocks: adding up all of them in one go costs about as much as adding up one.
            sums = _sum_parts(b"".join(self.ids(lower, upper)), [rank - lower for rank in ranks[:-1]])
        return [fingerprint_of_sum(part, end - start) for part, (start, end) in zip(sums, pairwise(ranks), strict=True)]

    def rank(self, bound: Bound) -> int:
        """Return how many items lie before `bound`."""
        index = self._block_of(bound.seconds, bound.prefix)
        return self._tables()[index] + self._blocks[index].find(bound.seconds, bound.prefix)

    def item(self, rank: int) -> Item:
        """Return the item with `rank` items before it; IndexError beyond the last."""
        if not 0 <= rank < self._count:
            raise IndexError(f"item {rank} of {self._count}")
        index = bisect_right(self._tables(), rank) - 1
        return self._blocks[index].item(rank - self._ranks[index])

    def ids(self, lower: int, upper: int) -> Iterator[bytes]:
        """Yield the ids of a range in order, as runs of 32 bytes each, end to end."""
        index = bisect_right(self._tables(), lower) - 1
        while lower < upper:
            start = self._ranks[index]
            end = min(upper, self._ranks[index + 1])
            yield bytes(self._blocks[index].ids[(lower - start) * ID_BYTES : (end - start) * ID_BYTES])
            lower = end
            index += 1

    def _block_of(self, seconds: int, prefix: bytes) -> int:
        return bisect_right(self._separators, (seconds, prefix)) - 1

    def _sum_before(self, rank: int) -> int:
        index = min(bisect_right(self._tables(), rank), len(self._blocks)) - 1
        return self._sums[index] + self._blocks[index].sum_before(rank - self._ranks[index])

    def _tables(self) -> list[int]:
        """Return the ranks of the blocks, having made the sums before them current too."""
        if not self._ranks:
            self._ranks = list(accumulate(map(len, self._blocks), initial=0))
            self._sums = list(accumulate((block.sum for block in self._blocks), initial=0))
        return self._ranks

    def _changed(self, count: int, id_sum: int) -> None:
        self._count += count
        self._sum += id_sum
        self._digest = None
        self._ranks = []
        self._sums = []

    def _build(self, seconds: npt.NDArray[np.uint64], ids: IdArray) -> None:
        """Become the set of these items, sorted and distinct."""
        starts = range(0, len(seconds), BUILT_ITEMS)
        self._blocks = [_Block.packed(seconds[at : at + BUILT_ITEMS], ids[at : at + BUILT_ITEMS]) for at in starts] or [_Block()]
        self._separators = [block.item(0) for block in self._blocks[1:]]
        self._separators.insert(0, Item(0, b""))
        self._count = 0
        self._sum = 0
        self._changed(len(seconds), sum(block.sum for block in self._blocks))


class _Block:
    """Up to `BLOCK_ITEMS` items, packed."""

    __slots__ = ("base", "ids", "offsets", "sum")

    def __init__(self) -> None:
        self.base = 0  # may be negative: `_widen` leaves room on both sides
        self.offsets = array("H")  # seconds - base, ascending
        self.ids = bytearray()
        self.sum = 0  # of the ids

    @classmethod
    def packed(cls, seconds: npt.NDArray[np.uint64], ids: IdArray) -> "_Block":
        """Return a block of sorted items, at least one."""
        block = cls()
        block.base = int(seconds[0])
        code = _offset_code(int(seconds[-1]) - block.base)
        block.offsets = array(code)
        block.offsets.frombytes((seconds - seconds[0]).astype(np.dtype(code)).tobytes())
        block.ids = bytearray(ids.tobytes())
        block.sum = _sum_ids(block.ids, 0, len(block))
        return block

    def __len__(self) -> int:
        return len(self.offsets)

    def item(self, position: int) -> Item:
        return Item(self.base + self.offsets[position], bytes(self.ids[position * ID_BYTES : (position + 1) * ID_BYTES]))

    def find(self, seconds: int, prefix: bytes) -> int:
        """Return the position of the first item at or after (seconds, prefix)."""
        offset = seconds - self.base
        low = bisect_left(self.offsets, offset)
        if not prefix:
            return low
        high = bisect_right(self.offsets, offset, low)
        ids = self.ids
        while low < high:
            middle = (low + high) // 2
            # A whole id compares with a shorter prefix as it would with the prefix padded by zeros.
            if ids[middle * ID_BYTES : (middle + 1) * ID_BYTES] < prefix:
                low = middle + 1
            else:
                high = middle
        return low

    def holds(self, position: int, seconds: int, packet_id: bytes) -> bool:
        """Answer whether exactly this item is at `position`."""
        return (
            position < len(self.offsets)
            and self.offsets[position] == seconds - self.base
            and self.ids[position * ID_BYTES : (position + 1) * ID_BYTES] == packet_id
        )

    def insert(self, position: int, seconds: int, packet_id: bytes) -> int:
        """Put an item in at its place; return its id as a number."""
        if not 0 <= seconds - self.base <= OFFSET_LIMITS[self.offsets.typecode]:
            self._widen(seconds)
        self.offsets.insert(position, seconds - self.base)
        self.ids[position * ID_BYTES : position * ID_BYTES] = packet_id
        number = int.from_bytes(packet_id, "little")
        self.sum += number
        return number

    def delete(self, position: int) -> int:
        """Take the item at `position` out; return its id as a number."""
        place = slice(position * ID_BYTES, (position + 1) * ID_BYTES)
        number = int.from_bytes(self.ids[place], "little")
        del self.ids[place]
        del self.offsets[position]
        self.sum -= number
        return number

    def halve(self) -> "_Block":
        """Keep the lower half of the items; return a block of the others."""
        half = len(self) // 2
        upper = _Block()
        upper.base = self.base
        upper.offsets = self.offsets[half:]
        upper.ids = self.ids[half * ID_BYTES :]
        upper.sum = _sum_ids(upper.ids, 0, len(upper))
        # New objects rather than deletions: those would keep the room of the upper half allocated.
        self.offsets = self.offsets[:half]
        self.ids = self.ids[: half * ID_BYTES]
        self.sum -= upper.sum
        return upper

    def join(self, upper: "_Block") -> None:
        """Append the items of the next block."""
        if upper.offsets:
            last = upper.base + upper.offsets[-1]
            if self.offsets:
                if last - self.base > OFFSET_LIMITS[self.offsets.typecode]:
                    self._widen(last)
            else:
                self.base = upper.base
                self.offsets = array(upper.offsets.typecode)
            shift = upper.base - self.base
            self.offsets.extend(array(self.offsets.typecode, [offset + shift for offset in upper.offsets]))
            self.ids += upper.ids
            self.sum += upper.sum

    def sum_before(self, position: int) -> int:
        """Return the sum of the ids before `position`, adding up the shorter side of it."""
        if position * 2 <= len(self):
            return _sum_ids(self.ids, 0, position)
        return self.sum - _sum_ids(self.ids, position, len(self))

    def arrays(self) -> tuple[npt.NDArray[np.uint64], IdArray]:
        """Return copies of the seconds, shape (n,), and the ids, shape (n, 32)."""
        seconds = np.array(self.offsets, dtype=np.int64) + self.base
        return seconds.astype(np.uint64), np.frombuffer(bytes(self.ids), dtype=np.uint8).reshape(-1, ID_BYTES)

    def _widen(self, seconds: int) -> None:
        """Choose offsets that reach `seconds` too.

        What the chosen width leaves over lies half below and half above, so that items that come in
        descending order do not lead here one by one.
        """
        first = min(self.base + self.offsets[0], seconds) if self.offsets else seconds
        last = max(self.base + self.offsets[-1], seconds) if self.offsets else seconds
        code = _offset_code(last - first)
        shift = self.base - (base := first - (OFFSET_LIMITS[code] - (last - first)) // 2)
        self.offsets = array(code, [offset + shift for offset in self.offsets])
        self.base = base


def _offset_code(span: int) -> str:
    """Return the narrowest array typecode whose items hold `span`."""
    return next(code for code, limit in OFFSET_LIMITS.items() if span <= limit)


def _sum_ids(ids: bytearray, lower: int, upper: int) -> int:
    """Return the sum of the ids at positions lower to upper, as little-endian numbers, not reduced."""
    if lower == upper:
        return 0
    digits = np.frombuffer(ids, dtype=DIGIT, count=(upper - lower) * DIGITS, offset=lower * ID_BYTES).reshape(-1, DIGITS)
    return _numbers(np.add.reduce(digits, axis=0, dtype=DIGIT_SUM))[0]


def _sum_parts(ids: bytes, starts: list[int]) -> list[int]:
    """Return the sum of the ids from each of these ascending positions up to the next, or the end."""
    digits = np.frombuffer(ids, dtype=DIGIT).reshape(-1, DIGITS)
    return _numbers(np.add.reduceat(digits, starts, axis=0, dtype=DIGIT_SUM))


def _numbers(columns: npt.NDArray[np.uint64]) -> list[int]:
    """Return the number that each eight sums of digits stand for."""
    # Digits 0, 2, 4, 6 weigh 2^0, 2^64, ...: the bytes of their sums in a row are one number. The others weigh 2^32 more.
    even, odd = columns[..., 0::2].tobytes(), columns[..., 1::2].tobytes()
    return [
        int.from_bytes(even[at : at + ID_BYTES], "little") + (int.from_bytes(odd[at : at + ID_BYTES], "little") << 32)
        for at in range(0, len(even), ID_BYTES)
    ]


def _checked_seconds(seconds: SecondsArray) -> npt.NDArray[np.uint64]:
    if seconds.ndim != 1 or (seconds.size and (int(seconds.min()) < 0 or int(seconds.max()) > MAX_SECONDS)):
        raise ValueError(f"seconds of shape {seconds.shape}, expected (n,) within 0 and {MAX_SECONDS}")
    return seconds.astype(np.uint64, copy=False)


def _checked_ids(ids: IdArray, count: int) -> IdArray:
    if ids.shape != (count, ID_BYTES) or ids.dtype != np.uint8:
        raise ValueError(f"ids of shape {ids.shape} and type {ids.dtype}, expected ({count}, {ID_BYTES}) bytes")
    return np.ascontiguousarray(ids)


def _sort(seconds: SecondsArray, ids: IdArray) -> tuple[npt.NDArray[np.uint64], IdArray]:
    """Return the items in order, each once."""
    seconds = _checked_seconds(seconds)
    ids = _checked_ids(ids, len(seconds))
    if not len(seconds):
        return seconds, ids
    # Read as big-endian numbers, words of an id compare as its bytes do.
    words = ids.view(">u8")
    leading = words[:, 0].astype(np.uint64)
    order = np.lexsort((leading, seconds))
    if _repeats(seconds[order], leading[order]).any():
        # Ids that share their first eight bytes: compare them whole.
        columns = [words[:, column].astype(np.uint64) for column in (3, 2, 1, 0)]
        order = np.lexsort((*columns, seconds))
        same = _repeats(seconds[order], *(column[order] for column in columns))
        order = order[np.concatenate(([True], ~same))]
    return seconds[order], ids[order]


def _repeats(*columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return for each row but the first whether it equals the one before it in every column."""
    same = np.ones(len(columns[0]) - 1, dtype=np.bool_)
    for column in columns:
        same &= column[1:] == column[:-1]
    return same
