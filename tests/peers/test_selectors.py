"""Reading the registry: the policy as a value, what PEER means, and rows for programs."""

from datetime import timedelta

import pytest

from keys.encoding import fingerprint_of
from keys.services import generate_keypair
from peers.encounters import STALE_AFTER
from peers.errors import AmbiguousPeerError, UnknownPeerError
from peers.models import Peer
from peers.selectors import (
    current_key,
    dial_targets,
    peer_row,
    penalty_of,
    policy_revision,
    resolve_peer,
    state_of,
    trust_table,
)
from peers.services import bump_policy, import_peer_key, rename_peer, set_blocked, start_penalty
from peers.trust import Audience, KeyStatus, Standing, Tier
from tests.peers.conftest import NOW, NOW_MS, beacon, contact, key, node_id

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys_dir")]

DECIDED = {"actor": "ann", "door": "command"}


def imported(number, name, tier=Tier.CORE, **more):
    return import_peer_key(peer=name, key=key(number), tier=tier, **DECIDED, **more)


# The policy as a value.


def test_table_is_the_registry(django_assert_num_queries):
    """Standings, keys and revision as they are, read in three queries however many peers there are."""
    identity = generate_keypair().identity
    imported(1, "bob")
    set_blocked(peer=imported(2, "eve", Tier.SANDBOX), blocked=True, **DECIDED)
    contact(3)
    with django_assert_num_queries(3):
        table = trust_table(identity)
    assert table.own == identity.node_id
    assert table.revision == policy_revision() > 0
    assert table.standings == {
        node_id(1): Standing(node_id(1), Tier.CORE, blocked=False, keyed=True),
        node_id(2): Standing(node_id(2), Tier.SANDBOX, blocked=True, keyed=True),
        node_id(3): Standing(node_id(3), Tier.UNKNOWN, blocked=False, keyed=False),
    }
    assert table.keys[fingerprint_of(key(1))].status is KeyStatus.TRUSTED
    assert table.keys[fingerprint_of(key(3))].status is KeyStatus.UNCONFIRMED
    own = table.keys[identity.pair.fingerprint]
    assert (own.node_id, own.public_key, own.status) == (identity.node_id, identity.pair.public, KeyStatus.TRUSTED)
    assert table.may_accept(node_id(1), identity.node_id, Audience.CORE).allowed


def test_peer_without_a_trusted_key_is_unkeyed():
    """When its only key is revoked, a CORE peer's packets are of an unknown origin."""
    identity = generate_keypair().identity
    imported(1, "bob").keys.update(status="revoked")
    table = trust_table(identity)
    assert not table.standings[node_id(1)].keyed
    assert table.may_accept(node_id(2), node_id(1), Audience.CORE).code == "unknown-origin"


def test_revision_is_zero_before_anything_happened():
    """An empty registry has a revision too."""
    assert policy_revision() == 0
    assert bump_policy() == policy_revision() == 1


# What PEER means.


def test_peer_by_name_id_and_prefix():
    """The operator's name, the node_id, and any prefix of it that fits one peer."""
    bob = imported(1, "bob")
    for text in ("bob", " bob ", bob.node_id, bob.node_id[:8], bob.node_id[:1]):
        assert resolve_peer(text) == bob


def test_name_comes_before_prefix():
    """A name that looks like the beginning of another's node_id is that name."""
    bob = imported(1, "bob")
    ann = imported(2, "ann")
    rename_peer(peer=ann, name=bob.node_id[:4])
    assert resolve_peer(bob.node_id[:4]) == ann


@pytest.mark.parametrize("text", ["", " ", "nobody", "Bob", "0" * 33, "\0", "bob\0", "-", "ffffffff"])
def test_nobody_is_meant(text):
    """No name, no prefix, another case, NUL: an error that names what was asked for."""
    imported(1, "bob")
    with pytest.raises(UnknownPeerError, match="no peer is named"):
        resolve_peer(text)


def test_self_declared_names_are_never_resolved():
    """What a peer calls itself means nobody."""
    contact(1, name="Bob")
    with pytest.raises(UnknownPeerError):
        resolve_peer("Bob")


@pytest.mark.parametrize("count", [2, 9])
def test_ambiguous_prefix(count):
    """A prefix that fits several names a few of them and asks for more digits."""
    for number in range(count):
        Peer.objects.create(node_id=f"ab{number}".ljust(32, "0"))
    with pytest.raises(AmbiguousPeerError, match="ab000000") as refused:
        resolve_peer("ab")
    assert ("…" in str(refused.value)) == (count == 9)


