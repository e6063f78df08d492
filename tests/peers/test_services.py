"""What the operator decides: keys, tiers, blocking, removal, names, penalties; each leaves its record and moves the revision."""

from datetime import timedelta

import pytest
from django.db import transaction

from keys.ed25519 import InvalidKeyError
from keys.encoding import ContactCard, node_id_of
from keys.models import PublicKey, SigningKey
from keys.services import generate_keypair
from peers.errors import AddressError, ElevationRefusedError, KeyConflictError, PacketChoiceError, PeerNameError
from peers.models import Peer, PeerAddress, PeerKey, TierChange
from peers.services import (
    PacketChoice,
    add_address,
    bump_policy,
    check_peer_name,
    end_penalty,
    import_peer_key,
    is_demotion,
    own_node_id,
    remove_peer,
    rename_peer,
    set_blocked,
    set_tier,
    start_penalty,
)
from peers.trust import Tier
from tests.peers.conftest import NOW, CountingHolder, beacon, contact, key, node_id, revision

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys_dir")]

DECIDED = {"actor": "ann", "door": "command"}


def imported(number=1, name="bob", **more):
    return import_peer_key(peer=name, key=key(number), **DECIDED, **more)


# Importing pins a key.


def test_imported_key_is_bound_to_its_own_node():
    """A bare key counts as its node's first one; the peer stays UNKNOWN and is the operator's from then on."""
    peer = imported()
    assert (peer.node_id, peer.name, peer.tier, peer.touched) == (node_id(1).hex(), "bob", "unknown", True)
    held = peer.keys.get()
    assert (held.public_key.public_key, held.status, held.source) == (key(1).hex(), "trusted", "imported")
    assert held.confirmed_at is not None
    assert revision() == 1
    assert not TierChange.objects.exists()


def test_imported_with_a_tier_and_an_address():
    """`--tier` and `--url` decide both at once, on record."""
    peer = imported(tier=Tier.CORE, url="ws://192.0.2.7")
    assert peer.tier == "core"
    assert peer.addresses.get().url == "ws://192.0.2.7:8104/sync"
    change = peer.tier_changes.get()
    assert (change.tier_from, change.tier_to, change.actor, change.door) == ("unknown", "core", "ann", "command")
    assert change.key_fingerprint == peer.keys.get().public_key.fingerprint


def test_imported_twice_changes_nothing():
    """The same key under the same name again, or under its node_id, is the same peer."""
    first = imported(tier=Tier.CORE)
    again = imported()
    by_id = imported(name=node_id(1).hex())
    by_prefix = imported(name=node_id(1).hex()[:8])
    assert first.pk == again.pk == by_id.pk == by_prefix.pk
    assert (by_prefix.name, by_prefix.tier) == ("bob", "core")
    assert (Peer.objects.count(), PeerKey.objects.count(), TierChange.objects.count()) == (1, 1, 1)


def test_row_that_discovery_made_is_reused():
    """The node_id known from beacons becomes the operator's peer, with its address and its key confirmed."""
    beacon(1, name="calls itself Bob")
    peer = imported()
    assert (Peer.objects.count(), peer.name, peer.declared_name) == (1, "bob", "calls itself Bob")
    assert peer.keys.get().status == "trusted"
    assert peer.addresses.count() == 1


def test_self_declared_name_is_never_bound():
    """An impostor that calls itself bob stays a stranger when bob's true key is imported."""
    beacon(6, name="bob")
    peer = imported(1)
    impostor = Peer.objects.get(node_id=node_id(6).hex())
    assert peer.pk != impostor.pk
    assert (impostor.name, impostor.tier, impostor.keys.get().status) == (None, "unknown", "unconfirmed")


def test_key_proven_by_a_handshake_belongs_to_the_node_its_succession_named():
    """A rotated key, shown by a handshake and then imported, confirms the node it was proven for."""
    contact(1, chain=[key(1), key(2)])
    peer = import_peer_key(peer="bob", key=key(2), **DECIDED)
    assert peer.node_id == node_id(1).hex()
    assert peer.keys.get().status == "trusted"


def test_claimed_node_id_is_not_believed_on_import():
    """Who beacons another's node_id under a key of its own gains nothing when that key is imported."""
    beacon(1, public_key=key(6))
    peer = import_peer_key(peer="mallory", key=key(6), **DECIDED)
    assert peer.node_id == node_id(6).hex()
    assert Peer.objects.get(node_id=node_id(1).hex()).keys.count() == 0


