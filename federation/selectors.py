"""Reading the packet store: what links offer, what commands and the admin show.

Every reader here bears a damaged row (an edited file, a bad disk): it is left out where packets are offered, shown
as damaged where people look, and never stops the others. The signed bytes are the truth; the columns beside them
only find rows.

Errors, all of the operator's question:

    PacketLookupError
    ├── MalformedIdError       not a packet id or a prefix of one
    ├── UnknownPacketError     no such packet here
    ├── AmbiguousPacketError   the prefix fits several
    └── CursorError            not a cursor this node gave out
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
from django.db import DataError, OperationalError
from django.db.models import Max, Model, QuerySet
from django.db.models.functions import Length

from federation import store
from federation.models import KnowledgePacket, PurgedPacket, Refusal
from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, PacketError
from federation.protocol.events import FeedRow, StoredEnvelope
from federation.protocol.packet import Packet, PacketId, parse_packet
from keys.encoding import KeyFingerprint, NodeId
from peers.models import Peer
from peers.trust import Audience, Decision, TrustTable

MIN_PREFIX_DIGITS = 6
# Rows read at once when many are listed: bodies of 64 KiB make this 16 MiB at worst.
ROWS_A_CHUNK = 256
# Refusals shown of one packet; a packet offered by more peers than this is explained well enough.
MAX_REFUSALS_SHOWN = 100

# What turning a damaged row into Python values may raise; sqlite3 has no class of its own for text that is no UTF-8.
_BAD_VALUE = (DataError, ValueError, TypeError, OverflowError)
_SQLITE_BAD_TEXT = "Could not decode to UTF-8"


class PacketLookupError(Exception):
    """What was asked for cannot be found; the message is for the operator."""


class MalformedIdError(PacketLookupError):
    pass


class UnknownPacketError(PacketLookupError):
    pass


class AmbiguousPacketError(PacketLookupError):
    pass


class CursorError(PacketLookupError):
    pass


@dataclass(frozen=True, slots=True)
class StoredPacket:
    """One row as people see it: the packet read from its signed bytes, and its receipt.

    `damage` says what is wrong with the row; `packet` is None then, and the receipt may be empty.
    """

    arrival: int
    packet_id: bytes
    packet: Packet | None
    envelope: Envelope | None
    received_at: int
    received_from: str
    received_rule: str
    hidden: bool
    damage: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the packet row of docs/architecture.md; a damaged one has nulls and a field `damaged`."""
        packet = self.packet
        row: dict[str, Any] = {
            "id": self.packet_id.hex(),
            "origin": packet.origin.hex() if packet else None,
            "kind": packet.kind if packet else None,
            "title": packet.title if packet else None,
            "created_at": packet.created_at if packet else None,
            "received_at": self.received_at,
            "received_from": self.received_from or None,
            "tags": list(packet.tags) if packet else None,
            "audience": packet.audience.value if packet else None,
            "content": packet.content() if packet else None,
        }
        if self.damage:
            row["damaged"] = self.damage
        return row


@dataclass(frozen=True, slots=True)
class PacketFilters:
    """Which packets to list: any of the kinds, all of the tags, any of the origins (hex node_ids).

    `since` (inclusive) and `until` (exclusive) bound `created_at`, in milliseconds; `cursor` goes on behind a row.
    """

    kinds: Sequence[str] = ()
    tags: Sequence[str] = ()
    origins: Sequence[str] = ()
    since: int | None = None
    until: int | None = None
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class WhyReport:
    """Everything this node can say about one packet id.

    `would_send` answers whether the peer asked about would get it from here; None when nobody was named.
    """

    packet_id: PacketId
    stored: StoredPacket | None
    purged_at: datetime | None
    refusals: list[Refusal]
    would_send: Decision | None


def feed_after(arrival: int, limit: int) -> list[FeedRow]:
    """Return at most `limit` packets with a higher arrival number, oldest first, hidden ones marked.

    A row that cannot be read comes as hidden, with zeroes for its ids, so that a reader moves on past it.
    """
    columns = ("arrival", "packet_id", "origin", "audience", "created_at", "size", "received_from", "hidden")
    later = KnowledgePacket.objects.filter(arrival__gt=arrival).order_by("arrival")
    query = later.annotate(size=Length("body")).values_list(*columns)
    rows = _all_or_none(query[:limit])
    if rows is None:
        numbers = later.values_list("arrival", flat=True)[:limit]
        rows = [(_one(query.filter(arrival=number)) or [(number, *[None] * 7)])[0] for number in list(numbers)]
    return [_feed_row(row) for row in rows]


