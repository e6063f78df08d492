"""Reading the registry: the policy as a value, what a PEER argument means, rows for lists and programs."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from django.db.models import Prefetch, QuerySet
from django.utils import timezone

from keys.ed25519 import KeyPair
from keys.encoding import NodeId, fingerprint_of
from peers.encounters import STALE_AFTER
from peers.errors import AmbiguousPeerError, UnknownPeerError
from peers.models import Peer, PeerKey, PolicyRevision
from peers.records import BEACON, CLAIM
from peers.trust import KeyStatus, Standing, Tier, TrustedKey, TrustTable

__all__ = [
    "DialTarget",
    "Own",
    "State",
    "current_key",
    "dial_targets",
    "listed_peers",
    "peer_row",
    "penalty_of",
    "policy_revision",
    "resolve_peer",
    "state_of",
    "trust_table",
]

_HEX_PREFIX = re.compile(r"[0-9a-f]{1,32}")
# Candidates named when a prefix fits several peers.
_NAMED_CANDIDATES = 4


class Own(Protocol):
    """What the policy needs of this node's identity (`keys.services.Identity` has it)."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def pair(self) -> KeyPair: ...
    @property
    def succession(self) -> tuple[Mapping[str, Any], ...]: ...


class State(StrEnum):
    """Whether a peer is there."""

    CONNECTED = "connected"
    """A link with it is live."""
    OFFLINE = "offline"
    """Heard within 5 minutes, without a link now."""
    STALE = "stale"
    """Neither a beacon nor a frame for 5 minutes."""
    NEVER = "never"
    """Never heard at all."""


@dataclass(frozen=True, slots=True)
class DialTarget:
    """A peer this node links with by itself, and where to try: the proven address first."""

    node_id: NodeId
    tier: Tier
    urls: tuple[str, ...]


def policy_revision() -> int:
    """Return the number that grows with every change of trust, key or visibility."""
    return PolicyRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0


def trust_table(own: Own) -> TrustTable:
    """Return the policy as it stands now, in three queries.

    The revision is read first: a change that lands in between makes the table look old, never young.
    """
    revision = policy_revision()
    held = [
        TrustedKey(NodeId(bytes.fromhex(node_id)), bytes.fromhex(public_key), KeyStatus(status))
        for node_id, public_key, status in PeerKey.objects.order_by("pk").values_list(
            "peer__node_id", "public_key__public_key", "status"
        )
    ]
    keyed = {key.node_id for key in held if key.status is KeyStatus.TRUSTED}
    standings = {
        (node_id := NodeId(bytes.fromhex(text))): Standing(node_id, Tier(tier), blocked, node_id in keyed)
        for text, tier, blocked in Peer.objects.order_by("pk").values_list("node_id", "tier", "blocked")
        if text != own.node_id.hex()
    }
    # Own keys come last: whatever a row says of them, they are this node's.
    keys = {fingerprint_of(key.public_key): key for key in (*held, *_own_keys(own))}
    return TrustTable(own.node_id, standings, keys, revision)


def resolve_peer(text: str) -> Peer:
    """Return the peer that a PEER argument means: this operator's name for it, its node_id, or an unambiguous prefix.

    What a peer calls itself is never looked at.

    Raises:
        UnknownPeerError: It means none.
        AmbiguousPeerError: The prefix fits several.
    """
    text = text.strip()
    shown = repr(text[:64])
    named = Peer.objects.filter(name=text).first() if text and "\0" not in text else None
    if named is not None:
        return named
    if not _HEX_PREFIX.fullmatch(text):
        raise UnknownPeerError(f"no peer is named {shown} here, and it is no node_id: see the command peers")
    found = list(Peer.objects.filter(node_id__startswith=text)[: _NAMED_CANDIDATES + 1])
    if not found:
        raise UnknownPeerError(f"no peer is named {shown} here, and no node_id begins with it: see the command peers")
    if len(found) > 1:
        some = ", ".join(peer.node_id[: max(8, len(text) + 4)] for peer in found[:_NAMED_CANDIDATES])
        more = ", …" if len(found) > _NAMED_CANDIDATES else ""
        raise AmbiguousPeerError(f"{shown} fits several peers ({some}{more}): give more digits")
    return found[0]


