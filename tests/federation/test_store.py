"""The packet store: what goes in, what is refused, what readers see."""

import dataclasses
import hashlib

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import QuerySet

from federation import selectors, services, store
from federation.models import KnowledgePacket, OriginUsage, PeerCounter, PurgedPacket, Refusal
from federation.protocol.errors import Code
from federation.protocol.events import FeedRow
from federation.selectors import PacketFilters
from federation.services import Quota, Refused
from peers.models import PolicyRevision
from peers.trust import Audience
from tests.federation.makers import NOW_MS, RULE, make_received, make_verified, node

pytestmark = pytest.mark.django_db

OWN = node(9).hex()


def put(*received, quotas=None):
    return services.store_packets(received=received, quotas=quotas or {})


def corrupt(packet_id, column, expression):
    """Change a stored row behind the program's back; `expression` is SQL."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = ON")
        cursor.execute(f"UPDATE federation_knowledgepacket SET {column} = {expression} WHERE packet_id = %s", [packet_id])  # noqa: S608
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = OFF")


def usage(origin):
    row = OriginUsage.objects.get(pk=node(origin).hex())
    return row.packets, row.bytes


def revision():
    return PolicyRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0


# Storing


def test_a_packet_is_stored_with_its_signed_bytes_and_its_receipt():
    received = make_received(1, peer=2, title="Tide tables", tags=["sea", "time"], audience=None, expires_at=NOW_MS * 2)
    assert put(received) == [Code.ACCEPTED]
    row = KnowledgePacket.objects.get()
    packet, envelope = received.packet.packet, received.packet.envelope
    assert bytes(row.body) == envelope.body
    assert bytes(row.packet_id) == hashlib.sha256(envelope.body).digest()
    assert (bytes(row.signature), row.timestamp) == (envelope.signature, envelope.timestamp)
    assert bytes(row.key_fingerprint) == envelope.key_fingerprint
    assert (row.origin, row.kind, row.title, row.tags) == (node(1).hex(), "note", "Tide tables", ["sea", "time"])
    assert (row.audience, row.created_at, row.expires_at) == ("core", packet.created_at, NOW_MS * 2)
    assert (row.received_from, row.received_rule, row.received_at) == (node(2).hex(), RULE, received.received_at)
    assert row.hidden is False


def test_nothing_to_store_is_no_error():
    assert put() == []


def test_a_packet_stored_again_is_a_duplicate_and_one_row():
    received = make_received(1)
    assert put(received) == [Code.ACCEPTED]
    assert put(received) == [Code.DUPLICATE]
    assert KnowledgePacket.objects.count() == 1
    assert usage(1) == (1, len(received.packet.envelope.body))


def test_a_packet_twice_in_one_batch_is_stored_once():
    received, other = make_received(1), make_received(2)
    again = dataclasses.replace(received, peer=node(3))
    assert put(received, other, again) == [Code.ACCEPTED, Code.ACCEPTED, Code.DUPLICATE]
    assert KnowledgePacket.objects.get(packet_id=received.packet.packet.packet_id).received_from == node(1).hex()


def test_arrival_numbers_follow_the_order_of_the_batch():
    batch = [make_received(number) for number in (5, 3, 8, 1)]
    put(*batch)
    ids = [bytes(packet_id) for packet_id in KnowledgePacket.objects.order_by("arrival").values_list("packet_id", flat=True)]
    assert ids == [received.packet.packet.packet_id for received in batch]


def test_arrival_numbers_are_never_given_out_again():
    put(make_received(1), make_received(2))
    head = selectors.head_arrival()
    services.purge_packets_from(node(1).hex(), own=OWN)
    put(make_received(3))
    assert selectors.head_arrival() > head


def test_five_hundred_packets_go_in_at_once():
    assert put(*(make_received(number) for number in range(500))) == [Code.ACCEPTED] * 500
    assert usage(1)[0] == 500


def test_a_purged_packet_is_declined_as_retracted_for_ever():
    received = make_received(1)
    put(received)
    services.purge_packets_from(node(1).hex(), own=OWN)
    assert put(received, received, make_received(2)) == [Code.RETRACTED, Code.RETRACTED, Code.ACCEPTED]


def test_a_nul_in_title_and_tags_is_stored_and_the_signed_bytes_keep_it():
    r"""PostgreSQL's text and jsonb refuse U+0000; the row shows U+FFFD there, the packet is what its author signed."""
    received = make_received(1, title="a\0b", tags=["x\0y", "\\u0000"])
    assert put(received) == [Code.ACCEPTED]
    row = KnowledgePacket.objects.get()
    assert (row.title, row.tags) == ("a�b", ["x�y", "\\u0000"])
    assert bytes(row.body) == received.packet.envelope.body
    assert selectors.read_row(row).packet.title == "a\0b"


