"""What the network tells about peers: beacons heard, handshakes made, dials that failed.

A stranger can cause all of it, so every row here is bounded (`Caps`), no word of it is obeyed, and
what the operator decided is never changed by it. Three grades of belief:

- A *beacon* is a claim under the key inside it. Under a key that is held for the node it is *familiar*
  and refreshes the row; under another key it only leaves that key there, unconfirmed.
- A *handshake* proves that the peer holds the key and that its succession names the node_id. It takes
  a key back from whoever merely claimed it, and proves the address this node dialled.
- Trust comes from the operator alone (peers/services.py).

Source: docs/protocol.md, sections 1, 4 and 6.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.db import transaction
from django.db.models import Q, QuerySet

from keys.encoding import NodeId, node_id_of
from peers.models import Peer, PeerAddress, PeerKey, TierChange
from peers.records import (
    BEACON,
    CLAIM,
    HANDSHAKE,
    IMPORTED,
    MAX_CANDIDATES,
    bump_policy,
    column_text,
    drop_keys,
    forget_peers,
    hold_unconfirmed,
    is_mere_claim,
    lock_registry,
    note_address,
    peer_key_of,
    prove_address,
)
from peers.trust import Tier

# Without a beacon or a frame for this long a peer is stale.
STALE_AFTER = timedelta(minutes=5)
# An unfamiliar key that a beacon claimed for a known peer is shown at least this long before another takes its place.
CLAIM_STANDS = timedelta(minutes=1)

MAX_NAME_CHARS = 64
MAX_TIER_CHARS = 16
MAX_VERSION_CHARS = 32
# Capabilities kept of what a peer declares; a manifest could hold thousands.
MAX_CAPABILITIES = 32
MAX_CAPABILITY_CHARS = 64
MAX_ERROR_CHARS = 200

_KEEPS_TRUST = (Tier.CORE.value, Tier.SANDBOX.value)


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on rows that strangers can cause (docs/protocol.md, sections 4 and 8)."""

    strangers: int = 256
    """UNKNOWN peers the operator never touched; beyond it the longest stale one gives way, or the newcomer is not recorded."""
    strangers_per_address: int = 8
    """The same for one source address."""
    candidates: int = MAX_CANDIDATES
    """Unproven addresses of one peer."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a peer says of itself: shown, never obeyed. Any text; it is cut and cleaned on its way into the row."""

    name: str = ""
    tier: str = ""
    capabilities: Sequence[str] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A verified manifest as it arrived: canonical bytes, 64-byte signature, and `issued_at` in ms."""

    body: bytes
    signature: bytes
    issued_at_ms: int


class BeaconNote(StrEnum):
    """What a validly signed beacon came to."""

    NEW = "new"
    """A peer not known before was recorded."""
    HEARD = "heard"
    """A known peer was refreshed."""
    UNCONFIRMED = "unconfirmed"
    """A known peer's node_id under a key not held for it: the key was left there, nothing else changed."""
    OLD = "old"
    """Not newer than the last one believed."""
    FULL = "full"
    """A stranger, and there is no room for another."""
    IGNORED = "ignored"
    """Under a key that is retired, revoked, or bound to another peer."""


@dataclass(frozen=True, slots=True)
class Contact:
    """What a handshake came to.

    `peer` is None when a stranger found no room; it may still be told `pending`. `key_status` says what this
    node makes of the key that signed, None when it is not recorded; `met` is True when the row is new.
    """

    peer: Peer | None
    key_status: PeerKey.Status | None
    met: bool


@transaction.atomic
def note_beacon(
    *, node_id: NodeId, public_key: bytes, declared: Declared, timestamp_ms: int, url: str, now: datetime, caps: Caps = Caps()
) -> BeaconNote:
    """Record a beacon of our network whose signature by `public_key` was verified and whose time was found near ours.

    Args:
        public_key: 32 bytes, checked.
        timestamp_ms: Inside the beacon; only one newer than the last believed changes anything.
        url: Built with `sync_url` from the *source address* of the datagram.
    """
    lock_registry()
    peer = Peer.objects.select_for_update().filter(node_id=node_id.hex()).first()
    key = peer_key_of(public_key)
    if key is not None and key.peer.node_id != node_id.hex():
        if not is_mere_claim(key) or node_id_of(public_key) != node_id:
            return BeaconNote.IGNORED
        # The node_id made from this key speaks; what somebody claimed about it elsewhere gives way.
        drop_keys(PeerKey.objects.filter(pk=key.pk))
        key = None
    if peer is None:
        if not _has_room(url, now, caps):
            return BeaconNote.FULL
        peer = Peer(node_id=node_id.hex(), found_by=Peer.FoundBy.BEACON, first_seen=now)
        _hear(peer, declared, timestamp_ms, now)
        hold_unconfirmed(peer, public_key, source=BEACON, now=now)
        note_address(peer, url, source=PeerAddress.Source.BEACON, now=now, candidates=caps.candidates)
        return BeaconNote.NEW
    if key is not None and key.status in (PeerKey.Status.RETIRED, PeerKey.Status.REVOKED):
        return BeaconNote.IGNORED
    if not _is_familiar(peer, public_key, key):
        # One place for such keys, taken anew once a minute: ever new ones cost their sender more than this node.
        if key is None and not peer.keys.filter(source=CLAIM, added_at__gt=now - CLAIM_STANDS).exists():
            drop_keys(peer.keys.filter(source=CLAIM))
            hold_unconfirmed(peer, public_key, source=CLAIM, now=now)
        return BeaconNote.UNCONFIRMED
    if timestamp_ms <= peer.last_beacon_ms:
        return BeaconNote.OLD
    if key is None or key.source == CLAIM:
        # The node_id's own key speaks at last: what was heard under others so far was not this node.
        drop_keys(peer.keys.filter(source__in=(BEACON, CLAIM), status=PeerKey.Status.UNCONFIRMED))
        hold_unconfirmed(peer, public_key, source=BEACON, now=now)
    _hear(peer, declared, timestamp_ms, now)
    note_address(peer, url, source=PeerAddress.Source.BEACON, now=now, candidates=caps.candidates)
    return BeaconNote.HEARD


