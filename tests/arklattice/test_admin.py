"""The admin's first page: who this node is, and what to do next."""

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model

from arklattice.admin import ArkAdminSite, next_steps
from keys.encoding import grouped
from keys.services import generate_keypair, load_identity
from peers.models import Peer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client_of_admin(client):
    client.force_login(get_user_model().objects.create_superuser("admin", password="irrelevant-here-1"))
    return client


def test_default_site_is_ours():
    """Models registered the usual way appear on this site."""
    assert isinstance(admin.site, ArkAdminSite) or isinstance(admin.site._wrapped, ArkAdminSite)
    assert admin.site.site_header == "ArkLattice"


def test_index_shows_the_identity(client_of_admin, keys_dir, settings):
    """Name, node id and grouped fingerprint stand on the first page; no secret does."""
    settings.ARK_NODE_NAME = "ada's <node>"
    generate_keypair()
    identity = load_identity()
    page = client_of_admin.get("/admin/").content.decode()
    assert identity.node_id.hex() in page
    assert grouped(identity.pair.fingerprint) in page
    assert "ada&#x27;s &lt;node&gt;" in page
    assert identity.pair.secret.hex()[:64] not in page


def test_index_says_when_there_is_no_key(client_of_admin, keys_dir):
    """Without a key the page says so and what to type."""
    page = client_of_admin.get("/admin/").content.decode()
    assert "./ark-lattice crypto keygen" in page


def test_index_says_when_the_key_is_damaged(client_of_admin, keys_dir):
    """A damaged key is a message on the page, never an error page."""
    generate_keypair()
    (keys_dir / "node.key").write_text("junk")
    response = client_of_admin.get("/admin/")
    assert response.status_code == 200
    assert "node.key" in response.content.decode()


def test_steps_follow_the_state():
    """First a key, then a peer and a packet; a peer that waits for a decision is named."""
    assert [step.command for step in next_steps(has_key=False)] == ["./ark-lattice crypto keygen"]
    assert [step.command for step in next_steps(has_key=True)] == [
        "./ark-lattice crypto export-key --card",
        "./ark-lattice crypto import-key NAME CARD --tier core",
        './ark-lattice packets publish --text "Hello"',
    ]
    Peer.objects.create(node_id="1" * 32, tier="core")
    Peer.objects.create(node_id="2" * 32)
    assert next(step.text for step in next_steps(has_key=True)) == "One peer is waiting for a decision."


def test_root_leads_to_the_admin(client):
    """The bare address of the node leads to its admin."""
    response = client.get("/")
    assert (response.status_code, response["Location"]) == (302, "/admin/")
