"""The live feed: newly stored packets in arrival order, for all links of this process.

`advance` reads the store after the last arrival number seen, brings the catalogue up to it and tells the links.
The newest rows and bodies stay in memory, bounded, so that links that keep up read nothing twice; one that lags
reads the store by its own arrival number.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from federation import selectors
from federation.database import Database
from federation.index import OriginIndex, read_item_sets
from federation.protocol.events import FeedRow, StoredEnvelope
from federation.protocol.packet import PacketId

ROWS = 4_096  # newest rows kept; 0.5 KiB each
BODIES_BYTES = 8 * 1024 * 1024  # newest bodies kept
READ = 1_000


class Feed:
    """Follows the store. `head` is the arrival number up to which the catalogue is complete."""

    def __init__(self, database: Database, index: OriginIndex, *, advanced: Callable[[int], None]) -> None:
        self._database = database
        self._index = index
        self._advanced = advanced
        self._rows: deque[FeedRow] = deque(maxlen=ROWS)
        self._lock = asyncio.Lock()
        self.head = 0
        self._floor = 0
        self.bodies = BodyCache(BODIES_BYTES)

    async def load(self) -> None:
        """Build the catalogue from the store; called at the start and when visibility changed."""
        async with self._lock:
            snapshot = await self._database.read(read_item_sets)
            # Never back: purging the newest packets lowers the highest arrival number there is.
            self.head = self._floor = max(self.head, self._index.replace(snapshot))
            self._rows.clear()
            self.bodies.clear()

    async def advance(self) -> None:
        """Take in everything stored since the last call."""
        async with self._lock:
            while True:
                rows = await self._database.read(selectors.feed_after, self.head, READ)
                if not rows:
                    return
                self._index.apply(rows)
                if len(self._rows) + len(rows) > ROWS and self._rows:
                    self._floor = self._rows[min(len(self._rows) - 1, len(self._rows) + len(rows) - ROWS - 1)].arrival
                self._rows.extend(rows)
                self.head = rows[-1].arrival
                self._advanced(self.head)

    async def read(self, after: int, limit: int) -> tuple[Sequence[FeedRow], int]:
        """Return rows after an arrival number, in order, and up to which number they tell everything."""
        head = self.head
        if after >= head:
            return [], head
        if after >= self._floor and self._rows:
            first = self._first_after(after)
            rows = [self._rows[position] for position in range(first, min(first + limit, len(self._rows)))]
        else:
            rows = [row for row in await self._database.read(selectors.feed_after, after, limit) if row.arrival <= head]
            if not rows:
                return [], head
        return rows, rows[-1].arrival if len(rows) == limit else head

    def _first_after(self, after: int) -> int:
        low, high = 0, len(self._rows)
        while low < high:
            middle = (low + high) // 2
            if self._rows[middle].arrival <= after:
                low = middle + 1
            else:
                high = middle
        return low

    async def load_envelopes(self, ids: Sequence[PacketId], max_bytes: int) -> list[tuple[PacketId, StoredEnvelope | None]]:
        """Return a prefix of `ids` whose bodies fit `max_bytes` (at least one); None where nothing may be offered."""
        cached = [self.bodies.get(packet_id) for packet_id in ids]
        if all(stored is not None for stored in cached):
            found = list(zip(ids, cached, strict=True))
        else:
            return await self._database.read(selectors.load_prefix, ids, max_bytes)
        size = 0
        prefix: list[tuple[PacketId, StoredEnvelope | None]] = []
        for packet_id, body in found:
            size += 0 if body is None else len(body.envelope.body)
            if prefix and size > max_bytes:
                break
            prefix.append((packet_id, body))
        return prefix


class BodyCache:
    """The newest bodies, at most `capacity` bytes of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._bodies: OrderedDict[bytes, StoredEnvelope] = OrderedDict()

    def get(self, packet_id: bytes) -> StoredEnvelope | None:
        return self._bodies.get(packet_id)

    def put(self, packet_id: bytes, stored: StoredEnvelope) -> None:
        if packet_id in self._bodies:
            return
        self._bodies[packet_id] = stored
        self._size += len(stored.envelope.body)
        while self._size > self._capacity:
            _, oldest = self._bodies.popitem(last=False)
            self._size -= len(oldest.envelope.body)

    def clear(self) -> None:
        self._bodies.clear()
        self._size = 0