@transaction.atomic
def note_contact(
    *,
    node_id: NodeId,
    chain: Sequence[bytes],
    declared: Declared,
    manifest: ManifestRecord,
    now: datetime,
    dialled: str | None = None,
    heard_at: str | None = None,
    found_by: Peer.FoundBy = Peer.FoundBy.CONTACT,
    caps: Caps = Caps(),
) -> Contact:
    """Record a handshake that proved who the peer is: register a stranger as UNKNOWN, or refresh the row.

    Args:
        chain: The public keys of the verified succession, oldest first, 32 bytes each; the last one signed the handshake.
        dialled: The URL this node dialled, normalised by `parse_url`: it is proven now.
        heard_at: For an inbound link, `sync_url` of its source address and declared sync port: a candidate.
        found_by: OPERATOR or STATIC when the operator named the address: then the peer is kept whatever the caps say.

    A key not held for this peer is recorded unconfirmed and replaces none. An imported bare key that the
    chain contains brings what the operator decided about it along: the rows merge (docs/protocol.md, section 1).
    """
    lock_registry()
    by_operator = found_by in (Peer.FoundBy.OPERATOR, Peer.FoundBy.STATIC)
    peer = _merged(node_id, chain, now) or Peer.objects.select_for_update().filter(node_id=node_id.hex()).first()
    met = peer is None
    if peer is None:
        if not by_operator and not _has_room(heard_at or dialled, now, caps):
            return Contact(None, None, False)
        peer = Peer(node_id=node_id.hex(), found_by=found_by, first_seen=now)
    if by_operator and not peer.touched:
        peer.touched = True
        peer.found_by = found_by
    if peer.manifest is None or manifest.issued_at_ms > peer.manifest_issued_ms:
        peer.manifest = manifest.body
        peer.manifest_signature = manifest.signature
        peer.manifest_issued_ms = manifest.issued_at_ms
        _declare(peer, declared)
    peer.last_seen = now
    peer.save()
    key = _proven_key(peer, chain[-1], now)
    if dialled is not None:
        prove_address(peer, dialled, now=now, candidates=caps.candidates)
    if heard_at is not None:
        note_address(peer, heard_at, source=PeerAddress.Source.CONTACT, now=now, candidates=caps.candidates)
    return Contact(peer, None if key is None else PeerKey.Status(key.status), met)


def note_link(*, node_ids: Collection[NodeId], now: datetime) -> None:
    """Record that frames of these peers arrived just now."""
    Peer.objects.filter(node_id__in=[node_id.hex() for node_id in node_ids]).update(last_seen=now)


def note_clock_offset(*, node_id: NodeId, offset_ms: int) -> None:
    """Record how far a peer's clock is ahead of ours, in ms; cut to what the column holds (± 24 days)."""
    bound = 2**31 - 1
    Peer.objects.filter(node_id=node_id.hex()).update(clock_offset_ms=max(-bound, min(offset_ms, bound)))


def note_dial_failure(*, node_id: NodeId, url: str, error: str, now: datetime) -> None:
    """Record why the last dial of this address failed; the address stays."""
    PeerAddress.objects.filter(peer__node_id=node_id.hex(), url=url).update(
        last_error=column_text(error, MAX_ERROR_CHARS), last_error_at=now
    )


@transaction.atomic
def forget_stale(*, now: datetime, live: Iterable[NodeId] = ()) -> int:
    """Forget stale peers that are known by nothing but beacons and were never touched by the operator; return how many.

    Args:
        live: Peers with a link now, which are not stale whatever their row says.
    """
    lock_registry()
    stale = _strangers().filter(found_by=Peer.FoundBy.BEACON, manifest__isnull=True, last_seen__lt=now - STALE_AFTER)
    known_better = Q(keys__in=PeerKey.objects.exclude(source__in=(BEACON, CLAIM))) | Q(addresses__proven_at__isnull=False)
    return forget_peers(stale.exclude(known_better).exclude(node_id__in=[node_id.hex() for node_id in live]))


