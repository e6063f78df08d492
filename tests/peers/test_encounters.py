"""What the network tells about peers: every row a stranger can cause is bounded, and nothing decided here is changed by it."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from keys.encoding import node_id_of
from keys.models import PublicKey
from peers.encounters import (
    STALE_AFTER,
    BeaconNote,
    Caps,
    Declared,
    forget_stale,
    note_beacon,
    note_clock_offset,
    note_dial_failure,
    note_link,
)
from peers.models import Peer, PeerAddress, PeerKey, TierChange
from peers.records import MAX_UNCONFIRMED_KEYS, column_text
from peers.services import add_address, import_peer_key, remove_peer, rename_peer, set_blocked, set_tier
from peers.trust import Tier
from tests.peers.conftest import NOW, NOW_MS, beacon, contact, key, node_id, revision

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys_dir")]

DECIDED = {"actor": "ann", "door": "command"}
LATER = NOW + STALE_AFTER + timedelta(seconds=1)


def peer(number=1):
    return Peer.objects.get(node_id=node_id(number).hex())


def urls(number=1):
    return {address.url for address in peer(number).addresses.all()}


def proven(number=1):
    return [address.url for address in peer(number).addresses.filter(proven_at__isnull=False)]


def held(number=1):
    return {(row.public_key.public_key, row.status, row.source) for row in peer(number).keys.all()}


# Beacons.


def test_first_beacon_registers_a_stranger():
    """UNKNOWN, unnamed, its key unconfirmed; what it says of itself is shown, and no policy moves."""
    assert beacon(1, name="Bob") is BeaconNote.NEW
    row = peer()
    assert (row.tier, row.name, row.declared_name, row.declared_tier, row.touched) == ("unknown", None, "Bob", "core", False)
    assert (row.capabilities, row.version, row.found_by) == (["relay"], "0.1", "beacon")
    assert held() == {(key(1).hex(), "unconfirmed", "beacon")}
    assert urls() == {"ws://192.0.2.7:8104/sync"}
    assert (revision(), TierChange.objects.count()) == (0, 0)


def test_only_newer_beacons_count():
    """A replayed or older beacon changes nothing, at the same millisecond and before it; one later counts."""
    beacon(1, ms=NOW_MS, name="first")
    assert beacon(1, ms=NOW_MS, name="replay", host="192.0.2.66") is BeaconNote.OLD
    assert beacon(1, ms=NOW_MS - 1, name="older", host="192.0.2.66") is BeaconNote.OLD
    assert (peer().declared_name, urls()) == ("first", {"ws://192.0.2.7:8104/sync"})
    assert beacon(1, ms=NOW_MS + 1, name="second") is BeaconNote.HEARD
    assert (peer().declared_name, peer().last_beacon_ms) == ("second", NOW_MS + 1)


@pytest.mark.parametrize("known_by", ["import", "contact"])
def test_unfamiliar_key_changes_nothing_of_a_known_peer(known_by):
    """1,000 forgeries under other keys: no address, name, time or held key changes, and one row remembers one of them."""
    if known_by == "import":
        import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, url="ws://198.51.100.1", **DECIDED)
    else:
        contact(1, name="Bob", dialled="ws://198.51.100.1:8104/sync")
    before = (Peer.objects.values().get(), urls(), held(), revision())
    for number in range(100, 1_100):
        assert beacon(1, public_key=key(number), host="203.0.113.5", ms=NOW_MS + number, name="Mallory") is BeaconNote.UNCONFIRMED
    after = (Peer.objects.values().get(), urls(), {row for row in held() if row[2] != "claim"}, revision())
    assert after == before
    assert held() - before[2] == {(key(100).hex(), "unconfirmed", "claim")}
    assert PublicKey.objects.count() == 2
    # A minute later another one may take that place.
    beacon(1, public_key=key(200), now=NOW + timedelta(minutes=1))
    assert held() - before[2] == {(key(200).hex(), "unconfirmed", "claim")}
    # The true key is heard as before, though the forger named later times.
    assert beacon(1, ms=NOW_MS + 1) is BeaconNote.HEARD


def test_nodes_own_key_wins_over_a_claim_made_first():
    """Who beacons a node_id first, under a key it was not made from, loses it to the node itself, and does not win it back."""
    assert beacon(1, public_key=key(6), host="203.0.113.5") is BeaconNote.NEW
    assert beacon(1, ms=NOW_MS + 1, name="Bob") is BeaconNote.HEARD
    assert held() == {(key(1).hex(), "unconfirmed", "beacon")}
    assert beacon(1, public_key=key(6), ms=NOW_MS + 2, name="Mallory") is BeaconNote.UNCONFIRMED
    assert peer().declared_name == "Bob"
    assert (key(1).hex(), "unconfirmed", "beacon") in held()


def test_key_claimed_for_another_node_returns_to_its_own():
    """A claim that somebody else's node_id has this key does not keep the key's own node from being known."""
    beacon(1, public_key=key(6))
    assert beacon(6, name="honest") is BeaconNote.NEW
    assert held(6) == {(key(6).hex(), "unconfirmed", "beacon")}
    assert held(1) == set()
    # And what stands under its own node cannot be claimed for another.
    assert beacon(1, public_key=key(6), ms=NOW_MS + 5) is BeaconNote.IGNORED


def test_imported_key_cannot_be_claimed_for_another_node():
    """A beacon that names another node_id under a trusted key of this registry changes nothing."""
    import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, **DECIDED)
    assert beacon(2, public_key=key(1)) is BeaconNote.IGNORED
    assert Peer.objects.count() == 1


@pytest.mark.parametrize("status", ["retired", "revoked"])
def test_keys_that_were_given_up_are_not_heard(status):
    """A beacon under a retired or revoked key of its node is ignored."""
    import_peer_key(peer="bob", key=key(1), **DECIDED)
    peer().keys.update(status=status)
    assert beacon(1, name="ghost") is BeaconNote.IGNORED
    assert peer().declared_name == ""


def test_rotated_node_met_by_beacon_alone():
    """A newcomer whose key is not its first one is recorded, refreshed under that key, and no other key takes over."""
    assert beacon(1, public_key=key(2)) is BeaconNote.NEW
    assert beacon(1, public_key=key(2), ms=NOW_MS + 1) is BeaconNote.HEARD
    assert beacon(1, public_key=key(6), ms=NOW_MS + 2) is BeaconNote.UNCONFIRMED


@pytest.mark.parametrize("extra", range(3))
def test_candidates_are_at_most_four(extra):
    """Of the addresses a peer is heard at, the four heard last stay, however many there are."""
    for number in range(4 + extra):
        beacon(1, ms=NOW_MS + number, host=f"192.0.2.{number}", now=NOW + timedelta(seconds=number))
    assert urls() == {f"ws://192.0.2.{number}:8104/sync" for number in range(extra, 4 + extra)}


def test_proven_and_named_addresses_stay():
    """New candidates push out neither the proven address nor the operator's."""
    contact(1, dialled="ws://198.51.100.1:8104/sync")
    add_address(peer=peer(), url="ws://198.51.100.2")
    for number in range(1, 10):
        beacon(1, ms=NOW_MS + number, host=f"192.0.2.{number}", now=NOW + timedelta(seconds=number))
    assert proven() == ["ws://198.51.100.1:8104/sync"]
    assert urls() >= {"ws://198.51.100.1:8104/sync", "ws://198.51.100.2:8104/sync"}
    assert len(urls()) == 6


