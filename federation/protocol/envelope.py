"""Envelopes: who signed which bytes, when, with which key.

On a link an envelope is binary (`Envelope`); people, files and APIs see the same four things as JSON. The
signature covers the packet's canonical bytes as they are: nothing is serialised again to be verified,
stored or passed on. Only the JSON form is read back through `canonicalize`, because an editor may have
laid it out anew, and whatever differs in meaning then fails the signature.

An `Envelope` may be made by anyone and proves nothing. A `VerifiedPacket` comes only from `verify_packet` and
`verify_parsed`, or from worker processes that check the same; what stores packets takes nothing else.

Source: docs/protocol.md, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from federation.protocol.canonical import JSONValue, canonicalize, parse
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import KIB, MAX_NESTING, MAX_SAFE_INTEGER
from federation.protocol.packet import Packet, packet_from_fields, parse_packet
from keys.ed25519 import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    InvalidKeyError,
    InvalidSignatureError,
    KeyPair,
    check_public_key,
    sign,
    verify,
)
from keys.encoding import EncodingError, KeyFingerprint, fingerprint_of, parse_hex, short

__all__ = [
    "MAX_ENVELOPE_JSON_BYTES",
    "Envelope",
    "VerifiedPacket",
    "check_envelope",
    "envelope_from_json",
    "envelope_to_json",
    "sign_packet",
    "signing_input",
    "verify_packet",
    "verify_parsed",
]

LABEL = b"arklattice/packet/v1\n"

KEY_FINGERPRINT_BYTES = 32
# A JSON envelope as people lay it out: four times the largest packet leaves room for blanks and escapes.
# A longer file is refused before it is read as JSON.
MAX_ENVELOPE_JSON_BYTES = 256 * KIB

_JSON_FIELDS = frozenset({"packet", "signature", "timestamp", "key"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """A packet's bytes and a claim about who signed them; untrusted."""

    body: bytes
    """Canonical bytes of the packet."""
    signature: bytes
    """64 bytes, Ed25519."""
    timestamp: int
    """Time of signing by the signer's clock, ms since the Unix epoch."""
    key_fingerprint: KeyFingerprint
    """Of the key that is said to have signed."""


@dataclass(frozen=True, slots=True)
class VerifiedPacket:
    """A packet and the envelope that proves who signed it."""

    packet: Packet
    envelope: Envelope


def signing_input(timestamp: int, body: bytes) -> bytes:
    """Return the bytes a packet's signature covers: label, decimal timestamp (ms), line feed, canonical bytes."""
    return LABEL + str(timestamp).encode("ascii") + b"\n" + body


def sign_packet(signing_key: KeyPair, packet: Packet | Mapping[str, JSONValue], *, timestamp: int) -> Envelope:
    """Return the envelope of `packet`, a JSON object or one already parsed, signed at `timestamp` (ms).

    Raises:
        PacketError: The packet breaks a rule of its format, or the timestamp is none.
    """
    if not isinstance(packet, Packet):
        packet = packet_from_fields(packet)
    _check_timestamp(timestamp)
    signature = sign(signing_key, signing_input(timestamp, packet.body))
    return Envelope(packet.body, signature, timestamp, signing_key.fingerprint)


def verify_packet(envelope: Envelope, verify_key: bytes) -> VerifiedPacket:
    """Return the packet if `verify_key` (32 bytes) signed exactly these bytes at this timestamp.

    That the key is the origin's is the caller's knowledge: it takes the key from what it holds for that origin.

    Raises:
        PacketError: As `parse_packet`; MALFORMED for a timestamp or a field of another size; UNKNOWN_KEY when the
            envelope names another key; BAD_SIGNATURE.
    """
    check_envelope(envelope)
    return verify_parsed(parse_packet(envelope.body), envelope, verify_key)


