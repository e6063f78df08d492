"""A set that remembers the newest ids and forgets the oldest, so that its memory is bounded."""

from collections.abc import Iterable


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

    def update(self, ids: Iterable[bytes]) -> None:
        for packet_id in ids:
            self.add(packet_id)

    def discard(self, packet_id: bytes) -> None:
        self._ids.pop(packet_id, None)


class ExpiringIds:
    """Ids remembered until a moment each has of its own; at most `capacity`, the oldest entries go first."""

    __slots__ = ("_until", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, packet_id: bytes, until: float) -> None:
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
        self._until.clear()