def test_card_brings_its_addresses():
    """A contact card is a key with addresses; what it says of name and node_id is not obeyed."""
    card = ContactCard(node_id(9), "Bob the Great", key(1), ("ws://192.0.2.7:8104/sync", "wss://bob.example"))
    peer = import_peer_key(peer="bob", key=card, **DECIDED)
    assert (peer.node_id, peer.name) == (node_id(1).hex(), "bob")
    assert {address.url for address in peer.addresses.all()} == {"ws://192.0.2.7:8104/sync", "wss://bob.example:8104/sync"}
    assert {address.source for address in peer.addresses.all()} == {"operator"}


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("bob", 2, "is bob \\("),
        ("robert", 1, "already the one of 'bob'"),
        ("f" * 32, 2, "not the one of f"),
    ],
)
def test_conflicts_are_refused_and_change_nothing(name, number, message):
    """A name another peer has, a second name for one key, a node_id that is not the key's: refused, nothing written."""
    imported(1, "bob", tier=Tier.CORE)
    before = (revision(), list(Peer.objects.values()), PublicKey.objects.count())
    with pytest.raises(KeyConflictError, match=message):
        import_peer_key(peer=name, key=key(number), tier=Tier.CORE, **DECIDED)
    assert before == (revision(), list(Peer.objects.values()), PublicKey.objects.count())


def test_name_of_a_peer_met_under_another_key_is_refused():
    """`addpeer --name bob` met one key; the key that is imported for bob is another: somebody stands between."""
    met = contact(6, found_by=Peer.FoundBy.OPERATOR).peer
    rename_peer(peer=met, name="bob")
    with pytest.raises(KeyConflictError, match="no trusted key is held"):
        imported(1, "bob")


def test_own_key_is_refused():
    """This node's own key is no peer's, whether its row is there or, after a lost database, only its file."""
    pair = generate_keypair().identity.pair
    with pytest.raises(KeyConflictError, match="own key"):
        import_peer_key(peer="me", key=pair.public, **DECIDED)
    SigningKey.objects.all().delete()
    with pytest.raises(KeyConflictError, match="own key"):
        import_peer_key(peer="me", key=pair.public, **DECIDED)
    assert own_node_id() == node_id_of(pair.public).hex()
    assert not Peer.objects.exists()


@pytest.mark.parametrize("status", ["retired", "revoked"])
def test_key_that_was_given_up_is_refused(status):
    """A retired or revoked key does not become trusted again by importing it once more."""
    imported().keys.update(status=status)
    with pytest.raises(KeyConflictError, match=status):
        imported()


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (InvalidKeyError, {"key": bytes(32)}),
        (PeerNameError, {"peer": ""}),
        (PeerNameError, {"peer": "n" * 65}),
        (PeerNameError, {"peer": "a\0b"}),
        (PeerNameError, {"peer": "a\u202eb"}),
        (AddressError, {"url": "http://192.0.2.7"}),
    ],
)
def test_unusable_input_leaves_nothing(error, change):
    """A key that is none, a name that may not be, an address that is none: refused before any row is written."""
    with pytest.raises(error):
        import_peer_key(**{"peer": "bob", "key": key(1), **DECIDED} | change)
    assert (Peer.objects.count(), PublicKey.objects.count(), revision()) == (0, 0, 0)


@pytest.mark.parametrize("name", ["n" * 64, "ada", "beef", "Ünïcode näme", "a b"])
def test_names_that_may_be_given(name):
    """64 characters, hex-like short words, other scripts and inner blanks are names."""
    assert check_peer_name(f" {name} ") == name
    assert imported(name=name).name == name


# Tiers.


def test_elevation_without_a_key_is_refused():
    """A peer that was only met cannot become CORE or SANDBOX, and the reason says how it can."""
    peer = contact(1).peer
    for tier in (Tier.CORE, Tier.SANDBOX):
        with pytest.raises(ElevationRefusedError, match="importkey") as refused:
            set_tier(peer=peer, tier=tier, **DECIDED)
        assert refused.value.decision.rule == "elevate-without-key"
    peer.refresh_from_db()
    assert (peer.tier, peer.touched, TierChange.objects.count()) == ("unknown", False, 0)


@pytest.mark.parametrize("status", ["unconfirmed", "retired", "revoked"])
def test_only_a_trusted_key_elevates(status):
    """An unconfirmed, retired or revoked key does not count."""
    peer = imported()
    peer.keys.update(status=status)
    with pytest.raises(ElevationRefusedError):
        set_tier(peer=peer, tier=Tier.SANDBOX, **DECIDED)


def test_external_needs_no_key():
    """EXTERNAL may be given to a peer that was only met."""
    assert set_tier(peer=contact(1).peer, tier=Tier.EXTERNAL, **DECIDED).tier == "external"


