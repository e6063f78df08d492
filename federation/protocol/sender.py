"""The sending half of a link: what this node offers a peer, and how it gets there.

The peer steers. Its Interest is answered with a Scope; from then on newly stored packets of the scope go
out live, and what it Wants is answered. Both share the batch numbers and one window; live goes first.

    feed rows --> live queue --\\
                                +--> loading --> loaded --> Packets (unacknowledged until Ack)
    Want ids  --> wanted queue -/
    feed rows --> Have                                       (while the peer prefers announcements)

What a peer prefers is kept for each origin as far as its Acks tell which packets came in vain: the copy that came
first stays, whichever way it took, so that each origin's packets spread along shortest ways. One tree for all of them
would be torn and mended with every author's turn.

Memory is bounded: the live queue is filled from the store by arrival number only while it is short,
the wanted queue by the Want limit, loaded bodies by one batch, unacknowledged ids by the window, open batches
by their number.

Policy is asked at each step that lets something out, with the table of that moment. What was read from the store
before a change of policy is read again after it, for a packet may have been hidden.

Source: docs/protocol.md, section 6.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import NamedTuple

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
from federation.protocol.limits import PROTOCOL, Limits, reconcile_rounds
from federation.protocol.manifest import SignedManifest
from federation.protocol.negentropy import VERSION
from federation.protocol.packet import PacketId
from federation.protocol.recent import RecentIds
from federation.protocol.reconcile import ReconcileError, Responder
from keys.encoding import KeyFingerprint, NodeId
from peers.trust import Audience, KeyStatus, TrustTable

FEED_ROWS = 512  # rows asked of the feed at once
LIVE_QUEUE = 256  # rows waiting; beyond it the feed is read again later
# Ids the peer is known to have, and ids announced to it. Both matter for the moments between a packet's ways
# here and there; beyond them the oldest are forgotten, which costs a duplicate.
KNOWN_IDS = 8_192
# Batches without an Ack. The window bounds those with packets; a peer that asks for what is gone and never
# acknowledges gets no further answers until it does.
OPEN_BATCHES = 1_024
# GetManifest waiting for its answer: one for each row of the largest Scope; beyond: overrun.
MANIFESTS_WANTED = PROTOCOL.scope_rows
HAVE_DELAY_S = 0.02
NOTHING = bytes((VERSION,))  # a Reconcile answer for an origin that left the scope: the protocol version alone


class _Sent(NamedTuple):
    """A packet that waits for its Ack."""

    packet_id: PacketId
    size: int
    """Canonical bytes."""
    live_of: NodeId | None
    """Its origin, if nobody Wanted it."""


class Sender:
    """State of what goes from this node to one peer. Every method returns effects or appends messages by `send`.

    Args:
        may_push: The peer takes packets; if not, an Interest is answered with an empty Scope.
        window: Packets, and canonical bytes of them, that may be unacknowledged.
        send_encoded: Sends a message that is encoded already.
        chance: Random numbers in [0, 1), for split points.
    """

    def __init__(
        self,
        *,
        peer: NodeId,
        table: TrustTable,
        limits: Limits,
        may_push: bool,
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
        self._may_push = may_push
        self._window_packets, self._window_bytes = window
        self._catalogue = catalogue
        self._send = send
        self._send_encoded = send_encoded
        self._chance = chance
        self._stats = stats

        self._interest: dict[NodeId, int] | None = None
        self._scope: dict[NodeId, int] = {}
        self._ever_in_scope: set[NodeId] = set()
        self._rounds: dict[NodeId, int] = {}
        self._manifests_wanted: deque[NodeId] = deque()

        self._cursor = 0
        self._head = 0
        self._reading = False
        self._read_is_stale = False
        self._live: dict[PacketId, NodeId] = {}
        self._unsure: set[PacketId] = set()
        self._wanted: dict[PacketId, None] = {}
        self._loading = False
        self._load_is_stale = False
        self._loaded: deque[tuple[PacketId, StoredEnvelope | None]] = deque()
        self._gone: list[PacketId] = []

        self._batch = 0
        self._unacked: dict[int, list[_Sent]] = {}
        self._unacked_ids: set[PacketId] = set()
        self._unacked_bytes = 0

        self._announcing = False
        self._announced_origins: set[NodeId] = set()
        self._in_vain: set[NodeId] = set()
        self._announced: dict[PacketId, NodeId] = {}
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
        """True when packets of some origin, or of all, are announced only."""
        return self._announcing or bool(self._announced_origins)

    @property
    def deadline(self) -> float | None:
        return self._have_due

    # --- policy and scope ---

    def interest(self, message: messages.Interest) -> list[Effect]:
        """The peer says whose packets it accepts: answer with a Scope, and begin live delivery."""
        if self._interest is None:
            # The catalogue holds everything up to its head: reconciliation covers that, live what comes after.
            self._cursor = self._head = self._catalogue.head
        self._interest = {NodeId(origin): count for origin, count in message.rows}
        return self._offer()

    def policy_changed(self, table: TrustTable) -> list[Effect]:
        """Offer anew under the new table, unasked, once there has been an Interest."""
        self._table = table
        # Any of these may have been hidden. What is not announced for that the peer finds by the new Scope.
        self._have.clear()
        self._loaded.clear()
        self._unsure = set(self._live)
        self._load_is_stale = self._loading
        self._read_is_stale = self._reading
        if self._interest is None or not self._may_push:
            return []  # who takes nothing is answered with an empty Scope, and unasked with none
        return [*self._offer(), *self.pump()]

    def _offer(self) -> list[Effect]:
        interest = self._interest or {}
        key_fingerprints = self._key_fingerprints()
        rows: list[tuple[NodeId, int, bytes, KeyFingerprint]] = []
        self._scope = {}
        # Offered is what policy here allows, whoever the peer named: it declines the rest, and its operator sees why.
        # A peer that takes nothing at all is offered nothing.
        for origin in self._table.offered_origins(self._peer) if self._may_push and interest else ():
            key_fingerprint = key_fingerprints.get(origin)
            if key_fingerprint is not None:
                count, fingerprint = self._catalogue.summary(origin)
                rows.append((origin, count, fingerprint, key_fingerprint))
                self._scope[origin] = max(count, interest.get(origin, 0))
        self._ever_in_scope.update(self._scope)
        self._announced_origins &= self._scope.keys()
        self._in_vain &= self._scope.keys()
        self._rounds = {}
        self._have = [row for row in self._have if row[0] in self._scope]
        self._live = {packet_id: origin for packet_id, origin in self._live.items() if origin in self._scope}
        self._send(messages.Scope(rows=rows))
        return self._read_feed()

    def _key_fingerprints(self) -> dict[NodeId, KeyFingerprint]:
        return {key.node_id: fingerprint for fingerprint, key in self._table.keys.items() if key.status is KeyStatus.TRUSTED}

    # --- manifests ---

    def manifest_wanted(self, message: messages.GetManifest) -> list[Effect]:
        """Answer with the manifest of an origin, one after the other.

        Raises:
            RemoteProtocolError: more questions than origins could be offered (`overrun`).
        """
        if len(self._manifests_wanted) >= MANIFESTS_WANTED:
            raise RemoteProtocolError("too many unanswered GetManifest", Goodbye.OVERRUN)
        self._manifests_wanted.append(NodeId(message.origin))
        return self._load_manifest() if len(self._manifests_wanted) == 1 else []

    def manifest_loaded(self, origin: NodeId, signed: SignedManifest | None) -> list[Effect]:
        self._manifests_wanted.popleft()
        may_know = signed is not None and self._may_know(origin)
        self._send(messages.Manifest(origin=origin, signed=(signed.body, signed.signature) if signed and may_know else None))
        return self._load_manifest()

    def _load_manifest(self) -> list[Effect]:
        return [LoadManifest(origin=self._manifests_wanted[0])] if self._manifests_wanted else []

    def _may_know(self, origin: NodeId) -> bool:
        """Return whether the peer may learn that this node knows an origin: if it may see any packet of it."""
        return (
            origin == self._table.own
            or self._table.may_send(self._peer, origin, Audience.CORE).allowed
            or self._table.may_query(self._peer, origin, Audience.PUBLIC).allowed
        )

    # --- reconciliation: this side answers ---

    def reconcile(self, message: messages.Reconcile) -> None:
        """Answer one request of the peer for one origin.

        Raises:
            RemoteProtocolError: the origin was never in the scope, the frame is malformed, or the rounds of this
                scope are used up (`overrun`).
        """
        origin = NodeId(message.origin)
        if origin not in self._ever_in_scope:
            raise RemoteProtocolError("reconciliation of an origin that was never offered")
        if message.frame[:1] != NOTHING:
            raise ReconcileError("reconciliation of another version")
        if origin not in self._scope:
            self._send(messages.Reconcile(origin=origin, role=messages.Role.ANSWER, frame=NOTHING))
            return
        rounds = self._rounds.get(origin, 0) + 1
        if rounds > reconcile_rounds(self._scope[origin]):
            raise RemoteProtocolError("too many rounds of reconciliation", Goodbye.OVERRUN)
        self._rounds[origin] = rounds
        self._stats.reconcile_rounds += 1
        responder = Responder(
            self._catalogue.items(origin), frame_limit=self._limits.reconcile_frame_bytes, split_seed=int(self._chance() * 2**53)
        )
        self._send(messages.Reconcile(origin=origin, role=messages.Role.ANSWER, frame=responder.answer(message.frame)))

    # --- live ---

    def feed_advanced(self, head: int) -> list[Effect]:
        self._head = max(self._head, head)
        return self._read_feed()

    def feed_read(self, rows: Sequence[FeedRow], upto: int, now: float) -> list[Effect]:
        """Queue what of these rows is in the scope and the peer is not known to have."""
        self._reading = False
        if self._read_is_stale:
            self._read_is_stale = False
            return self._read_feed()
        for row in rows:
            if row.arrival <= self._cursor or not self._wants_live(row):
                continue
            if self._is_announced(row.origin):
                self._announce(row.packet_id, row.origin, now)
            else:
                self._live[row.packet_id] = row.origin
        if upto > self._cursor:
            self._cursor = upto
        else:
            # The feed ends before the number it once named, its last packets being hidden by now.
            self._head = self._cursor
        return [*self.pump(), *self._read_feed()]

    def peer_has(self, packet_id: PacketId) -> None:
        """Remember that the peer has this packet: it handed it over, announced it, or said so in an Ack."""
        self._peer_has.add(packet_id)

    def prefer(self, message: messages.Prefer, now: float) -> list[Effect]:
        """The peer says how it wants to hear of live packets; those queued already follow.

        It says "announce" right after the Ack of what came in vain, and means the origins of that; with no such Ack
        before, all of them.
        """
        if message.mode != messages.Preference.ANNOUNCE:
            self._announcing = False
            self._announced_origins.clear()
        elif self._in_vain:
            self._announced_origins |= self._in_vain
        else:
            self._announcing = True
        self._in_vain.clear()
        live, self._live = self._live, {}
        for packet_id, origin in live.items():
            # One that may have been hidden since it was queued is loaded, which tells; announced it would be named.
            if self._is_announced(origin) and packet_id not in self._unsure:
                self._announce(packet_id, origin, now)
            else:
                self._live[packet_id] = origin
        return self.pump()

    def _is_announced(self, origin: NodeId) -> bool:
        return self._announcing or origin in self._announced_origins

    def timer(self, now: float) -> None:
        if self._have_due is not None and now >= self._have_due:
            self._flush_have()

    def _wants_live(self, row: FeedRow) -> bool:
        return (
            not row.hidden
            and row.origin in self._scope
            and row.received_from != self._peer
            and row.packet_id not in self._peer_has
            and row.packet_id not in self._unacked_ids
            and self._table.may_send(self._peer, row.origin, row.audience).allowed
        )

    def _announce(self, packet_id: PacketId, origin: NodeId, now: float) -> None:
        if packet_id in self._wanted:
            return
        self._have.append((origin, packet_id))
        self._announced.pop(packet_id, None)
        self._announced[packet_id] = origin
        if len(self._announced) > KNOWN_IDS:
            del self._announced[next(iter(self._announced))]
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
        if len(self._wanted) + len(message.ids) > PROTOCOL.wants:
            raise RemoteProtocolError("too many unanswered Wants", Goodbye.OVERRUN)
        for packet_id in message.ids:
            if packet_id in self._announced:
                # It was announced and asked for: announcing alone reached the peer too slowly.
                self._announcing = False
                self._announced_origins.discard(self._announced[packet_id])
            if packet_id not in self._unacked_ids:
                self._wanted[packet_id] = None
            # else: on its way already. Whichever copy leaves first answers the Want.
        return self.pump()

    # --- the window ---

    def pump(self) -> list[Effect]:
        """Send what is loaded as far as the window allows, and load more."""
        self._send_loaded()
        if self._loading or self._loaded or not (self._live or self._wanted) or not self._has_room():
            return []
        ids = tuple(dict.fromkeys(islice(chain(self._live, self._wanted), self._limits.batch_packets)))
        self._loading = True
        return [LoadEnvelopes(ids=ids, max_bytes=self._limits.batch_bytes)]

    def envelopes_loaded(self, loaded: Sequence[tuple[PacketId, StoredEnvelope | None]]) -> list[Effect]:
        """Send what was loaded; what was asked for before a change of policy is asked for again."""
        self._loading = False
        if self._load_is_stale:
            self._load_is_stale = False
        else:
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
        for (packet_id, size, live_of), code in zip(sent, message.codes, strict=True):
            self._unacked_ids.discard(packet_id)
            self._unacked_bytes -= size
            if code is Code.DUPLICATE and live_of in self._scope:
                self._in_vain.add(live_of)
            self._stats.outcomes_out[code] = self._stats.outcomes_out.get(code, 0) + 1
            if not code.is_refusal:
                self._peer_has.add(packet_id)
        return [*self.pump(), *self._read_feed()]

    def _has_room(self) -> bool:
        return (
            len(self._unacked_ids) < self._window_packets
            and self._unacked_bytes < self._window_bytes
            and len(self._unacked) < OPEN_BATCHES
        )

    def _send_loaded(self) -> None:
        while len(self._unacked) < OPEN_BATCHES:
            batch = self._next_batch()
            if not batch and not self._gone:
                return
            self._transmit(batch)

    def _next_batch(self) -> list[tuple[PacketId, StoredEnvelope, bool]]:
        """Take from what is loaded as much as one batch and the window hold; what may not leave is `gone`."""
        batch: list[tuple[PacketId, StoredEnvelope, bool]] = []
        room = min(self._window_packets - len(self._unacked_ids), self._limits.batch_packets)
        window_bytes = self._window_bytes - self._unacked_bytes
        size = 0
        while self._loaded:
            packet_id, stored = self._loaded[0]
            is_due = packet_id in self._live or packet_id in self._wanted
            if is_due and stored is not None and self._may_leave(stored):
                size += len(stored.envelope.body)
                if len(batch) >= room or size > window_bytes or (batch and size > self._limits.batch_bytes):
                    break
                batch.append((packet_id, stored, packet_id not in self._wanted))
            elif packet_id in self._wanted:
                self._gone.append(packet_id)
            # else: announced since it was loaded, or live and not to leave any more.
            self._loaded.popleft()
            self._live.pop(packet_id, None)
            self._wanted.pop(packet_id, None)
        return batch

    def _may_leave(self, stored: StoredEnvelope) -> bool:
        return stored.origin in self._scope and self._table.may_send(self._peer, stored.origin, stored.audience).allowed

    def _transmit(self, batch: Sequence[tuple[PacketId, StoredEnvelope, bool]]) -> None:
        gone, self._gone = self._gone, []
        sent = [
            _Sent(packet_id, len(stored.envelope.body), stored.origin if is_unasked else None)
            for packet_id, stored, is_unasked in batch
        ]
        self._send_encoded(codec.encode_packets(self._batch, [stored.envelope for _, stored, _ in batch], gone))
        self._unacked[self._batch] = sent
        self._unacked_ids.update(packet_id for packet_id, _, _ in sent)
        self._batch += 1
        size = sum(size for _, size, _ in sent)
        self._unacked_bytes += size
        self._stats.packets_out += len(batch)
        self._stats.bytes_out += size