def test_handshake_elsewhere_moves_the_proof():
    """One address is proven at a time: the last where a handshake succeeded; the former one is a candidate again."""
    contact(1, dialled="ws://192.0.2.1:8104/sync")
    for number in range(2, 6):
        beacon(1, ms=NOW_MS + number, host=f"192.0.2.{number}", now=NOW + timedelta(seconds=number))
    contact(1, dialled="ws://192.0.2.5:8104/sync", now=NOW + timedelta(seconds=9))
    assert proven() == ["ws://192.0.2.5:8104/sync"]
    assert len(urls()) == 5


# Caps.


@pytest.mark.parametrize(("strangers", "outcome"), [(7, BeaconNote.NEW), (8, BeaconNote.FULL)])
def test_at_most_eight_strangers_of_one_address(strangers, outcome):
    """The ninth UNKNOWN peer of one source address is not recorded; another address is another matter."""
    for number in range(1, strangers + 1):
        beacon(number)
    assert beacon(99) is outcome
    assert beacon(98, host="192.0.2.70") is BeaconNote.NEW


@pytest.mark.parametrize("host", ["[fe80::1%eth0]", "[2001:db8::1]"])
def test_cap_holds_for_ipv6_and_whatever_port(host):
    """The source address counts, not the port it names."""
    for number in range(8):
        url = f"ws://{host}:{8104 + number}/sync"
        note_beacon(node_id=node_id(number + 1), public_key=key(number + 1), declared=Declared(), timestamp_ms=1, url=url, now=NOW)
    assert beacon(99, host=host) is BeaconNote.FULL


