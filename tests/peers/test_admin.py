"""Peers in the admin: what is shown, what may be decided, and that every decision goes through the services."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from federation.models import KnowledgePacket
from keys.encoding import fingerprint_of, grouped
from peers.models import Peer, PeerAddress, PeerKey, TierChange
from peers.services import import_peer_key, set_tier, start_penalty
from peers.trust import Tier
from tests.peers.conftest import NOW, beacon, contact, key, node_id

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys_dir")]

LIST = reverse("admin:peers_peer_changelist")
TIER = reverse("admin:peers_peer_tier")
REMOVE = reverse("admin:peers_peer_remove")
DECIDED = {"actor": "ann", "door": "command"}
NAUGHTY = "<script>alert(1)</script>"


@pytest.fixture
def bob():
    return import_peer_key(peer="bob", key=key(1), tier=Tier.CORE, url="ws://192.0.2.7", **DECIDED)


def page(client, url, **query):
    """Return the text of a page that must be there, and hold nothing inline."""
    response = client.get(url, query)
    assert response.status_code == 200, response.content[:500]
    text = response.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text)
    return text


def act(client, action, *peers):
    return client.post(LIST, {"action": action, "_selected_action": [peer.pk for peer in peers]})


def said(response):
    """Return the messages of the page a form led to."""
    return [str(message) for message in response.context["messages"]]


def packet_from(peer, number):
    KnowledgePacket.objects.create(
        packet_id=bytes([number]) * 32,
        origin=peer.node_id,
        kind="note",
        audience="core",
        created_at=1,
        body=b"{}",
        signature=bytes(64),
        timestamp=1,
        key_fingerprint=fingerprint_of(key(1)),
        received_at=1,
        received_from=peer.node_id,
        received_rule="accept-core-own",
    )


def test_list_shows_what_an_operator_compares(admin_client, bob):
    """Name, what the peer calls itself (marked as such), tier in words, and the fingerprint in groups of four."""
    contact(2, name="Eve")
    text = page(admin_client, LIST)
    assert "(unnamed) – calls itself “Eve”" in text
    assert "◆ CORE" in text
    assert "? UNKNOWN" in text
    assert grouped(fingerprint_of(key(1))) in text


@pytest.mark.parametrize("query", ["bob", "calls itself", "192.0.2.7", node_id(1).hex()[:10], grouped(fingerprint_of(key(1)))])
def test_search_finds_a_peer(admin_client, bob, query):
    """By name, self-declared name, address, node_id, and a fingerprint as it is shown."""
    Peer.objects.update(declared_name="calls itself Robert")
    contact(2, name="Eve")
    text = page(admin_client, LIST, q=query)
    assert "1 peer" in text
    assert "Robert" in text


@pytest.mark.parametrize("query", [{"tier__exact": "core"}, {"blocked__exact": "0"}, {"found_by__exact": "operator"}])
def test_filters(admin_client, bob, query):
    """The list narrows by tier, block and how the peer was found."""
    assert "bob" in page(admin_client, LIST, **query)


def test_peer_page_shows_keys_addresses_and_decisions(admin_client, bob):
    """One page holds all that is known of a peer, with links to decide about it."""
    contact(1, name="Robert", dialled="ws://192.0.2.7:8104/sync")
    text = page(admin_client, reverse("admin:peers_peer_change", args=[bob.pk]))
    assert grouped(fingerprint_of(key(1))) in text
    assert "ws://192.0.2.7:8104/sync" in text
    assert "key imported" in text
    assert f"{TIER}?ids={bob.pk}" in text
    assert f"{REMOVE}?ids={bob.pk}" in text


def test_form_changes_the_name_and_nothing_else(admin_client, bob):
    """Fields of trust are no form fields: whatever is posted, only the operator's name for the peer changes."""
    url = reverse("admin:peers_peer_change", args=[bob.pk])
    empty = {f"{prefix}-{field}_FORMS": "0" for prefix in ("keys", "addresses", "tier_changes") for field in ("TOTAL", "INITIAL")}
    posted = {"name": "Robert", "tier": "unknown", "blocked": "on", "node_id": "0" * 32, "touched": "", **empty}
    assert admin_client.post(url, posted).status_code == 302
    peer = Peer.objects.get()
    assert (peer.name, peer.tier, peer.blocked, peer.node_id) == ("Robert", "core", False, node_id(1).hex())
    assert admin_client.post(url, {"name": "", **empty}).status_code == 302
    assert Peer.objects.get().name is None