def head_arrival() -> int:
    """Return the highest arrival number, 0 when the store is empty."""
    return KnowledgePacket.objects.aggregate(head=Max("arrival"))["head"] or 0


def load_envelopes(packet_ids: Sequence[bytes]) -> dict[bytes, StoredEnvelope]:
    """Return what may be offered of these: stored, not hidden, and still the bytes their id names."""
    found: dict[bytes, StoredEnvelope] = {}
    for start in range(0, len(packet_ids), store.IDS_A_STATEMENT):
        part = list(packet_ids[start : start + store.IDS_A_STATEMENT])
        query = KnowledgePacket.objects.filter(hidden=False, packet_id__in=part).order_by()
        columns = query.values_list("packet_id", "body", "signature", "timestamp", "key_fingerprint")
        rows = _all_or_none(columns)
        if rows is None:
            rows = [row for packet_id in part for row in _one(columns.filter(packet_id=packet_id))]
        for packet_id, body, signature, timestamp, key_fingerprint in rows:
            envelope = _envelope(body, signature, timestamp, key_fingerprint)
            if envelope is not None and sha256(envelope.body).digest() == bytes(packet_id):
                stored = _stored_envelope(envelope)
                if stored is not None:
                    found[bytes(packet_id)] = stored
    return found


def load_prefix(packet_ids: Sequence[PacketId], max_bytes: int) -> list[tuple[PacketId, StoredEnvelope | None]]:
    """Return the longest prefix of these whose bodies fit `max_bytes`, at least one; None where nothing may be offered.

    Sizes are read first, so that a batch of the largest packets takes no more memory than one message.
    """
    sizes: dict[bytes, int] = {}
    for start in range(0, len(packet_ids), store.IDS_A_STATEMENT):
        part = list(packet_ids[start : start + store.IDS_A_STATEMENT])
        rows = KnowledgePacket.objects.filter(packet_id__in=part).order_by().values_list("packet_id", Length("body"))
        sizes.update((bytes(packet_id), size or 0) for packet_id, size in rows)
    total = 0
    prefix: list[PacketId] = []
    for packet_id in packet_ids:
        total += sizes.get(packet_id, 0)
        if prefix and total > max_bytes:
            break
        prefix.append(packet_id)
    found = load_envelopes(prefix)
    return [(packet_id, found.get(packet_id)) for packet_id in prefix]


def known_ids(packet_ids: Iterable[bytes]) -> set[bytes]:
    """Return those of the ids that must not be fetched: stored, hidden or purged."""
    return set(known_codes(packet_ids))


def known_codes(packet_ids: Iterable[bytes]) -> dict[bytes, Code]:
    """Return what to answer for those of the ids that are known: `duplicate` when stored, `retracted` when purged."""
    asked = list(packet_ids)
    purged = dict.fromkeys(store.present_ids(store.PURGED, asked), Code.RETRACTED)
    return purged | dict.fromkeys(store.present_ids(store.PACKETS, asked), Code.DUPLICATE)


def search_packets(filters: PacketFilters) -> Iterator[StoredPacket]:
    """Yield the packets that fit, newest arrival first, reading on only as far as the caller does.

    Raises:
        CursorError: The cursor is none of this node's.
    """
    query = _filtered(filters)
    below = None if filters.cursor is None else _arrival_of(filters.cursor)
    return _newest_first(query, below)


def cursor_of(row: StoredPacket) -> str:
    """Return the opaque cursor that goes on behind this row."""
    return f"p{row.arrival:x}"


def stored_packet(packet_id: bytes) -> StoredPacket:
    """Return one packet by its whole id.

    Raises:
        UnknownPacketError: It is not here.
    """
    for row in load_rows(KnowledgePacket.objects.filter(packet_id=packet_id)):
        return read_row(row)
    raise UnknownPacketError(f"no packet {packet_id.hex()} here")


