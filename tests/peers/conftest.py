"""Peers made from a number, a packet store that only counts, and time that stands still."""

from datetime import UTC, datetime

import pytest

from keys.ed25519 import keypair_from_seed
from keys.encoding import node_id_of
from peers.encounters import Declared, ManifestRecord, note_beacon, note_contact
from peers.models import PolicyRevision

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)


def key(number):
    """The public key of node `number`."""
    return keypair_from_seed(number.to_bytes(32)).public


def node_id(number):
    return node_id_of(key(number))


def revision():
    """The policy revision as it stands, 0 before anything changed."""
    return PolicyRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0


def beacon(number, *, public_key=None, ms=NOW_MS, host="192.0.2.7", now=NOW, name="", **more):
    """Note a beacon of node `number`, under its own key unless another is given."""
    return note_beacon(
        node_id=node_id(number),
        public_key=public_key or key(number),
        declared=Declared(name=name, tier="core", capabilities=["relay"], version="0.1"),
        timestamp_ms=ms,
        url=f"ws://{host}:8104/sync",
        now=now,
        **more,
    )


def contact(number, *, chain=None, now=NOW, name="", issued=NOW_MS, **more):
    """Note a handshake with node `number`, whose succession holds its one key unless a chain is given."""
    return note_contact(
        node_id=node_id(number),
        chain=chain or [key(number)],
        declared=Declared(name=name),
        manifest=ManifestRecord(b"{}", bytes(64), issued),
        now=now,
        **more,
    )


class CountingHolder:
    """Stands in for the packet store: says how many packets there are and remembers what was asked of it."""

    def __init__(self, packets=3):
        self.packets = packets
        self.asked = []

    def hide_packets_from(self, node_id, *, own):
        self.asked.append(("hide", node_id, own))
        return self.packets

    def purge_packets_from(self, node_id, *, own):
        self.asked.append(("purge", node_id, own))
        return self.packets


@pytest.fixture
def holder():
    return CountingHolder()