def test_one_poisoned_row_does_not_stop_the_others():
    """What the database refuses is malformed alone; its repeat shares its fate, the rest is stored and charged."""
    good = [make_received(number) for number in range(3)]
    poison = make_received(7)
    envelope = dataclasses.replace(poison.packet.envelope, timestamp=2**70)
    poison = dataclasses.replace(poison, packet=dataclasses.replace(poison.packet, envelope=envelope))
    assert put(good[0], poison, good[1], poison, good[2]) == [
        Code.ACCEPTED,
        Code.MALFORMED,
        Code.ACCEPTED,
        Code.MALFORMED,
        Code.ACCEPTED,
    ]
    assert KnowledgePacket.objects.count() == 3
    assert usage(1) == (3, sum(len(received.packet.envelope.body) for received in good))


def test_a_fault_of_the_database_itself_stores_nothing_and_is_raised(monkeypatch):
    """A full disk must never lead to an acknowledgement, nor to `malformed`."""

    def disk_full(rows):
        raise OperationalError("database or disk is full")

    monkeypatch.setattr(store, "insert_packets", disk_full)
    with pytest.raises(OperationalError, match="disk is full"):
        put(make_received(1))
    assert not KnowledgePacket.objects.exists()
    assert not OriginUsage.objects.exists()


# Quotas


def test_the_last_packet_within_a_quota_is_accepted_and_the_next_one_is_not():
    quotas = {node(1): Quota(packets=3, bytes=None)}
    assert put(make_received(1), make_received(2), quotas=quotas) == [Code.ACCEPTED] * 2
    assert put(make_received(3), make_received(4), quotas=quotas) == [Code.ACCEPTED, Code.QUOTA]
    assert put(make_received(5), quotas=quotas) == [Code.QUOTA]
    assert usage(1)[0] == 3


def test_the_last_byte_within_a_quota_is_accepted_and_one_beyond_is_not():
    received = make_received(1)
    size = len(received.packet.envelope.body)
    assert put(received, quotas={node(1): Quota(packets=None, bytes=size - 1)}) == [Code.QUOTA]
    assert put(received, quotas={node(1): Quota(packets=None, bytes=size)}) == [Code.ACCEPTED]
    assert usage(1) == (1, size)


def test_a_small_packet_still_fits_where_a_large_one_does_not():
    small, large = make_received(1), make_received(2, content="x" * 1000)
    quotas = {node(1): Quota(packets=None, bytes=len(small.packet.envelope.body))}
    assert put(large, small, quotas=quotas) == [Code.QUOTA, Code.ACCEPTED]


def test_a_quota_bounds_its_origin_only():
    quotas = {node(1): Quota(packets=1, bytes=None)}
    batch = [make_received(1), make_received(2), make_received(3, origin=2), make_received(4, origin=2)]
    assert put(*batch, quotas=quotas) == [Code.ACCEPTED, Code.QUOTA, Code.ACCEPTED, Code.ACCEPTED]


def test_a_known_packet_is_a_duplicate_even_beyond_the_quota():
    received = make_received(1)
    quotas = {node(1): Quota(packets=1, bytes=None)}
    put(received, quotas=quotas)
    assert put(received, quotas=quotas) == [Code.DUPLICATE]


def test_repeats_of_a_packet_beyond_the_quota_are_not_called_duplicates():
    received = make_received(1)
    assert put(received, received, quotas={node(1): Quota(packets=0, bytes=None)}) == [Code.QUOTA, Code.QUOTA]


# Hiding and purging what came from a peer


