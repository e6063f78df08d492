"""The knowledge packet: a JSON object in its canonical bytes, and the rules of its fields.

The bytes are the packet. They are checked once, here, in the order of docs/protocol.md, section 2 (size, JSON,
shape, version, canonical form, fields), named by their SHA-256, signed, stored and passed on as they are.
`Packet` beside them holds what the program asks about; `document` and `content` read the bytes again.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NewType

import orjson

from federation.protocol.canonical import JSONValue, canonicalize, decode, require_canonical
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import (
    MAX_DEPENDS_ON,
    MAX_KIND_CHARS,
    MAX_NESTING,
    MAX_PACKET_BYTES,
    MAX_SAFE_INTEGER,
    MAX_SOURCE_CHARS,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TITLE_CHARS,
)
from keys.encoding import NodeId, short
from peers.trust import Audience

__all__ = ["VERSION", "Packet", "PacketId", "PacketMould", "build_packet", "packet_from_fields", "packet_id_of", "parse_packet"]

PacketId = NewType("PacketId", bytes)
"""32 bytes: SHA-256 of the canonical bytes."""

VERSION = 1

# Ids in one `ark.vouch`: what fits into a packet of 64 KiB.
MAX_VOUCHED = 900

_RESERVED_PREFIX = "ark."
_RETRACT = "ark.retract"
_VOUCH = "ark.vouch"
# Known names that version 1 gives no meaning yet: a node that guessed one would disagree with those that come.
_RESERVED_FIELDS = ("attachments", "recipients")

_is_node_id = re.compile(r"[0-9a-f]{32}").fullmatch
_is_packet_id = re.compile(r"[0-9a-f]{64}").fullmatch
_is_kind = re.compile(rf"[a-z0-9._-]{{1,{MAX_KIND_CHARS}}}").fullmatch
_AUDIENCES = {audience.value: audience for audience in Audience}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that follows every rule of its format; who signed it is still unproven.

    Made by `parse_packet` and the functions below, so that `packet_id` and all fields are those of `body`.
    """

    body: bytes
    """Canonical bytes, as signed; at most 65,536."""
    packet_id: PacketId
    origin: NodeId
    """Who is said to have signed it."""
    kind: str
    created_at: int
    """Milliseconds since the Unix epoch, by the origin's clock."""
    audience: Audience
    title: str
    """Empty when absent. It may hold any character, U+0000 too, which some databases refuse."""
    tags: tuple[str, ...]
    source: str | None
    confidence: float | None
    depends_on: tuple[PacketId, ...]
    supersedes: PacketId | None
    expires_at: int | None
    """Milliseconds since the Unix epoch."""

    def document(self) -> dict[str, JSONValue]:
        """Return the whole JSON object, unknown keys included; read anew from the bytes at each call."""
        document: dict[str, JSONValue] = orjson.loads(self.body)
        return document

    def content(self) -> JSONValue:
        """Return `content`, read anew from the bytes at each call."""
        return self.document()["content"]


def packet_id_of(body: bytes) -> PacketId:
    """Return the id that packets with these canonical bytes have."""
    return PacketId(sha256(body).digest())


def parse_packet(body: bytes) -> Packet:
    """Return the packet whose canonical bytes are `body`.

    Raises:
        PacketError: In this order TOO_LARGE; MALFORMED when it is no JSON or no object with `v` and `origin`;
            UNSUPPORTED for another version; NOT_CANONICAL; MALFORMED for a field against its rule;
            UNSUPPORTED for reserved fields and kinds.

    Source: docs/protocol.md, section 2.
    """
    value, canonical = decode(body)
    _check_version(value)
    if not canonical:
        require_canonical(body, value)
    return _read_fields(body, value)


def packet_from_fields(fields: Mapping[str, JSONValue]) -> Packet:
    """Return the packet of a JSON object, unknown keys included, under the rules of `parse_packet`.

    Raises:
        PacketError: As `canonicalize` and `parse_packet`.
    """
    return parse_packet(canonicalize(dict(fields)))


