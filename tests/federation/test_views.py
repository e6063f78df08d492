"""What the HTTP port tells programs."""

import json

import pytest

from federation.protocol.canonical import canonicalize
from federation.protocol.manifest import parse_manifest
from keys.services import generate_keypair

pytestmark = pytest.mark.django_db


def test_manifest_is_served_signed(client, tmp_path, settings):
    """`/.well-known/arklattice` gives a manifest that verifies as it came."""
    settings.ARK_KEYS_DIR = tmp_path / "keys"
    identity = generate_keypair().identity
    answer = client.get("/.well-known/arklattice")
    assert answer.status_code == 200
    document = json.loads(answer.content)
    signed = parse_manifest(canonicalize(document["manifest"]), bytes.fromhex(document["signature"]))
    assert signed.node_id == identity.node_id
    assert signed.verify_key == identity.pair.public


def test_without_a_key_there_is_no_manifest(client, tmp_path, settings):
    """A node without a key says so and makes none."""
    settings.ARK_KEYS_DIR = tmp_path / "nothing"
    assert client.get("/.well-known/arklattice").status_code == 503
    assert not (tmp_path / "nothing" / "node.key").exists()


def test_manifest_is_only_read(client):
    """Other methods are refused."""
    assert client.post("/.well-known/arklattice").status_code == 405