@pytest.mark.parametrize(("cap", "outcome"), [(21, BeaconNote.NEW), (20, BeaconNote.FULL)])
def test_cap_over_all_addresses(cap, outcome):
    """However many source addresses there are, strangers are bounded."""
    for number in range(1, 21):
        beacon(number, host=f"192.0.2.{number}")
    assert beacon(99, host="192.0.2.99", caps=Caps(strangers=cap)) is outcome


@pytest.mark.parametrize("addresses", [1, 254])
def test_flood_leaves_everybody_in_place(addresses):
    """500 fakes: at most 256 strangers and 8 of one address; eight honest strangers and the operator's peers are still there."""
    import_peer_key(peer="bob", key=key(9_000), tier=Tier.CORE, **DECIDED)
    for number in range(1, 9):
        beacon(number, host=f"198.51.100.{number}")
    for number in range(1_000, 1_500):
        beacon(number, host=f"192.0.2.{number % addresses}")
    strangers = Peer.objects.filter(touched=False)
    assert strangers.count() <= 256
    assert strangers.count() == (16 if addresses == 1 else 256)
    assert Peer.objects.filter(node_id__in=[node_id(number).hex() for number in (*range(1, 9), 9_000)]).count() == 9
    assert PublicKey.objects.count() == PeerKey.objects.count() == strangers.count() + 1
    assert PeerAddress.objects.count() == strangers.count()


def test_longest_stale_stranger_gives_way():
    """When there is no room a stranger not heard for 5 minutes makes it; those heard since never do."""
    for number in range(1, 9):
        beacon(number, now=NOW + timedelta(seconds=number))
    beacon(1, ms=NOW_MS + 1, now=LATER)
    assert beacon(99, now=LATER + timedelta(seconds=5)) is BeaconNote.NEW
    assert not Peer.objects.filter(node_id=node_id(2).hex()).exists()
    assert Peer.objects.count() == 8


def test_peers_the_operator_knows_are_never_evicted_nor_counted():
    """Named, blocked, elevated or imported peers neither give way nor take a stranger's place."""
    for number in range(1, 9):
        beacon(number)
    rename_peer(peer=peer(1), name="one")
    set_blocked(peer=peer(2), blocked=True, **DECIDED)
    set_tier(peer=peer(3), tier=Tier.EXTERNAL, **DECIDED)
    import_peer_key(peer="four", key=key(4), **DECIDED)
    for number in range(10, 30):
        beacon(number, now=LATER)
    assert Peer.objects.filter(node_id__in=[node_id(number).hex() for number in range(1, 5)]).count() == 4
    assert Peer.objects.filter(touched=False).count() == 8