def build_packet(
    *,
    origin: NodeId,
    kind: str,
    content: JSONValue,
    created_at: int,
    title: str | None = None,
    tags: tuple[str, ...] | list[str] = (),
    audience: Audience | None = None,
    source: str | None = None,
    confidence: float | None = None,
    depends_on: tuple[PacketId, ...] | list[PacketId] = (),
    supersedes: PacketId | None = None,
    expires_at: int | None = None,
) -> Packet:
    """Return a new packet; what is None or empty is left out. Times are ms since the Unix epoch.

    Raises:
        PacketError: As `canonicalize` and `parse_packet`: publishing follows the rules of receipt.
    """
    optional = {
        "title": title,
        "tags": list(tags) or None,
        "audience": None if audience is None else audience.value,
        "source": source,
        "confidence": confidence,
        "depends_on": [packet_id.hex() for packet_id in depends_on] or None,
        "supersedes": None if supersedes is None else supersedes.hex(),
        "expires_at": expires_at,
    }
    return packet_from_fields(
        {
            "v": VERSION,
            "origin": origin.hex(),
            "kind": kind,
            "created_at": created_at,
            "content": content,
            **{name: value for name, value in optional.items() if value is not None},
        }
    )


class PacketMould:
    """What many packets have in common, checked once: all but their content and their time.

    Canonical bytes are keys in a fixed order without blanks, so packets that differ in two fields alone differ
    in the bytes of these two.

    Args:
        like: A packet of this kind, from `build_packet`. It names no keys but those of docs/protocol.md, section 2, of
            which `content` and `created_at` are neighbours.
    """

    def __init__(self, like: Packet) -> None:
        fields = like.document()
        variable = b'"content":%b,"created_at":%d' % (canonicalize(fields["content"]), like.created_at)
        # A quote stands unescaped only where a string begins or ends: no text within a string looks like this.
        self._before, found, self._after = like.body.partition(variable)
        if not found:
            raise ValueError("a packet with other keys than those of build_packet")
        self._like = like

    def cast(self, content: JSONValue, created_at: int) -> Packet:
        """Return the packet that `build_packet` would, for a third of its time.

        Raises:
            PacketError: TOO_LARGE; as `canonicalize` for the content; MALFORMED for what is no time.
        """
        like = self._like
        variable = b'"content":%b,"created_at":%d' % (
            canonicalize(content, max_nesting=MAX_NESTING - 1),
            _time("created_at", created_at),
        )
        body = self._before + variable + self._after
        if len(body) > MAX_PACKET_BYTES:
            raise PacketError(Code.TOO_LARGE, f"{len(body)} canonical bytes, at most {MAX_PACKET_BYTES} are allowed")
        return Packet(
            body,
            packet_id_of(body),
            like.origin,
            like.kind,
            created_at,
            like.audience,
            like.title,
            like.tags,
            like.source,
            like.confidence,
            like.depends_on,
            like.supersedes,
            like.expires_at,
        )


def _check_version(value: JSONValue) -> None:
    """What every version is bound to: an object with `v`, an integer, and `origin`, a string."""
    if type(value) is not dict:
        raise PacketError(Code.MALFORMED, "a packet is a JSON object")
    if "v" not in value or "origin" not in value:
        raise PacketError(Code.MALFORMED, "a packet has v and origin")
    version = value["v"]
    # 1.0 is the integer 1 in JSON; that it is not written so is the next check's matter.
    if not (type(version) is int or (type(version) is float and version.is_integer())):
        raise PacketError(Code.MALFORMED, f"v is {short(version)}, not an integer")
    if not isinstance(value["origin"], str):
        raise PacketError(Code.MALFORMED, f"origin is {short(value['origin'])}, not a string")
    if version != VERSION:
        raise PacketError(Code.UNSUPPORTED, f"packet version {short(version)} is not known here")


