"""The federation's tables in the admin: found, read, and never broken by what is in them."""

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db import connection
from django.urls import reverse

from federation import services
from federation.models import KnowledgePacket, LinkClaim, NodeRequest, NodeState, OriginUsage, PeerCounter, PurgedPacket, Refusal
from federation.protocol.errors import Code
from peers.models import Peer
from tests.federation.makers import NOW_MS, make_received, make_verified, node
from tests.federation.test_store import DAMAGE, corrupt

pytestmark = pytest.mark.django_db

PACKETS = "admin:federation_knowledgepacket_changelist"
NAUGHTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title><svg/onload=alert(1)>",
    '=HYPERLINK("http://x")',
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "a\0b",
    "\u2028\u2029\x85",
    "{{ 7 * 7 }}{% debug %}",
    "%s %(x)s {0} {x}",
]


@pytest.fixture
def desk(admin_client, settings):
    """A signed-in superuser's browser; plain storage, since no test collects static files."""
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
    return admin_client


def put(*received):
    assert set(services.store_packets(received=received, quotas={})) <= {Code.ACCEPTED}


def page(client, name, *args, **query):
    response = client.get(reverse(name, args=args), query)
    assert response.status_code == 200, response
    return response.content.decode()


def packet_page(client, verified):
    arrival = KnowledgePacket.objects.get(packet_id=verified.packet.packet_id).arrival
    return page(client, "admin:federation_knowledgepacket_change", arrival)


def test_the_list_shows_what_people_look_for(desk):
    Peer.objects.create(node_id=node(2).hex(), name="harbour")
    put(make_received(1, origin=2, title="Tide tables", kind="fact"))
    text = page(desk, PACKETS)
    assert make_verified(1, origin=2, title="Tide tables", kind="fact").packet.packet_id.hex()[:12] in text
    for expected in ("Tide tables", "fact", "harbour", "core", "2025-10-09 08:53:20Z", "2025-10-09 08:54:20Z"):
        assert expected in text


def test_the_page_of_a_packet_shows_content_signature_and_receipt(desk):
    verified = make_verified(1, content={"tide": [1, 2]}, title="T", source="almanac", confidence=0.5)
    put(make_received(1, peer=3, content={"tide": [1, 2]}, title="T", source="almanac", confidence=0.5))
    text = packet_page(desk, verified)
    for expected in (
        verified.packet.packet_id.hex(),
        "&quot;tide&quot;: [",
        "almanac",
        "0.5",
        verified.envelope.signature.hex(),
        node(3).hex()[:8],
        "accept-core-own: A CORE peer handed over its own packet",
        verified.envelope.body.decode().replace('"', "&quot;"),
    ):
        assert expected in text


def test_nothing_about_packets_is_edited_added_or_deleted_here(desk):
    put(make_received(1))
    arrival = KnowledgePacket.objects.get().arrival
    assert desk.get(reverse("admin:federation_knowledgepacket_add")).status_code == 403
    assert desk.post(reverse("admin:federation_knowledgepacket_delete", args=[arrival]), {"post": "yes"}).status_code == 403
    assert desk.post(reverse("admin:federation_knowledgepacket_change", args=[arrival]), {"title": "x"}).status_code == 403
    assert KnowledgePacket.objects.get().title == ""


@pytest.mark.parametrize("object_id", ["0", "99", "abc", "1_5", "9" * 30, "%00"])
def test_a_page_that_does_not_exist_leads_back(desk, object_id):
    response = desk.get(reverse(PACKETS) + object_id + "/change/")
    assert response.status_code == 302


def test_packets_are_found_by_id_prefix_title_and_kind(desk):
    put(make_received(1, title="Tide tables"), make_received(2, kind="map", title="Chart"), make_received(3, title="100% 'salt'"))
    ids = [bytes(packet_id).hex() for packet_id in KnowledgePacket.objects.order_by("arrival").values_list("packet_id", flat=True)]

    def found(term):
        text = page(desk, PACKETS, q=term)
        return {number for number, packet_id in enumerate(ids, 1) if packet_id[:12] in text}

    assert found(ids[0][:6]) == {1}
    assert found(ids[1]) == {2}
    assert found("tide") == {1}
    assert found("map") == {2}
    assert found("%") == {3}
    assert found("nothing like it") == set()
    assert found("f" * 70) == set()


def test_packets_are_filtered_by_kind_node_audience_and_age(desk):
    Peer.objects.create(node_id=node(2).hex(), name="harbour")
    put(make_received(1), make_received(2, origin=2, kind="map"))
    packets = {1: make_verified(1), 2: make_verified(2, origin=2, kind="map")}
    ids = {number: verified.packet.packet_id.hex()[:12] for number, verified in packets.items()}

    def found(**query):
        text = page(desk, PACKETS, **query)
        return {number for number, packet_id in ids.items() if packet_id in text}

    assert found(kind="map") == {2}
    assert found(origin=node(1).hex()) == {1}
    assert found(received_from=node(2).hex()) == {2}
    assert found(audience__exact="public") == set()
    assert found(hidden__exact="0") == {1, 2}
    assert found(age="30") == set()
    assert found(age="older") == {1, 2}
    assert found(age="junk") == {1, 2}
    assert found(kind="a\0b") == set()
    assert "harbour" in page(desk, PACKETS, _facets="True")