@pytest.fixture
def mixed_store():
    """Peer 1 signed 1 and 2 (2 came through peer 3), relayed 10 of peer 4 and gave us our own 20 back; 30 is peer 4's."""
    batch = [
        make_received(1),
        make_received(2, peer=3),
        make_received(10, origin=4, peer=1),
        make_received(20, origin=9, peer=1),
        make_received(30, origin=4),
    ]
    put(*batch)
    return {received.packet.packet.created_at - NOW_MS: received for received in batch}


def hidden_numbers():
    return {created_at - NOW_MS for created_at in KnowledgePacket.objects.filter(hidden=True).values_list("created_at", flat=True)}


def test_what_came_from_a_peer_is_what_it_signed_or_handed_over_never_our_own(mixed_store):
    count = services.count_packets_from(node(1).hex(), own=OWN)
    sizes = [len(mixed_store[number].packet.envelope.body) for number in (1, 2, 10)]
    assert (count.packets, count.hidden, count.bytes) == (3, 0, sum(sizes))
    assert services.count_packets_from(node(7).hex(), own=OWN) == services.PacketCount(0, 0, 0)


def test_hiding_and_unhiding_tell_running_nodes_and_keep_the_usage(mixed_store):
    before = revision()
    assert services.hide_packets_from(node(1).hex(), own=OWN) == 3
    assert hidden_numbers() == {1, 2, 10}
    assert revision() == before + 1
    assert services.hide_packets_from(node(1).hex(), own=OWN) == 0
    assert revision() == before + 1
    assert services.count_packets_from(node(1).hex(), own=OWN).hidden == 3
    assert services.unhide_packets_from(node(1).hex(), own=OWN) == 3
    assert hidden_numbers() == set()
    assert revision() == before + 2
    assert usage(1)[0] == 2


def test_single_packets_are_hidden_and_shown_again(mixed_store):
    packet_id = mixed_store[30].packet.packet.packet_id
    assert services.hide_packets([packet_id]) == 1
    assert hidden_numbers() == {30}
    assert services.unhide_packets([packet_id, bytes(32)]) == 1


def test_purging_forgets_the_content_and_remembers_the_ids(mixed_store):
    before = revision()
    assert services.purge_packets_from(node(1).hex(), own=OWN) == 3
    assert {row.created_at - NOW_MS for row in KnowledgePacket.objects.all()} == {20, 30}
    purged = {bytes(row.packet_id): row.origin for row in PurgedPacket.objects.all()}
    assert purged == {mixed_store[n].packet.packet.packet_id: mixed_store[n].packet.packet.origin.hex() for n in (1, 2, 10)}
    assert usage(1) == (0, 0)
    assert usage(4) == (1, len(mixed_store[30].packet.envelope.body))
    assert revision() == before + 1
    assert services.purge_packets_from(node(1).hex(), own=OWN) == 0


# What links read


def test_the_feed_goes_on_by_arrival_number_with_all_a_link_needs_to_know():
    put(make_received(1, peer=2), make_received(2), make_received(3))
    services.hide_packets([make_verified(2).packet.packet_id])
    first = selectors.feed_after(0, 2)
    packet = make_verified(1).packet
    assert first[0] == FeedRow(
        first[0].arrival, packet.packet_id, node(1), "core", packet.created_at, len(packet.body), node(2), hidden=False
    )
    assert first[1].hidden is True
    rest = selectors.feed_after(first[-1].arrival, 2)
    assert [row.packet_id for row in rest] == [make_verified(3).packet.packet_id]
    assert rest[-1].arrival == selectors.head_arrival()
    assert selectors.feed_after(selectors.head_arrival(), 2) == []


def test_an_empty_store_has_head_zero():
    assert selectors.head_arrival() == 0
    assert selectors.feed_after(0, 10) == []


def test_envelopes_are_loaded_byte_for_byte_and_hidden_ones_are_not():
    batch = [make_received(number) for number in range(3)]
    put(*batch)
    ids = [received.packet.packet.packet_id for received in batch]
    services.hide_packets([ids[1]])
    found = {packet_id: stored.envelope for packet_id, stored in selectors.load_envelopes([*ids, bytes(32)]).items()}
    assert found == {ids[0]: batch[0].packet.envelope, ids[2]: batch[2].packet.envelope}