# Forgetting.


def test_stale_strangers_are_forgotten_with_their_keys():
    """After 5 minutes of silence nothing is left of a peer known by beacons alone; at 5 minutes it is still there."""
    beacon(1)
    assert forget_stale(now=NOW + STALE_AFTER) == 0
    assert forget_stale(now=LATER) == 1
    assert (Peer.objects.count(), PublicKey.objects.count(), PeerAddress.objects.count()) == (0, 0, 0)


def test_only_peers_known_by_nothing_but_beacons_are_forgotten():
    """Contact, the operator's touch, a block or a live link keeps a peer, however long it was silent."""
    for number in range(1, 7):
        beacon(number, host=f"192.0.2.{number}")
    contact(1)
    rename_peer(peer=peer(2), name="two")
    set_blocked(peer=peer(3), blocked=True, **DECIDED)
    import_peer_key(peer="four", key=key(4), **DECIDED)
    assert forget_stale(now=LATER, live=[node_id(5)]) == 1
    assert not Peer.objects.filter(node_id=node_id(6).hex()).exists()
    assert Peer.objects.count() == 5


def test_forgetting_keeps_the_key_of_a_removed_peer():
    """A removed peer's packets are still verified after its beacon was heard and forgotten again."""
    remove_peer(peer=import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, **DECIDED), **DECIDED)
    beacon(1)
    assert forget_stale(now=LATER) == 1
    assert PublicKey.objects.filter(public_key=key(1).hex()).exists()


# Handshakes.


def test_first_contact_registers_a_stranger():
    """UNKNOWN with an unconfirmed key, the manifest kept, the source address a candidate that is not proven."""
    met = contact(1, name="Bob", heard_at="ws://192.0.2.7:8104/sync")
    assert (met.met, met.key_status) == (True, "unconfirmed")
    assert (met.peer.tier, met.peer.declared_name, met.peer.touched, met.peer.found_by) == ("unknown", "Bob", False, "contact")
    assert (bytes(peer().manifest), peer().manifest_issued_ms) == (b"{}", NOW_MS)
    assert held() == {(key(1).hex(), "unconfirmed", "handshake")}
    assert (urls(), proven(), revision()) == ({"ws://192.0.2.7:8104/sync"}, [], 0)


def test_contact_of_an_imported_peer_changes_no_trust():
    """The trusted key stays trusted, the tier what it was, the revision too; the dialled address is proven."""
    import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, url="ws://192.0.2.7", **DECIDED)
    before = revision()
    met = contact(1, dialled="ws://192.0.2.7:8104/sync")
    assert (met.met, met.key_status, met.peer.tier, met.peer.name) == (False, "trusted", "core", "bob")
    assert (proven(), revision()) == (["ws://192.0.2.7:8104/sync"], before)
    assert peer().addresses.get().source == "operator"


def test_only_a_newer_manifest_counts():
    """An older manifest, or the same again, leaves what was declared as it is."""
    contact(1, name="new", issued=NOW_MS)
    contact(1, name="old", issued=NOW_MS - 1)
    contact(1, name="same", issued=NOW_MS)
    assert peer().declared_name == "new"
    contact(1, name="newer", issued=NOW_MS + 1)
    assert peer().declared_name == "newer"


def test_successor_key_is_recorded_and_replaces_none():
    """A key that a valid succession proves is unconfirmed beside the trusted one, and running processes learn of it."""
    import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, **DECIDED)
    before = revision()
    met = contact(1, chain=[key(1), key(2)])
    assert met.key_status == "unconfirmed"
    assert held() == {(key(1).hex(), "trusted", "imported"), (key(2).hex(), "unconfirmed", "handshake")}
    assert revision() == before + 1


