"""Bytes of a frame to a message and back, strictly.

A message is one MessagePack array in its shortest encoding, with exactly the fields of its kind (Welcome may have more). The
check for shortness is to encode what was read and to compare: there is one encoding of a value, so whatever differs had
another one. That also finds what the decoder would have let pass, such as bytes after the end.

Rows of Packets and Result are kept as they came. A row of Packets is opened by `decode_row` when its batch is judged; a
malformed one is only Acked `malformed`, but the framing around it is held to the rules like everything else.

Nothing here trusts a declared length: the decoder fails at the end of the data before it allocates for what was promised.

Called by the session for each decrypted frame, and by the handshake. Source: docs/protocol.md, section 5.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, Goodbye, RemoteProtocolError
from federation.protocol.limits import Limits
from federation.protocol.messages import (
    FIRST_EXTENSION,
    OK,
    Ack,
    Auth,
    Bye,
    Fingerprint,
    GetManifest,
    Have,
    HelloClient,
    HelloServer,
    Interest,
    Manifest,
    Message,
    Natural,
    Packets,
    Ping,
    Pong,
    Prefer,
    Query,
    Reconcile,
    Result,
    Scope,
    Signature,
    Want,
    Welcome,
)

__all__ = ["decode", "decode_row", "encode", "encode_packets", "encode_result", "row_bytes"]

# Everything the decoder raises for bad data: its own tree, invalid UTF-8 in text, and nesting beyond the interpreter's depth.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_MAX_REASON_CHARS = 120
_DEFAULT_LIMITS: Final = Limits()

_BY_NUMBER: Final[dict[int, type[Message]]] = {
    1: HelloClient,
    2: HelloServer,
    3: Auth,
    4: Welcome,
    5: Bye,
    6: Interest,
    7: Scope,
    8: GetManifest,
    9: Manifest,
    10: Reconcile,
    11: Want,
    12: Packets,
    13: Ack,
    14: Have,
    15: Prefer,
    16: Query,
    17: Result,
    18: Ping,
    19: Pong,
}
# What follows the body of a well-formed row: bin 64, an integer of 1 to 9 bytes, bin 32.
_MIN_ROW_REST = 66 + 1 + 34
_MAX_ROW_REST = 66 + 9 + 34
_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_REFUSALS = frozenset(str(code) for code in Code if code.is_refusal)


class _Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes
    signature: Signature
    timestamp: Natural
    key_fingerprint: Fingerprint


_encode: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder().encode
_decode: Final[dict[int, Callable[[bytes], Any]]] = {
    number: msgspec.msgpack.Decoder(message).decode for number, message in _BY_NUMBER.items()
}
_decode_items: Final[Callable[[bytes], list[Raw]]] = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_number: Final[Callable[[Raw], int]] = msgspec.msgpack.Decoder(Natural).decode
_decode_one_row: Final[Callable[[Raw], _Row]] = msgspec.msgpack.Decoder(_Row).decode


def encode(message: Message) -> bytes:
    """Return the one encoding of a message. Nothing is checked: see `messages`."""
    return _encode(message)


def encode_packets(batch: int, envelopes: Iterable[Envelope], gone: Sequence[bytes]) -> bytes:
    """Return an encoded Packets message; the caller keeps to 256 envelopes and 192 KiB of bodies."""
    return _encode((12, batch, [_row(envelope) for envelope in envelopes], gone))


def encode_result(number: int, code: str, envelopes: Iterable[Envelope], cursor: str | None) -> bytes:
    """Return an encoded Result message; the caller keeps to 100 envelopes and 192 KiB of bodies."""
    return _encode((17, number, code, [_row(envelope) for envelope in envelopes], cursor))


def decode(data: bytes, limits: Limits = _DEFAULT_LIMITS) -> Message | None:
    """Return the message in a frame, or None for an extension (a number from 64 on), which is to be ignored.

    Raises:
        RemoteProtocolError: Anything but one well-formed message within its bounds; `goodbye` says which kind of fault.

    Source: docs/protocol.md, section 5.
    """
    if len(data) > limits.frame_bytes:
        raise RemoteProtocolError(f"frame of {len(data)} bytes, at most {limits.frame_bytes}", Goodbye.TOO_LARGE)
    number = _peek_number(data)
    if number not in _BY_NUMBER:
        _check_extension(data)
        return None
    name = _BY_NUMBER[number].__name__
    try:
        message: Message
        if number == 4:
            message = _decode_welcome(data)
        else:
            message = _decode[number](data)
            if _encode(message) != data:
                raise RemoteProtocolError(f"{name}: not in its shortest encoding")
    except _DECODE_ERRORS as error:
        raise RemoteProtocolError(f"{name}: {_safe(error)}") from None
    _check(message, limits)
    return message


def decode_row(raw: Raw) -> Envelope | None:
    """Return the envelope in one row of Packets or Result, untrusted, or None when the row is malformed.

    The body may have any length a frame allows: whether it is `too-large` is the packet's own check.
    """
    try:
        row = _decode_one_row(raw)
        if _encode(row) != bytes(raw):
            return None
    except _DECODE_ERRORS:
        return None
    return Envelope(row.body, row.signature, row.timestamp, row.key_fingerprint)


def row_bytes(raw: Raw) -> int:
    """Return how many canonical bytes a row counts for in batches and windows, from its first bytes alone.

    That is the length of its body; for a row that cannot have the right shape the length of all of it, so that no junk passes
    beside the windows.
    """
    view = memoryview(raw)
    width = _BIN_LENGTH_BYTES.get(view[1]) if len(view) > _MIN_ROW_REST else None
    if width is None:
        return len(view)
    size = int.from_bytes(view[2 : 2 + width])
    rest = len(view) - 2 - width - size
    return size if _MIN_ROW_REST <= rest <= _MAX_ROW_REST else len(view)


def _row(envelope: Envelope) -> tuple[bytes, bytes, int, bytes]:
    return (envelope.body, envelope.signature, envelope.timestamp, envelope.key_fingerprint)


def _peek_number(data: bytes) -> int | None:
    """Return the message number if it stands where every known message has it, without reading further."""
    if not data:
        return None
    head = data[0]
    at = 1 if 0x90 <= head <= 0x9F else 3 if head == 0xDC else 5 if head == 0xDD else None
    if at is None or len(data) <= at or data[at] > 0x7F:
        return None
    return data[at]


def _check_extension(data: bytes) -> None:
    """Return if this is one well-formed array whose number is from 64 on; of what follows it only the framing is looked at."""
    try:
        items = _decode_items(data)
        number = _decode_number(items[0]) if items else 0
        exact = bool(items) and _encode(items) == data and _encode(number) == bytes(items[0])
    except _DECODE_ERRORS as error:
        raise RemoteProtocolError(f"no message: {_safe(error)}") from None
    if not exact:
        raise RemoteProtocolError("no message: not an array in its shortest encoding that begins with a number")
    if number < FIRST_EXTENSION:
        raise RemoteProtocolError(f"unknown message number {number}")


def _decode_welcome(data: bytes) -> Welcome:
    """Return the part of a Welcome that is known here; what follows it must only be well-formed."""
    items = _decode_items(data)
    known = _encode(items[: len(Welcome.__struct_fields__) + 1])
    welcome: Welcome = _decode[4](known)
    if _encode(items) != data or _encode(welcome) != known:
        raise RemoteProtocolError("Welcome: not in its shortest encoding")
    return welcome


def _check(message: Message, limits: Limits) -> None:
    """Hold a message to the bounds that its type does not express."""
    match message:
        case Packets(rows=rows, gone=gone):
            _at_most("Packets: envelopes", len(rows), limits.batch_packets)
            _at_most("Packets: bytes", sum(map(row_bytes, rows)), limits.batch_bytes)
            # Each of them answers a Want.
            _at_most("Packets: gone ids", len(gone), limits.wants)
        case Ack(codes=codes):
            _at_most("Ack: codes", len(codes), limits.batch_packets)
        case Want(ids=ids):
            # More than the whole window at once, so it is beyond it whatever is open.
            _at_most("Want: ids", len(ids), limits.wants, Goodbye.OVERRUN)
        case Have(rows=pairs):
            _at_most("Have: rows", len(pairs), limits.have_rows)
        case Interest(rows=counted):
            _at_most("Interest: rows", len(counted), limits.scope_rows)
            _once("Interest", [row[0] for row in counted])
        case Scope(rows=offered):
            _at_most("Scope: rows", len(offered), limits.scope_rows)
            _once("Scope", [row[0] for row in offered])
        case Reconcile(frame=frame):
            _at_most("Reconcile: bytes", len(frame), limits.reconcile_frame_bytes, Goodbye.TOO_LARGE)
        case Result(code=code, rows=rows):
            if code != OK and code not in _REFUSALS:
                raise RemoteProtocolError("Result: unknown code")
            if any(decode_row(row) is None for row in rows):
                raise RemoteProtocolError("Result: malformed envelope")
            _at_most("Result: bytes", sum(map(row_bytes, rows)), limits.batch_bytes)


def _at_most(what: str, count: int, most: int, goodbye: Goodbye = Goodbye.PROTOCOL) -> None:
    if count > most:
        raise RemoteProtocolError(f"{what} {count}, at most {most}", goodbye)


def _once(name: str, origins: list[bytes]) -> None:
    if len(set(origins)) != len(origins):
        raise RemoteProtocolError(f"{name}: an origin twice")


def _safe(error: Exception) -> str:
    """Return the decoder's words, fit to be sent and logged: they may quote the sender, so printable ASCII only and short."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "text is not UTF-8"
    return "".join(char if " " <= char <= "~" else "?" for char in str(error)[:_MAX_REASON_CHARS])