def resolve_packet(text: str, *, heard_of: bool = False) -> PacketId:
    """Return the id that `text` names: 64 hex digits, or an unambiguous prefix of at least 6.

    With `heard_of`, ids that were refused or purged here count too.

    Raises:
        MalformedIdError, UnknownPacketError, AmbiguousPacketError
    """
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX_DIGITS},64}}", text):
        raise MalformedIdError(
            f"{text[:70]!r} is no packet id: 64 lower-case hex digits are expected, or the first {MIN_PREFIX_DIGITS} at least"
        )
    span = packet_id_span(text)
    tables: list[type[Model]] = [KnowledgePacket, Refusal, PurgedPacket] if heard_of else [KnowledgePacket]
    found: set[bytes] = set()
    for table in tables:
        rows = table._default_manager.filter(packet_id__gte=span[0], packet_id__lte=span[1]).order_by("packet_id")
        found.update(bytes(packet_id) for packet_id in rows.values_list("packet_id", flat=True).distinct()[:3])
    if not found:
        raise UnknownPacketError(f"no packet {text} here" + (", nor one refused or purged" if heard_of else ""))
    if len(found) > 1:
        examples = ", ".join(packet_id.hex()[:16] for packet_id in sorted(found)[:3])
        raise AmbiguousPacketError(f"{text} fits several packets ({examples}…): give more digits")
    return PacketId(found.pop())


def packet_id_span(prefix: str) -> tuple[bytes, bytes]:
    """Return the lowest and the highest id that begin with these hex digits, both inclusive."""
    return bytes.fromhex(prefix.ljust(64, "0")), bytes.fromhex(prefix.ljust(64, "f"))


def why(packet_id: PacketId, *, table: TrustTable | None = None, peer: NodeId | None = None) -> WhyReport:
    """Say whether a packet is here and why, what was refused of it, and whether `peer` would get it under `table`.

    Raises:
        UnknownPacketError: This node never heard of it.
    """
    try:
        stored = stored_packet(packet_id)
    except UnknownPacketError:
        stored = None
    purged_at = PurgedPacket.objects.filter(packet_id=packet_id).values_list("at", flat=True).first()
    refusals = list(Refusal.objects.filter(packet_id=packet_id)[:MAX_REFUSALS_SHOWN])
    if stored is None and purged_at is None and not refusals:
        raise UnknownPacketError(f"this node never heard of packet {packet_id.hex()}")
    would_send = None if table is None or peer is None else _would_send(stored, table, peer)
    return WhyReport(packet_id, stored, purged_at, refusals, would_send)


def operator_names() -> dict[str, str]:
    """Return the names this operator gave to nodes, by hex node_id."""
    return {node_id: name for node_id, name in Peer.objects.exclude(name=None).values_list("node_id", "name") if name}


def load_rows(query: QuerySet[KnowledgePacket]) -> list[KnowledgePacket]:
    """Evaluate a query; rows that cannot be loaded come as empty ones with their arrival number alone."""
    rows = _all_or_none(query)
    if rows is None:
        numbers = list(query.values_list("arrival", flat=True))
        rows = [
            (_one(KnowledgePacket.objects.filter(arrival=number)) or [KnowledgePacket(arrival=number)])[0] for number in numbers
        ]
    return rows


def read_row(row: KnowledgePacket) -> StoredPacket:
    """Return the packet in a row, checked against its id, or the same row with what is wrong about it."""
    packet_id = bytes(row.packet_id) if isinstance(row.packet_id, bytes | memoryview) else b""
    envelope = _envelope(row.body, row.signature, row.timestamp, row.key_fingerprint)
    packet, damage = None, ""
    if envelope is None:
        damage = "the row cannot be read"
    elif sha256(envelope.body).digest() != packet_id:
        damage = "the stored bytes are not those the id names"
    else:
        try:
            packet = parse_packet(envelope.body)
        except PacketError as error:
            damage = f"the stored bytes are no packet: {error}"
    return StoredPacket(
        arrival=row.arrival,
        packet_id=packet_id,
        packet=packet,
        envelope=None if damage else envelope,
        received_at=row.received_at if isinstance(row.received_at, int) else 0,
        received_from=str(row.received_from),
        received_rule=str(row.received_rule),
        hidden=bool(row.hidden),
        damage=damage,
    )