def test_unconfirmed_keys_are_bounded():
    """However many successions a peer shows, few unconfirmed keys stay, and the trusted one among them always."""
    import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, **DECIDED)
    for number in range(10, 20):
        contact(1, chain=[key(1), key(number)], now=NOW + timedelta(seconds=number))
    assert len(held()) == MAX_UNCONFIRMED_KEYS + 1
    assert (key(1).hex(), "trusted", "imported") in held()
    assert PublicKey.objects.count() == MAX_UNCONFIRMED_KEYS + 1


def test_handshake_confirms_what_a_beacon_said():
    """The key heard in a beacon is known better after a handshake, though still not trusted."""
    beacon(1)
    contact(1)
    assert held() == {(key(1).hex(), "unconfirmed", "handshake")}


def test_proven_key_is_taken_back_from_who_claimed_it():
    """A key that a beacon claimed for another node_id belongs to the node whose handshake proved it."""
    beacon(6, public_key=key(2))
    contact(1, chain=[key(1), key(2)])
    assert held() == {(key(2).hex(), "unconfirmed", "handshake")}
    assert held(6) == set()


def test_two_identities_leading_to_one_key():
    """Where two successions end in one key, the first node met keeps it, and the second is told nothing of trust."""
    contact(1, chain=[key(1), key(3)])
    met = contact(2, chain=[key(2), key(3)])
    assert (met.peer.node_id, met.key_status) == (node_id(2).hex(), None)
    assert held(1) == {(key(3).hex(), "unconfirmed", "handshake")}


@pytest.mark.parametrize(("strangers", "recorded"), [(7, True), (8, False)])
def test_contacts_are_capped_like_beacons(strangers, recorded):
    """Strangers that connect take rows of the same bounded number; one without a row can still be told `pending`."""
    for number in range(1, strangers + 1):
        contact(number, heard_at="ws://192.0.2.7:8104/sync")
    met = contact(99, heard_at="ws://192.0.2.7:8104/sync")
    assert (met.peer is not None) is recorded
    assert met.met is recorded


def test_operators_dial_is_recorded_beyond_the_caps():
    """`addpeer` finds room whatever strangers did, and its peer is the operator's from then on."""
    for number in range(1, 9):
        beacon(number)
    met = contact(99, dialled="ws://192.0.2.7:8104/sync", found_by=Peer.FoundBy.OPERATOR)
    assert (met.peer.touched, met.peer.found_by, met.peer.tier) == (True, "operator", "unknown")
    # Also for a peer that was known by its beacons before.
    assert contact(1, dialled="ws://192.0.2.7:8104/sync", found_by=Peer.FoundBy.OPERATOR).peer.touched


# An imported bare key, and the node it turns out to belong to.


def test_rows_merge_when_a_chain_names_the_imported_key():
    """The bare key of a rotated node was taken for a first one; the succession names the node, and the decision follows the key."""
    imported = import_peer_key(peer="bob", key=key(2), tier=Tier.CORE, url="ws://192.0.2.7", **DECIDED)
    assert imported.node_id == node_id_of(key(2)).hex()
    before = revision()
    met = contact(1, chain=[key(1), key(2)])
    assert (met.peer.pk, met.peer.node_id, met.peer.name, met.peer.tier) == (imported.pk, node_id(1).hex(), "bob", "core")
    assert (met.key_status, met.met, revision()) == ("trusted", False, before + 1)
    change = TierChange.objects.get(door="protocol")
    assert (change.node_id, change.tier_from, change.tier_to) == (node_id(1).hex(), "core", "core")
    assert node_id_of(key(2)).hex() in change.reason


