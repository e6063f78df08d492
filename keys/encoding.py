"""How identities are written down: strict hex, fingerprints, node ids and contact cards.

    EncodingError       text that is not what it should be; the message names it, cut short

Nothing here knows a secret: `EncodingError` quotes the value it refuses, so key files are
never parsed with these functions (keys/files.py has its own, silent ones).

Source: docs/protocol.md, section 1.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NewType

import rfc8785

__all__ = [
    "MAX_CARD_ADDRESSES",
    "MAX_CARD_ADDRESS_CHARS",
    "MAX_CARD_CHARS",
    "MAX_NAME_CHARS",
    "NODE_ID_BYTES",
    "PUBLIC_KEY_BYTES",
    "ContactCard",
    "EncodingError",
    "KeyFingerprint",
    "NodeId",
    "fingerprint_of",
    "grouped",
    "node_id_of",
    "parse_fingerprint",
    "parse_hex",
    "parse_node_id",
    "short",
]

NodeId = NewType("NodeId", bytes)
"""16 bytes: who a node is, whatever key it signs with today."""

KeyFingerprint = NewType("KeyFingerprint", bytes)
"""32 bytes: SHA-256 of a raw public key."""

NODE_ID_BYTES = 16
FINGERPRINT_BYTES = 32
PUBLIC_KEY_BYTES = 32

NODE_ID_LABEL = b"arklattice/node-id/v1\n"
CARD_LABEL = b"arklattice/card/v1\n"
CARD_PREFIX = "ark1"
CARD_CHECKSUM_DIGITS = 8

# Whole card as text. Fits one QR code with room; a longer one is refused before anything is decoded,
# so that a pasted file costs nothing.
MAX_CARD_CHARS = 2_048
# Addresses in a card; more would crowd the QR code, and each is a place the importer may dial.
MAX_CARD_ADDRESSES = 8
MAX_CARD_ADDRESS_CHARS = 255
# A node's own name wherever it says it: card, beacon, manifest.
MAX_NAME_CHARS = 64

_LOWER_HEX = re.compile(r"[0-9a-f]*")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_ADDRESS = re.compile(r"wss?://[!-~]+")
_CARD_FIELDS = frozenset({"node_id", "name", "public_key", "addresses", "checksum"})
_SHOWN_CHARS = 24


class EncodingError(ValueError):
    """Text that does not say what it should; the message holds it cut short, and what was expected."""


def short(value: object) -> str:
    """Return `repr(value)` cut to a length fit for an error message."""
    if isinstance(value, str | bytes) and len(value) > _SHOWN_CHARS:
        return repr(value[:_SHOWN_CHARS]) + "…"
    text = repr(value)
    return text if len(text) <= 2 * _SHOWN_CHARS else text[: 2 * _SHOWN_CHARS] + "…"


def parse_hex(text: object, *, size: int) -> bytes:
    """Return the `size` bytes written as exactly `2 * size` lower-case hex digits.

    Strict where `bytes.fromhex` is not: no upper case, no blanks, no prefix, nothing skipped.

    Raises:
        EncodingError: Anything else, of whatever type.
    """
    if not isinstance(text, str):
        raise EncodingError(f"{short(text)} is not text: expected {2 * size} hex digits")
    if len(text) != 2 * size:
        raise EncodingError(f"{short(text)} has {len(text)} characters: expected {2 * size} hex digits")
    if _LOWER_HEX.fullmatch(text) is None:
        raise EncodingError(f"{short(text)} is not lower-case hex: expected {2 * size} hex digits 0-9a-f")
    return bytes.fromhex(text)


def parse_node_id(text: object) -> NodeId:
    """Return the node id written as 32 hex digits, or raise EncodingError."""
    return NodeId(parse_hex(text, size=NODE_ID_BYTES))


def parse_fingerprint(text: object) -> KeyFingerprint:
    """Return the key fingerprint written as 64 hex digits, or raise EncodingError."""
    return KeyFingerprint(parse_hex(text, size=FINGERPRINT_BYTES))


def fingerprint_of(public_key: bytes) -> KeyFingerprint:
    """Return SHA-256 of the raw 32-byte public key.

    Raises:
        EncodingError: `public_key` is not 32 bytes.
    """
    return KeyFingerprint(sha256(_raw_key(public_key)).digest())


def node_id_of(first_public_key: bytes) -> NodeId:
    """Return the id of the node whose first key ever was this one; it outlives rotation.

    Raises:
        EncodingError: `first_public_key` is not 32 bytes.
    """
    return NodeId(sha256(NODE_ID_LABEL + _raw_key(first_public_key)).digest()[:NODE_ID_BYTES])


def grouped(fingerprint: bytes) -> str:
    """Return the hex of `fingerprint` in groups of four digits, for two people to compare aloud."""
    digits = fingerprint.hex()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


@dataclass(frozen=True, slots=True)
class ContactCard:
    """What an operator hands to another so that their nodes can meet.

    The checksum catches typing and copying faults only: a card is exactly as trustworthy as the way it came.

    Raises:
        EncodingError: A field that no card may carry.
    """

    node_id: NodeId
    name: str
    """What the node calls itself: 1 to 64 printable characters; shown, never resolved."""
    public_key: bytes
    """The current key, 32 bytes; not the first one after a rotation, so `node_id` need not follow from it."""
    addresses: tuple[str, ...] = ()
    """Where it may be dialled: at most 8 `ws://` or `wss://` URLs."""

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, bytes) or len(self.node_id) != NODE_ID_BYTES:
            raise EncodingError(f"card: node_id {short(self.node_id)} is not {NODE_ID_BYTES} bytes")
        _raw_key(self.public_key)
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= MAX_NAME_CHARS or not self.name.isprintable():
            raise EncodingError(f"card: name {short(self.name)} is not 1 to {MAX_NAME_CHARS} printable characters")
        if len(self.addresses) > MAX_CARD_ADDRESSES:
            raise EncodingError(f"card: {len(self.addresses)} addresses, at most {MAX_CARD_ADDRESSES} fit")
        for address in self.addresses:
            if not isinstance(address, str) or len(address) > MAX_CARD_ADDRESS_CHARS or _ADDRESS.fullmatch(address) is None:
                raise EncodingError(f"card: address {short(address)} is not a ws:// or wss:// URL")

    def encode(self) -> str:
        """Return `ark1` and the card's canonical JSON in base64url without padding.

        Raises:
            EncodingError: The card would pass 2,048 characters.
        """
        rest = self._rest()
        text = CARD_PREFIX + _base64url(rfc8785.dumps({**rest, "checksum": _card_checksum(rest)}))
        if len(text) > MAX_CARD_CHARS:
            raise EncodingError(f"card: {len(text)} characters, at most {MAX_CARD_CHARS} fit; leave out addresses")
        return text

    @classmethod
    def decode(cls, text: str) -> "ContactCard":
        """Return the card that `encode` wrote.

        There is one text for each card: JSON that is not canonical, padding, blanks and unknown fields are refused.

        Raises:
            EncodingError: Anything else than such a card, with what is wrong.
        """
        if not isinstance(text, str) or not text.startswith(CARD_PREFIX):
            raise EncodingError(f"{short(text)} is not a contact card: expected {CARD_PREFIX!r} and base64url")
        if len(text) > MAX_CARD_CHARS:
            raise EncodingError(f"card: {len(text)} characters, at most {MAX_CARD_CHARS} are read")
        encoded = text[len(CARD_PREFIX) :]
        if _BASE64URL.fullmatch(encoded) is None:
            raise EncodingError(f"card: {short(encoded)} is not base64url without padding")
        try:
            document = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            value = json.loads(document.decode("utf-8"))
            canonical = rfc8785.dumps(value)
        except (binascii.Error, UnicodeDecodeError, ValueError, RecursionError):
            raise EncodingError("card: it is damaged (not JSON inside); copy the whole card again") from None
        # Equal bytes rule out duplicate keys, blanks and a second spelling of the base64 at once.
        if canonical != document or _base64url(document) != encoded:
            raise EncodingError("card: not in its canonical form; copy the whole card again")
        return cls._from_json(value)

    @classmethod
    def _from_json(cls, value: object) -> "ContactCard":
        if not isinstance(value, dict) or value.keys() != _CARD_FIELDS:
            raise EncodingError(f"card: expected exactly the fields {', '.join(sorted(_CARD_FIELDS))}")
        rest = {field: item for field, item in value.items() if field != "checksum"}
        if value["checksum"] != _card_checksum(rest):
            raise EncodingError(f"card: checksum {short(value['checksum'])} does not match; copy the whole card again")
        addresses = value["addresses"]
        if not isinstance(addresses, list):
            raise EncodingError(f"card: addresses {short(addresses)} is not a list")
        return cls(
            node_id=parse_node_id(value["node_id"]),
            name=value["name"],
            public_key=parse_hex(value["public_key"], size=PUBLIC_KEY_BYTES),
            addresses=tuple(addresses),
        )

    def _rest(self) -> dict[str, str | list[str]]:
        return {
            "node_id": self.node_id.hex(),
            "name": self.name,
            "public_key": self.public_key.hex(),
            "addresses": list(self.addresses),
        }


def _raw_key(public_key: bytes) -> bytes:
    if not isinstance(public_key, bytes) or len(public_key) != PUBLIC_KEY_BYTES:
        raise EncodingError(f"public key {short(public_key)} is not {PUBLIC_KEY_BYTES} bytes")
    return public_key


def _card_checksum(rest: Mapping[str, object]) -> str:
    return sha256(CARD_LABEL + rfc8785.dumps(dict(rest))).hexdigest()[:CARD_CHECKSUM_DIGITS]  # type: ignore[arg-type]


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
