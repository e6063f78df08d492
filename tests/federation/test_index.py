"""The index: one set an origin, equal to what the database holds and may be offered."""

import hashlib
from dataclasses import dataclass, replace

import pytest
from django.db import connection
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from federation.index import FETCHED_ROWS, OriginIndex, read_item_sets
from federation.models import KnowledgePacket
from federation.protocol.itemset import ItemSet
from federation.protocol.limits import MAX_SAFE_INTEGER
from keys.encoding import NodeId

NOW_MS = 1_760_000_000_000
ORIGIN = NodeId(bytes(range(16)))
OTHER = NodeId(bytes(range(16, 32)))


@dataclass(frozen=True)
class Row:
    """What the feed says of one packet."""

    packet_id: bytes
    origin: NodeId = ORIGIN
    audience: str = "core"
    created_at: int = NOW_MS
    hidden: bool = False


def packet_id(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def row(number: int, **fields) -> Row:
    return Row(packet_id(number), **{"created_at": NOW_MS + 250 * number, **fields})


def stored(*rows: Row) -> list[KnowledgePacket]:
    return KnowledgePacket.objects.bulk_create(
        KnowledgePacket(
            packet_id=row.packet_id,
            origin=row.origin.hex(),
            kind="note",
            audience=row.audience,
            created_at=row.created_at,
            body=b"{}",
            signature=bytes(64),
            timestamp=row.created_at,
            key_fingerprint=bytes(32),
            hidden=row.hidden,
            received_at=row.created_at,
            received_rule="own",
        )
        for row in rows
    )


def expected(*rows: Row) -> list[tuple[int, bytes]]:
    return sorted((row.created_at // 1000, row.packet_id) for row in rows)


def corrupt(packet_id: bytes, column: str, expression: str) -> None:
    """Change a stored row behind the program's back; `expression` is SQL."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA ignore_check_constraints = ON")
        cursor.execute(f"UPDATE federation_knowledgepacket SET {column} = {expression} WHERE packet_id = %s", [packet_id])  # noqa: S608
        cursor.execute("PRAGMA ignore_check_constraints = OFF")


@pytest.mark.django_db
class TestLoad:
    def test_nothing_stored(self):
        """An empty database gives empty sets, and the feed begins at its beginning."""
        index = OriginIndex()
        assert index.load() == 0
        assert list(index.items(ORIGIN)) == []
        assert index.summary(ORIGIN) == (0, ItemSet().fingerprint())

    def test_only_what_may_be_offered_to_somebody(self):
        """Audience core and public, not hidden; seconds are whole ones; each origin has its own set."""
        core, public = row(1), row(2, audience="public", created_at=NOW_MS + 999)
        other = row(5, origin=OTHER)
        stored(core, public, row(3, audience="private"), row(4, hidden=True), other)
        index = OriginIndex()
        index.load()
        assert list(index.items(ORIGIN)) == expected(core, public)
        assert list(index.items(OTHER)) == expected(other)
        assert index.items(ORIGIN).item(0).seconds == NOW_MS // 1000
        assert index.summary(ORIGIN) == (2, index.items(ORIGIN).fingerprint())

    def test_more_rows_than_are_fetched_at_once(self):
        """Several fetches end in complete sets and the highest arrival number of all."""
        rows = [row(number, origin=ORIGIN if number % 3 else OTHER) for number in range(FETCHED_ROWS + 10)]
        packets = stored(*rows)
        index = OriginIndex()
        assert index.load() == max(packet.arrival for packet in packets)
        assert list(index.items(ORIGIN)) == expected(*(row for row in rows if row.origin == ORIGIN))
        assert list(index.items(OTHER)) == expected(*(row for row in rows if row.origin == OTHER))

    def test_earliest_and_latest_time(self):
        edges = [row(1, created_at=0), row(2, created_at=MAX_SAFE_INTEGER)]
        stored(*edges)
        index = OriginIndex()
        index.load()
        assert list(index.items(ORIGIN)) == expected(*edges)

    @pytest.mark.skipif(connection.vendor != "sqlite", reason="other databases keep to the types of their columns")
    @pytest.mark.parametrize(
        ("column", "expression"),
        [
            ("origin", "'node'"),
            ("origin", "x'ff00'"),
            ("origin", "CAST(x'ff00' AS TEXT)"),
            ("origin", "upper(origin)"),
            ("created_at", "-1"),
            ("created_at", "9007199254740992"),
            ("created_at", "1.5"),
            ("created_at", "'soon'"),
            ("created_at", "CAST(x'ff' AS TEXT)"),
            ("packet_id", "x'00'"),
            ("packet_id", "'0123456789abcdef0123456789abcdef'"),
            ("audience", "CAST(x'ff' AS TEXT)"),
            ("hidden", "'perhaps'"),
        ],
    )
    def test_a_poisoned_row_stops_no_other(self, column, expression):
        """A row that is no packet's is left out, and everything else is there."""
        good = [row(1), row(3, origin=OTHER)]
        stored(good[0], row(2), good[1])
        corrupt(packet_id(2), column, expression)
        index = OriginIndex()
        index.load()
        assert list(index.items(ORIGIN)) == expected(good[0])
        assert list(index.items(OTHER)) == expected(good[1])

    def test_reading_anew_changes_the_sets_that_links_hold(self):
        """After a purge the same objects hold less, those of vanished origins nothing, and new origins appear."""
        stored(row(1), row(2))
        index = OriginIndex()
        index.load()
        held = index.items(ORIGIN)
        KnowledgePacket.objects.all().delete()
        stored(row(3, origin=OTHER))
        other = index.items(OTHER)
        arrival = index.reload()
        assert arrival == KnowledgePacket.objects.get().arrival
        assert held is index.items(ORIGIN) and list(held) == []
        assert other is index.items(OTHER) and list(other) == expected(row(3))
        index.apply([row(4)])
        assert list(held) == expected(row(4))

    def test_a_snapshot_is_read_apart_from_taking_it_over(self):
        """Reading changes no index, so that another thread may do it while links reconcile."""
        index = OriginIndex()
        index.load()
        stored(row(1))
        snapshot = read_item_sets()
        assert index.summary(ORIGIN)[0] == 0
        assert index.replace(snapshot) == snapshot.arrival
        assert index.summary(ORIGIN)[0] == 1


class TestFeed:
    def test_rows_may_come_twice_and_in_any_order(self):
        """Applying is idempotent: overlapping reads of the feed end in the same set."""
        rows = [row(number) for number in range(50)]
        index = OriginIndex()
        index.apply(rows[20:])
        index.apply(rows[::-1])
        assert list(index.items(ORIGIN)) == expected(*rows)

    def test_rows_that_may_not_be_offered_leave(self):
        """A packet hidden since, or private, is taken out by its row; other origins' packets stay."""
        index = OriginIndex()
        index.apply([row(1), row(2), row(3, origin=OTHER), row(4, audience="private")])
        index.apply([row(1, hidden=True), row(9, hidden=True, origin=NodeId(bytes(16)))])
        assert list(index.items(ORIGIN)) == expected(row(2))
        index.apply([row(1)])
        assert list(index.items(ORIGIN)) == expected(row(1), row(2))
        assert list(index.items(OTHER)) == expected(row(3))

    @pytest.mark.parametrize(
        "fields", [{"created_at": -1}, {"created_at": MAX_SAFE_INTEGER + 1}, {"packet_id": bytes(31)}, {"packet_id": bytes(33)}]
    )
    def test_a_poisoned_row_stops_no_other(self, fields):
        """A time or an id that no packet has is left out; the rows behind it are applied."""
        index = OriginIndex()
        index.apply([row(1), replace(row(2), **fields), row(3)])
        index.remove([replace(row(2), **fields)])
        assert list(index.items(ORIGIN)) == expected(row(1), row(3))

    def test_removing(self):
        """Rows in the index leave it; rows it never had, and of origins it does not know, are passed over."""
        index = OriginIndex()
        index.apply([row(1), row(2)])
        index.remove([row(2), row(7), row(8, origin=OTHER)])
        assert list(index.items(ORIGIN)) == expected(row(1))
        assert index.summary(OTHER) == (0, ItemSet().fingerprint())

    def test_an_unknown_origin_has_a_set_that_fills(self):
        """Whoever asked before the first packet came holds the set that it comes into."""
        index = OriginIndex()
        held = index.items(ORIGIN)
        index.apply([row(1)])
        assert list(held) == expected(row(1))


class TestAgreement(TestCase):
    @given(
        st.lists(
            st.builds(
                row,
                st.integers(0, 30),
                origin=st.sampled_from([ORIGIN, OTHER]),
                audience=st.sampled_from(["private", "core", "public"]),
                hidden=st.booleans(),
            ),
            unique_by=lambda row: row.packet_id,
            max_size=30,
        )
    )
    @settings(max_examples=40, deadline=None)
    def test_the_feed_and_the_database_make_the_same_sets(self, rows):
        """Read at once or applied one after the other: equal counts, equal fingerprints."""
        stored(*rows)
        loaded, fed = OriginIndex(), OriginIndex()
        loaded.load()
        fed.apply(rows)
        for origin in (ORIGIN, OTHER):
            assert loaded.summary(origin) == fed.summary(origin)
            assert list(loaded.items(origin)) == list(fed.items(origin))
