"""The sending half of a link: what this node offers a peer, and how it gets there.

The peer steers. Its Interest is answered with a Scope; from then on newly stored packets of the scope go
out live, and what it Wants is answered. Both share the batch numbers and one window; live goes first.

    feed rows --> live queue --\\
                                +--> loading --> loaded --> Packets (unacknowledged until Ack)
    Want ids  --> wanted queue -/
    feed rows --> announced ids --> Have                     (while the peer prefers announcements)

Memory is bounded: the live queue is filled from the store by arrival number only while it is short,
the wanted queue by the Want limit, loaded bodies by one batch, unacknowledged ids by the window.

Policy is asked at each step that lets something out, with the table of that moment.

Source: docs/protocol.md, section 6.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, islice

from federation.protocol import codec, messages
from federation.protocol.errors import Code, Goodbye, RemoteProtocolError
from federation.protocol.events import (
    Catalogue,
    Effect,
    FeedRow,
    LinkStats,
    LoadEnvelopes,
    LoadManifest,
    ReadFeed,
    StoredEnvelope,
)
from federation.protocol.limits import Limits
from federation.protocol.manifest import SignedManifest
from federation.protocol.packet import PacketId
from federation.protocol.recent import RecentIds
from federation.protocol.reconcile import Responder
from keys.encoding import KeyFingerprint, NodeId
from peers.trust import KeyStatus, TrustTable

FEED_ROWS = 512  # rows asked of the feed at once
LIVE_QUEUE = 256  # rows waiting; beyond it the feed is read again later
KNOWN_IDS = 65_536  # ids the peer is known to have; beyond it the oldest are forgotten, which costs a duplicate
UNACKED_GONE = 256  # open batches that hold nothing but gone ids; beyond it a peer asks and never acknowledges: overrun
MAX_ROUNDS = 2**22
HAVE_DELAY_S = 0.02
NOTHING = b"\x61"  # a Reconcile answer for an origin that left the scope: the protocol version alone


class Sender:
    """State of what goes from this node to one peer. Every method returns effects or appends messages by `send`."""

    def __init__(
        self,
        *,
        peer: NodeId,
        table: TrustTable,
        limits: Limits,
        window: tuple[int, int],
        catalogue: Catalogue,
        send: Callable[[messages.Message], None],
        send_encoded: Callable[[bytes], None],
        chance: Callable[[], float],
        stats: LinkStats,
    ) -> None:
        self._peer = peer
        self._table = table
        self._limits = limits
        self._window_packets, self._window_bytes = window
        self._catalogue = catalogue
        self._send = send
        self._send_encoded = send_encoded
        self._chance = chance
        self._stats = stats

        self._interest: dict[NodeId, int] | None = None
        self._scope: dict[NodeId, int] = {}
        self._ever_in_scope: set[NodeId] = set()
        self._unwelcome: set[NodeId] = set()
        self._rounds: dict[NodeId, int] = {}

        self._started = False
        self._cursor = 0
        self._head = 0
        self._reading = False
        self._live: deque[FeedRow] = deque()
        self._live_ids: set[PacketId] = set()
        self._wanted: deque[PacketId] = deque()
        self._wanted_ids: set[PacketId] = set()
        self._loading = False
        self._loaded: deque[tuple[PacketId, StoredEnvelope | None]] = deque()
        self._gone: list[PacketId] = []

        self._batch = 0
        self._unacked: dict[int, list[tuple[PacketId, int, NodeId]]] = {}
        self._unacked_ids: set[PacketId] = set()
        self._unacked_bytes = 0

        self._announcing = False
        self._announced = RecentIds(KNOWN_IDS)
        self._have: list[tuple[NodeId, PacketId]] = []
        self._have_due: float | None = None
        self._peer_has = RecentIds(KNOWN_IDS)

    # --- what the shell may show ---

    @property
    def in_flight(self) -> tuple[int, int]:
        """Unacknowledged packets and their canonical bytes."""
        return len(self._unacked_ids), self._unacked_bytes

    @property
    def backlog(self) -> int:
        """How many arrival numbers the peer is behind the feed, as far as live packets go."""
        return max(0, self._head - self._cursor) + len(self._live)

    @property
    def is_announcing(self) -> bool:
        return self._announcing

    @property
    def deadline(self) -> float | None:
        return self._have_due

    # --- policy and scope ---

    def interest(self, message: messages.Interest) -> list[Effect]:
        """The peer says whose packets it accepts: answer with a Scope, and begin live delivery."""
        self._interest = dict(message.rows)
        return self._offer()

    def policy_changed(self, table: TrustTable) -> list[Effect]:
        """Offer anew under the new table, unasked, once there has been an Interest."""
        self._table = table
        return self._offer() if self._interest is not None else []

    def _offer(self) -> list[Effect]:
        """Send the Scope: all that policy lets go there, whether or not the peer's Interest names it.

        An origin the peer does not accept is declined there, with the reason on its operator's screen; after the first
        such answer its packets are held back until the peer's next Interest.
        """
        interest = self._interest or {}
        key_fingerprints = self._key_fingerprints()
        rows: list[tuple[NodeId, int, bytes, KeyFingerprint]] = []
        scope: dict[NodeId, int] = {}
        for origin in self._table.offered_origins(self._peer):
            key_fingerprint = key_fingerprints.get(origin)
            if key_fingerprint is None:
                continue
            count, fingerprint = self._catalogue.summary(origin)
            rows.append((origin, count, fingerprint, key_fingerprint))
            scope[origin] = max(count, interest.get(origin, 0))
        self._scope = scope
        self._ever_in_scope.update(scope)
        self._rounds = {}
        self._unwelcome.clear()
        self._have = [row for row in self._have if row[0] in scope]
        if not self._started:
            self._started = True
            # The catalogue holds everything up to its head: reconciliation covers that, live what comes after.
            self._cursor = self._head = self._catalogue.head
        self._send(messages.Scope(rows=rows))
        return self._read_feed()

    def _key_fingerprints(self) -> dict[NodeId, KeyFingerprint]:
        return {key.node_id: fingerprint for fingerprint, key in self._table.keys.items() if key.status is KeyStatus.TRUSTED}

    # --- reconciliation: this side answers ---

    def reconcile(self, message: messages.Reconcile) -> None:
        """Answer one request of the peer for one origin.

        Raises:
            RemoteProtocolError: the origin was never in the scope, the frame is malformed, or the rounds of this
                scope are used up (`overrun`).
        """
        origin = NodeId(message.origin)
        if origin not in self._scope:
            if origin not in self._ever_in_scope:
                raise RemoteProtocolError("reconciliation of an origin that was never offered")
            self._send(messages.Reconcile(origin=origin, role=messages.Role.ANSWER, frame=NOTHING))
            return
        rounds = self._rounds.get(origin, 0) + 1
        if rounds > min(MAX_ROUNDS, 64 + self._scope[origin] // 250):
            raise RemoteProtocolError("too many rounds of reconciliation", Goodbye.OVERRUN)
        self._rounds[origin] = rounds
        self._stats.reconcile_rounds += 1
        responder = Responder(
            self._catalogue.items(origin), frame_limit=self._limits.reconcile_frame_bytes, split_seed=int(self._chance() * 2**32)
        )
        self._send(messages.Reconcile(origin=origin, role=messages.Role.ANSWER, frame=responder.answer(message.frame)))

    # --- live ---

    def feed_advanced(self, head: int) -> list[Effect]:
        self._head = max(self._head, head)
        return self._read_feed()

    def feed_read(self, rows: Sequence[FeedRow], upto: int, now: float) -> list[Effect]:
        """Queue what of these rows is in the scope and the peer is not known to have."""
        self._reading = False
        for row in rows:
            if row.arrival <= self._cursor or not self._wants_live(row):
                continue
            if self._announcing:
                self._announce(row, now)
            elif row.packet_id not in self._unacked_ids and row.packet_id not in self._live_ids:
                self._live.append(row)
                self._live_ids.add(row.packet_id)
        self._cursor = max(self._cursor, upto)
        return [*self.pump(), *self._read_feed()]

    def peer_has(self, packet_id: PacketId) -> None:
        """Remember that the peer has this packet: it handed it over, announced it, or said so in an Ack."""
        self._peer_has.add(packet_id)

    def prefer(self, message: messages.Prefer, now: float) -> list[Effect]:
        if message.mode == messages.Preference.ANNOUNCE:
            self._announcing = True
            for row in self._live:
                self._announce(row, now)
            self._live.clear()
            self._live_ids.clear()
        else:
            self._announcing = False
        return self.pump()

    def timer(self, now: float) -> None:
        if self._have_due is not None and now >= self._have_due:
            self._flush_have()

    def _wants_live(self, row: FeedRow) -> bool:
        return (
            not row.hidden
            and row.origin in self._scope
            and row.origin != self._peer
            and row.received_from != self._peer
            and row.packet_id not in self._peer_has
            and row.origin not in self._unwelcome
            and self._table.may_send(self._peer, row.origin, row.audience).allowed
        )

    def _announce(self, row: FeedRow, now: float) -> None:
        self._have.append((row.origin, row.packet_id))
        self._announced.add(row.packet_id)
        if len(self._have) >= self._limits.have_rows:
            self._flush_have()
        elif self._have_due is None:
            self._have_due = now + HAVE_DELAY_S

    def _flush_have(self) -> None:
        self._have_due = None
        if self._have:
            self._send(messages.Have(rows=self._have))
            self._have = []

    def _read_feed(self) -> list[Effect]:
        if self._interest is None or self._reading or self._cursor >= self._head or len(self._live) >= LIVE_QUEUE:
            return []
        if not self._scope:
            # Nothing is offered: what arrives meanwhile is the catalogue's business once something is.
            self._cursor = self._head
            return []
        self._reading = True
        return [ReadFeed(after=self._cursor, limit=FEED_ROWS)]

    # --- wanted ---

    def want(self, message: messages.Want) -> list[Effect]:
        """Queue the ids asked for.

        Raises:
            RemoteProtocolError: more ids than may be unanswered at once (`overrun`).
        """
        if len(self._wanted_ids) + len(message.ids) > self._limits.wants:
            raise RemoteProtocolError("too many unanswered Wants", Goodbye.OVERRUN)
        if len(self._unacked) > self._window_packets + UNACKED_GONE:
            raise RemoteProtocolError("too many unacknowledged batches", Goodbye.OVERRUN)
        for packet_id in message.ids:
            if packet_id in self._announced:
                # It was announced and asked for: announcing alone reached the peer too slowly.
                self._announcing = False
            if packet_id in self._unacked_ids or packet_id in self._wanted_ids:
                continue  # already on its way: whichever copy leaves first answers the Want
            self._wanted.append(packet_id)
            self._wanted_ids.add(packet_id)
        return self.pump()

    # --- the window ---

    def pump(self) -> list[Effect]:
        """Send what is loaded as far as the window allows, and load more."""
        self._send_loaded()
        if self._loading or self._loaded or not (self._live or self._wanted) or not self._has_room():
            return []
        queued = chain((row.packet_id for row in self._live), self._wanted)
        ids = tuple(dict.fromkeys(islice(queued, self._limits.batch_packets)))
        self._loading = True
        return [LoadEnvelopes(ids=ids, max_bytes=self._limits.batch_bytes)]

    def envelopes_loaded(self, loaded: Sequence[tuple[PacketId, StoredEnvelope | None]]) -> list[Effect]:
        self._loading = False
        self._loaded.extend(loaded)
        return [*self.pump(), *self._read_feed()]

    def ack(self, message: messages.Ack) -> list[Effect]:
        """Free the window, and send more.

        Raises:
            RemoteProtocolError: a batch that is not open, or another number of codes than packets.
        """
        sent = self._unacked.pop(message.batch, None)
        if sent is None or len(sent) != len(message.codes):
            raise RemoteProtocolError("an Ack that answers no open batch")
        for (packet_id, size, origin), code in zip(sent, message.codes, strict=True):
            self._unacked_ids.discard(packet_id)
            self._unacked_bytes -= size
            self._stats.outcomes_out[code] = self._stats.outcomes_out.get(code, 0) + 1
            if not code.is_refusal:
                self._peer_has.add(packet_id)
            elif code in (Code.UNKNOWN_ORIGIN, Code.TIER) and origin not in (self._interest or {}):
                self._unwelcome.add(origin)
        return [*self.pump(), *self._read_feed()]

    def manifest_wanted(self, message: messages.GetManifest) -> list[Effect]:
        return [LoadManifest(origin=NodeId(message.origin))]

    def manifest_loaded(self, origin: NodeId, signed: SignedManifest | None) -> None:
        body = None if signed is None else (signed.body, signed.signature)
        self._send(messages.Manifest(origin=origin, signed=body))

    def _has_room(self) -> bool:
        return len(self._unacked_ids) < self._window_packets and self._unacked_bytes < self._window_bytes

    def _send_loaded(self) -> None:
        while self._loaded or self._gone:
            batch: list[tuple[PacketId, StoredEnvelope]] = []
            size = 0
            blocked = False
            while self._loaded and len(batch) < self._limits.batch_packets:
                packet_id, stored = self._loaded[0]
                if packet_id not in self._live_ids and packet_id not in self._wanted_ids:
                    self._loaded.popleft()  # announced instead, or answered, since it was loaded
                    continue
                allowed = stored is not None and self._may_leave(stored)
                if not allowed or stored is None:
                    self._loaded.popleft()
                    self._take(packet_id, gone=True)
                    continue
                length = len(stored.envelope.body)
                if batch and size + length > self._limits.batch_bytes:
                    break
                if (
                    len(self._unacked_ids) + len(batch) >= self._window_packets
                    or self._unacked_bytes + size + length > self._window_bytes
                ):
                    blocked = True
                    break
                self._loaded.popleft()
                if packet_id in self._unacked_ids:
                    self._take(packet_id, gone=False)
                    continue
                batch.append((packet_id, stored))
                size += length
            if batch or self._gone:
                self._transmit(batch, size)
            if blocked or not batch:
                return

    def _may_leave(self, stored: StoredEnvelope) -> bool:
        return stored.origin in self._scope and self._table.may_send(self._peer, stored.origin, stored.audience).allowed

    def _take(self, packet_id: PacketId, *, gone: bool) -> None:
        """Remove an id from whichever queue asked for it; a Want of a packet that may not leave is answered `gone`."""
        if packet_id in self._live_ids:
            self._live_ids.discard(packet_id)
            if self._live and self._live[0].packet_id == packet_id:
                self._live.popleft()
            else:
                self._live = deque(row for row in self._live if row.packet_id != packet_id)
        if packet_id in self._wanted_ids:
            self._wanted_ids.discard(packet_id)
            if self._wanted and self._wanted[0] == packet_id:
                self._wanted.popleft()
            else:
                self._wanted = deque(wanted for wanted in self._wanted if wanted != packet_id)
            if gone:
                self._gone.append(packet_id)

    def _transmit(self, batch: list[tuple[PacketId, StoredEnvelope]], size: int) -> None:
        for packet_id, _ in batch:
            self._take(packet_id, gone=False)
        gone, self._gone = self._gone, []
        self._send_encoded(codec.encode_packets(self._batch, [stored.envelope for _, stored in batch], gone))
        self._unacked[self._batch] = [(packet_id, len(stored.envelope.body), stored.origin) for packet_id, stored in batch]
        self._unacked_ids.update(packet_id for packet_id, _ in batch)
        self._unacked_bytes += size
        self._batch += 1
        self._stats.packets_out += len(batch)
        self._stats.bytes_out += size
