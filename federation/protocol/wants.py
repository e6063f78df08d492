"""The ids a link has to fetch, from learning of them to the answer.

    learned --FindMissing--> needed --Want--> waiting --> judging --> (done)
    announced --200 ms--^      |                 |
                               v                 v
                           deferred             late

- *learned*: the store is asked whether they are missing here. *announced*: a Have named them; they are learned
  when they have not come by themselves after 200 ms.
- *needed* ids wait for a place among the unanswered Wants, *deferred* ones for another link that is fetching them.
- *waiting* ids are Wanted. One that is not answered in time is *late*: other links may fetch it, but its place
  stays taken, for the peer counts it too.
- *judging*: the packet is here and not acknowledged. It is not Wanted then, because for the peer such a Want is
  answered by the copy it sent.

Every stage is bounded. `has_place` is False while so many ids are on their way that no more may be learned.

Source: docs/protocol.md, section 6, items 3 to 5.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

from federation.protocol import messages
from federation.protocol.events import Effect, FindMissing, LinkStats
from federation.protocol.fetches import FetchBoard
from federation.protocol.limits import Limits
from federation.protocol.packet import PacketId
from federation.protocol.recent import Refusals

HAVE_PATIENCE_S = 0.2  # an announced packet may still come as a whole, from here or elsewhere
DEFERRED_RECHECK_S = 1.0
# A peer that answers none of its Wants for this long is not slow but silent: others may fetch all of them.
# Waiting the full 30 s for each would let one peer that withholds hold up what others would give.
STALLED_S = 10.0


class Wants:
    """What one link fetches."""

    def __init__(
        self,
        *,
        link: Hashable,
        limits: Limits,
        fetches: FetchBoard,
        refused: Refusals,
        send: Callable[[messages.Message], None],
        stats: LinkStats,
    ) -> None:
        self._link = link
        self._limits = limits
        self._fetches = fetches
        self._refused = refused
        self._send = send
        self._stats = stats
        self._announced: dict[PacketId, float] = {}
        self._learned = 0
        self._needed: dict[PacketId, None] = {}
        self._deferred: dict[PacketId, None] = {}
        self._deferred_due: float | None = None
        self._waiting: dict[PacketId, float] = {}
        self._progress_at = 0.0
        self._late: set[PacketId] = set()
        self._judging: dict[PacketId, int] = {}

    # --- how much is under way ---

    @property
    def has_place(self) -> bool:
        """True while more ids may be learned; one Reconcile answer may then bring 1,875."""
        waiting = len(self._announced) + self._learned + len(self._needed) + len(self._deferred)
        return waiting < self._limits.learned_ids

    @property
    def unanswered(self) -> int:
        return len(self._waiting) + len(self._late)

    @property
    def missing(self) -> int:
        """Ids known to be missing here and not received over this link, and those that may be."""
        return len(self._announced) + self._learned + len(self._needed) + len(self._deferred) + self.unanswered

    @property
    def deadline(self) -> float | None:
        moments = [self._deferred_due]
        if self._announced:
            moments.append(next(iter(self._announced.values())))
        if self._waiting:
            moments.append(min(next(iter(self._waiting.values())), self._progress_at + STALLED_S))
        return min((moment for moment in moments if moment is not None), default=None)

    # --- learning of ids ---

    def learn(self, ids: Iterable[PacketId], now: float) -> list[Effect]:
        """Ask the store about ids that the peer has and this node perhaps lacks."""
        asked = tuple(packet_id for packet_id in ids if not self._is_settled(packet_id, now))
        if not asked:
            return []
        self._learned += len(asked)
        return [FindMissing(ids=asked)]

    def announce(self, packet_id: PacketId, now: float) -> bool:
        """Note an announced id; return False when there is no place, so that reconciliation has to find it."""
        if packet_id in self._announced or self._is_settled(packet_id, now):
            return True
        if not self.has_place:
            return False
        self._announced[packet_id] = now + HAVE_PATIENCE_S
        return True

    def found(self, asked: Sequence[PacketId], missing: Sequence[PacketId], now: float) -> None:
        """The store told which of the learned ids are missing: Want them."""
        self._learned -= len(asked)
        for packet_id in missing:
            if not self._is_settled(packet_id, now):
                self._needed[packet_id] = None
        self.send_more(now)

    def _is_settled(self, packet_id: PacketId, now: float) -> bool:
        """Return True when an id is on its way already, or was refused."""
        return (
            packet_id in self._needed
            or packet_id in self._deferred
            or packet_id in self._waiting
            or packet_id in self._late
            or packet_id in self._judging
            or self._refused.holds(packet_id, now)
        )

    # --- asking ---

    def send_more(self, now: float) -> None:
        """Want as many of the needed ids as there is place for."""
        ids: list[PacketId] = []
        due = now + self._limits.want_timeout_s
        while self._needed and self.unanswered < self._limits.wants:
            packet_id = next(iter(self._needed))
            del self._needed[packet_id]
            if not self._fetches.claim(packet_id, self._link, now, due):
                self._deferred[packet_id] = None
                if self._deferred_due is None:
                    self._deferred_due = now + DEFERRED_RECHECK_S
                continue
            if not self._waiting:
                self._progress_at = now
            self._waiting[packet_id] = due
            ids.append(packet_id)
        if ids:
            self._send(messages.Want(ids=ids))

    # --- answers ---

    def arrived(self, packet_id: PacketId, now: float) -> bool:
        """The packet is here, to be judged; return True when it was Wanted and not answered before."""
        self._judging[packet_id] = self._judging.get(packet_id, 0) + 1
        return self._answered(packet_id, now)

    def judged(self, packet_id: PacketId, now: float) -> None:
        """The packet that arrived was stored or refused."""
        self._judging[packet_id] -= 1
        if not self._judging[packet_id]:
            del self._judging[packet_id]
        self._fetches.release(packet_id, self._link)
        self._progress_at = now

    def gone(self, packet_id: PacketId, now: float) -> None:
        """The peer does not have it, or not for this node."""
        if self._answered(packet_id, now):
            self._fetches.release(packet_id, self._link)

    def _answered(self, packet_id: PacketId, now: float) -> bool:
        self._announced.pop(packet_id, None)
        self._needed.pop(packet_id, None)
        if self._waiting.pop(packet_id, None) is not None:
            self._progress_at = now
            return True
        if packet_id in self._late:
            self._late.discard(packet_id)
            return True
        return False

    # --- time ---

    def timer(self, now: float) -> list[Effect]:
        """Give up what is overdue, and look again at what others were fetching."""
        due = [packet_id for packet_id, moment in self._announced.items() if moment <= now]
        for packet_id in due:
            del self._announced[packet_id]
        effects = self.learn(due, now)
        if self._judging:
            self._progress_at = now  # while this side owes Acks, the window may be what holds the peer back
        is_stalled = now >= self._progress_at + STALLED_S
        for packet_id in [packet_id for packet_id, moment in self._waiting.items() if is_stalled or moment <= now]:
            del self._waiting[packet_id]
            self._late.add(packet_id)
            self._fetches.release(packet_id, self._link)
            self._stats.withheld += 1
        if self._deferred_due is not None and now >= self._deferred_due:
            effects.extend(self._recheck_deferred(now))
        return effects

    def _recheck_deferred(self, now: float) -> list[Effect]:
        free = [packet_id for packet_id in self._deferred if not self._fetches.is_claimed(packet_id, now)]
        for packet_id in free:
            del self._deferred[packet_id]
        self._deferred_due = now + DEFERRED_RECHECK_S if self._deferred else None
        return self.learn(free, now)

    def close(self) -> None:
        """The link ended: what it was fetching may be fetched elsewhere."""
        self._fetches.release_all(self._link)