def verify_parsed(packet: Packet, envelope: Envelope, verify_key: bytes) -> VerifiedPacket:
    """Do what `verify_packet` does for an envelope that is checked and parsed already.

    Raises:
        PacketError: UNKNOWN_KEY, BAD_SIGNATURE.
    """
    if packet.body != envelope.body:
        raise PacketError(Code.BAD_SIGNATURE, "the envelope holds another packet")
    if type(verify_key) is not bytes or len(verify_key) != PUBLIC_KEY_BYTES:
        raise PacketError(Code.UNKNOWN_KEY, f"a verify key has {PUBLIC_KEY_BYTES} bytes, this one has not")
    if fingerprint_of(verify_key) != envelope.key_fingerprint:
        raise PacketError(Code.UNKNOWN_KEY, "the envelope names another key than the one to verify with")
    try:
        verify(verify_key, signing_input(envelope.timestamp, envelope.body), envelope.signature)
    except InvalidSignatureError:
        raise PacketError(Code.BAD_SIGNATURE, "the signature is not the key's over this packet and timestamp") from None
    return VerifiedPacket(packet, envelope)


def check_envelope(envelope: Envelope) -> None:
    """Return if the fields around the packet have the types and sizes of an envelope; PacketError MALFORMED if not."""
    if type(envelope.body) is not bytes:
        raise PacketError(Code.MALFORMED, "the packet is not bytes")
    if type(envelope.signature) is not bytes or len(envelope.signature) != SIGNATURE_BYTES:
        raise PacketError(Code.MALFORMED, f"a signature has {SIGNATURE_BYTES} bytes, this one has not")
    if type(envelope.key_fingerprint) is not bytes or len(envelope.key_fingerprint) != KEY_FINGERPRINT_BYTES:
        raise PacketError(Code.MALFORMED, f"a key fingerprint has {KEY_FINGERPRINT_BYTES} bytes, this one has not")
    _check_timestamp(envelope.timestamp)


def envelope_to_json(envelope: Envelope, public_key: bytes) -> bytes:
    """Return the JSON envelope, canonical, with the packet's bytes in it as they are.

    `public_key` is the one that signed, 32 bytes; its fingerprint is the envelope's.
    """
    before = f'{{"key":"{public_key.hex()}","packet":'
    after = f',"signature":"{envelope.signature.hex()}","timestamp":{envelope.timestamp}}}'
    return before.encode("ascii") + envelope.body + after.encode("ascii")


def envelope_from_json(data: bytes) -> tuple[Envelope, bytes]:
    """Return the envelope of a JSON document, however laid out, and the public key it names; nothing is verified.

    The packet in it is brought into canonical form; whether it then follows the packet's rules, and whether the
    signature holds, `verify_packet` says.

    Raises:
        PacketError: TOO_LARGE for a document beyond 256 KiB or a packet beyond 64 KiB; MALFORMED when it is not
            exactly an object with packet, signature, timestamp and key; NOT_CANONICAL for what has no canonical form.
    """
    # The packet may nest as deep as any packet, one level inside the envelope.
    value = parse(data, max_bytes=MAX_ENVELOPE_JSON_BYTES, max_nesting=MAX_NESTING + 1)
    if type(value) is not dict or value.keys() != _JSON_FIELDS:
        raise PacketError(Code.MALFORMED, f"an envelope is a JSON object with exactly {', '.join(sorted(_JSON_FIELDS))}")
    if type(value["packet"]) is not dict:
        raise PacketError(Code.MALFORMED, f"packet is {short(value['packet'])}, not an object")
    _check_timestamp(value["timestamp"])
    try:
        signature = parse_hex(value["signature"], size=SIGNATURE_BYTES)
        public_key = parse_hex(value["key"], size=PUBLIC_KEY_BYTES)
        check_public_key(public_key)
    except (EncodingError, InvalidKeyError) as error:
        raise PacketError(Code.MALFORMED, f"signature or key of the envelope: {error}") from None
    body = canonicalize(value["packet"])
    return Envelope(body, signature, value["timestamp"], fingerprint_of(public_key)), public_key


def _check_timestamp(timestamp: JSONValue) -> None:
    if type(timestamp) is not int or not 0 <= timestamp <= MAX_SAFE_INTEGER:
        raise PacketError(Code.MALFORMED, "the timestamp is no time: expected ms since 1970, an integer from 0 to 2^53-1")
