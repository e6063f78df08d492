"""The one write path of the packet store, however many doors lead to it.

What arrives over links comes through `store_packets`, what this node says itself through `publish`. Both end in
`_store`: one transaction, a code for every packet, and nothing that one bad packet could do to the others. What
these functions report as accepted is committed when they return (docs/protocol.md, section 6, "Ack means durable").

Rows are the signed bytes plus a projection of a few fields for lists and filters; the bytes are never rewritten.
"""

import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

import msgspec
from django.conf import settings
from django.db import DataError, IntegrityError, transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Length

from federation import store
from federation.models import KnowledgePacket, OriginUsage, Refusal
from federation.protocol.canonical import JSONValue
from federation.protocol.envelope import Envelope, VerifiedPacket, sign_packet
from federation.protocol.errors import Code, PacketError
from federation.protocol.packet import Packet, PacketId, PacketMould, build_packet
from federation.state import bump_visibility
from keys.ed25519 import KeyPair
from keys.encoding import NodeId
from peers.trust import Audience

# Packets in one transaction: few enough that another writer waits some milliseconds, enough to share one fsync.
BATCH = 500
# Receipt rule of what this node published itself; received packets carry the slug of the policy's decision.
PUBLISHED_HERE = "published-here"
# Refusals of a peer written between two looks at how many there are: counting at each call would cost more than writing.
TRIM_EVERY = 1_024
MAX_REASON_CHARS = 200

# What a database or its driver raises about one row's values; anything else is about the database itself and must
# reach the caller, who then acknowledges nothing.
_POISON = (DataError, IntegrityError, OverflowError, UnicodeError)


@dataclass(frozen=True, slots=True)
class Received:
    """A verified packet and its receipt.

    Args:
        packet: What `verify_packet` returned.
        peer: Who handed it over.
        rule: Slug of the policy rule that let it in, at most 64 characters.
        received_at: Our wall clock, milliseconds since the Unix epoch.
    """

    packet: VerifiedPacket
    peer: NodeId | None
    rule: str
    received_at: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What one origin's packets may take up here; `None` is no bound. `bytes` counts canonical bytes."""

    packets: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Draft:
    """One packet to publish; the fields are those of docs/protocol.md, section 2."""

    content: JSONValue
    kind: str = "note"
    title: str | None = None
    tags: tuple[str, ...] = ()
    audience: Audience = Audience.CORE
    source: str | None = None
    confidence: float | None = None
    depends_on: tuple[PacketId, ...] = ()
    supersedes: PacketId | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A packet offered by `peer` (hex node_id) and not accepted; `origin` is hex, empty when it could not be read."""

    packet_id: bytes
    peer: str
    origin: str
    code: Code
    reason: str
    at: int


def store_packets(*, received: Sequence[Received], quotas: Mapping[NodeId, Quota]) -> list[Code]:
    """Store what was received, from however many links, in one transaction; return one code a packet, in order.

    `accepted`; `duplicate` for an id that is here or came earlier in the batch; `retracted` for one the operator
    purged; `quota` where the origin would pass its bound (an origin without one has none); `malformed` for a row the
    database refuses, without harm to the others.

    Raises:
        django.db.OperationalError: Disk full, locked, gone: nothing was stored and nothing may be acknowledged.

    Source: docs/protocol.md, sections 2, 6 and 8.
    """
    rows = [_columns(item.packet.packet, item.packet.envelope, _hex(item.peer), item.rule, item.received_at) for item in received]
    return _store(rows, {_hex(origin): quota for origin, quota in quotas.items()})


def publish(
    *,
    pair: KeyPair,
    node_id: NodeId,
    drafts: Iterable[Draft],
    clock: Callable[[], int],
    atomic: bool = False,
    stored: Callable[[Sequence[PacketId]], None] | None = None,
) -> list[PacketId]:
    """Sign and store this node's own packets; return their ids in order.

    Each draft is built before the next one is taken. A draft that makes no packet ends the run with its error: those
    before it stay published, or none is when `atomic`. Drafts that would make the same packet (equal content in the
    same millisecond) get different times, so that each is a packet of its own.

    Args:
        pair: The node's signing key, and `node_id` the node it speaks for.
        drafts: Any number; taken lazily, held in memory at most `BATCH` at a time.
        clock: Wall clock, milliseconds since the Unix epoch.
        atomic: Store all in one transaction once all are signed. Signed rows wait in an unnamed file in ARK_HOME,
            so the database is locked for the writing alone and memory stays bounded.
        stored: Called with the ids of each batch; they are durable then, unless `atomic`.

    Raises:
        PacketError: A draft makes no valid packet.
    """
    ids: list[PacketId] = []
    batches = _signed_batches(pair, node_id, drafts, clock)
    if not atomic:
        for rows in batches:
            ids.extend(_store_own(rows, stored))
        return ids
    with tempfile.TemporaryFile(dir=settings.ARK_HOME) as spool:
        for rows in batches:
            _spool(spool, rows)
        spool.seek(0)
        with transaction.atomic():
            for rows in _unspool(spool):
                ids.extend(_store_own(rows, stored))
    return ids


def note_refusals(refusals: Sequence[Refused], *, limit: int) -> None:
    """Remember packets that were offered and not accepted, at most about `limit` a peer (the oldest go).

    The bound is looked at once in `TRIM_EVERY` rows of a peer, so up to that many more may be there for a while.
    """
    if not refusals:
        return
    with transaction.atomic():
        store.upsert_refusals(
            sorted(
                (row.packet_id, row.peer, row.origin, row.code.value, _column_text(row.reason)[:MAX_REASON_CHARS], row.at)
                for row in refusals
            )
        )
        for peer in _untrimmed.due(row.peer for row in refusals):
            _trim_refusals(peer, limit)


def forget_refusals(peer: str | None = None) -> int:
    """Forget the refusals of one peer (hex node_id), or all, so that their packets are fetched again; return how many."""
    rows = Refusal.objects.all() if peer is None else Refusal.objects.filter(peer=peer)
    return rows.delete()[0]


def add_counters(counts: Mapping[tuple[str, str], int]) -> None:
    """Add to the counters of peers: (hex node_id, name) to how often it happened since the last call."""
    with transaction.atomic():
        store.upsert_counters((peer, name, count) for (peer, name), count in counts.items() if count)


@dataclass(frozen=True, slots=True)
class PacketCount:
    """How many packets, how many of them hidden, and their canonical bytes."""

    packets: int
    hidden: int
    bytes: int


def count_packets_from(node_id: str, *, own: str) -> PacketCount:
    """Count what a peer signed or handed over, without this node's own packets (`own`, hex)."""
    found = _from(node_id, own).aggregate(packets=Count("pk"), hidden=Count("pk", filter=Q(hidden=True)), bytes=Sum(Length("body")))
    return PacketCount(found["packets"], found["hidden"], found["bytes"] or 0)