def _read_fields(body: bytes, fields: dict[str, JSONValue]) -> Packet:
    origin = fields["origin"]
    if not _is_node_id(origin):
        raise _wrong("origin", origin, "a node_id, 32 hex digits")
    for name in ("kind", "created_at", "content"):
        if name not in fields:
            raise PacketError(Code.MALFORMED, f"{name} is missing")
    kind = fields["kind"]
    if type(kind) is not str or not _is_kind(kind):
        raise _wrong("kind", kind, f"1 to {MAX_KIND_CHARS} of a-z 0-9 . _ -")
    packet = Packet(
        body=body,
        packet_id=packet_id_of(body),
        origin=NodeId(bytes.fromhex(origin)),
        kind=kind,
        created_at=_time("created_at", fields["created_at"]),
        audience=_audience(fields["audience"]) if "audience" in fields else Audience.CORE,
        title=_text("title", fields["title"], MAX_TITLE_CHARS) if "title" in fields else "",
        tags=_tags(fields["tags"]) if "tags" in fields else (),
        source=_text("source", fields["source"], MAX_SOURCE_CHARS) if "source" in fields else None,
        confidence=_confidence(fields["confidence"]) if "confidence" in fields else None,
        depends_on=_packet_ids("depends_on", fields["depends_on"], MAX_DEPENDS_ON) if "depends_on" in fields else (),
        supersedes=_packet_id("supersedes", fields["supersedes"]) if "supersedes" in fields else None,
        expires_at=_time("expires_at", fields["expires_at"]) if "expires_at" in fields else None,
    )
    if kind.startswith(_RESERVED_PREFIX):
        _decline_reserved_kind(kind, fields["content"])
    for name in _RESERVED_FIELDS:
        if name in fields:
            raise PacketError(Code.UNSUPPORTED, f"{name} is reserved and not known here")
    return packet


def _decline_reserved_kind(kind: str, content: JSONValue) -> None:
    """Raise for every `ark.` kind: MALFORMED when its shape is known and wrong, else UNSUPPORTED."""
    shape = _RESERVED_SHAPES.get(kind)
    if shape is not None:
        if type(content) is not dict:
            raise _wrong("content", content, f"an object in {kind}")
        shape(content)
    raise PacketError(Code.UNSUPPORTED, f"kind {kind} is not known here")


def _check_retract(content: dict[str, JSONValue]) -> None:
    _packet_id("target", content.get("target"))
    if not isinstance(content.get("reason"), str):
        raise _wrong("reason", content.get("reason"), "a string")


def _check_vouch(content: dict[str, JSONValue]) -> None:
    _packet_ids("ids", content.get("ids"), MAX_VOUCHED)


_RESERVED_SHAPES: dict[str, Callable[[dict[str, JSONValue]], None]] = {_RETRACT: _check_retract, _VOUCH: _check_vouch}


def _time(name: str, value: JSONValue) -> int:
    # type() and not isinstance(): in Python a boolean is an int, in a packet it is no time.
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INTEGER:
        raise _wrong(name, value, "milliseconds since 1970, an integer from 0 to 2^53-1")
    return value


def _text(name: str, value: JSONValue, max_chars: int) -> str:
    if type(value) is not str or len(value) > max_chars:
        raise _wrong(name, value, f"a string of at most {max_chars} characters")
    return value


def _tags(value: JSONValue) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_TAGS:
        raise _wrong("tags", value, f"a list of at most {MAX_TAGS} strings")
    return tuple(_text("a tag", tag, MAX_TAG_CHARS) for tag in value)


def _audience(value: JSONValue) -> Audience:
    audience = _AUDIENCES.get(value) if type(value) is str else None
    if audience is None:
        raise _wrong("audience", value, "private, core or public")
    return audience


def _confidence(value: JSONValue) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _wrong("confidence", value, "a number from 0 to 1")
    return float(value)


def _packet_ids(name: str, value: JSONValue, max_ids: int) -> tuple[PacketId, ...]:
    if type(value) is not list or len(value) > max_ids:
        raise _wrong(name, value, f"a list of at most {max_ids} packet ids")
    return tuple(_packet_id(name, packet_id) for packet_id in value)


def _packet_id(name: str, value: JSONValue) -> PacketId:
    if type(value) is not str or not _is_packet_id(value):
        raise _wrong(name, value, "a packet id, 64 hex digits")
    return PacketId(bytes.fromhex(value))


def _wrong(name: str, value: JSONValue, expected: str) -> PacketError:
    return PacketError(Code.MALFORMED, f"{name} is {short(value)}, expected {expected}")