def _would_send(stored: StoredPacket | None, table: TrustTable, peer: NodeId) -> Decision:
    if stored is None:
        return Decision(False, "absent", "not-here", "The packet is not here, so nobody gets it from this node.")
    if stored.packet is None:
        return Decision(False, "damaged", "damaged", f"The packet is damaged here: {stored.damage}.")
    decision = table.may_send(peer, stored.packet.origin, stored.packet.audience)
    if decision.allowed and stored.hidden:
        return Decision(False, "hidden", "hidden", "The operator hid the packet: it is kept here and offered to nobody.")
    if decision.allowed and stored.received_from == peer.hex():
        return Decision(True, decision.code, decision.rule, f"{decision.reason} It handed this packet over itself, so it has it.")
    return decision


def _filtered(filters: PacketFilters) -> QuerySet[KnowledgePacket]:
    query = KnowledgePacket.objects.order_by("-arrival")
    if filters.kinds:
        query = query.filter(kind__in=filters.kinds)
    for tag in filters.tags:
        query = query.filter(tags__has_element=tag)
    if filters.origins:
        query = query.filter(origin__in=filters.origins)
    if filters.since is not None:
        query = query.filter(created_at__gte=filters.since)
    if filters.until is not None:
        query = query.filter(created_at__lt=filters.until)
    return query


def _newest_first(query: QuerySet[KnowledgePacket], below: int | None) -> Iterator[StoredPacket]:
    while True:
        part = load_rows((query if below is None else query.filter(arrival__lt=below))[:ROWS_A_CHUNK])
        for row in part:
            yield read_row(row)
        if len(part) < ROWS_A_CHUNK:
            return
        below = part[-1].arrival


def _arrival_of(cursor: str) -> int:
    if not re.fullmatch(r"p[0-9a-f]{1,15}", cursor):
        raise CursorError(f"{cursor[:40]!r} is no cursor this node gave out")
    return int(cursor[1:], 16)


def _all_or_none(query: QuerySet[Any]) -> list[Any] | None:
    """Evaluate a query, or return None when a row among its rows cannot be read; faults of the database are raised.

    They must not pass for damage: a row that a lost connection hid would be passed over for good.
    """
    try:
        return list(query)
    except _BAD_VALUE:
        return None
    except OperationalError as error:
        if _SQLITE_BAD_TEXT in str(error):
            return None
        raise


def _one(query: QuerySet[Any]) -> list[Any]:
    """Evaluate a query for one row; nothing when it cannot be read."""
    return _all_or_none(query[:1]) or []


def _feed_row(row: tuple[Any, ...]) -> FeedRow:
    arrival, packet_id, origin, audience, created_at, size, received_from, hidden = row
    try:
        return FeedRow(
            arrival,
            PacketId(bytes(packet_id)),
            NodeId(bytes.fromhex(origin)),
            Audience(audience),
            int(created_at),
            size,
            NodeId(bytes.fromhex(received_from)) if received_from else None,
            bool(hidden),
        )
    except (TypeError, ValueError):
        return FeedRow(arrival, PacketId(bytes(32)), NodeId(bytes(16)), Audience.PRIVATE, 0, 0, None, True)


def _envelope(body: Any, signature: Any, timestamp: Any, key_fingerprint: Any) -> Envelope | None:
    """Return the envelope of a row, or None when a column does not hold what belongs there."""
    blobs = (body, signature, key_fingerprint)
    if not all(isinstance(blob, bytes | memoryview) for blob in blobs) or not isinstance(timestamp, int):
        return None
    envelope = Envelope(bytes(body), bytes(signature), timestamp, KeyFingerprint(bytes(key_fingerprint)))
    return envelope if len(envelope.signature) == 64 and len(envelope.key_fingerprint) == 32 else None


class _Head(msgspec.Struct):
    """Of the bytes of a packet: who signed it, and how far it may travel."""

    origin: str
    audience: Audience = Audience.CORE


_read_head = msgspec.json.Decoder(_Head).decode


def _stored_envelope(envelope: Envelope) -> StoredEnvelope | None:
    """Return the envelope with what policy asks about, read from the signed bytes: a changed column lets nothing out."""
    try:
        head = _read_head(envelope.body)
        return StoredEnvelope(envelope, NodeId(bytes.fromhex(head.origin)), head.audience)
    except (msgspec.MsgspecError, ValueError):
        return None