@pytest.mark.parametrize(
    ("name", "error"), [("ann", "already exists"), ("0" * 32, "looks like a node_id"), ("a\u202eb", "cannot be seen")]
)
def test_names_that_may_not_be_given(admin_client, bob, name, error):
    """A taken or misleading name is refused in the form."""
    import_peer_key(peer="ann", key=key(2), **DECIDED)
    response = admin_client.post(reverse("admin:peers_peer_change", args=[bob.pk]), {"name": name})
    assert response.status_code == 200
    assert error in response.content.decode()
    assert Peer.objects.get(pk=bob.pk).name == "bob"


def test_tier_page_shows_what_hangs_on_it(admin_client, bob):
    """The action leads to a page with the peer, its fingerprint and how many packets came from it."""
    packet_from(bob, 1)
    packet_from(bob, 2)
    response = act(admin_client, "change_tier", bob)
    assert response.status_code == 302
    text = page(admin_client, response.url)
    assert grouped(fingerprint_of(key(1))) in text
    assert "<td>2 (4" in text


@pytest.mark.parametrize(("choice", "left", "hidden"), [("keep", 2, 0), ("hide", 2, 2), ("purge", 0, 0)])
def test_demotion_through_the_same_service(admin_client, bob, choice, left, hidden):
    """Tier, reason and what becomes of the packets: on record with the admin's name."""
    packet_from(bob, 1)
    packet_from(bob, 2)
    posted = {"tier": "unknown", "reason": "no longer", "packets": choice}
    response = admin_client.post(f"{TIER}?ids={bob.pk}", posted, follow=True)
    assert said(response) == ["bob: CORE to UNKNOWN."]
    change = TierChange.objects.first()
    assert (change.actor, change.door, change.reason, change.packets) == ("admin", "admin", "no longer", choice)
    assert (KnowledgePacket.objects.count(), KnowledgePacket.objects.filter(hidden=True).count()) == (left, hidden)


def test_refused_elevation_says_why_and_the_others_go_on(admin_client):
    """A peer without a trusted key stays where it is, with the reason; another one chosen with it is elevated."""
    stranger = contact(2).peer
    bob = import_peer_key(peer="bob", key=key(1), **DECIDED)
    response = admin_client.post(f"{TIER}?ids={stranger.pk},{bob.pk}", {"tier": "core", "packets": "keep"}, follow=True)
    assert len(said(response)) == 2
    assert any("importkey" in message for message in said(response))
    assert {peer.pk: peer.tier for peer in Peer.objects.all()} == {stranger.pk: "unknown", bob.pk: "core"}


@pytest.mark.parametrize("posted", [{}, {"tier": "friend", "packets": "keep"}, {"tier": "core", "packets": "burn"}])
def test_bad_form_changes_nothing(admin_client, bob, posted):
    """A tier or choice that is none comes back with the form."""
    response = admin_client.post(f"{TIER}?ids={bob.pk}", posted)
    assert response.status_code == 200
    assert "errorlist" in response.content.decode()
    assert Peer.objects.get().tier == "core"


@pytest.mark.parametrize("ids", ["", "x", "999", "-1", "9" * 30, "1,,2", "²"])
@pytest.mark.parametrize("url", [TIER, REMOVE])
def test_ids_that_mean_nobody(admin_client, url, ids):
    """A page asked about nobody says so."""
    assert "No peer was chosen" in page(admin_client, url, ids=ids)


def test_block_and_unblock(admin_client, bob):
    """Both are actions on the list, on record."""
    act(admin_client, "block", bob)
    assert Peer.objects.get().blocked
    act(admin_client, "unblock", bob)
    assert not Peer.objects.get().blocked
    assert [change.door for change in TierChange.objects.all()[:2]] == ["admin", "admin"]


