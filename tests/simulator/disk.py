"""What a simulated node keeps: a disk that survives a crash, and the memory built from it that does not.

`Disk` holds what was committed. `Memory` is the catalogue sessions reconcile with and the feed they follow; it lags
behind the disk, as in the real node, until `advance`.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

from federation.protocol.events import FeedRow, StoredEnvelope
from federation.protocol.itemset import ItemSet
from federation.protocol.packet import parse_packet
from peers.trust import Audience


@lru_cache(maxsize=100_000)
def read_packet(body):
    """Parse a well-formed body; a pure function, so that eight nodes may share its result."""
    return parse_packet(body)


@dataclass(slots=True)
class Disk:
    """Committed rows in arrival order, by arrival number minus one, and ids that are never to come again."""

    rows: list = field(default_factory=list)
    envelopes: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)
    hidden: set = field(default_factory=set)
    purged: set = field(default_factory=set)

    def copy(self):
        return Disk(list(self.rows), dict(self.envelopes), dict(self.places), set(self.hidden), set(self.purged))

    def commit(self, envelope, received_from):
        """Store one packet; return False when its id is here already, as the unique index of a database does."""
        packet = read_packet(envelope.body)
        packet_id = packet.packet_id
        if packet_id in self.envelopes or packet_id in self.purged:
            return False
        self.places[packet_id] = len(self.rows)
        self.envelopes[packet_id] = StoredEnvelope(envelope, packet.origin, packet.audience)
        self.rows.append(
            FeedRow(
                arrival=len(self.rows) + 1,
                packet_id=packet_id,
                origin=packet.origin,
                audience=packet.audience,
                created_at=packet.created_at,
                size=len(envelope.body),
                received_from=received_from,
            )
        )
        return True

    def hide(self, packet_id):
        place = self.places[packet_id]
        self.rows[place] = replace(self.rows[place], hidden=True)
        self.hidden.add(packet_id)

    def purge(self, packet_id):
        """Erase a packet and remember its id."""
        self.hide(packet_id)
        self.purged.add(packet_id)
        del self.envelopes[packet_id]

    def offered(self, packet_id):
        """Return what may be offered of a packet, or None."""
        return None if packet_id in self.hidden else self.envelopes.get(packet_id)


class Memory:
    """The catalogue of one life of a node, complete up to arrival number `head`."""

    def __init__(self, disk):
        self._disk = disk
        self._sets = {}
        self.head = 0
        self.advance()

    def summary(self, origin):
        items = self.items(origin)
        return len(items), items.fingerprint()

    def items(self, origin):
        return self._sets.setdefault(origin, ItemSet())

    def advance(self):
        """Take in what was committed since; return True when there was something."""
        fresh = self._disk.rows[self.head :]
        for row in fresh:
            if row.audience is not Audience.PRIVATE and not row.hidden:
                self.items(row.origin).add(row.created_at // 1000, row.packet_id)
        self.head += len(fresh)
        return bool(fresh)

    def forget(self, packet_id):
        """A packet was hidden or purged."""
        place = self._disk.places[packet_id]
        row = self._disk.rows[place]
        if place < self.head and row.audience is not Audience.PRIVATE:
            self.items(row.origin).discard(row.created_at // 1000, packet_id)

    def read(self, after, limit):
        rows = self._disk.rows[after : min(after + limit, self.head)]
        return list(rows), rows[-1].arrival if rows else max(self.head, 0)