def _strangers() -> QuerySet[Peer]:
    return Peer.objects.filter(tier=Tier.UNKNOWN.value, blocked=False, touched=False)


def _has_room(url: str | None, now: datetime, caps: Caps) -> bool:
    """Return whether another stranger may be recorded, after the longest stale one gave way where it had to."""
    strangers = _strangers()
    scopes = [(strangers, caps.strangers)]
    if url is not None:
        # Up to the port: one host is one source address, whichever ports it names.
        here = strangers.filter(pk__in=PeerAddress.objects.filter(url__startswith=url[: url.rindex(":") + 1]).values("peer"))
        scopes.insert(0, (here, caps.strangers_per_address))
    for scope, cap in scopes:
        if scope.count() >= cap:
            stale = scope.filter(last_seen__lt=now - STALE_AFTER).order_by("last_seen", "pk")[:1]
            if not forget_peers(stale):
                return False
    return True


def _declare(peer: Peer, declared: Declared) -> None:
    peer.declared_name = column_text(declared.name, MAX_NAME_CHARS)
    peer.declared_tier = column_text(declared.tier, MAX_TIER_CHARS)
    peer.version = column_text(declared.version, MAX_VERSION_CHARS)
    cleaned = (column_text(capability, MAX_CAPABILITY_CHARS) for capability in list(declared.capabilities)[:MAX_CAPABILITIES])
    peer.capabilities = [capability for capability in cleaned if capability]


def _hear(peer: Peer, declared: Declared, timestamp_ms: int, now: datetime) -> None:
    _declare(peer, declared)
    peer.last_beacon_ms = timestamp_ms
    peer.last_seen = now
    peer.save()


def _is_familiar(peer: Peer, public_key: bytes, key: PeerKey | None) -> bool:
    """Return whether a beacon under this key may refresh the row of a known peer; `key` is its row there, if any."""
    if key is not None and (key.source not in (BEACON, CLAIM) or key.status == PeerKey.Status.TRUSTED):
        return True
    if peer.keys.exclude(source__in=(BEACON, CLAIM), status=PeerKey.Status.UNCONFIRMED).exists():
        return False
    if node_id_of(public_key).hex() == peer.node_id:
        return True
    # Nothing but beacons so far: the first key heard stays the familiar one.
    return not peer.keys.exists() if key is None else key.source == BEACON


def _proven_key(peer: Peer, public_key: bytes, now: datetime) -> PeerKey | None:
    """Return the row of the key that signed a handshake as this peer, made or corrected where needed."""
    key = peer_key_of(public_key)
    if key is not None and key.peer_id != peer.pk and is_mere_claim(key):
        drop_keys(PeerKey.objects.filter(pk=key.pk))
        key = None
    if key is None:
        key = hold_unconfirmed(peer, public_key, source=HANDSHAKE, now=now)
        if peer.tier in _KEEPS_TRUST:
            bump_policy()
    elif key.peer_id != peer.pk:
        # Two identities whose successions lead to one key: the first one met keeps it.
        return None
    elif key.source in (BEACON, CLAIM):
        key.source = HANDSHAKE
        key.save(update_fields=["source"])
    return key


def _merged(node_id: NodeId, chain: Sequence[bytes], now: datetime) -> Peer | None:
    """Join what was imported under one of the chain's keys with the node_id the chain names; None when there is nothing to join.

    The import took the bare key for a first one. Whoever put that key into this chain had to sign with it,
    so the operator's trust in it belongs to this node_id.
    """
    imported = (
        PeerKey.objects.select_related("peer")
        .filter(public_key__public_key__in=[key.hex() for key in chain], source=IMPORTED)
        .exclude(peer__node_id=node_id.hex())
        .order_by("pk")
    )
    merged: Peer | None = None
    for key in imported:
        merged = _merge(key.peer, node_id, now)
    return merged


def _merge(provisional: Peer, node_id: NodeId, now: datetime) -> Peer:
    peer = Peer.objects.select_for_update().filter(node_id=node_id.hex()).first()
    former = provisional.node_id
    before = (provisional.tier, provisional.blocked)
    if peer is None:
        peer = provisional
        peer.node_id = node_id.hex()
        peer.save(update_fields=["node_id"])
    else:
        if peer.touched:
            before = (peer.tier, peer.blocked)
        name = provisional.name
        tier = peer.tier if peer.touched else provisional.tier
        blocked = peer.blocked or provisional.blocked
        provisional.keys.update(peer=peer)
        known = set(peer.addresses.values_list("url", flat=True))
        provisional.addresses.exclude(url__in=known).update(peer=peer)
        provisional.tier_changes.update(peer=peer)
        provisional.delete()
        peer.name = peer.name or name
        peer.tier = tier
        peer.blocked = blocked
        peer.touched = True
        peer.save()
    TierChange.objects.create(
        peer=peer,
        node_id=peer.node_id,
        at=now,
        actor="node",
        door="protocol",
        tier_from=before[0],
        tier_to=peer.tier,
        blocked_from=before[1],
        blocked_to=peer.blocked,
        reason=f"its succession proves that the key imported for {former} belongs to this node_id",
    )
    bump_policy()
    return peer