def test_penalty_is_ended(admin_client, bob):
    """The operator's word ends it."""
    start_penalty(node_id=node_id(1), reason="", now=NOW)
    act(admin_client, "end_penalties", bob)
    assert Peer.objects.get().penalty_until is None


def test_remove_asks_first(admin_client, bob):
    """The action leads to a page; only its form removes, and the record of decisions stays."""
    response = act(admin_client, "remove", bob)
    assert response.url == f"{REMOVE}?ids={bob.pk}"
    assert "block it instead" in page(admin_client, response.url)
    assert Peer.objects.exists()
    assert said(admin_client.post(response.url, {"reason": "gone"}, follow=True)) == ["bob is removed."]
    assert not Peer.objects.exists()
    assert TierChange.objects.first().reason == "peer removed: gone"


def test_nothing_is_added_or_deleted_here(admin_client, bob):
    """Peers come by other doors, and the admin's own delete would leave no record."""
    assert admin_client.get(reverse("admin:peers_peer_add")).status_code == 403
    assert admin_client.post(reverse("admin:peers_peer_delete", args=[bob.pk]), {"post": "yes"}).status_code == 403
    assert act(admin_client, "delete_selected", bob).status_code in (200, 302)
    assert Peer.objects.exists()


@pytest.mark.parametrize("model", [PeerKey, PeerAddress, TierChange])
def test_rows_beside_a_peer_are_read_only(admin_client, bob, model):
    """Keys, addresses and decisions are listed, searched, opened and never changed."""
    prefix = f"admin:peers_{model._meta.model_name}"
    row = model.objects.first()
    page(admin_client, reverse(f"{prefix}_changelist"))
    page(admin_client, reverse(f"{prefix}_changelist"), q="bob")
    page(admin_client, reverse(f"{prefix}_change", args=[row.pk]))
    for url in (
        reverse(f"{prefix}_add"),
        reverse(f"{prefix}_change", args=[row.pk]),
        reverse(f"{prefix}_delete", args=[row.pk]),
    ):
        assert admin_client.post(url, {"reason": "rewritten", "post": "yes"}).status_code == 403
    assert model.objects.filter(pk=row.pk).exists()


def test_who_may_only_look_cannot_decide(client, bob):
    """A viewer sees the list without actions, and the decision pages are closed."""
    viewer = User.objects.create_user("viewer", password="v", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_peer"))
    client.force_login(viewer)
    text = page(client, LIST)
    assert "change_tier" not in text
    for url in (TIER, REMOVE):
        assert client.get(url, {"ids": bob.pk}).status_code == 403
        assert client.post(f"{url}?ids={bob.pk}", {"tier": "unknown", "packets": "purge"}).status_code == 403
    act(client, "block", bob)
    peer = Peer.objects.get()
    assert (peer.tier, peer.blocked) == ("core", False)


def test_nobody_decides_without_logging_in(client, bob):
    """The pages lead to the login."""
    for url in (LIST, TIER, REMOVE):
        assert "/login/" in client.post(f"{url}?ids={bob.pk}", {"tier": "unknown", "packets": "keep"}).url


def test_hostile_names_are_text(admin_client, bob):
    """What a peer calls itself, or an error says, is never markup."""
    beacon(2, name=NAUGHTY)
    stranger = Peer.objects.get(node_id=node_id(2).hex())
    PeerAddress.objects.update(last_error=NAUGHTY)
    set_tier(peer=stranger, tier=Tier.EXTERNAL, reason=NAUGHTY, **DECIDED)
    for url in (LIST, reverse("admin:peers_peer_change", args=[stranger.pk]), f"{TIER}?ids={stranger.pk}"):
        text = page(admin_client, url) if "?" not in url else page(admin_client, TIER, ids=stranger.pk)
        assert NAUGHTY not in text
    for name in ("peeraddress", "tierchange", "peerkey"):
        assert NAUGHTY not in page(admin_client, reverse(f"admin:peers_{name}_changelist"))
