"""Which origins a link reconciles, as the side that receives: at most eight at once, one request each under way.

A Scope names the origins that differ; each is reconciled by an Initiator of its own. A new Scope starts all of
them over: what is equal by now costs nothing, and the peer may offer packets that were passed by before. The
answer to a request that was under way then is *overtaken*: awaited, because one request an origin may be open,
and passed over.

Source: docs/protocol.md, section 6, item 2.
"""

from collections.abc import Callable, Mapping

from federation.protocol import messages
from federation.protocol.errors import RemoteProtocolError
from federation.protocol.events import Catalogue, LinkStats
from federation.protocol.limits import Limits, reconcile_rounds
from federation.protocol.negentropy import VERSION
from federation.protocol.packet import PacketId
from federation.protocol.reconcile import Initiator
from keys.encoding import NodeId


class CatchUp:
    """The reconciliations of one link."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        limits: Limits,
        send: Callable[[messages.Message], None],
        chance: Callable[[], float],
        stats: LinkStats,
    ) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._send = send
        self._chance = chance
        self._stats = stats
        self._queued: dict[NodeId, None] = {}
        self._running: dict[NodeId, Initiator] = {}
        self._held: dict[NodeId, bytes] = {}
        self._open: set[NodeId] = set()
        self._overtaken: set[NodeId] = set()
        self._rounds: dict[NodeId, int] = {}
        self._most_rounds: dict[NodeId, int] = {}

    @property
    def is_idle(self) -> bool:
        return not (self._queued or self._running)

    def begin(self, counts: Mapping[NodeId, int]) -> None:
        """Reconcile these origins, and no others.

        Args:
            counts: For each the larger of the numbers of packets that the two sides named; bounds the rounds.
        """
        self._overtaken = set(self._open)
        # Answers come in order, so what is open now reaches the peer after its Scope and counts from there.
        self._rounds = dict.fromkeys(self._open, 1)
        self._most_rounds = {origin: reconcile_rounds(count) for origin, count in counts.items()}
        self._running.clear()
        self._held.clear()
        self._queued = dict.fromkeys(counts)

    def advance(self, *, has_place: bool) -> None:
        """Send the requests that may be sent; none while there is no place for what they may bring."""
        if not has_place:
            return
        while self._held:
            origin = next(iter(self._held))
            self._request(origin, self._held.pop(origin))
        for origin in [origin for origin in self._queued if origin not in self._open]:
            if len(self._running.keys() | self._open) >= self._limits.reconcile_origins:
                return
            del self._queued[origin]
            initiator = Initiator(
                self._catalogue.items(origin),
                frame_limit=self._limits.reconcile_frame_bytes,
                split_seed=int(self._chance() * 2**53),
            )
            self._running[origin] = initiator
            self._request(origin, initiator.initiate())

    def answer(self, message: messages.Reconcile) -> list[PacketId]:
        """Return the ids that an answer shows to be lacking here.

        Raises:
            RemoteProtocolError: No request is open for the origin, or the frame is malformed.
        """
        origin = NodeId(message.origin)
        if origin not in self._open:
            raise RemoteProtocolError("an answer to no request of reconciliation")
        self._open.discard(origin)
        if origin in self._overtaken:
            self._overtaken.discard(origin)
            if message.frame[:1] != bytes((VERSION,)):
                raise RemoteProtocolError("an answer of another version of reconciliation")
            return []
        step = self._running[origin].receive(message.frame)
        if step.next_frame is None:
            del self._running[origin]
        else:
            self._held[origin] = step.next_frame
        return [PacketId(packet_id) for packet_id in step.need]

    def _request(self, origin: NodeId, frame: bytes) -> None:
        rounds = self._rounds.get(origin, 0) + 1
        if rounds > self._most_rounds[origin]:
            # The peer would end the link; the next Scope begins anew.
            del self._running[origin]
            return
        self._rounds[origin] = rounds
        self._open.add(origin)
        self._stats.reconcile_rounds += 1
        self._send(messages.Reconcile(origin=origin, role=messages.Role.REQUEST, frame=frame))
