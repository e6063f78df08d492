"""What the operator decides about peers; with peers/encounters.py the only code that writes these rows.

Every change of trust ends as one `TierChange` row and one step of the policy revision, in the transaction
of the change itself: what a command reports has happened, and running processes act on it at once.

What a demotion makes of a peer's packets is carried out by a `PacketHolder`. Packets live in an app above
this one, which the setting ARK_PACKET_HOLDER names; nothing here imports it.

Source: docs/protocol.md, sections 1, 3 and 6.
"""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from importlib import import_module
from typing import Protocol, cast

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from keys.ed25519 import KeysError, check_public_key
from keys.encoding import ContactCard, NodeId, fingerprint_of, grouped, node_id_of
from keys.models import SigningKey
from keys.services import Identity, load_identity
from peers.addresses import parse_url
from peers.backoff import penalty_length
from peers.encounters import (
    BeaconNote,
    Caps,
    Contact,
    Declared,
    ManifestRecord,
    forget_stale,
    note_beacon,
    note_clock_offset,
    note_contact,
    note_dial_failure,
    note_link,
)
from peers.errors import ElevationRefusedError, KeyConflictError, PacketChoiceError, PeerNameError
from peers.models import Peer, PeerAddress, PeerKey, TierChange
from peers.records import (
    IMPORTED,
    bump_policy,
    column_text,
    drop_keys,
    is_mere_claim,
    lock_registry,
    note_address,
    peer_key_of,
    public_key_row,
)
from peers.trust import Tier, may_elevate

__all__ = [
    "BeaconNote",
    "Caps",
    "Contact",
    "Declared",
    "ManifestRecord",
    "PacketChoice",
    "PacketCount",
    "PacketHolder",
    "add_address",
    "bump_policy",
    "check_peer_name",
    "end_penalty",
    "forget_stale",
    "import_peer_key",
    "is_demotion",
    "note_beacon",
    "note_clock_offset",
    "note_contact",
    "note_dial_failure",
    "note_link",
    "own_node_id",
    "packet_holder",
    "remove_peer",
    "rename_peer",
    "set_blocked",
    "set_tier",
    "start_penalty",
]

MAX_REASON_CHARS = 500
MAX_PENALTY_REASON_CHARS = 200
MAX_ACTOR_CHARS = 150
MAX_NAME_CHARS = 64
# Shorter texts that happen to begin the key's node_id are taken for names by importkey ("ada", "beef").
MIN_IMPORT_PREFIX = 8

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"[0-9a-f]+")
_RANK = {Tier.UNKNOWN: 0, Tier.EXTERNAL: 1, Tier.SANDBOX: 2, Tier.CORE: 3}


class PacketChoice(StrEnum):
    """What becomes of the packets that came from a peer when it is demoted."""

    KEEP = "keep"
    """They stay; the policy alone decides whether they still go on."""
    HIDE = "hide"
    """They stay here and are offered to nobody."""
    PURGE = "purge"
    """They are deleted and never accepted again."""


