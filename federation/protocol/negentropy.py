"""Frames of Negentropy Protocol V1: varints, bounds, ranges and fingerprints, strictly read.

A frame is the version byte 0x61 and adjacent ranges in ascending order, each with its upper bound
(lower bound inclusive, upper exclusive; the first begins at zero). What lies past the last one is an
implicit Skip. This reader accepts one spelling of each frame: longest-first varints with no idle digit,
bounds that never go back, nothing after the range that reaches infinity. Whatever else arrives raises
ReconcileError, and costs no more than reading the frame once.

Source: docs/protocol.md, section 6; Negentropy Protocol V1 (hoytech/negentropy).
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

from federation.protocol.errors import Goodbye, RemoteProtocolError

__all__ = [
    "FINGERPRINT_BYTES",
    "ID_BYTES",
    "INFINITY",
    "MAX_FRAME_BYTES",
    "VERSION",
    "ZERO",
    "Bound",
    "Fingerprint",
    "IdList",
    "Range",
    "ReconcileError",
    "Skip",
    "encode_ranges",
    "encode_varint",
    "fingerprint_of_sum",
    "parse_frame",
]

VERSION: Final = 0x61
ID_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
# Every node accepts frames up to this size, whatever it sends itself: it bounds what one frame can cost.
MAX_FRAME_BYTES: Final = 60_000

MODE_SKIP: Final = 0
MODE_FINGERPRINT: Final = 1
MODE_ID_LIST: Final = 2

# Seconds are 64-bit; the largest value is the specification's infinity.
INFINITE_SECONDS: Final = 2**64 - 1
SUM_MASK: Final = 2**256 - 1


class ReconcileError(RemoteProtocolError):
    """A reconciliation frame that no correct peer sends; it ends the link."""


class Bound(NamedTuple):
    """A place between items: at or after it lie items of later seconds, or of these with ids from `prefix` on."""

    seconds: int
    prefix: bytes  # 0 to 32 bytes; the rest of the id counts as zero


class Skip(NamedTuple):
    """The sender has nothing more to say about this range."""

    upper: Bound


class Fingerprint(NamedTuple):
    """What the sender's ids in this range add up to, with their number, in 16 bytes."""

    upper: Bound
    digest: bytes


class IdList(NamedTuple):
    """All the sender's ids in this range, 32 bytes each, end to end."""

    upper: Bound
    ids: bytes


Range = Skip | Fingerprint | IdList

ZERO: Final = Bound(0, b"")
INFINITY: Final = Bound(INFINITE_SECONDS, b"")


def fingerprint_of_sum(id_sum: int, count: int) -> bytes:
    """Return the 16-byte fingerprint of `count` ids whose sum, as little-endian numbers, is `id_sum`.

    The sum is taken modulo 2^256 here; any multiple of it may still be in `id_sum`.
    """
    return sha256((id_sum & SUM_MASK).to_bytes(ID_BYTES, "little") + encode_varint(count)).digest()[:FINGERPRINT_BYTES]


def encode_varint(value: int) -> bytes:
    """Return a non-negative integer in base 128, most significant digit first, high bit set on all but the last."""
    if value < 0x80:
        return bytes((value,))
    digits = [value & 0x7F]
    value >>= 7
    while value:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.reverse()
    return bytes(digits)


