"""What becomes of a received batch: read, judged, verified, committed, and only then acknowledged.

    envelopes --> known ids (one query) --> admit --> signatures --> group commit --> judgements

The order of the checks is the core's (protocol/admission.py). This shell looks up what they ask about, keeps
each SANDBOX origin's rate, and remembers what was refused, for the operator's `why`.

Source: docs/protocol.md, sections 2, 6 and 8.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from django.db import DatabaseError

from federation import selectors, services
from federation.committer import Committer
from federation.database import Database
from federation.feed import Feed
from federation.protocol.admission import Candidate, Refused, admit
from federation.protocol.envelope import Envelope, VerifiedPacket
from federation.protocol.errors import Code
from federation.protocol.events import Judgement, StoredEnvelope
from federation.protocol.limits import CLOCK_SKEW_MS, Limits
from federation.protocol.packet import PacketId, packet_id_of, parse_packet
from federation.services import Quota, Received
from federation.verifier import VerifierPool
from keys.encoding import NodeId
from peers.trust import KeyStatus, Tier, TrustTable

logger = logging.getLogger(__name__)

# A packet beyond its origin's rate is looked for again this much later: a second's worth is there by then.
RATE_RETRY_S = 1.0

_STORE_REASONS = {
    Code.QUOTA: "the origin has used up the room it has here",
    Code.BUSY: "the database could not be written",
    Code.MALFORMED: "the database refused the packet's values",
    Code.RETRACTED: "the operator purged this packet",
}


class Ingest:
    """Judges batches of all links of a process."""

    def __init__(
        self,
        *,
        database: Database,
        committer: Committer,
        feed: Feed,
        verifiers: VerifierPool,
        limits: Limits,
        table: Callable[[], TrustTable],
    ) -> None:
        self._database = database
        self._committer = committer
        self._feed = feed
        self._verifiers = verifiers
        self._limits = limits
        self._table = table
        self._rates: dict[NodeId, _Rate] = {}

    async def judge(self, peer: NodeId, envelopes: Sequence[Envelope | None]) -> list[Judgement]:
        """Return one judgement an envelope, in order; ACCEPTED ones are durable."""
        now_ms = time.time_ns() // 1_000_000
        ids = [packet_id_of(envelope.body) for envelope in envelopes if envelope is not None]
        try:
            known = await self._database.read(selectors.known_codes, ids)
        except DatabaseError as error:
            logger.warning("the database does not answer, %d packets are declined: %s", len(envelopes), error)
            return [Judgement(Code.BUSY, packet_id_of(row.body) if row else None, _STORE_REASONS[Code.BUSY]) for row in envelopes]
        outcomes = admit(
            envelopes,
            table=self._table(),
            link_peer=peer,
            now_ms=now_ms,
            known={PacketId(packet_id) for packet_id, code in known.items() if code is Code.DUPLICATE},
            erased={PacketId(packet_id): code for packet_id, code in known.items() if code is not Code.DUPLICATE},
            quota=self._room,
        )
        judgements = await self._settle(peer, outcomes, now_ms)
        await self._remember(peer, outcomes, judgements, now_ms)
        return [
            _dated(judgement, outcome, envelope, now_ms)
            for judgement, outcome, envelope in zip(judgements, outcomes, envelopes, strict=True)
        ]

    def quotas(self) -> Mapping[NodeId, Quota]:
        """Return what each bounded origin may take up here, by its tier now."""
        bounds = {
            Tier.SANDBOX: Quota(packets=self._limits.sandbox_packets, bytes=self._limits.sandbox_bytes),
            Tier.CORE: Quota(packets=None, bytes=self._limits.core_bytes),
        }
        standings = self._table().standings.items()
        return {node_id: bounds[standing.tier] for node_id, standing in standings if standing.tier in bounds}

    async def _settle(self, peer: NodeId, outcomes: Sequence[Candidate | Refused], now_ms: int) -> list[Judgement]:
        """Verify and store the candidates; return a judgement for every outcome."""
        candidates = [outcome for outcome in outcomes if isinstance(outcome, Candidate)]
        verified = iter(await self._verify(peer, candidates))
        settled = [next(verified) if isinstance(outcome, Candidate) else outcome for outcome in outcomes]
        table = self._table()
        judgements: list[Judgement | None] = []
        received: list[Received] = []
        for outcome in settled:
            if isinstance(outcome, Refused):
                judgements.append(Judgement(outcome.code, outcome.packet_id, outcome.reason))
                continue
            packet = outcome.packet
            # Asked again: the operator may have decided otherwise while the signature was verified.
            decision = table.may_accept(peer, packet.origin, packet.audience)
            key = table.keys.get(outcome.envelope.key_fingerprint)
            if decision.allowed and (key is None or key.status is not KeyStatus.TRUSTED):
                judgements.append(Judgement(Code.REVOKED_KEY, packet.packet_id, "the key was withdrawn a moment ago"))
            elif decision.allowed:
                judgements.append(None)
                received.append(Received(packet=outcome, peer=peer, rule=decision.rule, received_at=now_ms))
            else:
                judgements.append(Judgement(Code(decision.code), packet.packet_id, decision.reason))
        stored = iter(self._stored(received, await self._committer.store(received)))
        return [judgement or next(stored) for judgement in judgements]

    async def _verify(self, peer: NodeId, candidates: Sequence[Candidate]) -> list[VerifiedPacket | Refused]:
        """Check the signatures; of a peer that is not CORE no more once its budget of bad ones is used up.

        The link ends then, so what is left unverified is declined `busy`: nothing is said about it.
        """
        if self._table().standing(peer).tier is Tier.CORE:
            return await self._verifiers.verify(candidates)
        outcomes: list[VerifiedPacket | Refused] = []
        budget = self._limits.rejections
        for start in range(0, len(candidates), budget):
            part = candidates[start : start + budget]
            if sum(isinstance(outcome, Refused) for outcome in outcomes) >= budget:
                outcomes += [Refused(each.packet.packet_id, each.packet.origin, Code.BUSY, "not looked at") for each in part]
            else:
                outcomes += await self._verifiers.verify(part)
        return outcomes

    def _stored(self, received: Sequence[Received], codes: Sequence[Code]) -> list[Judgement]:
        accepted: Counter[NodeId] = Counter()
        judgements: list[Judgement] = []
        for item, code in zip(received, codes, strict=True):
            packet = item.packet.packet
            judgements.append(Judgement(code, packet.packet_id, _STORE_REASONS.get(code, "")))
            if code is Code.ACCEPTED:
                accepted[packet.origin] += 1
                self._feed.bodies.put(packet.packet_id, StoredEnvelope(item.packet.envelope, packet.origin, packet.audience))
        for origin, count in accepted.items():
            if origin in self._rates:
                self._rates[origin].charge(count)
        return judgements

    def _room(self, origin: NodeId, packets: int, size: int) -> str | None:
        """Answer the core: may so many packets of this origin come now? Room in the store is counted at the commit."""
        if self._table().standing(origin).tier is not Tier.SANDBOX:
            return None
        rate = self._rates.setdefault(origin, _Rate(self._limits.sandbox_packets_per_s))
        if rate.has(packets):
            return None
        return f"a SANDBOX origin may bring {self._limits.sandbox_packets_per_s:.0f} packets a second"

    async def _remember(
        self, peer: NodeId, outcomes: Sequence[Candidate | Refused], judgements: Sequence[Judgement], now_ms: int
    ) -> None:
        rows = [
            services.Refused(
                packet_id=judgement.packet_id,
                peer=peer.hex(),
                origin=_origin(outcome),
                code=judgement.code,
                reason=judgement.reason,
                at=now_ms,
            )
            for outcome, judgement in zip(outcomes, judgements, strict=True)
            if judgement.packet_id is not None and judgement.code.is_refusal and judgement.code is not Code.BUSY
        ]
        if not rows:
            return
        try:
            await self._database.write(services.note_refusals, rows, limit=self._limits.refusals_per_peer)
        except DatabaseError as error:
            # The peer is told all the same; only the operator's `why` misses these.
            logger.warning("%d refusals could not be recorded: %s", len(rows), error)


def _origin(outcome: Candidate | Refused) -> str:
    origin = outcome.packet.origin if isinstance(outcome, Candidate) else outcome.origin
    return "" if origin is None else origin.hex()


def _dated(judgement: Judgement, outcome: Candidate | Refused, envelope: Envelope | None, now_ms: int) -> Judgement:
    """Add when a refused packet may come again, where that is known: its times are due, or the origin's rate allows."""
    if envelope is None or not isinstance(outcome, Refused):
        return judgement
    if judgement.code is Code.EARLY:
        stamped = max(envelope.timestamp, parse_packet(envelope.body).created_at)
        due_in_s = max(stamped - CLOCK_SKEW_MS - now_ms, 1_000) / 1000
    elif judgement.code is Code.QUOTA:
        due_in_s = RATE_RETRY_S
    else:
        return judgement
    return Judgement(judgement.code, judgement.packet_id, judgement.reason, due_in_s=due_in_s)


class _Rate:
    """A token bucket that holds one second's worth."""

    __slots__ = ("_at", "_per_s", "_tokens")

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at = time.monotonic()

    def has(self, count: int) -> bool:
        now = time.monotonic()
        self._tokens = min(self._per_s, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        return self._tokens >= count

    def charge(self, count: int) -> None:
        self._tokens -= count
