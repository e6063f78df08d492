"""The receiving half of a link: what this node learns from a peer. The receiver steers.

    Interest --> Scope --> reconcile what differs --> ids needed --> missing here? --> Want --> Packets --> judge --> Ack

An id travels through `_learned` (asked of the store), `_needed` (waiting for a place among the unanswered
Wants) and `_wanted` (asked of the peer). Ids another link is fetching wait in `_deferred`. Each is bounded;
beyond the bound of learned ids no further Reconcile frame is sent, so the peer cannot fill memory.

Live packets come unasked. A live packet that was here already makes this side prefer announcements
(Plumtree, Leitão et al. 2007); an announced id that is still missing after 200 ms is Wanted, and whole
packets are preferred again.

Source: docs/protocol.md, section 6.
"""

from collections import deque
from collections.abc import Callable, Sequence

from federation.protocol import codec, messages
from federation.protocol.errors import Code, Goodbye, RemoteProtocolError
from federation.protocol.events import (
    BatchJudged,
    Catalogue,
    Effect,
    FindMissing,
    JudgeBatch,
    Judgement,
    LinkStats,
    ManifestArrived,
    Penalise,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.limits import Limits
from federation.protocol.manifest import ManifestError, parse_manifest
from federation.protocol.packet import PacketId, packet_id_of
from federation.protocol.recent import ExpiringIds
from federation.protocol.reconcile import Initiator
from keys.encoding import KeyFingerprint, NodeId
from peers.trust import Tier, TrustTable

HAVE_PATIENCE_S = 0.2  # an announced packet may still come as a whole from elsewhere
ANNOUNCED_WAITING = 8_192  # announced ids waiting; beyond it they are left to reconciliation
DEFERRED_RECHECK_S = 1.0
BUSY_RETRY_S = 5.0
MAX_ROUNDS = 2**22
MANIFESTS_ASKED = 256  # GetManifest of one link waiting for an answer; beyond it an unfamiliar key waits for the next Scope


class Receiver:
    """State of what comes from one peer to this node."""

    def __init__(
        self,
        *,
        link: object,
        peer: NodeId,
        table: TrustTable,
        limits: Limits,
        window: tuple[int, int],
        catalogue: Catalogue,
        fetches: FetchBoard,
        send: Callable[[messages.Message], None],
        chance: Callable[[], float],
        stats: LinkStats,
        refused: ExpiringIds,
        peer_has: Callable[[PacketId], None],
    ) -> None:
        self._link = link
        self._peer = peer
        self._table = table
        self._limits = limits
        self._window_packets, self._window_bytes = window
        self._catalogue = catalogue
        self._fetches = fetches
        self._send = send
        self._chance = chance
        self._stats = stats
        self._peer_has = peer_has

        self._interest: dict[NodeId, int] = {}
        self._next_interest: float | None = None
        self._scope: dict[NodeId, tuple[int, bytes]] = {}
        self._is_started = False
        self._asked_manifests: set[NodeId] = set()

        self._origins: deque[NodeId] = deque()
        self._reconciling: dict[NodeId, Initiator] = {}
        self._rounds: dict[NodeId, int] = {}
        self._held: dict[NodeId, bytes] = {}
        self._unanswered: dict[NodeId, int] = {}
        self._overtaken: dict[NodeId, int] = {}

        self._learned = 0
        self._needed: deque[PacketId] = deque()
        self._needed_ids: set[PacketId] = set()
        self._deferred: dict[PacketId, None] = {}
        self._deferred_due: float | None = None
        self._wanted: dict[PacketId, float] = {}
        self._timed_out: set[PacketId] = set()
        self._refused = refused

        self._announced: dict[PacketId, float] = {}
        self._announced_wants: set[PacketId] = set()
        self._prefers_announce = False

        self._next_batch = 0
        self._open: dict[int, _OpenBatch] = {}
        self._open_packets = 0
        self._open_bytes = 0
        self._rejections = 0

    # --- what the shell may show ---

    @property
    def in_flight(self) -> tuple[int, int]:
        return self._open_packets, self._open_bytes

    @property
    def missing(self) -> int:
        """Ids known to be missing here and not yet received over this link."""
        return self._learned + len(self._needed) + len(self._deferred) + len(self._wanted)

    @property
    def is_settled(self) -> bool:
        return not (self._origins or self._reconciling or self.missing or self._open)

    @property
    def deadline(self) -> float | None:
        moments = [self._next_interest, self._deferred_due]
        if self._wanted:
            moments.append(next((due for packet_id, due in self._wanted.items() if packet_id not in self._timed_out), None))
        if self._announced:
            moments.append(next(iter(self._announced.values())))
        return min((moment for moment in moments if moment is not None), default=None)

    # --- interest and scope ---

    def start(self, now: float) -> None:
        """The peer grants pull: say whose packets are accepted here."""
        self._is_started = True
        self.send_interest(now)

    def send_interest(self, now: float) -> None:
        if not self._is_started:
            return
        rows = [(origin, self._catalogue.summary(origin)[0]) for origin in self._table.accepted_origins(self._peer)]
        self._interest = dict(rows)
        self._next_interest = now + self._limits.interest_interval_s * (0.8 + 0.4 * self._chance())
        self._send(messages.Interest(rows=rows))

    def policy_changed(self, table: TrustTable, now: float) -> None:
        """Say anew whose packets are accepted; what was refused before may be welcome now."""
        self._table = table
        self._refused.clear()
        self.send_interest(now)

    def scope(self, message: messages.Scope) -> None:
        """The peer says what it offers: reconcile each origin whose set differs from ours.

        Raises:
            RemoteProtocolError: no Interest was ever sent, so no Scope may come.
        """
        if not self._is_started:
            raise RemoteProtocolError("a Scope that no Interest asked for")
        self._scope = {NodeId(origin): (count, fingerprint) for origin, count, fingerprint, _ in message.rows}
        self._rounds = {}
        self._origins.clear()
        for origin in list(self._reconciling):
            # What has a request under way goes on if it is still offered; everything else begins anew.
            if origin in self._held or origin not in self._scope:
                self._drop(origin)
        for origin, count, fingerprint, key_fingerprint in message.rows:
            if origin not in self._interest:
                continue
            if KeyFingerprint(key_fingerprint) not in self._table.keys:
                self._ask_manifest(NodeId(origin))
            if count and self._catalogue.summary(NodeId(origin)) != (count, fingerprint):
                self._origins.append(NodeId(origin))
        self._reconcile_more()

    def _drop(self, origin: NodeId) -> None:
        """Give up a reconciliation; the answer to a request that is still under way will be passed over."""
        del self._reconciling[origin]
        self._held.pop(origin, None)
        if self._unanswered.get(origin):
            self._overtaken[origin] = self._unanswered[origin]

    def _ask_manifest(self, origin: NodeId) -> None:
        if origin not in self._asked_manifests and len(self._asked_manifests) < MANIFESTS_ASKED:
            self._asked_manifests.add(origin)
            self._send(messages.GetManifest(origin=origin))

    def manifest(self, message: messages.Manifest) -> list[Effect]:
        """Take a manifest that was asked for.

        Raises:
            RemoteProtocolError: it was not asked for.
        """
        origin = NodeId(message.origin)
        if origin not in self._asked_manifests:
            raise RemoteProtocolError("a Manifest that nothing asked for")
        self._asked_manifests.discard(origin)
        if message.signed is None:
            return []
        try:
            signed = parse_manifest(*message.signed)
        except ManifestError:
            return []  # a relay may hold what does not verify; nothing is learned from it
        return [ManifestArrived(signed)] if signed.manifest.node_id == origin else []

    # --- reconciliation: this side asks ---

    def _reconcile_more(self) -> None:
        while self._origins and len(self._reconciling) < self._limits.reconcile_origins and self._has_place():
            origin = self._origins.popleft()
            if origin in self._reconciling:
                continue
            initiator = Initiator(
                self._catalogue.items(origin),
                frame_limit=self._limits.reconcile_frame_bytes,
                split_seed=int(self._chance() * 2**32),
            )
            self._reconciling[origin] = initiator
            self._request(origin, initiator.initiate())
        while self._held and self._has_place():
            origin = next(iter(self._held))
            self._request(origin, self._held.pop(origin))

    def _request(self, origin: NodeId, frame: bytes) -> None:
        rounds = self._rounds.get(origin, 0) + 1
        count = max(self._scope.get(origin, (0, b""))[0], self._interest.get(origin, 0))
        if rounds > min(MAX_ROUNDS, 64 + count // 250):
            # The peer would end the link; the next Interest begins anew.
            self._drop(origin)
            return
        self._rounds[origin] = rounds
        self._unanswered[origin] = self._unanswered.get(origin, 0) + 1
        self._stats.reconcile_rounds += 1
        self._send(messages.Reconcile(origin=origin, role=messages.Role.REQUEST, frame=frame))

    def _has_place(self) -> bool:
        return self._learned + len(self._needed) + len(self._deferred) < self._limits.learned_ids

    def reconcile(self, message: messages.Reconcile) -> list[Effect]:
        """Take the answer to a request.

        Raises:
            RemoteProtocolError: no request is open for the origin, or the frame is malformed.
        """
        origin = NodeId(message.origin)
        if not self._unanswered.get(origin):
            raise RemoteProtocolError("an answer to no request of reconciliation")
        self._unanswered[origin] -= 1
        if not self._unanswered[origin]:
            del self._unanswered[origin]
        if self._overtaken.get(origin):
            self._overtaken[origin] -= 1
            if not self._overtaken[origin]:
                del self._overtaken[origin]
            return []
        step = self._reconciling[origin].receive(message.frame)
        if step.next_frame is None:
            del self._reconciling[origin]
        else:
            self._held[origin] = step.next_frame
        effects = self._learn([PacketId(packet_id) for packet_id in step.need])
        self._reconcile_more()
        return effects

    def _learn(self, ids: Sequence[PacketId]) -> list[Effect]:
        fresh = [packet_id for packet_id in ids if packet_id not in self._needed_ids and packet_id not in self._wanted]
        if not fresh:
            return []
        self._learned += len(fresh)
        return [FindMissing(ids=tuple(fresh))]

    def missing_found(self, asked: Sequence[PacketId], missing: Sequence[PacketId], now: float) -> None:
        """The store told which of the learned ids are missing: queue them, and Want what may be Wanted."""
        self._learned -= len(asked)
        if self._prefers_announce and not self._announced_wants.isdisjoint(missing):
            # Announcements alone reach this side too slowly.
            self._prefers_announce = False
            self._send(messages.Prefer(mode=messages.Preference.PUSH))
        self._announced_wants.difference_update(asked)
        for packet_id in missing:
            if packet_id in self._needed_ids or packet_id in self._wanted or self._refused.holds(packet_id, now):
                continue
            self._needed.append(packet_id)
            self._needed_ids.add(packet_id)
        self._want_more(now)

    # --- want ---

    def _want_more(self, now: float) -> None:
        ids: list[PacketId] = []
        while self._needed and len(self._wanted) < self._limits.wants:
            packet_id = self._needed.popleft()
            self._needed_ids.discard(packet_id)
            if not self._fetches.claim(packet_id, self._link, now, now + self._limits.want_timeout_s):
                self._deferred[packet_id] = None
                if self._deferred_due is None:
                    self._deferred_due = now + DEFERRED_RECHECK_S
                continue
            self._wanted[packet_id] = now + self._limits.want_timeout_s
            ids.append(packet_id)
        if ids:
            self._send(messages.Want(ids=ids))
        self._reconcile_more()

    def _answered(self, packet_id: PacketId) -> bool:
        """Return True when the id was Wanted here; it no longer is."""
        self._announced.pop(packet_id, None)
        if self._wanted.pop(packet_id, None) is None:
            return False
        self._timed_out.discard(packet_id)
        return True

    # --- packets ---

    def packets(self, message: messages.Packets) -> list[Effect]:
        """Take one batch: it is judged elsewhere and acknowledged when it is durable.

        Raises:
            RemoteProtocolError: batches out of order, or more unacknowledged than the window allows (`overrun`).
        """
        if message.batch != self._next_batch:
            raise RemoteProtocolError("a batch out of order")
        self._next_batch += 1
        envelopes = [codec.decode_row(row) for row in message.rows]
        size = sum(len(envelope.body) for envelope in envelopes if envelope is not None)
        self._open_packets += len(envelopes)
        self._open_bytes += size
        if self._open_packets > self._window_packets or self._open_bytes > self._window_bytes:
            raise RemoteProtocolError("more unacknowledged packets than the window allows", Goodbye.OVERRUN)
        self._stats.packets_in += len(envelopes)
        self._stats.bytes_in += size
        live: list[bool] = []
        for envelope in envelopes:
            live.append(envelope is None or not self._answered(packet_id_of(envelope.body)))
        for packet_id in message.gone:
            if self._answered(packet_id):
                self._fetches.release(packet_id, self._link)
        self._open[message.batch] = _OpenBatch(len(envelopes), size, live)
        return [JudgeBatch(batch=message.batch, envelopes=envelopes)]

    def judged(self, event: BatchJudged, now: float) -> list[Effect]:
        """Acknowledge a batch, and draw the consequences of what became of each packet."""
        batch = self._open.pop(event.batch)
        self._open_packets -= batch.packets
        self._open_bytes -= batch.size
        self._send(messages.Ack(batch=event.batch, codes=[judgement.code for judgement in event.judgements]))
        duplicate_live = False
        for judgement, was_live in zip(event.judgements, batch.live, strict=True):
            code = judgement.code
            self._stats.outcomes_in[code] = self._stats.outcomes_in.get(code, 0) + 1
            packet_id = judgement.packet_id
            if packet_id is not None:
                self._fetches.release(packet_id, self._link)
                if code.is_refusal:
                    self._remember_refusal(packet_id, judgement, now)
                else:
                    self._peer_has(packet_id)
            if code is Code.DUPLICATE and was_live:
                duplicate_live = True
            if code.is_rejection:
                self._rejections += 1
        if duplicate_live and not self._prefers_announce:
            self._prefers_announce = True
            self._send(messages.Prefer(mode=messages.Preference.ANNOUNCE))
        self._want_more(now)
        if self._rejections > self._limits.rejections and self._table.standing(self._peer).tier is not Tier.CORE:
            return [Penalise(reason=f"{self._rejections} rejected packets on one link")]
        return []

    def _remember_refusal(self, packet_id: PacketId, judgement: Judgement, now: float) -> None:
        if judgement.code is Code.BUSY:
            # This node's own trouble: what was declined is looked for again soon.
            self._ask_again(now + BUSY_RETRY_S)
            return
        memory_s = judgement.due_in_s if judgement.code is Code.EARLY else self._limits.refusal_memory_s
        self._refused.add(packet_id, now + memory_s)
        if judgement.code is Code.EARLY:
            self._ask_again(now + memory_s)

    def _ask_again(self, moment: float) -> None:
        if self._next_interest is not None:
            self._next_interest = min(self._next_interest, moment)

    # --- announcements ---

    def have(self, message: messages.Have, now: float) -> None:
        """Note announced ids: each is Wanted if it is still missing a little later."""
        for origin, packet_id in message.rows:
            self._peer_has(packet_id)
            if origin not in self._interest or packet_id in self._wanted or packet_id in self._announced:
                continue
            if len(self._announced) < ANNOUNCED_WAITING:
                self._announced[packet_id] = now + HAVE_PATIENCE_S

    def _announced_due(self, now: float) -> list[Effect]:
        due = [packet_id for packet_id, moment in self._announced.items() if moment <= now]
        if not due:
            return []
        for packet_id in due:
            del self._announced[packet_id]
        self._learned += len(due)
        self._announced_wants.update(due)
        return [FindMissing(ids=tuple(due))]

    # --- time ---

    def timer(self, now: float) -> list[Effect]:
        if self._next_interest is not None and now >= self._next_interest:
            self.send_interest(now)
        effects = self._announced_due(now)
        if self._deferred_due is not None and now >= self._deferred_due:
            effects.extend(self._recheck_deferred(now))
        for packet_id, due in self._wanted.items():
            if due > now:
                break
            if packet_id not in self._timed_out:
                # The place among the unanswered stays taken, for the peer counts it too; others may fetch the packet now.
                self._timed_out.add(packet_id)
                self._fetches.release(packet_id, self._link)
                self._stats.withheld += 1
        return effects

    def _recheck_deferred(self, now: float) -> list[Effect]:
        free = tuple(packet_id for packet_id in self._deferred if not self._fetches.is_claimed(packet_id, now))
        for packet_id in free:
            del self._deferred[packet_id]
        self._deferred_due = now + DEFERRED_RECHECK_S if self._deferred else None
        return self._learn(free)

    def close(self) -> None:
        """The link ended: what it was fetching may be fetched elsewhere."""
        self._fetches.release_all(self._link)


class _OpenBatch:
    """A received batch that is not acknowledged yet; `live` tells for each row whether it came unasked."""

    __slots__ = ("live", "packets", "size")

    def __init__(self, packets: int, size: int, live: list[bool]) -> None:
        self.packets = packets
        self.size = size
        self.live = live