def hide_packets_from(node_id: str, *, own: str) -> int:
    """Hide what a peer signed or handed over: kept here, offered to nobody. Return how many became hidden."""
    return _set_hidden(_from(node_id, own), True)


def unhide_packets_from(node_id: str, *, own: str) -> int:
    """Undo `hide_packets_from`, also for packets hidden one by one. Return how many are offered again."""
    return _set_hidden(_from(node_id, own), False)


def purge_packets_from(node_id: str, *, own: str) -> int:
    """Delete what a peer signed or handed over; the ids are remembered, so none of it is accepted again.

    This node's own packets stay, whoever handed them back. Return how many went.
    """
    return _purge(_from(node_id, own))


def hide_packets(packet_ids: Iterable[bytes]) -> int:
    """Hide single packets; return how many became hidden."""
    return _set_hidden(KnowledgePacket.objects.filter(packet_id__in=list(packet_ids)), True)


def unhide_packets(packet_ids: Iterable[bytes]) -> int:
    """Offer single packets again; return how many were hidden."""
    return _set_hidden(KnowledgePacket.objects.filter(packet_id__in=list(packet_ids)), False)


def _store(rows: Sequence[store.PacketColumns], quotas: Mapping[str, Quota]) -> list[Code]:
    """Store rows in one transaction and return a code for each; the checks of `store_packets`."""
    codes = [Code.DUPLICATE] * len(rows)
    first: dict[bytes, int] = {}
    repeats: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        earlier = first.setdefault(row.packet_id, index)
        if earlier != index:
            repeats.append((index, earlier))
    with transaction.atomic():
        store.lock_arrivals()
        here = store.present_ids(store.PACKETS, first)
        purged = store.present_ids(store.PURGED, first)
        room = _Room.of(quotas, {row.origin for row in rows})
        fresh: list[int] = []
        for packet_id, index in first.items():
            if packet_id in here:
                continue
            if packet_id in purged:
                codes[index] = Code.RETRACTED
            elif not room.take(rows[index]):
                codes[index] = Code.QUOTA
            else:
                codes[index] = Code.ACCEPTED
                fresh.append(index)
        _insert(rows, fresh, codes)
        _charge(rows[index] for index in fresh if codes[index] is Code.ACCEPTED)
        if fresh:
            store.notify_listeners()
    for index, earlier in repeats:
        # A repeat of what was not stored shares its fate: it is the same bytes.
        codes[index] = Code.DUPLICATE if codes[earlier] is Code.ACCEPTED else codes[earlier]
    return codes