def test_many_ids_are_asked_about_in_several_statements():
    batch = [make_received(number) for number in range(5)]
    put(*batch)
    ids = [received.packet.packet.packet_id for received in batch]
    asked = [*(number.to_bytes(32) for number in range(2 * store.IDS_A_STATEMENT)), *ids]
    assert set(selectors.load_envelopes(asked)) == set(ids)
    assert selectors.known_ids(asked) == set(ids)


def test_known_are_stored_hidden_and_purged_ids():
    put(make_received(1), make_received(2), make_received(3, origin=2))
    services.hide_packets([make_verified(2).packet.packet_id])
    services.purge_packets_from(node(2).hex(), own=OWN)
    known = [make_verified(1), make_verified(2), make_verified(3, origin=2)]
    ids = {verified.packet.packet_id for verified in known}
    assert selectors.known_ids([*ids, make_verified(4).packet.packet_id]) == ids


# Damaged rows

DAMAGE = {
    "other bytes": ("body", "X'7B7D'", "'{}'::bytea"),
    "a truncated body": ("body", "substr(body, 1, 40)", "substr(body, 1, 40)"),
    "a short signature": ("signature", "X'00'", "'\\x00'::bytea"),
    "tags that are no JSON": ("tags", "'{bad'", None),
    "tags of another shape": ("tags", "'{\"a\": 1}'", "'{\"a\": 1}'::jsonb"),
    "a title that is no UTF-8": ("title", "CAST(X'FFFE41' AS TEXT)", None),
    "an origin that is no hex": ("origin", "'zz'", "'zz'"),
    "a number that is text": ("created_at", "'soon'", None),
    "text for a blob": ("body", "'text'", None),
    "an audience nobody knows": ("audience", "'all'", "'all'"),
}


@pytest.fixture(params=DAMAGE, ids=lambda name: name.replace(" ", "-"))
def damaged(request):
    """Five stored packets, the third of them damaged; returns their ids."""
    batch = [make_received(number, tags=["t"]) for number in range(5)]
    put(*batch)
    ids = [received.packet.packet.packet_id for received in batch]
    column, sqlite, postgresql = DAMAGE[request.param]
    expression = postgresql if connection.vendor == "postgresql" else sqlite
    if expression is None:
        pytest.skip("PostgreSQL's types rule this out")
    corrupt(ids[2], column, expression)
    return ids


def test_a_damaged_row_never_stops_the_others(damaged):
    """Listing, filtering, following the feed and loading envelopes all serve the four sound packets."""
    sound = {packet_id for number, packet_id in enumerate(damaged) if number != 2}
    listed = list(selectors.search_packets(PacketFilters()))
    assert len(listed) == 5
    assert {row.packet_id for row in listed if not row.damage} >= sound
    assert {row.packet_id for row in selectors.search_packets(PacketFilters(tags=["t"])) if not row.damage} >= sound
    feed = selectors.feed_after(0, 10)
    assert [row.arrival for row in feed] == sorted(row.arrival for row in listed)
    assert {row.packet_id for row in feed if not row.hidden} >= sound
    assert set(selectors.load_envelopes(damaged)) >= sound
    assert [row.as_json()["id"] for row in listed if not row.damage]


def test_a_fault_of_the_database_never_passes_for_damage(monkeypatch):
    """Who follows the feed must hear of a lost connection; a packet taken for damaged would be passed over for good."""

    def lost(query):
        raise OperationalError("server closed the connection unexpectedly")

    put(make_received(1))
    monkeypatch.setattr(QuerySet, "__iter__", lost)
    readers = [
        lambda: selectors.feed_after(0, 10),
        lambda: selectors.load_envelopes([bytes(32)]),
        lambda: list(selectors.search_packets(PacketFilters())),
    ]
    for read in readers:
        with pytest.raises(OperationalError, match="server closed"):
            read()


def test_bytes_that_are_not_those_of_the_id_are_shown_as_damaged_and_never_offered():
    put(make_received(1))
    packet_id = make_verified(1).packet.packet_id
    corrupt(packet_id, "body", "'{}'::bytea" if connection.vendor == "postgresql" else "X'7B7D'")
    assert selectors.load_envelopes([packet_id]) == {}
    row = selectors.stored_packet(packet_id)
    assert row.damage == "the stored bytes are not those the id names"
    assert row.as_json() == {
        "id": packet_id.hex(),
        "origin": None,
        "kind": None,
        "title": None,
        "created_at": None,
        "received_at": NOW_MS + 60_000,
        "received_from": node(1).hex(),
        "tags": None,
        "audience": None,
        "content": None,
        "damaged": row.damage,
    }