def test_rows_merge_with_the_one_discovery_made():
    """The stranger's row takes over name, tier, keys, addresses and history, and one row is left."""
    beacon(1, public_key=key(2), host="192.0.2.9")
    Peer.objects.all().delete()
    beacon(1, host="192.0.2.9")
    import_peer_key(peer="bob", key=key(2), tier=Tier.SANDBOX, url="ws://192.0.2.7", **DECIDED)
    assert Peer.objects.count() == 2
    met = contact(1, chain=[key(1), key(2)])
    assert Peer.objects.count() == 1
    assert (met.peer.name, met.peer.tier, met.peer.touched) == ("bob", "sandbox", True)
    assert {(row[0], row[1]) for row in held()} == {(key(1).hex(), "unconfirmed"), (key(2).hex(), "trusted")}
    assert urls() == {"ws://192.0.2.9:8104/sync", "ws://192.0.2.7:8104/sync"}
    assert [change.tier_to for change in peer().tier_changes.all()] == ["sandbox", "sandbox"]


def test_merging_never_raises_what_the_operator_decided():
    """A blocked or demoted node stays so, though one of its keys was imported as CORE."""
    blocked = set_blocked(peer=contact(1).peer, blocked=True, **DECIDED)
    import_peer_key(peer="bob", key=key(2), tier=Tier.CORE, **DECIDED)
    met = contact(1, chain=[key(1), key(2)])
    assert (met.peer.pk, met.peer.blocked, met.peer.tier) == (blocked.pk, True, "unknown")


def test_chain_without_an_imported_key_merges_nothing():
    """A succession through keys nobody imported leaves other rows alone."""
    contact(2)
    contact(1, chain=[key(1), key(3)])
    assert Peer.objects.count() == 2


# Small notes.


def test_frames_refresh_the_row():
    """A frame on a link is a sign of life."""
    contact(1)
    note_link(node_ids=[node_id(1), node_id(7)], now=LATER)
    assert peer().last_seen == LATER


@pytest.mark.parametrize(("offset", "stored"), [(-250, -250), (10**15, 2**31 - 1), (-(10**15), -(2**31 - 1))])
def test_clock_offset_fits_its_column(offset, stored):
    """However far a clock is off, the row takes it."""
    contact(1)
    note_clock_offset(node_id=node_id(1), offset_ms=offset)
    assert peer().clock_offset_ms == stored


def test_dial_failure_is_noted_and_forgotten_on_success():
    """Why the last dial failed is shown at the address until a handshake there succeeds."""
    beacon(1)
    url = "ws://192.0.2.7:8104/sync"
    note_dial_failure(node_id=node_id(1), url=url, error="refused\0" * 100, now=NOW)
    row = PeerAddress.objects.get()
    assert row.last_error.startswith("refused")
    assert (len(row.last_error), row.last_error.isprintable(), row.last_error_at) == (200, True, NOW)
    contact(1, dialled=url)
    row.refresh_from_db()
    assert (row.last_error, row.last_error_at) == ("", None)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("Bob", "Bob"),
        (" Bob\n", "Bob�"),
        ("a\0b\x1b[31m", "a�b�[31m"),
        ("\u202eevil\ud800", "�evil�"),
        ("x" * 65, "x" * 64),
        (None, ""),
        (["Bob"], ""),
    ],
)
def test_text_from_outside(text, stored):
    """Cut, one line, printable, or empty for what is no text."""
    assert column_text(text, 64) == stored


class HostileTextTest(TestCase):
    """Rows take whatever a beacon says."""

    @settings(max_examples=60, deadline=None)
    @given(
        st.text(st.characters(), max_size=300),
        st.text(st.characters(), max_size=300),
        st.lists(st.text(st.characters(), max_size=100), max_size=50),
    )
    def test_anything_may_be_declared(self, name, version, capabilities):
        """Any name, version and capabilities are stored within their columns, printable."""
        declared = Declared(name, name, capabilities, version)
        note_beacon(
            node_id=node_id(1), public_key=key(1), declared=declared, timestamp_ms=NOW_MS, url="ws://192.0.2.7:8104/sync", now=NOW
        )
        row = peer()
        row.full_clean(exclude=["manifest"])
        assert (row.declared_name + row.declared_tier + row.version + "".join(row.capabilities)).isprintable()
        assert len(row.capabilities) <= 32
