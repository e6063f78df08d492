"""The receiving half of a link: what this node learns from a peer. The receiver steers.

    Interest --> Scope --> CatchUp: what differs --> Wants: what is missing --> Packets --> judged --> Ack
                                        Have -----------^

Interest says whose packets are accepted, Scope answers whose are offered. Each is sent anew when policy
changes, and replaces its predecessor. Batches of Packets are judged by the shell, several at a time, and
acknowledged when they are durable.

Live packets come unasked. One that was here already makes this side ask for announcements (Plumtree, Leitão et
al. 2007); an announced id that is still missing after 200 ms is Wanted, which the peer takes as a wish for
whole packets.

Source: docs/protocol.md, section 6.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from federation.protocol import codec, messages
from federation.protocol.catchup import CatchUp
from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, Goodbye, PacketError, RemoteProtocolError
from federation.protocol.events import (
    BatchJudged,
    Catalogue,
    Effect,
    JudgeBatch,
    Judgement,
    LinkStats,
    ManifestArrived,
    Penalise,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.limits import Limits
from federation.protocol.manifest import ManifestError, parse_manifest
from federation.protocol.packet import PacketId, packet_id_of, parse_packet
from federation.protocol.recent import RecentIds, Refusals
from federation.protocol.wants import Wants
from keys.encoding import KeyFingerprint, NodeId
from peers.trust import KeyStatus, Tier, TrustTable

# Interest is sent anew so much later when something could not be taken now: the store was busy, announcements
# came faster than they could be looked up.
RETRY_S = 5.0
MIN_EARLY_S = 1.0  # a packet that is early is not looked for again sooner, whatever its clock says
# Moments for such an Interest, and for those that early packets become due; beyond it the latest stands for all others.
MOMENTS = 64
MANIFESTS_ASKED = 256  # GetManifest of one link without an answer; beyond it an unfamiliar key waits for the next Scope
KEYS_ASKED = 2_048  # keys remembered as asked for since the last Interest, so that each packet does not ask anew


@dataclass(frozen=True, slots=True)
class _Row:
    """One received envelope while it is judged."""

    packet_id: PacketId | None
    """None for a row that could not be read."""
    was_wanted: bool
    unfamiliar: Envelope | None
    """Kept when it names a key that is not trusted here."""


@dataclass(frozen=True, slots=True)
class _OpenBatch:
    rows: list[_Row]
    size: int


class Receiver:
    """State of what comes from one peer to this node.

    Args:
        link: Names this link among those that share `fetches`.
        window: Packets, and canonical bytes of them, that may be unacknowledged; what this side's Welcome said.
        peer_has: Told of each packet the peer turns out to have.
    """

    def __init__(
        self,
        *,
        link: Hashable,
        peer: NodeId,
        table: TrustTable,
        limits: Limits,
        window: tuple[int, int],
        catalogue: Catalogue,
        fetches: FetchBoard,
        send: Callable[[messages.Message], None],
        chance: Callable[[], float],
        stats: LinkStats,
        refused: Refusals,
        peer_has: Callable[[PacketId], None],
    ) -> None:
        self._peer = peer
        self._table = table
        self._limits = limits
        self._window_packets, self._window_bytes = window
        self._catalogue = catalogue
        self._send = send
        self._chance = chance
        self._stats = stats
        self._refused = refused
        self._peer_has = peer_has
        self._wants = Wants(link=link, limits=limits, fetches=fetches, refused=refused, send=send, stats=stats)
        self._catch_up = CatchUp(catalogue=catalogue, limits=limits, send=send, chance=chance, stats=stats)

        self._is_started = False
        self._interest: dict[NodeId, int] = {}
        self._next_interest: float | None = None
        self._again: set[float] = set()
        self._scopes_awaited = 0
        self._manifests_awaited: set[NodeId] = set()
        self._keys_asked = RecentIds(KEYS_ASKED)

        self._next_batch = 0
        self._open: dict[int, _OpenBatch] = {}
        self._open_packets = 0
        self._open_bytes = 0

    # --- what the shell may show ---

    @property
    def in_flight(self) -> tuple[int, int]:
        """Packets received and not acknowledged, and their canonical bytes."""
        return self._open_packets, self._open_bytes

    @property
    def missing(self) -> int:
        """Ids known to be missing here and not yet received over this link."""
        return self._wants.missing

    @property
    def is_settled(self) -> bool:
        """True when nothing more is expected but live packets."""
        return not self._scopes_awaited and self._catch_up.is_idle and not self._wants.missing and not self._open

    @property
    def deadline(self) -> float | None:
        moments = [self._next_interest, min(self._again, default=None), self._wants.deadline]
        return min((moment for moment in moments if moment is not None), default=None)

    # --- interest and scope ---

    @property
    def awaits_scope(self) -> bool:
        return self._scopes_awaited > 0

    def start(self, now: float) -> None:
        """The peer grants pull: say whose packets are accepted here, perhaps nobody's."""
        self._is_started = True
        self.send_interest(now)
        # What was early on an earlier link is passed by until it is due, and that moment went with the link.
        latest = math.inf
        for moment in self._refused.early_moments():
            if moment < latest - RETRY_S:
                self._ask_again(max(moment, now + MIN_EARLY_S))
                latest = moment

    def send_interest(self, now: float) -> None:
        """Say whose packets are accepted, unless the peer gives none."""
        if not self._is_started:
            return
        rows = [(origin, self._catalogue.summary(origin)[0]) for origin in self._table.accepted_origins(self._peer)]
        self._interest = dict(rows)
        self._next_interest = now + self._limits.interest_interval_s * (0.8 + 0.4 * self._chance())
        self._again = {moment for moment in self._again if moment > now}
        self._scopes_awaited += 1
        self._keys_asked.clear()
        self._send(messages.Interest(rows=rows))

    def policy_changed(self, table: TrustTable, now: float) -> None:
        """Say anew whose packets are accepted; what was refused before may be welcome now."""
        self._table = table
        self._refused.clear()
        self.send_interest(now)

    def wall_clock(self, ahead_s: float, now: float) -> None:
        """Take in how far the wall clock is ahead of the monotonic one: when it was set, early packets may be due."""
        if self._refused.wall_clock(ahead_s):
            self.send_interest(now)

    def scope(self, message: messages.Scope) -> None:
        """The peer says what it offers: reconcile each origin whose set differs from ours.

        Raises:
            RemoteProtocolError: no Interest was ever sent, so no Scope may come.
        """
        if not self._is_started:
            raise RemoteProtocolError("a Scope that no Interest asked for")
        self._scopes_awaited = max(0, self._scopes_awaited - 1)
        differing: dict[NodeId, int] = {}
        for row_origin, count, fingerprint, key_fingerprint in message.rows:
            origin = NodeId(row_origin)
            if origin not in self._interest:
                continue  # overtaken by a later Interest, or offered in vain
            self._look_at_key(origin, KeyFingerprint(key_fingerprint))
            if count and self._catalogue.summary(origin) != (count, fingerprint):
                differing[origin] = max(count, self._interest[origin])
        self._catch_up.begin(differing)
        self._catch_up.advance(has_place=self._wants.has_place)

    def _look_at_key(self, origin: NodeId, fingerprint: KeyFingerprint) -> None:
        """Ask for the manifest of an origin whose key is unfamiliar, once for each Interest."""
        key = self._table.keys.get(fingerprint)
        if (key is not None and key.node_id == origin) or origin == self._table.own:
            return
        self._ask_manifest(origin, fingerprint)

    def _ask_manifest(self, origin: NodeId, fingerprint: KeyFingerprint) -> None:
        if origin in self._manifests_awaited or fingerprint in self._keys_asked:
            return
        if len(self._manifests_awaited) < MANIFESTS_ASKED:
            self._manifests_awaited.add(origin)
            self._keys_asked.add(fingerprint)
            self._send(messages.GetManifest(origin=origin))

    def manifest(self, message: messages.Manifest) -> list[Effect]:
        """Take a manifest that was asked for; a key in it changes the policy, and that sends Interest.

        Raises:
            RemoteProtocolError: it was not asked for.
        """
        origin = NodeId(message.origin)
        if origin not in self._manifests_awaited:
            raise RemoteProtocolError("a Manifest that nothing asked for")
        self._manifests_awaited.discard(origin)
        if message.signed is None:
            return []
        try:
            signed = parse_manifest(*message.signed)
        except ManifestError:
            return []  # a relay may hold what does not verify; nothing is learned from it
        return [ManifestArrived(signed)] if signed.manifest.node_id == origin else []

    # --- reconciliation: this side asks ---

    def reconcile(self, message: messages.Reconcile, now: float) -> list[Effect]:
        """Take the answer to a request.

        Raises:
            RemoteProtocolError: no request is open for the origin, or the frame is malformed.
        """
        effects = self._wants.learn(self._catch_up.answer(message), now)
        self._catch_up.advance(has_place=self._wants.has_place)
        return effects

    def missing_found(self, asked: Sequence[PacketId], missing: Sequence[PacketId], now: float) -> None:
        """The store told which of the learned ids are missing."""
        self._wants.found(asked, missing, now)
        self._catch_up.advance(has_place=self._wants.has_place)

    # --- announcements ---

    def have(self, message: messages.Have, now: float) -> None:
        """Note announced ids: each is Wanted if it is still missing a little later."""
        for origin, packet_id in message.rows:
            self._peer_has(packet_id)
            if origin in self._interest and not self._wants.announce(packet_id, now):
                self._retry(now)

    # --- packets ---

    def packets(self, message: messages.Packets, now: float) -> list[Effect]:
        """Take one batch: it is judged elsewhere and acknowledged when it is durable.

        Raises:
            RemoteProtocolError: batches out of order, or more unacknowledged than the window allows (`overrun`).
        """
        if message.batch != self._next_batch:
            raise RemoteProtocolError(f"batch {message.batch} where {self._next_batch} is due")
        self._next_batch += 1
        size = sum(map(codec.row_bytes, message.rows))
        if self._open_packets + len(message.rows) > self._window_packets or self._open_bytes + size > self._window_bytes:
            raise RemoteProtocolError("more unacknowledged packets than the window allows", Goodbye.OVERRUN)
        for packet_id in message.gone:
            self._wants.gone(packet_id, now)
        if not message.rows:
            # Nothing to judge. Acknowledged at once, a flood of these leaves nothing open.
            self._send(messages.Ack(batch=message.batch, codes=[]))
            self._go_on(now)
            return []
        envelopes = [codec.decode_row(row) for row in message.rows]
        self._open[message.batch] = _OpenBatch([self._arrived(envelope, now) for envelope in envelopes], size)
        self._open_packets += len(envelopes)
        self._open_bytes += size
        self._stats.packets_in += len(envelopes)
        self._stats.bytes_in += size
        self._go_on(now)  # what arrived counts as answered, judged or not
        return [JudgeBatch(batch=message.batch, envelopes=envelopes)]

    def _arrived(self, envelope: Envelope | None, now: float) -> _Row:
        if envelope is None:
            return _Row(packet_id=None, was_wanted=True, unfamiliar=None)
        packet_id = packet_id_of(envelope.body)
        key = self._table.keys.get(envelope.key_fingerprint)
        is_familiar = key is not None and key.status is KeyStatus.TRUSTED
        return _Row(packet_id, self._wants.arrived(packet_id, now), None if is_familiar else envelope)

    def judged(self, event: BatchJudged, now: float) -> list[Effect]:
        """Acknowledge a batch, and draw the consequences of what became of each packet."""
        batch = self._open.pop(event.batch)
        self._open_packets -= len(batch.rows)
        self._open_bytes -= batch.size
        self._send(messages.Ack(batch=event.batch, codes=[judgement.code for judgement in event.judgements]))
        is_pushed_in_vain = False
        for row, judgement in zip(batch.rows, event.judgements, strict=True):
            code = judgement.code
            self._stats.outcomes_in[code] = self._stats.outcomes_in.get(code, 0) + 1
            if code is Code.DUPLICATE and not row.was_wanted:
                is_pushed_in_vain = True
            if code.is_rejection:
                self._refused.rejections += 1
            if row.packet_id is None:
                continue
            self._wants.judged(row.packet_id, now)
            if code.is_refusal:
                self._remember_refusal(row.packet_id, judgement, now)
            else:
                self._peer_has(row.packet_id)
            if code is Code.UNKNOWN_KEY and row.unfamiliar is not None:
                self._ask_whose_key(row.unfamiliar)
        if is_pushed_in_vain:
            # Said each time: a Want of an id that was announced may have restored push in between.
            self._send(messages.Prefer(mode=messages.Preference.ANNOUNCE))
        self._go_on(now)
        return self._weigh_rejections()

    def _go_on(self, now: float) -> None:
        self._wants.send_more(now)
        self._catch_up.advance(has_place=self._wants.has_place)

    def _remember_refusal(self, packet_id: PacketId, judgement: Judgement, now: float) -> None:
        """Keep a refused packet from being fetched again, for as long as the refusal stands."""
        match judgement.code:
            case Code.BUSY:
                # This node's own trouble: what was declined is looked for again soon.
                self._retry(now)
            case Code.EARLY:
                due = now + max(judgement.due_in_s, MIN_EARLY_S)
                self._refused.add(packet_id, due, is_early=True)
                self._ask_again(due)
            case _:
                self._refused.add(packet_id, now + (judgement.due_in_s or self._limits.refusal_memory_s))

    def _ask_whose_key(self, envelope: Envelope) -> None:
        try:
            origin = parse_packet(envelope.body).origin
        except PacketError:
            return  # the judge saw a packet where there is none; nobody to ask about
        self._ask_manifest(origin, envelope.key_fingerprint)

    def _retry(self, now: float) -> None:
        """Send Interest soon, once for all that could not be taken until then."""
        if not any(moment <= now + RETRY_S for moment in self._again):
            self._ask_again(now + RETRY_S)

    def _ask_again(self, moment: float) -> None:
        """Send Interest at a moment too, or a little later with another one."""
        if not self._is_started or any(moment <= other <= moment + RETRY_S for other in self._again):
            return
        if len(self._again) < MOMENTS:
            self._again.add(moment)
        elif moment > (latest := max(self._again)):
            self._again.discard(latest)
            self._again.add(moment)

    def _weigh_rejections(self) -> list[Effect]:
        if self._refused.rejections <= self._limits.rejections or self._table.standing(self._peer).tier is Tier.CORE:
            return []
        reason = f"{self._refused.rejections} rejected packets"
        self._refused.rejections = 0  # the penalty is for these
        return [Penalise(reason=reason)]

    # --- time ---

    def timer(self, now: float) -> list[Effect]:
        if any(moment is not None and moment <= now for moment in (self._next_interest, *self._again)):
            self.send_interest(now)
        effects = self._wants.timer(now)
        self._go_on(now)
        return effects

    def close(self) -> None:
        """The link ended: what it was fetching may be fetched elsewhere."""
        self._wants.close()
