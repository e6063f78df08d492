"""The two roles of set reconciliation: who lacks packets asks, who has them answers.

The *initiator* describes its set as ranges, the *responder* compares each with its own: equal ranges
are skipped, unequal ones described again, in sixteen parts or, under 32 items, as the ids themselves.
Each frame says all there is to say; neither side remembers the last one. So sets may move in between,
frames of several links may interleave at one set, and a frame that ran full simply ends with one
fingerprint of all the rest, which the next round takes up.

The initiator learns which ids it lacks, never what the other side lacks: each direction of a link is
reconciled by its receiver. How many rounds there may be is for the session to bound.

Where a range is split is random: whoever found packets whose sums deceive one pair of fingerprints
cannot know where the next ones will be cut. The randomness is a seed handed in.

Source: docs/protocol.md, section 6; Negentropy Protocol V1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from federation.protocol.itemset import ItemSet
from federation.protocol.negentropy import (
    FINGERPRINT_BYTES,
    ID_BYTES,
    INFINITY,
    MAX_FRAME_BYTES,
    VERSION,
    ZERO,
    Bound,
    Fingerprint,
    IdList,
    Range,
    ReconcileError,
    Skip,
    encode_ranges,
    encode_varint,
    parse_frame,
)

__all__ = ["EMPTY_FRAME", "Initiator", "ReconcileError", "Responder", "Step"]

BUCKETS: Final = 16
# Ranges under this many items are told as their ids.
SPLIT_ITEMS: Final = 2 * BUCKETS
# Below this a frame could not hold one split, and reconciliation would not advance.
MIN_FRAME_BYTES: Final = 4_096
# The longest bound, and the mode after it.
HEAD_BYTES: Final = 10 + 1 + ID_BYTES + 1
# What is kept free to end a full frame: a Skip, and a Fingerprint to infinity.
CLOSING_BYTES: Final = HEAD_BYTES + 1 + 1 + 1 + FINGERPRINT_BYTES
# "Nothing left to say": also the answer for an origin that is no longer offered.
EMPTY_FRAME: Final = bytes((VERSION,))


@dataclass(frozen=True, slots=True)
class Step:
    """What the initiator made of an answer."""

    next_frame: bytes | None
    """Request to send next; None: reconciled, and nothing is sent."""
    need: list[bytes]
    """Ids the responder has and this side lacks, each once, in the order received; at most 1,875 a frame."""


class Initiator:
    """The receiver of packets, finding out which of them it lacks.

    Send `initiate()`, hand every answer to `receive()` and send its `next_frame` until there is none.

    Args:
        items: This side's set; it may change between calls.
        frame_limit: Bytes of a frame sent, 4,096 to 60,000.
        split_seed: A random 64-bit number; None puts split points where the reference implementation does.
    """

    def __init__(self, items: ItemSet, *, frame_limit: int = MAX_FRAME_BYTES, split_seed: int | None) -> None:
        self._items = items
        self._frame_limit = _checked_limit(frame_limit)
        self._splitter = _Splitter(split_seed)

    def initiate(self) -> bytes:
        """Return the first request."""
        builder = _FrameBuilder(self._items, self._frame_limit, self._splitter)
        builder.describe(INFINITY, 0, len(self._items))
        return builder.frame()

    def receive(self, frame: bytes) -> Step:
        """Take the answer to the last request in.

        Raises:
            ReconcileError: The frame is malformed; nothing of it was used.
        """
        builder = _FrameBuilder(self._items, self._frame_limit, self._splitter)
        need: dict[bytes, None] = {}
        for piece, lower, upper in _placed(self._items, parse_frame(frame)):
            match piece:
                case Skip():
                    builder.skip(piece.upper)
                case Fingerprint(digest=digest):
                    if digest == self._items.range_fingerprint(lower, upper):
                        builder.skip(piece.upper)
                    elif not builder.describe(piece.upper, lower, upper):
                        break
                case IdList(ids=ids):
                    need |= dict.fromkeys(self._missing(ids, lower, upper))
                    builder.skip(piece.upper)
                case _:
                    assert_never(piece)
        answer = builder.frame()
        return Step(None if answer == EMPTY_FRAME else answer, list(need))

    def _missing(self, ids: bytes, lower: int, upper: int) -> list[bytes]:
        """Return those of `ids` that are not in this side's range."""
        theirs = dict.fromkeys(_each_id(ids))
        for run in self._items.ids(lower, upper):
            if not theirs:
                break
            for packet_id in _each_id(run):
                theirs.pop(packet_id, None)
        return list(theirs)


class Responder:
    """The holder of packets, answering one request at a time from its set as it is now.

    Args:
        items: This side's set; it may change between calls.
        frame_limit: Bytes of a frame sent, 4,096 to 60,000.
        split_seed: A random 64-bit number; None puts split points where the reference implementation does.
    """

    def __init__(self, items: ItemSet, *, frame_limit: int = MAX_FRAME_BYTES, split_seed: int | None) -> None:
        self._items = items
        self._frame_limit = _checked_limit(frame_limit)
        self._splitter = _Splitter(split_seed)

    def answer(self, frame: bytes) -> bytes:
        """Return the answer to a request; it depends on nothing but the request, the set and the split points.

        Raises:
            ReconcileError: The frame is malformed.
        """
        builder = _FrameBuilder(self._items, self._frame_limit, self._splitter)
        for piece, lower, upper in _placed(self._items, parse_frame(frame)):
            match piece:
                case Skip():
                    builder.skip(piece.upper)
                case Fingerprint(digest=digest):
                    if digest == self._items.range_fingerprint(lower, upper):
                        builder.skip(piece.upper)
                    elif not builder.describe(piece.upper, lower, upper):
                        break
                case IdList():
                    # What is lacking here is learnt when this side is the initiator, so their ids say nothing now.
                    if not builder.list_ids(piece.upper, lower, upper):
                        break
                case _:
                    assert_never(piece)
        return builder.frame()