def listed_peers() -> QuerySet[Peer]:
    """Return all peers with their keys and addresses at hand, in the order they were met."""
    return Peer.objects.prefetch_related(Prefetch("keys", PeerKey.objects.select_related("public_key")), "addresses")


def current_key(peer: Peer) -> PeerKey | None:
    """Return the key that stands for a peer: a trusted one, else the one it proved, else the one it was heard under."""
    statuses = [KeyStatus.TRUSTED, KeyStatus.UNCONFIRMED, KeyStatus.RETIRED, KeyStatus.REVOKED]

    def rank(key: PeerKey) -> tuple[int, int, float, int]:
        source = {CLAIM: 2, BEACON: 1}.get(key.source, 0)
        return (statuses.index(KeyStatus(key.status)), source, -key.added_at.timestamp(), -key.pk)

    return min(peer.keys.all(), key=rank, default=None)


def state_of(peer: Peer, *, live: Container[str], now: datetime) -> State:
    """Return whether a peer is there; `live` holds the hex node_ids that have a link now."""
    if peer.node_id in live:
        return State.CONNECTED
    if peer.last_seen is None:
        return State.NEVER
    return State.STALE if now - peer.last_seen > STALE_AFTER else State.OFFLINE


def peer_row(peer: Peer, *, live: Container[str] = (), now: datetime | None = None) -> dict[str, Any]:
    """Return a peer as programs see it (docs/architecture.md); `last_seen` is ms since the Unix epoch or None."""
    key = current_key(peer)
    return {
        "node_id": peer.node_id,
        "name": peer.name,
        "declared_name": peer.declared_name,
        "tier": peer.tier,
        "blocked": peer.blocked,
        "fingerprint": key.public_key.fingerprint if key else None,
        "key_status": key.status if key else None,
        "state": state_of(peer, live=live, now=now or timezone.now()).value,
        "last_seen": int(peer.last_seen.timestamp() * 1000) if peer.last_seen else None,
        "addresses": [address.url for address in _by_promise(peer)],
    }


def dial_targets(now: datetime) -> list[DialTarget]:
    """Return the CORE and SANDBOX peers to link with: keyed, not blocked, under no penalty, with an address."""
    keyed = PeerKey.objects.filter(status=PeerKey.Status.TRUSTED).values("peer")
    peers = listed_peers().filter(tier__in=(Tier.CORE.value, Tier.SANDBOX.value), blocked=False, pk__in=keyed)
    return [
        DialTarget(NodeId(bytes.fromhex(peer.node_id)), Tier(peer.tier), tuple(address.url for address in _by_promise(peer)))
        for peer in peers
        if peer.addresses.all() and (peer.penalty_until is None or peer.penalty_until <= now)
    ]


def penalty_of(node_id: NodeId, *, now: datetime) -> datetime | None:
    """Return until when this peer is under penalty, or None."""
    until = Peer.objects.filter(node_id=node_id.hex()).values_list("penalty_until", flat=True).first()
    return until if until is not None and until > now else None


def _by_promise(peer: Peer) -> list[Any]:
    """Return a peer's addresses: the proven one first, then the operator's, then those heard last."""
    return sorted(
        peer.addresses.all(),
        key=lambda address: (
            address.proven_at is None,
            address.source not in ("operator", "static"),
            -(address.last_heard or address.added_at).timestamp(),
            address.pk,
        ),
    )


def _own_keys(own: Own) -> list[TrustedKey]:
    """Return this node's keys: the current one, and the former ones its succession names, for what it gets back."""
    former = [bytes.fromhex(entry["statement"]["next_key"]) for entry in own.succession]
    return [
        *(TrustedKey(own.node_id, key, KeyStatus.RETIRED) for key in former if key != own.pair.public),
        TrustedKey(own.node_id, own.pair.public, KeyStatus.TRUSTED),
    ]