def encode_ranges(ranges: Iterable[Range], seconds: int) -> tuple[bytes, int]:
    """Return the bytes of `ranges` and the seconds that the next bound of the same frame counts from.

    Args:
        ranges: Adjacent, ascending.
        seconds: Seconds of the last bound of the frame so far; 0 at its start.
    """
    out = bytearray()
    for piece in ranges:
        upper = piece.upper
        if upper.seconds == INFINITE_SECONDS:
            out.append(0)
        else:
            out += encode_varint(upper.seconds - seconds + 1)
            seconds = upper.seconds
        out.append(len(upper.prefix))
        out += upper.prefix
        match piece:
            case Skip():
                out.append(MODE_SKIP)
            case Fingerprint(digest=digest):
                out.append(MODE_FINGERPRINT)
                out += digest
            case IdList(ids=ids):
                out.append(MODE_ID_LIST)
                out += encode_varint(len(ids) // ID_BYTES)
                out += ids
    return bytes(out), seconds


def parse_frame(frame: bytes) -> list[Range]:
    """Return the ranges of a received frame.

    Raises:
        ReconcileError: The frame is not one that Negentropy V1 can produce, or is longer than 60,000 bytes.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise ReconcileError(f"reconcile frame of {len(frame)} bytes, limit {MAX_FRAME_BYTES}", Goodbye.TOO_LARGE)
    if not frame or frame[0] != VERSION:
        raise ReconcileError(f"reconcile frame starts with {frame[:1].hex()!r}, expected '61'")
    ranges: list[Range] = []
    reader = _Reader(frame)
    while reader.offset < len(frame):
        upper = reader.bound()
        mode = reader.varint()
        if mode == MODE_SKIP:
            ranges.append(Skip(upper))
        elif mode == MODE_FINGERPRINT:
            ranges.append(Fingerprint(upper, reader.take(FINGERPRINT_BYTES)))
        elif mode == MODE_ID_LIST:
            ranges.append(IdList(upper, reader.take(reader.varint() * ID_BYTES)))
        else:
            raise ReconcileError(f"reconcile range of unknown mode {mode}")
    return ranges


class _Reader:
    """Cursor over one frame."""

    __slots__ = ("_frame", "_prefix", "_seconds", "offset")

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self.offset = 1  # past the version byte
        # The last bound read; its prefix is padded, so that two spellings of one place compare as equal.
        self._seconds = 0
        self._prefix = bytes(ID_BYTES)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; a claimed size beyond the frame is refused before anything is allocated."""
        end = self.offset + size
        if end > len(self._frame):
            raise ReconcileError(f"reconcile frame ends {end - len(self._frame)} bytes early")
        data = self._frame[self.offset : end]
        self.offset = end
        return data

    def varint(self) -> int:
        """Return the next number: below 2^64, in as few digits as possible."""
        value = 0
        start = self.offset
        while True:
            if self.offset == len(self._frame):
                raise ReconcileError("reconcile frame ends within a number")
            digit = self._frame[self.offset]
            self.offset += 1
            value = value << 7 | digit & 0x7F
            # Checked at each digit: a frame of 0xff bytes must not grow a number of 50,000 bytes.
            if value > INFINITE_SECONDS:
                raise ReconcileError("reconcile number of more than 64 bits")
            if digit < 0x80:
                return value
            if digit == 0x80 and self.offset == start + 1:
                raise ReconcileError("reconcile number with an idle leading digit")

    def bound(self) -> Bound:
        """Return the next upper bound: never before the last one, and nothing after infinity."""
        if self._seconds == INFINITE_SECONDS:
            raise ReconcileError("reconcile frame goes on after the range to infinity")
        step = self.varint()
        seconds = INFINITE_SECONDS if step == 0 else self._seconds + step - 1
        size = self.varint()
        if size > ID_BYTES:
            raise ReconcileError(f"reconcile bound with an id prefix of {size} bytes, at most {ID_BYTES}")
        prefix = self.take(size)
        if step == 0:
            if prefix:
                raise ReconcileError("reconcile bound at infinity with an id prefix")
        elif seconds >= INFINITE_SECONDS:
            raise ReconcileError("reconcile bound of more than 64 bits")
        padded = prefix.ljust(ID_BYTES, b"\0")
        if seconds == self._seconds and padded < self._prefix:
            raise ReconcileError("reconcile bounds out of order")
        self._seconds = seconds
        self._prefix = padded
        return Bound(seconds, prefix)