def test_what_may_leave_is_read_from_the_signed_bytes():
    """A column that says public, or another origin, lets no private packet out: policy asks about what was signed."""
    received = make_received(1, audience=Audience.PRIVATE)
    put(received)
    packet_id = received.packet.packet.packet_id
    corrupt(packet_id, "audience", "'public'")
    corrupt(packet_id, "origin", f"'{node(5).hex()}'")
    stored = selectors.load_envelopes([packet_id])[packet_id]
    assert (stored.origin, stored.audience) == (node(1), Audience.PRIVATE)
    assert stored.envelope == received.packet.envelope


def test_a_feed_of_nothing_but_damaged_rows_still_moves_on():
    put(*(make_received(number) for number in range(3)))
    for number in range(3):
        corrupt(make_verified(number).packet.packet_id, "origin", "'zz'")
    feed = selectors.feed_after(0, 2)
    assert [row.hidden for row in feed] == [True, True]
    assert [row.hidden for row in selectors.feed_after(feed[-1].arrival, 2)] == [True]


# Searching


def numbers(filters):
    return [row.packet.created_at - NOW_MS for row in selectors.search_packets(filters)]


def test_packets_are_listed_newest_arrival_first_across_chunks(monkeypatch):
    monkeypatch.setattr(selectors, "ROWS_A_CHUNK", 3)
    put(*(make_received(number) for number in (4, 1, 5, 2, 6, 3, 7)))
    assert numbers(PacketFilters()) == [7, 3, 6, 2, 5, 1, 4]


def test_filters_narrow_together():
    put(
        make_received(1, kind="note", tags=["sea"]),
        make_received(2, kind="fact", tags=["sea", "salt"]),
        make_received(3, kind="fact", origin=2, tags=["salt"]),
        make_received(4, kind="map"),
    )
    assert numbers(PacketFilters(kinds=["fact", "map"])) == [4, 3, 2]
    assert numbers(PacketFilters(tags=["sea"])) == [2, 1]
    assert numbers(PacketFilters(tags=["sea", "salt"])) == [2]
    assert numbers(PacketFilters(tags=["se"])) == []
    assert numbers(PacketFilters(origins=[node(2).hex()])) == [3]
    assert numbers(PacketFilters(kinds=["fact"], origins=[node(1).hex()], tags=["salt"])) == [2]


def test_since_includes_and_until_excludes_its_moment():
    put(*(make_received(number) for number in range(4)))
    assert numbers(PacketFilters(since=NOW_MS + 1, until=NOW_MS + 3)) == [2, 1]


def test_a_cursor_goes_on_behind_its_row_whatever_arrives_meanwhile():
    put(*(make_received(number) for number in range(4)))
    second = list(selectors.search_packets(PacketFilters()))[1]
    put(make_received(9))
    assert numbers(PacketFilters(cursor=selectors.cursor_of(second))) == [1, 0]


@pytest.mark.parametrize("cursor", ["", "p", "5", "p5;", "p5\n", "P5", "p-1", "p" + "f" * 16])
def test_a_cursor_of_someone_else_is_refused(cursor):
    with pytest.raises(selectors.CursorError, match="no cursor this node gave out"):
        list(selectors.search_packets(PacketFilters(cursor=cursor)))


# Naming a packet


def test_a_packet_is_named_by_its_whole_id_or_a_prefix_of_six_digits():
    put(make_received(1))
    packet_id = make_verified(1).packet.packet_id
    for digits in (6, 7, 12, 63, 64):
        assert selectors.resolve_packet(packet_id.hex()[:digits]) == packet_id
    for wrong in (packet_id.hex()[:5], packet_id.hex().upper(), packet_id.hex() + "0", " " + packet_id.hex()[:10], ""):
        with pytest.raises(selectors.MalformedIdError, match="no packet id"):
            selectors.resolve_packet(wrong)