class PacketCount(Protocol):
    """How many packets came from a peer, how many of them are hidden, and their canonical bytes."""

    @property
    def packets(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class PacketHolder(Protocol):
    """Whoever stores packets. `node_id` is the peer, `own` this node, whose packets are never touched; both hex."""

    def count_packets_from(self, node_id: str, *, own: str) -> PacketCount: ...

    def hide_packets_from(self, node_id: str, *, own: str) -> int: ...

    def purge_packets_from(self, node_id: str, *, own: str) -> int: ...


def packet_holder() -> PacketHolder:
    """Return the module that ARK_PACKET_HOLDER names."""
    return cast(PacketHolder, import_module(settings.ARK_PACKET_HOLDER))


def own_node_id() -> str:
    """Return this node's id in hex, or an empty string while it has no key."""
    active = SigningKey.objects.filter(status=SigningKey.Status.ACTIVE).values_list("node_id", flat=True).first()
    if active is not None:
        return active
    identity = _own_identity()
    return "" if identity is None else identity.node_id.hex()


def is_demotion(before: Tier, after: Tier) -> bool:
    """Return whether a peer moves down: CORE, SANDBOX, EXTERNAL, UNKNOWN."""
    return _RANK[after] < _RANK[before]


def check_peer_name(name: str) -> str:
    """Return the operator's name for a peer, without outer blanks.

    Raises:
        PeerNameError: Empty, longer than 64 characters, with characters that cannot be seen, or looking like a node_id.
    """
    name = name.strip()
    shown = repr(name[:MAX_NAME_CHARS])
    if not name or len(name) > MAX_NAME_CHARS:
        raise PeerNameError(f"a peer's name has 1 to {MAX_NAME_CHARS} characters, {shown} has {len(name)}")
    if not name.isprintable():
        raise PeerNameError(f"{shown} holds characters that cannot be seen: a peer's name may not")
    if _NODE_ID.fullmatch(name):
        raise PeerNameError(f"{shown} looks like a node_id and would be mistaken for one: choose another name")
    return name


@transaction.atomic
def import_peer_key(
    *,
    peer: str,
    key: bytes | ContactCard,
    tier: Tier | None = None,
    url: str | None = None,
    actor: str,
    door: str,
) -> Peer:
    """Trust a key from now on, bound to the node it belongs to, and return that peer.

    A bare key counts as its node's first one, so its node_id is known at once; where a handshake already
    showed by a succession which node the key belongs to, that node is meant. A row that discovery made for the
    node_id is reused. A discovered row that merely calls itself `peer` is another matter and stays as it is.

    Args:
        peer: This operator's name for the node; or its node_id, or at least 8 digits of it, which name nobody.
        key: 32 bytes, or a contact card, whose addresses are recorded as named by the operator.
        tier: None leaves the tier as it is: UNKNOWN for a new peer.
        url: Where it may be dialled.
        actor, door: Who decided and through what, for the record.

    Raises:
        InvalidKeyError: Not an Ed25519 key this program uses.
        PeerNameError, AddressError: As they say.
        KeyConflictError: The key is our own, retired or revoked, or has another name; or the name or node_id belongs
            to a peer with another key.
    """
    lock_registry()
    now = timezone.now()
    public_key = key.public_key if isinstance(key, ContactCard) else key
    check_public_key(public_key)
    named_addresses = [*([url] if url else []), *(key.addresses if isinstance(key, ContactCard) else ())]
    addresses = [parse_url(address) for address in named_addresses]
    _refuse_own(public_key)
    held = peer_key_of(public_key)
    if held is not None and is_mere_claim(held):
        drop_keys(PeerKey.objects.filter(pk=held.pk))
        held = None
    if held is not None and held.status in (PeerKey.Status.RETIRED, PeerKey.Status.REVOKED):
        raise KeyConflictError(f"this key of {held.peer} is {held.status} here: import its current key")
    node_id = held.peer.node_id if held is not None else node_id_of(public_key).hex()
    row = held.peer if held is not None else Peer.objects.select_for_update().filter(node_id=node_id).first()
    wanted = _name_to_give(peer.strip(), node_id)
    _refuse_taken(wanted, peer.strip(), row, public_key)
    if row is None:
        row = Peer(node_id=node_id, found_by=Peer.FoundBy.OPERATOR, first_seen=now)
    row.name = wanted or row.name
    row.touched = True
    row.save()
    if held is None:
        held = PeerKey(peer=row, public_key=public_key_row(public_key, now=now), added_at=now)
    held.status = PeerKey.Status.TRUSTED
    held.source = IMPORTED
    held.confirmed_at = held.confirmed_at or now
    held.save()
    for address in addresses:
        note_address(row, address, source=PeerAddress.Source.OPERATOR, now=now)
    bump_policy()
    if tier is not None and tier != row.tier:
        return set_tier(peer=row, tier=tier, actor=actor, door=door, reason="key imported")
    return row


@transaction.atomic
def set_tier(
    *,
    peer: Peer,
    tier: Tier,
    actor: str,
    door: str,
    reason: str = "",
    packets: PacketChoice = PacketChoice.KEEP,
    holder: PacketHolder | None = None,
) -> Peer:
    """Put a peer into a tier, decide about its packets when that is a demotion, and return the peer as it is now.

    Nothing is recorded when nothing changes. `hide` and `purge` may also be asked for later, at the tier the peer has.

    Raises:
        ElevationRefusedError: CORE or SANDBOX, and no trusted key of it is held.
        PacketChoiceError: `hide` or `purge` at an elevation.
    """
    now = timezone.now()
    peer = Peer.objects.select_for_update().get(pk=peer.pk)
    before = Tier(peer.tier)
    decision = may_elevate(tier, keyed=peer.keys.filter(status=PeerKey.Status.TRUSTED).exists())
    if not decision.allowed:
        raise ElevationRefusedError(decision)
    if packets is not PacketChoice.KEEP and _RANK[tier] > _RANK[before]:
        raise PacketChoiceError(f"{packets} is a choice for a demotion, and {before.upper()} to {tier.upper()} is none")
    peer.tier = tier.value
    peer.touched = True
    peer.save(update_fields=["tier", "touched"])
    if tier == before and packets is PacketChoice.KEEP:
        return peer
    affected = _apply_choice(peer, packets, holder)
    _record(
        peer,
        before=(before.value, peer.blocked),
        actor=actor,
        door=door,
        reason=reason,
        now=now,
        packets=packets.value if is_demotion(before, tier) or packets is not PacketChoice.KEEP else "",
        affected=affected,
    )
    bump_policy()
    return peer


@transaction.atomic
def set_blocked(*, peer: Peer, blocked: bool, actor: str, door: str, reason: str = "") -> Peer:
    """Block a peer or let it in again; its tier stays beside the flag. Nothing is recorded when nothing changes."""
    now = timezone.now()
    peer = Peer.objects.select_for_update().get(pk=peer.pk)
    if peer.blocked == blocked:
        return peer
    peer.blocked = blocked
    peer.touched = True
    peer.save(update_fields=["blocked", "touched"])
    _record(peer, before=(peer.tier, not blocked), actor=actor, door=door, reason=reason, now=now)
    bump_policy()
    return peer


@transaction.atomic
def remove_peer(*, peer: Peer, actor: str, door: str, reason: str = "") -> None:
    """Forget a peer, its keys and addresses. Its history stays, and so do its packets and the public keys that verify them.

    A node that is still there is met again, as UNKNOWN; to keep it out it is blocked instead.
    """
    peer = Peer.objects.select_for_update().get(pk=peer.pk)
    TierChange.objects.create(
        node_id=peer.node_id,
        at=timezone.now(),
        actor=column_text(actor, MAX_ACTOR_CHARS),
        door=door,
        tier_from=peer.tier,
        tier_to=Tier.UNKNOWN.value,
        blocked_from=peer.blocked,
        blocked_to=False,
        reason=column_text(f"peer removed: {reason}" if reason else "peer removed", MAX_REASON_CHARS),
        key_fingerprint=_trusted_fingerprint(peer),
    )
    peer.delete()
    bump_policy()


@transaction.atomic
def rename_peer(*, peer: Peer, name: str | None) -> Peer:
    """Give a peer this operator's name, or take it away with None.

    Raises:
        PeerNameError: It may not be a name.
        KeyConflictError: Another peer has it.
    """
    lock_registry()
    wanted = check_peer_name(name) if name else None
    other = Peer.objects.filter(name=wanted).exclude(pk=peer.pk).first() if wanted else None
    if other is not None:
        raise KeyConflictError(f"{wanted!r} is already the name of {_shown(other)}")
    peer = Peer.objects.select_for_update().get(pk=peer.pk)
    peer.name = wanted
    peer.touched = True
    peer.save(update_fields=["name", "touched"])
    return peer


@transaction.atomic
def add_address(*, peer: Peer, url: str, source: PeerAddress.Source = PeerAddress.Source.OPERATOR) -> PeerAddress:
    """Record where the operator says that a peer may be dialled.

    Raises:
        AddressError: Not a ws:// or wss:// URL.
    """
    return note_address(peer, parse_url(url), source=source, now=timezone.now())


@transaction.atomic
def start_penalty(*, node_id: NodeId, reason: str, now: datetime) -> timedelta | None:
    """Refuse a misbehaving peer in both directions for a while and return how long; None for one not in the registry.

    A peer under penalty already stays under it as long as before: links that end one after the other count once.
    """
    peer = Peer.objects.select_for_update().filter(node_id=node_id.hex()).first()
    if peer is None:
        return None
    if peer.penalty_until is not None and peer.penalty_until > now:
        return peer.penalty_until - now
    length = timedelta(seconds=penalty_length(peer.penalties))
    peer.penalty_until = now + length
    peer.penalty_reason = column_text(reason, MAX_PENALTY_REASON_CHARS)
    peer.penalties += 1
    peer.save(update_fields=["penalty_until", "penalty_reason", "penalties"])
    bump_policy()
    return length


@transaction.atomic
def end_penalty(*, peer: Peer) -> Peer:
    """End a penalty at the operator's word; the next one starts at a minute again."""
    peer = Peer.objects.select_for_update().get(pk=peer.pk)
    peer.penalty_until = None
    peer.penalty_reason = ""
    peer.penalties = 0
    peer.save(update_fields=["penalty_until", "penalty_reason", "penalties"])
    bump_policy()
    return peer


def _own_identity() -> Identity | None:
    """Return who this node is by its key files, which a lost database says nothing of; None when they cannot be read."""
    try:
        return load_identity()
    except KeysError:
        return None


def _refuse_own(public_key: bytes) -> None:
    identity = _own_identity()
    is_own = identity is not None and identity.pair.public == public_key
    if is_own or SigningKey.objects.filter(public_key__public_key=public_key.hex()).exists():
        raise KeyConflictError("this is this node's own key: import the one that the other operator's exportkey prints")


def _name_to_give(peer: str, node_id: str) -> str | None:
    """Return PEER as a name to give, or None where it only points at the key's own node."""
    if _NODE_ID.fullmatch(peer):
        if peer != node_id:
            raise KeyConflictError(f"the key is not the one of {peer}: it belongs to {node_id}")
        return None
    if len(peer) >= MIN_IMPORT_PREFIX and _HEX.fullmatch(peer) and node_id.startswith(peer):
        return None
    return check_peer_name(peer)


def _refuse_taken(wanted: str | None, peer: str, row: Peer | None, public_key: bytes) -> None:
    """Refuse a name that another peer has, or a second name for a peer that has one."""
    if wanted is None:
        return
    named = Peer.objects.filter(name=wanted).first()
    if named is not None and (row is None or named.pk != row.pk):
        shown = _trusted_fingerprint(named)
        held = f"whose key is {grouped(bytes.fromhex(shown))}" if shown else "of whom no trusted key is held"
        raise KeyConflictError(
            f"{wanted!r} is {_shown(named)}, {held}; this key is another node's ({grouped(fingerprint_of(public_key))}). "
            "Nothing was changed: compare the fingerprints with its operator"
        )
    if row is not None and row.name is not None and row.name != wanted:
        raise KeyConflictError(f"this key is already the one of {row.name!r} ({row.node_id[:8]}): one node has one name")


def _apply_choice(peer: Peer, packets: PacketChoice, holder: PacketHolder | None) -> int:
    if packets is PacketChoice.KEEP:
        return 0
    holder = holder or packet_holder()
    act = holder.hide_packets_from if packets is PacketChoice.HIDE else holder.purge_packets_from
    return act(peer.node_id, own=own_node_id())


def _record(
    peer: Peer,
    *,
    before: tuple[str, bool],
    actor: str,
    door: str,
    reason: str,
    now: datetime,
    packets: str = "",
    affected: int = 0,
) -> TierChange:
    return TierChange.objects.create(
        peer=peer,
        node_id=peer.node_id,
        at=now,
        actor=column_text(actor, MAX_ACTOR_CHARS),
        door=door,
        tier_from=before[0],
        tier_to=peer.tier,
        blocked_from=before[1],
        blocked_to=peer.blocked,
        reason=column_text(reason, MAX_REASON_CHARS),
        key_fingerprint=_trusted_fingerprint(peer),
        packets=packets,
        packets_affected=affected,
    )


def _trusted_fingerprint(peer: Peer) -> str:
    """Return the newest trusted key's fingerprint in hex, or an empty string."""
    trusted = peer.keys.filter(status=PeerKey.Status.TRUSTED).order_by("-confirmed_at", "-pk")
    return trusted.values_list("public_key__fingerprint", flat=True).first() or ""


def _shown(peer: Peer) -> str:
    return f"{peer.name} ({peer.node_id[:8]})" if peer.name else peer.node_id[:8]
