"""What is remembered of ids for a while, in bounded memory."""


class RecentIds:
    """At most `capacity` ids; adding one more forgets the one added longest ago."""

    __slots__ = ("_ids", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ids: dict[bytes, None] = {}

    def __contains__(self, packet_id: bytes) -> bool:
        return packet_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, packet_id: bytes) -> None:
        self._ids.pop(packet_id, None)
        self._ids[packet_id] = None
        if len(self._ids) > self.capacity:
            del self._ids[next(iter(self._ids))]

    def clear(self) -> None:
        self._ids.clear()


# The wall clock was set, when it moved so much against the monotonic one; less is the drift of ordinary clocks.
CLOCK_STEP_S = 5.0


class Refusals:
    """What a node remembers of the packets of one peer that it refused; it outlives links.

    At most `capacity` ids, each until a moment of its own, those added longest ago go first. Beside them the
    number of rejected packets since the last penalty, so that a new link brings no new budget.
    """

    __slots__ = ("_early", "_until", "_wall_ahead_s", "capacity", "rejections")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rejections = 0
        self._until: dict[bytes, float] = {}
        self._early: set[bytes] = set()
        self._wall_ahead_s: float | None = None

    def __len__(self) -> int:
        return len(self._until)

    def add(self, packet_id: bytes, until: float, *, is_early: bool = False) -> None:
        """Remember a refused id until a moment in monotonic seconds; `is_early`: which the wall clock decided."""
        self._drop(packet_id)
        self._until[packet_id] = until
        if is_early:
            self._early.add(packet_id)
        if len(self._until) > self.capacity:
            self._drop(next(iter(self._until)))

    def wall_clock(self, ahead_s: float) -> bool:
        """Take in how far the wall clock is ahead of the monotonic one; return True when early packets may be due by that.

        A clock that was behind and is set right would otherwise leave them refused for as long as it was behind.
        """
        before = self._wall_ahead_s
        if before is not None and abs(ahead_s - before) < CLOCK_STEP_S:
            return False
        self._wall_ahead_s = ahead_s
        if before is None or ahead_s < before or not self._early:
            return False
        for packet_id in self._early:
            del self._until[packet_id]
        self._early.clear()
        return True

    def early_moments(self) -> list[float]:
        """Return when early packets become due, latest first."""
        return sorted((self._until[packet_id] for packet_id in self._early), reverse=True)

    def _drop(self, packet_id: bytes) -> None:
        self._until.pop(packet_id, None)
        self._early.discard(packet_id)

    def holds(self, packet_id: bytes, now: float) -> bool:
        until = self._until.get(packet_id)
        if until is None:
            return False
        if until <= now:
            self._drop(packet_id)
            return False
        return True

    def clear(self) -> None:
        """Forget the ids: policy, a key or a vouch changed, and what was refused may be welcome now."""
        self._until.clear()
        self._early.clear()
