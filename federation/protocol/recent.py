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


class Refusals:
    """What a node remembers of the packets of one peer that it refused; it outlives links.

    At most `capacity` ids, each until a moment of its own, those added longest ago go first. Beside them the
    number of rejected packets since the last penalty, so that a new link brings no new budget.
    """

    __slots__ = ("_until", "capacity", "rejections")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rejections = 0
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, packet_id: bytes, until: float) -> None:
        """Remember a refused id until a moment in monotonic seconds."""
        self._until.pop(packet_id, None)
        self._until[packet_id] = until
        if len(self._until) > self.capacity:
            del self._until[next(iter(self._until))]

    def holds(self, packet_id: bytes, now: float) -> bool:
        until = self._until.get(packet_id)
        if until is None:
            return False
        if until <= now:
            del self._until[packet_id]
            return False
        return True

    def clear(self) -> None:
        """Forget the ids: policy, a key or a vouch changed, and what was refused may be welcome now."""
        self._until.clear()