# Rows and states.


def test_states():
    """Connected by a link, offline within 5 minutes of the last sign of life, stale after, never without one."""
    beacon(1)
    heard = Peer.objects.get()
    assert state_of(heard, live={heard.node_id}, now=NOW + STALE_AFTER * 2) == "connected"
    assert state_of(heard, live=set(), now=NOW + STALE_AFTER) == "offline"
    assert state_of(heard, live=set(), now=NOW + STALE_AFTER + timedelta(milliseconds=1)) == "stale"
    assert state_of(imported(2, "ann"), live=set(), now=NOW) == "never"


def test_row_of_a_peer():
    """The fields of docs/architecture.md; times in ms; the self-declared name apart from ours."""
    contact(1, name="calls itself Bob", dialled="ws://192.0.2.7:8104/sync")
    bob = imported(1, "bob", url="ws://192.0.2.8")
    assert peer_row(bob, live={bob.node_id}, now=NOW) == {
        "node_id": bob.node_id,
        "name": "bob",
        "declared_name": "calls itself Bob",
        "tier": "core",
        "blocked": False,
        "fingerprint": fingerprint_of(key(1)).hex(),
        "key_status": "trusted",
        "state": "connected",
        "last_seen": NOW_MS,
        "addresses": ["ws://192.0.2.7:8104/sync", "ws://192.0.2.8:8104/sync"],
    }


def test_row_of_a_peer_without_anything():
    """What is not known is null, not missing."""
    row = peer_row(Peer.objects.create(node_id="0" * 32), now=NOW)
    assert (row["name"], row["fingerprint"], row["key_status"], row["last_seen"], row["state"]) == (None, None, None, None, "never")


def test_key_that_stands_for_a_peer():
    """A trusted one first; without it the one proven by a handshake, before one that only a beacon claimed."""
    contact(1, chain=[key(1), key(2)])
    beacon(1, public_key=key(6))
    peer = Peer.objects.get()
    assert current_key(peer).public_key.public_key == key(2).hex()
    import_peer_key(peer="bob", key=key(2), **DECIDED)
    contact(1, chain=[key(1), key(2), key(3)])
    assert current_key(Peer.objects.get()).public_key.public_key == key(2).hex()


def test_whom_this_node_dials():
    """CORE and SANDBOX peers with a trusted key and an address; not the blocked, nor those under penalty, nor EXTERNAL."""
    for number, tier in enumerate((Tier.CORE, Tier.SANDBOX, Tier.EXTERNAL, Tier.CORE, Tier.CORE, Tier.CORE), start=1):
        imported(number, f"peer {number}", tier, url=f"ws://192.0.2.{number}")
    imported(7, "no address")
    contact(8, dialled="ws://192.0.2.8:8104/sync")
    set_blocked(peer=resolve_peer("peer 4"), blocked=True, **DECIDED)
    start_penalty(node_id=node_id(5), reason="", now=NOW)
    resolve_peer("peer 6").keys.update(status="revoked")
    targets = dial_targets(NOW)
    assert [(target.node_id, target.tier) for target in targets] == [(node_id(1), Tier.CORE), (node_id(2), Tier.SANDBOX)]
    assert targets[0].urls == ("ws://192.0.2.1:8104/sync",)
    assert len(dial_targets(NOW + timedelta(minutes=1))) == 3


def test_proven_address_is_tried_first():
    """The proven one, then the operator's, then candidates by how lately they were heard."""
    bob = imported(1, "bob", url="ws://192.0.2.1")
    beacon(1, ms=NOW_MS, host="192.0.2.2", now=NOW)
    beacon(1, ms=NOW_MS + 1, host="192.0.2.3", now=NOW + timedelta(seconds=1))
    contact(1, dialled="ws://192.0.2.4:8104/sync")
    (target,) = dial_targets(NOW)
    assert [url.split(":")[1][-1] for url in target.urls] == ["4", "1", "3", "2"]
    assert target.node_id.hex() == bob.node_id


def test_penalty_is_read_until_it_ends():
    """Until when, or None: also for a peer nobody knows."""
    imported(1, "bob")
    start_penalty(node_id=node_id(1), reason="", now=NOW)
    assert penalty_of(node_id(1), now=NOW) == NOW + timedelta(minutes=1)
    assert penalty_of(node_id(1), now=NOW + timedelta(minutes=1)) is None
    assert penalty_of(node_id(2), now=NOW) is None
