"""What each origin's packets look like to reconciliation: one item set an origin, shared by all links.

In it are the packets that may be offered to somebody at all: audience core or public, not hidden
(docs/protocol.md, section 6). What one link may see of them is decided before, by Scope: an origin is
offered whole or not at all.

The database is the truth. `load` reads it whole; from then on the feed of newly stored packets is
applied, in any order and as often as it likes. An index and its sets belong to one thread, that of the
links; only `read_item_sets` may run in another.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from django.db import connection
from django.db.models import Max

from federation.models import KnowledgePacket
from federation.protocol.itemset import ItemSet
from federation.protocol.limits import MAX_SAFE_INTEGER
from federation.protocol.negentropy import ID_BYTES
from keys.encoding import EncodingError, NodeId, parse_node_id

__all__ = ["IndexRow", "OriginIndex", "Snapshot", "read_item_sets"]

SHARED_AUDIENCES = (KnowledgePacket.Audience.CORE, KnowledgePacket.Audience.PUBLIC)
# Rows fetched at once: enough to make the calls cheap, few enough to be gone again before the garbage
# collector, which starts at 700 new objects, walks through everything else for nothing (half the speed).
FETCHED_ROWS = 500


class IndexRow(Protocol):
    """One stored packet, as far as the index cares."""

    @property
    def packet_id(self) -> bytes: ...
    @property
    def origin(self) -> NodeId: ...
    @property
    def audience(self) -> str: ...
    @property
    def created_at(self) -> int:
        """Milliseconds since the Unix epoch."""

    @property
    def hidden(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The item sets of all origins as the database had them."""

    sets: dict[NodeId, ItemSet]
    arrival: int
    """Arrival number up to which they are complete; 0 when nothing is stored."""


class OriginIndex:
    """The item sets of all origins, as the links of this process see them."""

    def __init__(self) -> None:
        self._sets: dict[NodeId, ItemSet] = {}

    def load(self) -> int:
        """Read the database; return the arrival number from which on the feed is to be applied."""
        return self.replace(read_item_sets())

    def reload(self) -> int:
        """Read the database anew, as after many packets were hidden or purged; return as `load` does."""
        return self.load()

    def replace(self, snapshot: Snapshot) -> int:
        """Take over the sets of a snapshot; return its arrival number, from which on the feed is to be applied.

        The snapshot is used up. Sets that links hold stay theirs and change their content.
        """
        for origin in self._sets.keys() | snapshot.sets.keys():
            self.items(origin).replace_with(snapshot.sets.get(origin, ItemSet()))
        return snapshot.arrival

    def apply(self, rows: Iterable[IndexRow]) -> None:
        """Make the index agree with these stored packets: put in what may be offered, take out what may not.

        A row that holds no packet id or time as they are stored here is left out, as `read_item_sets` does.
        """
        for row in rows:
            if _may_be_offered(row):
                self.items(row.origin).add(row.created_at // 1000, bytes(row.packet_id))
            else:
                self.remove([row])

    def remove(self, rows: Iterable[IndexRow]) -> None:
        """Take these packets out, whatever became of them; those not in the index are passed over."""
        for row in rows:
            if items := self._sets.get(row.origin):
                items.discard(row.created_at // 1000, bytes(row.packet_id))

    def items(self, origin: NodeId) -> ItemSet:
        """Return the item set of `origin`: always the same object, empty when nothing of it is here."""
        return self._sets.setdefault(origin, ItemSet())

    def summary(self, origin: NodeId) -> tuple[int, bytes]:
        """Return number and 16-byte fingerprint of an origin's items, as Interest and Scope carry them."""
        items = self._sets.get(origin) or ItemSet()
        return len(items), items.fingerprint()


def _may_be_offered(row: IndexRow) -> bool:
    shared = row.audience in SHARED_AUDIENCES and not row.hidden
    return shared and len(row.packet_id) == ID_BYTES and 0 <= row.created_at <= MAX_SAFE_INTEGER


class _Columns:
    """Items of one origin on their way from rows to arrays."""

    __slots__ = ("created_at", "ids")

    def __init__(self) -> None:
        self.created_at = array("q")
        self.ids = bytearray()

    def item_set(self) -> ItemSet:
        seconds = np.asarray(self.created_at) // 1000
        return ItemSet.from_arrays(seconds, np.frombuffer(self.ids, dtype=np.uint8).reshape(-1, ID_BYTES))


def read_item_sets() -> Snapshot:
    """Return the item sets of all origins as the database has them, a million items in two seconds or so.

    A row that holds no packet id, origin or time as they are stored here is left out, so that it keeps nothing
    else from being shared.
    """
    # Asked for first: what is stored between the two reads may be in the sets, and surely is in the feed.
    arrival = KnowledgePacket.objects.aggregate(head=Max("arrival"))["head"] or 0
    columns: dict[str | bytes, _Columns] = {}
    with connection.chunked_cursor() as cursor:
        # Plain SQL and packed columns: a million model instances would take a minute and a gigabyte.
        cursor.execute(_statement(connection.vendor), [*SHARED_AUDIENCES, False, ID_BYTES, MAX_SAFE_INTEGER])
        while rows := cursor.fetchmany(FETCHED_ROWS):
            for origin, created_at, packet_id in rows:
                column = columns.get(origin)
                if column is None:
                    column = columns[origin] = _Columns()
                column.created_at.append(created_at)
                column.ids += packet_id
    sets = {}
    while columns:  # taken out one by one: rows and sets of all origins never lie here together
        origin, column = columns.popitem()
        try:
            node_id = parse_node_id(origin.decode("ascii", "replace") if isinstance(origin, bytes) else origin)
        except EncodingError:
            continue
        sets[node_id] = column.item_set()
    return Snapshot(sets, arrival)


def _statement(vendor: str) -> str:
    table = KnowledgePacket._meta.db_table
    origin, typed = "origin", ""
    if vendor == "sqlite":
        # A column takes values of any type there, and text that is not UTF-8 would fail the whole read.
        origin, typed = "CAST(origin AS BLOB)", " AND typeof(created_at) = 'integer' AND typeof(packet_id) = 'blob'"
    return (
        f"SELECT {origin}, created_at, packet_id FROM {table}"  # noqa: S608, names of the model's own
        " WHERE audience IN (%s, %s) AND hidden = %s AND length(packet_id) = %s AND created_at BETWEEN 0 AND %s" + typed
    )
