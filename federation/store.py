"""The SQL behind the packet store, for SQLite and PostgreSQL.

Django's models own the schema; these few statements bypass its per-object cost on the path every packet takes.
Callers (federation/services.py) hold a transaction. The rules are theirs, the statements are here.

Every writer of packets first calls `lock_arrivals`: arrival numbers are then given out in the order of the commits,
so a reader that follows them misses nothing, and what was read about known ids stays true until the commit.

Source: docs/protocol.md, section 9.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection
from django.db.models import DateTimeField, QuerySet, Value
from django.utils import timezone

from federation.models import KnowledgePacket

# Key of the advisory lock that PostgreSQL's writers of packets share: "ark packets" in ASCII, cut to 63 bits.
ARRIVAL_LOCK = 0x61726B2070636B73
# Channel that tells listeners on PostgreSQL to look into the database again; SQLite's data_version needs no word.
NOTICE_CHANNEL = "arklattice"
# Ids asked about in one statement; far below SQLite's and PostgreSQL's bound on parameters.
IDS_A_STATEMENT = 1_000

PACKETS = "federation_knowledgepacket"
PURGED = "federation_purgedpacket"
REFUSALS = "federation_refusal"


class PacketColumns(NamedTuple):
    """The columns of one packet row as the databases take them, in the order of the INSERT."""

    packet_id: bytes
    origin: str
    kind: str
    title: str
    tags: str
    audience: str
    created_at: int
    expires_at: int | None
    body: bytes
    signature: bytes
    timestamp: int
    key_fingerprint: bytes
    received_at: int
    received_from: str
    received_rule: str
    hidden: bool = False


_COLUMNS = ", ".join(PacketColumns._fields)
_SQLITE_INSERT = f"INSERT INTO {PACKETS} ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(PacketColumns._fields))})"  # noqa: S608 - constants only
_POSTGRES_TYPES = {
    "packet_id": "bytea",
    "created_at": "bigint",
    "expires_at": "bigint",
    "body": "bytea",
    "signature": "bytea",
    "timestamp": "bigint",
    "key_fingerprint": "bytea",
    "received_at": "bigint",
    "hidden": "boolean",
}
_POSTGRES_VALUES = ", ".join("tags::jsonb" if name == "tags" else name for name in PacketColumns._fields)
_POSTGRES_ARRAYS = ", ".join(f"%s::{_POSTGRES_TYPES.get(name, 'text')}[]" for name in PacketColumns._fields)
_POSTGRES_INSERT = (
    f"INSERT INTO {PACKETS} ({_COLUMNS}) SELECT {_POSTGRES_VALUES} FROM unnest({_POSTGRES_ARRAYS}) AS row ({_COLUMNS})"  # noqa: S608
)


def lock_arrivals() -> None:
    """Make this transaction the only writer of packets until it ends; waits for the one before.

    SQLite's transactions here are IMMEDIATE, which is that lock already.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ARRIVAL_LOCK])


def notify_listeners() -> None:
    """Tell PostgreSQL's listeners, on commit, that there is something new; elsewhere nothing is needed."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"NOTIFY {NOTICE_CHANNEL}")


def insert_packets(rows: Sequence[PacketColumns]) -> None:
    """Insert all rows or raise the database's error; nothing is ignored."""
    if not rows:
        return
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_POSTGRES_INSERT, [list(column) for column in zip(*rows, strict=True)])
        else:
            cursor.executemany(_SQLITE_INSERT, rows)


def present_ids(table: str, packet_ids: Iterable[bytes]) -> set[bytes]:
    """Return those of the ids that have a row in `table` (a table of this app with a `packet_id` column)."""
    asked = list(packet_ids)
    found: set[bytes] = set()
    with connection.cursor() as cursor:
        for start in range(0, len(asked), IDS_A_STATEMENT):
            part = asked[start : start + IDS_A_STATEMENT]
            cursor.execute(f"SELECT packet_id FROM {table} WHERE packet_id IN ({', '.join(['%s'] * len(part))})", part)  # noqa: S608 - constant names
            found.update(bytes(packet_id) for (packet_id,) in cursor.fetchall())
    return found


def charge_usage(charges: Iterable[tuple[str, int, int]]) -> None:
    """Add (origin, packets, bytes) to what each origin takes up; the numbers may be negative."""
    _upsert(
        "INSERT INTO federation_originusage AS held (origin, packets, bytes) VALUES (%s, %s, %s) "
        "ON CONFLICT (origin) DO UPDATE SET packets = held.packets + excluded.packets, bytes = held.bytes + excluded.bytes",
        sorted(charges),
    )


def upsert_refusals(rows: Iterable[tuple[bytes, str, str, str, str, int]]) -> None:
    """Write (packet_id, peer, origin, code, reason, at); the newest outcome per peer and packet stays."""
    _upsert(
        "INSERT INTO federation_refusal (packet_id, peer, origin, code, reason, at) VALUES (%s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (peer, packet_id) DO UPDATE SET origin = excluded.origin, code = excluded.code, "
        "reason = excluded.reason, at = excluded.at",
        rows,
    )


def upsert_counters(counts: Iterable[tuple[str, str, int]]) -> None:
    """Add (peer, name, n) to the counters."""
    now = timezone.now()
    _upsert(
        "INSERT INTO federation_peercounter AS held (peer, name, count, since) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (peer, name) DO UPDATE SET count = held.count + excluded.count",
        [(peer, name, count, now) for peer, name, count in sorted(counts)],
    )


def remember_purged(packets: QuerySet[KnowledgePacket]) -> None:
    """Remember for ever the ids of the packets that the query selects."""
    now = Value(timezone.now(), output_field=DateTimeField())
    sql, parameters = packets.order_by().values_list("packet_id", "origin", now).query.sql_with_params()
    # The WHERE that SQLite needs to tell ON CONFLICT from a join's ON is in every such query here.
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {PURGED} (packet_id, origin, at) {sql} ON CONFLICT (packet_id) DO NOTHING", parameters)


def _upsert(sql: str, rows: Iterable[tuple[bytes | str | int | datetime, ...]]) -> None:
    """Run one upsert over all rows.

    Rows come sorted by the key where two processes may touch the same ones, so that PostgreSQL's row locks are
    always taken in one order and never deadlock.
    """
    rows = list(rows)
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(sql, rows)