@dataclass(slots=True)
class _Room:
    """What origins with a quota hold, counted up while a batch is decided."""

    quotas: Mapping[str, Quota]
    packets: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, quotas: Mapping[str, Quota], origins: set[str]) -> "_Room":
        room = cls(quotas)
        bounded = [origin for origin in origins if origin in quotas]
        if bounded:
            for origin, packets, size in OriginUsage.objects.filter(origin__in=bounded).values_list("origin", "packets", "bytes"):
                room.packets[origin] = packets
                room.bytes[origin] = size
        return room

    def take(self, row: store.PacketColumns) -> bool:
        """Count the row in and return True, or leave everything as it is and return False."""
        quota = self.quotas.get(row.origin)
        if quota is None:
            return True
        packets = self.packets.get(row.origin, 0) + 1
        size = self.bytes.get(row.origin, 0) + len(row.body)
        if (quota.packets is not None and packets > quota.packets) or (quota.bytes is not None and size > quota.bytes):
            return False
        self.packets[row.origin] = packets
        self.bytes[row.origin] = size
        return True


def _insert(rows: Sequence[store.PacketColumns], fresh: Sequence[int], codes: list[Code]) -> None:
    """Insert the rows at `fresh`; where the database refuses, one by one, and mark those it refuses."""
    try:
        with transaction.atomic():
            store.insert_packets([rows[index] for index in fresh])
        return
    except _POISON:
        pass  # one of them; found below
    for index in fresh:
        try:
            with transaction.atomic():
                store.insert_packets([rows[index]])
        except _POISON:
            codes[index] = Code.MALFORMED


def _charge(rows: Iterable[store.PacketColumns]) -> None:
    charges: dict[str, tuple[int, int]] = {}
    for row in rows:
        packets, size = charges.get(row.origin, (0, 0))
        charges[row.origin] = (packets + 1, size + len(row.body))
    store.charge_usage((origin, packets, size) for origin, (packets, size) in charges.items())


def _columns(packet: Packet, envelope: Envelope, received_from: str, rule: str, received_at: int) -> store.PacketColumns:
    # By position, which costs half as much as by name: this runs for every packet.
    return store.PacketColumns(
        packet.packet_id,
        packet.origin.hex(),
        packet.kind,
        _column_text(packet.title) if packet.title else "",
        msgspec.json.encode([_column_text(tag) for tag in packet.tags]).decode() if packet.tags else "[]",
        packet.audience.value,
        packet.created_at,
        packet.expires_at,
        envelope.body,
        envelope.signature,
        envelope.timestamp,
        envelope.key_fingerprint,
        received_at,
        received_from,
        rule,
    )


def _column_text(text: str) -> str:
    """Return text that every database takes: PostgreSQL's holds no NUL.

    Only columns for lists and filters pass here; the signed bytes keep what the author wrote.
    """
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _signed_batches(
    pair: KeyPair, node_id: NodeId, drafts: Iterable[Draft], clock: Callable[[], int]
) -> Iterator[list[store.PacketColumns]]:
    """Yield signed rows ready to store, `BATCH` at a time; after an error first those before it."""
    build = _Builder(node_id).build
    rows: list[store.PacketColumns] = []
    newest = 0  # the latest created_at given out, and the ids that have it
    ids_of_newest: set[bytes] = set()
    try:
        for draft in drafts:
            now_ms = clock()
            created_at = max(now_ms, newest)
            packet = build(draft, created_at)
            if created_at == newest and packet.packet_id in ids_of_newest:
                created_at += 1
                packet = build(draft, created_at)
            if created_at > newest:
                newest = created_at
                ids_of_newest.clear()
            ids_of_newest.add(packet.packet_id)
            rows.append(_columns(packet, sign_packet(pair, packet, timestamp=now_ms), "", PUBLISHED_HERE, now_ms))
            if len(rows) == BATCH:
                yield rows
                rows = []
    except Exception:
        if rows:
            yield rows
        raise
    if rows:
        yield rows