def test_hiding_and_showing_again_go_through_the_services(desk):
    put(make_received(1), make_received(2))
    arrival = KnowledgePacket.objects.get(packet_id=make_verified(1).packet.packet_id).arrival
    for action, hidden in (("hide", True), ("unhide", False)):
        response = desk.post(reverse(PACKETS), {"action": action, "_selected_action": [arrival]}, follow=True)
        assert b"1 packets are" in response.content
        assert KnowledgePacket.objects.get(arrival=arrival).hidden is hidden
    assert not KnowledgePacket.objects.filter(hidden=True).exists()


def test_who_may_only_look_cannot_hide(client, django_user_model, desk):
    put(make_received(1))
    user = django_user_model.objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_knowledgepacket"))
    client.force_login(user)
    assert "Hide: keep here" not in page(client, PACKETS)
    client.post(reverse(PACKETS), {"action": "hide", "_selected_action": [KnowledgePacket.objects.get().arrival]})
    assert not KnowledgePacket.objects.filter(hidden=True).exists()


@pytest.mark.parametrize("naughty", NAUGHTY)
def test_text_from_elsewhere_is_harmless(desk, naughty):
    """No markup, no control or bidirectional character of a packet reaches the page as such."""
    fields = {"title": naughty, "tags": [naughty], "source": naughty, "content": {naughty: naughty}}
    put(make_received(1, **fields))
    services.note_refusals([services.Refused(bytes(32), node(1).hex(), "", Code.TIER, naughty, NOW_MS)], limit=10)
    for text in (
        page(desk, PACKETS),
        packet_page(desk, make_verified(1, **fields)),
        page(desk, "admin:federation_refusal_changelist"),
    ):
        assert "<script>alert" not in text and "<img src=x" not in text and "<svg/onload" not in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", text)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_shown_as_damaged_and_the_others_are_served(desk, damage):
    column, sqlite, postgresql = DAMAGE[damage]
    expression = postgresql if connection.vendor == "postgresql" else sqlite
    if expression is None:
        pytest.skip("PostgreSQL's types rule this out")
    put(*(make_received(number, title=f"title {number}") for number in range(3)))
    hurt = make_verified(1, title="title 1").packet.packet_id
    arrival = KnowledgePacket.objects.get(packet_id=hurt).arrival
    corrupt(hurt, column, expression)
    text = page(desk, PACKETS)
    assert "title 0" in text and "title 2" in text
    page(desk, PACKETS, q="title")
    page(desk, PACKETS, _facets="True", kind="note")
    page(desk, "admin:federation_knowledgepacket_change", arrival)


def test_every_table_of_the_federation_is_listed_searched_and_opened(desk):
    Peer.objects.create(node_id=node(2).hex(), name="harbour")
    put(make_received(1, origin=2), make_received(2, origin=3))
    services.purge_packets_from(node(3).hex(), own="")
    services.note_refusals([services.Refused(b"\x01" * 32, node(2).hex(), "", Code.TIER, "The peer is SANDBOX.", NOW_MS)], limit=10)
    services.add_counters({(node(2).hex(), "received"): 4})
    LinkClaim.objects.create(peer=node(2).hex(), process="p", pid=1, link="l", dialler=node(2).hex(), state={"lag": 3})
    NodeState.objects.create(pid=7, detail={"ports": [8102]})
    NodeRequest.objects.create(kind="sync", argument={"peer": "x"}, answer={"ok": True})
    for model in (KnowledgePacket, Refusal, PurgedPacket, OriginUsage, PeerCounter, LinkClaim, NodeState, NodeRequest):
        assert admin.site.is_registered(model)
        name = f"admin:federation_{model._meta.model_name}"
        assert "Select" in page(desk, f"{name}_changelist")
        page(desk, f"{name}_changelist", q="\0junk'\"")
        page(desk, f"{name}_change", model.objects.first().pk)
        assert desk.get(reverse(f"{name}_add")).status_code == 403
    for model in (Refusal, OriginUsage, PeerCounter, LinkClaim):
        assert "harbour" in page(desk, f"admin:federation_{model._meta.model_name}_changelist")
    assert "010101010101" in page(desk, "admin:federation_refusal_changelist", q="010101")
    assert "010101010101" not in page(desk, "admin:federation_refusal_changelist", q="020202")


def test_no_page_needs_inline_script_or_style(desk):
    put(make_received(1))
    for text in (page(desk, PACKETS), packet_page(desk, make_verified(1))):
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>", text)
        assert " style=" not in text and "<style" not in text and " onclick=" not in text
