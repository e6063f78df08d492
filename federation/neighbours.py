"""The registry as discovery sees it: what beacons are judged by, and where what they change is written.

Synchronous and one call a batch; the discovery loop runs these in a database thread.

Source: docs/protocol.md, section 4.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from django.db import DataError, IntegrityError, transaction
from django.utils import timezone

from federation.protocol.limits import Limits
from federation.protocol.sightings import NewSighting, Refreshed, Registered, Sighting, UnfamiliarKey
from keys.ed25519 import InvalidKeyError, check_public_key
from keys.encoding import KeyFingerprint, NodeId
from peers.models import Peer, PeerKey
from peers.records import BEACON, CLAIM
from peers.services import BeaconNote, Caps, Declared, forget_stale, note_beacon
from peers.trust import Tier

__all__ = ["Heard", "Neighbours"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """A beacon of this node was believed and recorded.

    Carries what the dialler asks: where (the source address of the datagram and the declared sync port),
    and whether the peer had been away.
    """

    node_id: NodeId
    url: str
    known: bool
    """The operator decided something about this peer: it is no stranger."""
    returned: bool
    """Not heard in the last five minutes, or said goodbye, or this is the first since our start."""


@dataclass(slots=True)
class _Keys:
    pinned: set[KeyFingerprint] = field(default_factory=set)
    unconfirmed: set[KeyFingerprint] = field(default_factory=set)
    refused: set[KeyFingerprint] = field(default_factory=set)

    def add(self, fingerprint: KeyFingerprint, status: str, source: str) -> None:
        if status in (PeerKey.Status.RETIRED, PeerKey.Status.REVOKED):
            self.refused.add(fingerprint)
        elif status == PeerKey.Status.TRUSTED or source not in (BEACON, CLAIM):
            self.pinned.add(fingerprint)
        elif source == BEACON:
            self.unconfirmed.add(fingerprint)


def _heard(sighting: Sighting) -> list[Heard]:
    node_id = sighting.beacon.peer_id
    match sighting:
        case NewSighting(url=url):
            return [Heard(node_id=node_id, url=url, known=False, returned=True)]
        case Refreshed(url=url, known=known, returned=returned):
            return [Heard(node_id=node_id, url=url, known=known, returned=returned)]
        case UnfamiliarKey():
            return []


class Neighbours:
    """Reads and writes peers for the discovery loop."""

    def __init__(self, limits: Limits) -> None:
        self._caps = Caps(
            strangers=limits.unknown_peers,
            strangers_per_address=limits.unknown_peers_per_address,
            candidates=limits.addresses_per_peer,
        )

    def load(self) -> dict[NodeId, Registered]:
        """Return what the registry holds of every peer, in two queries."""
        keys: dict[str, _Keys] = {}
        rows = PeerKey.objects.values_list("peer__node_id", "public_key__fingerprint", "status", "source")
        for node_id, fingerprint, status, source in rows:
            keys.setdefault(node_id, _Keys()).add(KeyFingerprint(bytes.fromhex(fingerprint)), status, source)
        registered = {}
        for node_id, tier, blocked, touched, last_beacon_ms in Peer.objects.values_list(
            "node_id", "tier", "blocked", "touched", "last_beacon_ms"
        ):
            held = keys.get(node_id, _Keys())
            registered[NodeId(bytes.fromhex(node_id))] = Registered(
                pinned=frozenset(held.pinned),
                unconfirmed=frozenset(held.unconfirmed),
                refused=frozenset(held.refused),
                known=touched or blocked or tier != Tier.UNKNOWN.value,
                last_beacon_ms=last_beacon_ms,
            )
        return registered

    def note(self, sightings: Sequence[Sighting]) -> list[Heard]:
        """Record believed beacons in one transaction; return who may now be dialled where, in order.

        One poisoned sighting does not stop the others: it is logged and left out.
        """
        heard = []
        with transaction.atomic():
            for sighting in sightings:
                try:
                    with transaction.atomic():
                        outcome = self._note(sighting)
                except (DataError, IntegrityError, InvalidKeyError) as error:
                    log.warning("beacon of %s not recorded: %s", sighting.beacon.peer_id.hex(), error)
                    continue
                if outcome in (BeaconNote.NEW, BeaconNote.HEARD):
                    heard += _heard(sighting)
        return heard

    def forget(self, live: Iterable[NodeId]) -> int:
        """Forget stale strangers known by nothing but beacons; return how many. `live` are peers with a link."""
        return forget_stale(now=timezone.now(), live=live)

    def _note(self, sighting: Sighting) -> BeaconNote:
        beacon = sighting.beacon
        check_public_key(beacon.public_key)
        return note_beacon(
            node_id=beacon.peer_id,
            public_key=beacon.public_key,
            declared=Declared(
                name=beacon.peer_name, tier=beacon.trust_tier, capabilities=beacon.capabilities, version=beacon.version
            ),
            timestamp_ms=beacon.timestamp,
            url=sighting.url,
            now=timezone.now(),
            caps=self._caps,
        )