def test_change_of_tier_is_on_record():
    """Who, through what, from, to, why, under which key; the newest first; and the revision moves each time."""
    peer = imported()
    before = revision()
    set_tier(peer=peer, tier=Tier.CORE, reason="met in person", **DECIDED)
    set_tier(peer=peer, tier=Tier.SANDBOX, reason="moved away", actor="ben", door="admin")
    newest, oldest = TierChange.objects.all()
    assert (oldest.actor, oldest.door, oldest.tier_from, oldest.tier_to) == ("ann", "command", "unknown", "core")
    assert (oldest.reason, oldest.packets) == ("met in person", "")
    assert (newest.actor, newest.tier_from, newest.tier_to, newest.packets) == ("ben", "core", "sandbox", "keep")
    assert oldest.node_id == node_id(1).hex()
    assert revision() == before + 2


def test_same_tier_again_is_no_change():
    """Deciding what is so already leaves no record and moves nothing."""
    peer = imported(tier=Tier.CORE)
    before = (revision(), TierChange.objects.count())
    set_tier(peer=peer, tier=Tier.CORE, **DECIDED)
    assert (revision(), TierChange.objects.count()) == before


@pytest.mark.parametrize(("choice", "affected"), [("keep", 0), ("hide", 3), ("purge", 3)])
def test_demotion_decides_about_packets(choice, affected, holder):
    """Keep, hide or purge is carried out by whoever holds packets, and is on record with how many."""
    peer = imported(tier=Tier.CORE)
    set_tier(peer=peer, tier=Tier.EXTERNAL, packets=PacketChoice(choice), holder=holder, **DECIDED)
    change = TierChange.objects.first()
    assert (change.packets, change.packets_affected) == (choice, affected)
    assert holder.asked == ([] if choice == "keep" else [(choice, peer.node_id, "")])


def test_own_packets_are_named_to_the_holder(holder):
    """The holder is told which packets are this node's own, so that none of them is purged."""
    own = generate_keypair().identity.node_id.hex()
    peer = imported(tier=Tier.CORE)
    set_tier(peer=peer, tier=Tier.UNKNOWN, packets=PacketChoice.PURGE, holder=holder, **DECIDED)
    assert holder.asked == [("purge", peer.node_id, own)]


def test_packets_kept_at_first_may_be_purged_later(holder):
    """At the tier it has, a peer's packets may still be hidden or purged, on record."""
    peer = imported()
    set_tier(peer=peer, tier=Tier.UNKNOWN, packets=PacketChoice.PURGE, holder=holder, **DECIDED)
    change = TierChange.objects.get()
    assert (change.tier_from, change.tier_to, change.packets, change.packets_affected) == ("unknown", "unknown", "purge", 3)


def test_promotion_has_no_packets_to_decide_about(holder):
    """Hiding or purging at a promotion is a mistake, and nothing changes."""
    peer = imported()
    with pytest.raises(PacketChoiceError, match="UNKNOWN to CORE"):
        set_tier(peer=peer, tier=Tier.CORE, packets=PacketChoice.HIDE, holder=holder, **DECIDED)
    peer.refresh_from_db()
    assert (peer.tier, holder.asked) == ("unknown", [])


def test_a_holder_that_fails_undoes_the_demotion():
    """Tier, record, revision and packets change together or not at all."""

    class FailingHolder(CountingHolder):
        def purge_packets_from(self, node_id, *, own):
            raise OSError("disk full")

    peer = imported(tier=Tier.CORE)
    before = (revision(), TierChange.objects.count())
    with pytest.raises(OSError, match="disk full"):
        set_tier(peer=peer, tier=Tier.UNKNOWN, packets=PacketChoice.PURGE, holder=FailingHolder(), **DECIDED)
    peer.refresh_from_db()
    assert (peer.tier, revision(), TierChange.objects.count()) == ("core", *before)


def test_the_packet_store_is_the_default_holder():
    """Without a holder handed in, the module that ARK_PACKET_HOLDER names is asked."""
    peer = imported(tier=Tier.CORE)
    set_tier(peer=peer, tier=Tier.UNKNOWN, packets=PacketChoice.HIDE, **DECIDED)
    assert TierChange.objects.first().packets_affected == 0


def test_order_of_tiers():
    """CORE above SANDBOX above EXTERNAL above UNKNOWN."""
    order = [Tier.UNKNOWN, Tier.EXTERNAL, Tier.SANDBOX, Tier.CORE]
    for before in order:
        for after in order:
            assert is_demotion(before, after) == (order.index(after) < order.index(before))


def test_hostile_reason_and_actor_fit_their_columns():
    """Control characters, NUL and length cannot break the record."""
    change = set_tier(peer=imported(), tier=Tier.CORE, actor="a\0" * 400, door="api", reason="r\x1b[2J\0\ud800" * 500)
    row = change.tier_changes.get()
    assert len(row.actor) <= 150
    assert len(row.reason) <= 500
    assert (row.actor + row.reason).isprintable()


