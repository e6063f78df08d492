"""What may come in: the checks on received envelopes, in the order every node keeps.

`admit` runs the cheap ones over a batch, `verify_candidates` the signatures of those that are left, so that a
shell can hand the expensive half to workers. In between the shell looks nothing up: the ids known, erased
ids and room under the quotas are handed in.

    row -> size, JSON, shape, version, canonical, fields     -> malformed, not-canonical, too-large, unsupported
        -> origin and link policy                            -> unknown-origin, tier
        -> known id                                          -> duplicate, or why it is gone
        -> time window                                       -> early
        -> key state                                         -> unknown-key, retired-key, revoked-key
        -> quota (charged when the packet is stored)         -> quota
        -> signature                                         -> bad-signature

Refusals are values, one for each row and in its place: one bad packet never holds up another.
The order is part of the protocol: which of two reasons a sender is told does not depend on the node it asks.

Source: docs/protocol.md, sections 2 and 3; threats: another's packet is judged by its author's key and nothing
else, whoever hands it over.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from federation.protocol.envelope import Envelope, VerifiedPacket, check_envelope, verify_parsed
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import CLOCK_SKEW_MS
from federation.protocol.packet import Packet, PacketId, packet_id_of, parse_packet
from keys.encoding import NodeId
from peers.trust import KeyStatus, TrustTable

__all__ = ["Candidate", "QuotaCheck", "Refused", "admit", "verify_candidates"]

QuotaCheck = Callable[[NodeId, int, int], str | None]
"""Asked with (origin, packets, bytes): is there room for so many more packets of it with so many canonical
bytes together? None when there is, otherwise the reason."""

_NOTHING_ERASED: Mapping[PacketId, Code] = MappingProxyType({})

_KEY_REFUSALS: Mapping[KeyStatus, tuple[Code, str]] = {
    KeyStatus.UNCONFIRMED: (Code.UNKNOWN_KEY, "the signing key is not confirmed as the origin's"),
    KeyStatus.RETIRED: (Code.RETIRED_KEY, "the origin has retired the signing key"),
    KeyStatus.REVOKED: (Code.REVOKED_KEY, "the signing key is revoked"),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A packet that passed every check but the signature."""

    packet: Packet
    envelope: Envelope
    verify_key: bytes
    """The origin's key that the envelope names, 32 bytes, as this node holds it."""
    rule: str
    """The policy rule that lets it in, for its receipt."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that is not stored now: refused, or a duplicate of what is here."""

    packet_id: PacketId | None
    """Of the bytes received; None for a row that was no envelope at all."""
    origin: NodeId | None
    """Who the packet names as its origin; None when it could not be read."""
    code: Code
    reason: str


def admit(
    batch: Sequence[Envelope | None],
    *,
    table: TrustTable,
    link_peer: NodeId,
    now_ms: int,
    known: Container[PacketId],
    quota: QuotaCheck,
    erased: Mapping[PacketId, Code] = _NOTHING_ERASED,
) -> list[Candidate | Refused]:
    """Judge everything but the signatures of a batch; one outcome for each row, in its place.

    Two rows with one id both become candidates: the first may be forged, so only the store decides which counts.

    Args:
        batch: Envelopes as they came from `link_peer`; None for a row that was none.
        now_ms: Wall clock, ms since the Unix epoch.
        known: Ids stored here, at least those of this batch (`packet_id_of` each body).
        erased: Ids remembered though their content is gone, with the code that says why.
        quota: Asked with what this batch already took, so that a batch cannot pass as many single packets.
    """
    judge = _Judge(table, link_peer, now_ms, known, erased, quota)
    return [judge.outcome(envelope) for envelope in batch]


def verify_candidates(candidates: Iterable[Candidate]) -> list[VerifiedPacket | Refused]:
    """Check the signatures; one outcome for each candidate, in its place. Costs some 60 µs each."""
    outcomes: list[VerifiedPacket | Refused] = []
    for candidate in candidates:
        packet = candidate.packet
        try:
            outcomes.append(verify_parsed(packet, candidate.envelope, candidate.verify_key))
        except PacketError as error:
            outcomes.append(Refused(packet.packet_id, packet.origin, error.code, str(error)))
    return outcomes


class _Judge:
    """The checks of one batch, and what the batch took of each origin's quota so far."""

    def __init__(
        self,
        table: TrustTable,
        link_peer: NodeId,
        now_ms: int,
        known: Container[PacketId],
        erased: Mapping[PacketId, Code],
        quota: QuotaCheck,
    ) -> None:
        self._table = table
        self._link_peer = link_peer
        self._latest_ms = now_ms + CLOCK_SKEW_MS
        self._known = known
        self._erased = erased
        self._quota = quota
        self._taken: dict[NodeId, tuple[int, int]] = {}

    def outcome(self, envelope: Envelope | None) -> Candidate | Refused:
        if envelope is None:
            return Refused(None, None, Code.MALFORMED, "the row is no envelope")
        try:
            check_envelope(envelope)
        except PacketError as error:
            return Refused(None, None, error.code, str(error))
        try:
            packet = parse_packet(envelope.body)
        except PacketError as error:
            return Refused(packet_id_of(envelope.body), None, error.code, str(error))
        try:
            return self._admit(packet, envelope)
        except PacketError as error:
            return Refused(packet.packet_id, packet.origin, error.code, str(error))

    def _admit(self, packet: Packet, envelope: Envelope) -> Candidate:
        decision = self._table.may_accept(self._link_peer, packet.origin, packet.audience)
        if not decision.allowed:
            raise PacketError(Code(decision.code), decision.reason)
        self._check_unknown_id(packet.packet_id)
        self._check_time("created_at", packet.created_at)
        self._check_time("the envelope's timestamp", envelope.timestamp)
        verify_key = self._verify_key(packet, envelope)
        self._take_room(packet)
        return Candidate(packet, envelope, verify_key, decision.rule)

    def _check_unknown_id(self, packet_id: PacketId) -> None:
        if packet_id in self._known:
            raise PacketError(Code.DUPLICATE, "the packet is here already")
        if packet_id in self._erased:
            raise PacketError(self._erased[packet_id], "the packet was here, and its content is erased for good")

    def _check_time(self, name: str, time_ms: int) -> None:
        if time_ms > self._latest_ms:
            ahead_s = (time_ms - self._latest_ms + CLOCK_SKEW_MS) // 1000
            raise PacketError(Code.EARLY, f"{name} is {ahead_s} s ahead of the clock here, {CLOCK_SKEW_MS // 1000} s are allowed")

    def _verify_key(self, packet: Packet, envelope: Envelope) -> bytes:
        key = self._table.keys.get(envelope.key_fingerprint)
        # A key of another node is no key of this origin, whatever it could prove.
        if key is None or key.node_id != packet.origin:
            raise PacketError(Code.UNKNOWN_KEY, "the signing key is none that is held for the origin")
        if key.status is not KeyStatus.TRUSTED:
            raise PacketError(*_KEY_REFUSALS[key.status])
        return key.public_key

    def _take_room(self, packet: Packet) -> None:
        packets, size = self._taken.get(packet.origin, (0, 0))
        packets, size = packets + 1, size + len(packet.body)
        reason = self._quota(packet.origin, packets, size)
        if reason is not None:
            raise PacketError(Code.QUOTA, reason)
        self._taken[packet.origin] = packets, size
