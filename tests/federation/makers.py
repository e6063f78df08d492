"""Signed packets made from a number, and the receipts that let them in."""

from federation.protocol.envelope import VerifiedPacket, sign_packet, verify_packet
from federation.protocol.packet import Packet, build_packet
from federation.services import Received
from keys.encoding import NodeId, node_id_of
from tests.identities import make_pair

NOW_MS = 1_760_000_000_000
RULE = "accept-core-own"


def node(number: int) -> NodeId:
    return node_id_of(make_pair(number).public)


def make_packet(number: int, *, origin: int = 1, content: object = None, **fields: object) -> Packet:
    fields = {"kind": "note", "created_at": NOW_MS + number, **fields}
    return build_packet(origin=node(origin), content={"n": number} if content is None else content, **fields)


def make_verified(number: int, *, origin: int = 1, **fields: object) -> VerifiedPacket:
    pair = make_pair(origin)
    packet = make_packet(number, origin=origin, **fields)
    return verify_packet(sign_packet(pair, packet, timestamp=packet.created_at), pair.public)


def make_received(number: int, *, origin: int = 1, peer: int | None = None, rule: str = RULE, **fields: object) -> Received:
    """Return packet `number` of `origin` as handed over by `peer` (the origin itself unless said)."""
    packet = make_verified(number, origin=origin, **fields)
    return Received(packet, node(origin if peer is None else peer), rule, NOW_MS + 60_000)