# Blocking, removal, names, addresses.


def test_block_and_unblock():
    """The flag stands beside the tier, is on record both ways, and deciding it twice is no change."""
    peer = imported(tier=Tier.CORE)
    before = revision()
    for _ in range(2):
        peer = set_blocked(peer=peer, blocked=True, reason="spam", **DECIDED)
    assert (peer.blocked, peer.tier, revision()) == (True, "core", before + 1)
    peer = set_blocked(peer=peer, blocked=False, **DECIDED)
    assert (peer.blocked, peer.tier, revision()) == (False, "core", before + 2)
    undone, done, _ = TierChange.objects.all()
    assert (done.blocked_from, done.blocked_to, done.reason, done.tier_from, done.tier_to) == (False, True, "spam", "core", "core")
    assert (undone.blocked_from, undone.blocked_to) == (True, False)


def test_blocking_a_stranger_keeps_it():
    """A blocked stranger is the operator's decision, and is not forgotten."""
    assert set_blocked(peer=contact(1).peer, blocked=True, **DECIDED).touched


def test_removed_peer_leaves_its_history():
    """Peer, keys and addresses go; the record stays and ends with the removal; the public key stays for stored packets."""
    peer = imported(tier=Tier.CORE, url="ws://192.0.2.7")
    before = revision()
    remove_peer(peer=peer, reason="gone", **DECIDED)
    assert (Peer.objects.count(), PeerKey.objects.count(), PeerAddress.objects.count()) == (0, 0, 0)
    assert PublicKey.objects.filter(public_key=key(1).hex()).exists()
    assert revision() == before + 1
    removed, elevated = TierChange.objects.all()
    assert (removed.peer, elevated.peer) == (None, None)
    assert {removed.node_id, elevated.node_id} == {node_id(1).hex()}
    assert (removed.tier_from, removed.tier_to, removed.reason) == ("core", "unknown", "peer removed: gone")


def test_removed_peer_may_be_imported_again():
    """Removal is no ban: the same key can be imported again, as new."""
    remove_peer(peer=imported(tier=Tier.CORE), **DECIDED)
    assert imported().tier == "unknown"


def test_rename():
    """A name is unique here, may be taken away, and makes the peer the operator's."""
    bob = contact(1).peer
    bob = rename_peer(peer=bob, name=" Bob ")
    assert (bob.name, bob.touched) == ("Bob", True)
    assert rename_peer(peer=bob, name="Bob").name == "Bob"
    with pytest.raises(KeyConflictError, match="already the name of Bob"):
        rename_peer(peer=contact(2).peer, name="Bob")
    with pytest.raises(PeerNameError, match="node_id"):
        rename_peer(peer=bob, name="0" * 32)
    assert rename_peer(peer=bob, name=None).name is None


def test_operators_address_outlives_a_beacons():
    """An address the operator names is marked as such, also when a beacon was heard from it first."""
    beacon(1)
    peer = Peer.objects.get()
    add_address(peer=peer, url="ws://192.0.2.7")
    assert [(address.url, address.source) for address in peer.addresses.all()] == [("ws://192.0.2.7:8104/sync", "operator")]
    with pytest.raises(AddressError):
        add_address(peer=peer, url="nonsense")


# Penalties and the revision.


def test_penalties_double_and_end():
    """1 min, 2 min …: one at a time; the operator's word ends it and the count."""
    peer = imported()
    assert start_penalty(node_id=node_id(1), reason="20 rejections", now=NOW) == timedelta(minutes=1)
    # A second link of the same peer ends in the same minute: one offence.
    assert start_penalty(node_id=node_id(1), reason="again", now=NOW + timedelta(seconds=20)) == timedelta(seconds=40)
    later = NOW + timedelta(minutes=1)
    assert start_penalty(node_id=node_id(1), reason="again", now=later) == timedelta(minutes=2)
    peer.refresh_from_db()
    assert (peer.penalties, peer.penalty_until, peer.penalty_reason) == (2, later + timedelta(minutes=2), "again")
    peer = end_penalty(peer=peer)
    assert (peer.penalties, peer.penalty_until, peer.penalty_reason) == (0, None, "")
    assert start_penalty(node_id=node_id(7), reason="never met", now=NOW) is None


def test_revision_grows_by_one():
    """Also from nothing; and a change that is rolled back takes its step back."""
    assert [bump_policy(), bump_policy()] == [1, 2]
    with pytest.raises(RuntimeError), transaction.atomic():
        bump_policy()
        raise RuntimeError
    assert revision() == 2