def test_an_unknown_packet_is_said_to_be_unknown():
    with pytest.raises(selectors.UnknownPacketError, match="no packet abcdef here"):
        selectors.resolve_packet("abcdef")


def test_a_prefix_of_two_packets_is_ambiguous():
    for last in (1, 2):
        Refusal.objects.create(
            packet_id=bytes(31) + bytes([last]), peer=node(1).hex(), code="tier", reason="The peer is EXTERNAL.", at=NOW_MS
        )
    with pytest.raises(selectors.AmbiguousPacketError, match="give more digits"):
        selectors.resolve_packet("000000", heard_of=True)
    assert selectors.resolve_packet("00" * 31 + "01", heard_of=True) == bytes(31) + b"\x01"


# Refusals and counters


def refused(number, *, peer=1, code=Code.TIER, at=NOW_MS, reason="The peer is EXTERNAL."):
    return Refused(number.to_bytes(32), node(peer).hex(), node(2).hex(), code, reason, at)


def test_the_newest_refusal_per_peer_and_packet_stays():
    services.note_refusals([refused(1), refused(2), refused(1, peer=2)], limit=100)
    services.note_refusals([refused(1, code=Code.EARLY, at=NOW_MS + 5, reason="Its clock is ahead.")], limit=100)
    assert Refusal.objects.count() == 3
    row = Refusal.objects.get(peer=node(1).hex(), packet_id=(1).to_bytes(32))
    assert (row.code, row.at, row.reason, row.origin) == ("early", NOW_MS + 5, "Its clock is ahead.", node(2).hex())


def test_a_refusal_twice_in_one_call_is_one_row():
    services.note_refusals([refused(1), refused(1)], limit=100)
    assert Refusal.objects.count() == 1


def test_a_reason_from_outside_is_cut_and_loses_its_nul():
    services.note_refusals([refused(1, reason="\0" + "x" * 300)], limit=100)
    assert Refusal.objects.get().reason == "�" + "x" * 199


def test_refusals_are_bounded_per_peer_and_the_oldest_go(monkeypatch):
    monkeypatch.setattr(services, "_untrimmed", services._Untrimmed())
    monkeypatch.setattr(services, "TRIM_EVERY", 10)
    services.note_refusals([refused(number, peer=2) for number in range(5)], limit=20)
    for number in range(100):
        services.note_refusals([refused(number, at=NOW_MS + number)], limit=20)
    kept = set(Refusal.objects.filter(peer=node(1).hex()).values_list("at", flat=True))
    assert 20 <= len(kept) < 30
    assert kept == {NOW_MS + number for number in range(100 - len(kept), 100)}
    assert Refusal.objects.filter(peer=node(2).hex()).count() == 5


def test_exactly_the_bound_of_refusals_stays(monkeypatch):
    monkeypatch.setattr(services, "_untrimmed", services._Untrimmed())
    services.note_refusals([refused(number) for number in range(21)], limit=21)
    assert Refusal.objects.count() == 21
    monkeypatch.setattr(services, "_untrimmed", services._Untrimmed())
    services.note_refusals([refused(21)], limit=21)
    assert Refusal.objects.count() == 21


def test_refusals_are_forgotten_for_one_peer_or_for_all():
    services.note_refusals([refused(1), refused(2), refused(1, peer=2), refused(1, peer=3)], limit=100)
    assert services.forget_refusals(node(1).hex()) == 2
    assert services.forget_refusals() == 2


def test_counters_add_up_and_keep_the_time_they_began():
    services.add_counters({(node(1).hex(), "received"): 5, (node(1).hex(), "tier"): 0})
    since = PeerCounter.objects.get().since
    services.add_counters({(node(1).hex(), "received"): 2, (node(2).hex(), "received"): 1})
    assert {(row.peer, row.name): row.count for row in PeerCounter.objects.all()} == {
        (node(1).hex(), "received"): 7,
        (node(2).hex(), "received"): 1,
    }
    assert PeerCounter.objects.get(peer=node(1).hex()).since == since


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_batch_leaves_nothing_behind():
    with pytest.raises(RuntimeError), transaction.atomic():
        put(make_received(1))
        raise RuntimeError
    assert not KnowledgePacket.objects.exists()
    assert not OriginUsage.objects.exists()