class _Builder:
    """Makes packets of drafts; those of one run mostly differ in their content alone, and share a mould then."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._common: tuple[object, ...] | None = None
        self._mould: PacketMould | None = None

    def build(self, draft: Draft, created_at: int) -> Packet:
        common = (
            draft.kind,
            draft.title,
            draft.tags,
            draft.audience,
            draft.source,
            draft.confidence,
            draft.depends_on,
            draft.supersedes,
            draft.expires_at,
        )
        if self._mould is not None and common == self._common:
            return self._mould.cast(draft.content, created_at)
        packet = build_packet(
            origin=self._node_id,
            kind=draft.kind,
            content=draft.content,
            created_at=created_at,
            title=draft.title,
            tags=draft.tags,
            # The default is left out, as in any packet that does not name its audience.
            audience=None if draft.audience is Audience.CORE else draft.audience,
            source=draft.source,
            confidence=draft.confidence,
            depends_on=draft.depends_on,
            supersedes=draft.supersedes,
            expires_at=draft.expires_at,
        )
        self._common, self._mould = common, PacketMould(packet)
        return packet


def _store_own(rows: list[store.PacketColumns], stored: Callable[[Sequence[PacketId]], None] | None) -> list[PacketId]:
    for row, code in zip(rows, _store(rows, {}), strict=True):
        if code.is_refusal:
            raise PacketError(code, f"the store refused packet {row.packet_id.hex()}: {code.value}")
    ids = [PacketId(row.packet_id) for row in rows]
    if stored is not None:
        stored(ids)
    return ids


def _spool(file: IO[bytes], rows: list[store.PacketColumns]) -> None:
    encoded = msgspec.msgpack.encode(rows)
    file.write(_SPOOL_LENGTH.pack(len(encoded)))
    file.write(encoded)


def _unspool(file: IO[bytes]) -> Iterator[list[store.PacketColumns]]:
    while header := file.read(_SPOOL_LENGTH.size):
        (size,) = _SPOOL_LENGTH.unpack(header)
        yield _SPOOL_DECODER.decode(file.read(size))


_SPOOL_LENGTH = struct.Struct(">Q")
_SPOOL_DECODER = msgspec.msgpack.Decoder(list[store.PacketColumns])


class _Untrimmed:
    """Rows of each peer written since its refusals were last counted; a peer new to this process is due at once."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}

    def due(self, peers: Iterable[str]) -> list[str]:
        """Count one row for each entry of `peers` and return those whose refusals are to be counted now."""
        due = []
        for peer, written in Counter(peers).items():
            if peer not in self._written or self._written[peer] + written >= TRIM_EVERY:
                due.append(peer)
                self._written[peer] = 0
            else:
                self._written[peer] += written
        return due


_untrimmed = _Untrimmed()


def _trim_refusals(peer: str, limit: int) -> None:
    rows = Refusal.objects.filter(peer=peer)
    oldest_kept = rows.order_by("-at", "-pk").values_list("at", "pk")[limit - 1 : limit].first()
    if oldest_kept is not None:
        at, pk = oldest_kept
        rows.filter(Q(at__lt=at) | Q(at=at, pk__lt=pk)).delete()


def _from(node_id: str, own: str) -> QuerySet[KnowledgePacket]:
    """Select what a peer signed or handed over, never what this node signed."""
    return KnowledgePacket.objects.filter(Q(origin=node_id) | Q(received_from=node_id)).exclude(origin=own).order_by()


def _set_hidden(packets: QuerySet[KnowledgePacket], hidden: bool) -> int:
    with transaction.atomic():
        changed = packets.exclude(hidden=hidden).update(hidden=hidden)
        if changed:
            # Running nodes rebuild what they offer when the revision moves.
            bump_visibility()
    return changed


def _purge(packets: QuerySet[KnowledgePacket]) -> int:
    with transaction.atomic():
        store.lock_arrivals()
        store.remember_purged(packets)
        taken = list(packets.values_list("origin").annotate(packets=Count("pk"), size=Sum(Length("body"))))
        store.charge_usage((origin, -count, -size) for origin, count, size in taken)
        gone = packets.delete()[0]
        if gone:
            bump_visibility()
    return gone


def _hex(node_id: NodeId | None) -> str:
    return "" if node_id is None else node_id.hex()