class _FrameBuilder:
    """One frame in the making: takes ranges in ascending order until the limit is reached.

    `describe` and `list_ids` return False once they had to close the frame with a fingerprint of everything
    from there on; nothing may follow then.
    """

    def __init__(self, items: ItemSet, limit: int, splitter: "_Splitter") -> None:
        self._items = items
        self._limit = limit
        self._splitter = splitter
        self._out = bytearray(EMPTY_FRAME)
        self._seconds = 0  # of the last bound written
        self._skipped: Bound | None = None  # upper bound of the ranges skipped since; written only if more follows

    def frame(self) -> bytes:
        return bytes(self._out)

    def skip(self, upper: Bound) -> None:
        self._skipped = upper

    def describe(self, bound: Bound, lower: int, upper: int) -> bool:
        """Write what this side has in a range: all of its ids when they are few, else a fingerprint of each part."""
        count = upper - lower
        if count < SPLIT_ITEMS:
            return self._write([IdList(bound, b"".join(self._items.ids(lower, upper)))], lower)
        cuts = [lower + cut for cut in self._splitter.cuts(count)]
        bounds = [*(_bound_between(self._items, cut) for cut in cuts), bound]
        digests = self._items.part_fingerprints([lower, *cuts, upper])
        return self._write([Fingerprint(*part) for part in zip(bounds, digests, strict=True)], lower)

    def list_ids(self, bound: Bound, lower: int, upper: int) -> bool:
        """Write all ids of a range, or as many as fit and a fingerprint of the rest."""
        # A Skip perhaps, the bound, the mode and the number of ids come first.
        room = self._limit - len(self._out) - CLOSING_BYTES - 2 * HEAD_BYTES - len(encode_varint(upper - lower))
        fitting = room // ID_BYTES
        if upper - lower <= fitting:
            return self._write([IdList(bound, b"".join(self._items.ids(lower, upper)))], lower)
        if fitting > 0:
            listed = lower + fitting
            self._write([IdList(_bound_between(self._items, listed), b"".join(self._items.ids(lower, listed)))], lower)
            lower = listed
        self._close(lower)
        return False

    def _write(self, ranges: list[Range], lower: int) -> bool:
        """Append ranges that begin at rank `lower`, or close the frame there when they do not fit."""
        if self._skipped is not None:
            ranges = [Skip(self._skipped), *ranges]
        data, seconds = encode_ranges(ranges, self._seconds)
        if len(self._out) + len(data) + CLOSING_BYTES > self._limit:
            self._close(lower)
            return False
        self._out += data
        self._seconds = seconds
        self._skipped = None
        return True

    def _close(self, lower: int) -> None:
        ranges: list[Range] = [Fingerprint(INFINITY, self._items.range_fingerprint(lower, len(self._items)))]
        if self._skipped is not None:
            ranges.insert(0, Skip(self._skipped))
        self._out += encode_ranges(ranges, self._seconds)[0]


class _Splitter:
    """Where to cut ranges: sixteen parts of nearly equal size, shifted by a random amount each time.

    Only the first and the last part are of random size, together as large as any other. So each item is as
    likely as the next to begin a part, and four levels still bring a million items below 32.
    """

    def __init__(self, seed: int | None) -> None:
        self._state = seed

    def cuts(self, count: int) -> list[int]:
        """Return the 15 places that cut `count` items, at least 32, in 16 parts of at least one each."""
        if self._state is None:
            size, larger = divmod(count, BUCKETS)
            return [part * size + min(part, larger) for part in range(1, BUCKETS)]
        self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
        # There are count - 1 places between items; all of them are equally likely to be cut.
        shift = _mixed(self._state) * (count - 1) >> 64
        return [1 + (part * (count - 1) + shift) // (BUCKETS - 1) for part in range(BUCKETS - 1)]


def _mixed(state: int) -> int:
    """Return 64 bits as unpredictable as the seed: the output step of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def _placed(items: ItemSet, ranges: list[Range]) -> Iterator[tuple[Range, int, int]]:
    """Yield each range with the ranks of its bounds in `items`."""
    lower = items.rank(ZERO)
    for piece in ranges:
        upper = items.rank(piece.upper)
        yield piece, lower, upper
        lower = upper


def _bound_between(items: ItemSet, rank: int) -> Bound:
    """Return the shortest bound between the item of `rank`, at or after it, and the one before."""
    before, after = items.item(rank - 1), items.item(rank)
    if before.seconds != after.seconds:
        return Bound(after.seconds, b"")
    shared = next(place for place in range(ID_BYTES) if before.packet_id[place] != after.packet_id[place])
    return Bound(after.seconds, after.packet_id[: shared + 1])


def _each_id(ids: bytes) -> Iterator[bytes]:
    return (ids[start : start + ID_BYTES] for start in range(0, len(ids), ID_BYTES))


def _checked_limit(frame_limit: int) -> int:
    if not MIN_FRAME_BYTES <= frame_limit <= MAX_FRAME_BYTES:
        raise ValueError(f"frame limit of {frame_limit!r} bytes, expected {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")
    return frame_limit
