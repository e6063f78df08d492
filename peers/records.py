"""Rows that several services write: policy revision, keys, addresses, and text from outside made fit for a column."""

from collections.abc import Iterable
from datetime import datetime

from django.db import connection
from django.db.models import F, Q, QuerySet

from keys.encoding import fingerprint_of, node_id_of
from keys.models import PublicKey
from peers.models import Peer, PeerAddress, PeerKey, PolicyRevision

# Unproven addresses of one peer that came from the network; the longest unheard one gives way, so that a
# peer (or who forges its beacons with a key of its own) cannot make this node dial ever more places.
MAX_CANDIDATES = 4
# Keys of one peer that nobody vouched for; the oldest gives way.
MAX_UNCONFIRMED_KEYS = 4

# Key of the advisory lock that PostgreSQL's writers of new peers share: "ark peers" in ASCII, cut to 63 bits.
REGISTRY_LOCK = 0x61726B2070656572

# How a key came to its peer (`PeerKey.source`). CLAIM: a beacon under a key not held for the node_id it names.
IMPORTED, HANDSHAKE, BEACON, CLAIM = "imported", "handshake", "beacon", "claim"

_FROM_NETWORK = (PeerAddress.Source.BEACON, PeerAddress.Source.CONTACT)


def lock_registry() -> None:
    """Make this transaction the only one that may add peers and keys until it ends. Call it before any row is locked.

    Two processes that meet the same stranger at once would otherwise both add it, and the caps be counted past.
    SQLite's transactions here are IMMEDIATE, which is that lock already.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [REGISTRY_LOCK])


def bump_policy() -> int:
    """Count the policy revision up and return it. Call it inside the transaction of the change it announces.

    Running processes re-read the registry when the number differs from the one they hold, so every
    change of trust, key or visibility calls this, and nothing that a stranger can cause at will does.
    """
    if not PolicyRevision.objects.filter(pk=1).update(number=F("number") + 1):
        PolicyRevision.objects.get_or_create(pk=1)
        PolicyRevision.objects.filter(pk=1).update(number=F("number") + 1)
    return PolicyRevision.objects.values_list("number", flat=True).get(pk=1)


def column_text(text: object, limit: int) -> str:
    """Return what a stranger wrote as one printable line of at most `limit` characters; empty for what is no text.

    Control, format and unassigned characters, NUL (which PostgreSQL refuses), lone surrogates and line
    breaks become U+FFFD, so that a name can neither break a column nor rewrite a terminal or page.
    """
    if not isinstance(text, str):
        return ""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:limit]).strip()


def public_key_row(public_key: bytes, *, now: datetime) -> PublicKey:
    """Return the row of a checked 32-byte public key, made when missing."""
    row, _ = PublicKey.objects.get_or_create(
        public_key=public_key.hex(), defaults={"fingerprint": fingerprint_of(public_key).hex(), "added_at": now}
    )
    return row


def peer_key_of(public_key: bytes) -> PeerKey | None:
    """Return the row that binds this key to a peer, if any."""
    return PeerKey.objects.select_related("peer", "public_key").filter(public_key__public_key=public_key.hex()).first()


def is_mere_claim(key: PeerKey) -> bool:
    """Return whether nothing but a beacon binds this key to its peer.

    A beacon proves who holds the key, not that the key belongs to the node_id it names; that follows only
    when the node_id is made from the key itself.
    """
    if key.status != PeerKey.Status.UNCONFIRMED or key.source not in (BEACON, CLAIM):
        return False
    return node_id_of(bytes.fromhex(key.public_key.public_key)).hex() != key.peer.node_id


def hold_unconfirmed(peer: Peer, public_key: bytes, *, source: str, now: datetime) -> PeerKey:
    """Record a key that a peer showed and nobody compared yet; at most `MAX_UNCONFIRMED_KEYS` a peer stay."""
    key = PeerKey.objects.create(
        peer=peer, public_key=public_key_row(public_key, now=now), status=PeerKey.Status.UNCONFIRMED, source=source, added_at=now
    )
    newest_first = peer.keys.filter(status=PeerKey.Status.UNCONFIRMED).order_by("-added_at", "-pk").values_list("pk", flat=True)
    drop_keys(PeerKey.objects.filter(pk__in=list(newest_first[MAX_UNCONFIRMED_KEYS:])))
    return key


def drop_keys(keys: QuerySet[PeerKey]) -> None:
    """Delete bindings of keys that verify nothing stored here, and the keys that were recorded only for them."""
    dropped = list(keys.values_list("pk", flat=True))
    made_for_them = _made_for(PeerKey.objects.filter(pk__in=dropped))
    PeerKey.objects.filter(pk__in=dropped).delete()
    PublicKey.objects.filter(pk__in=made_for_them).delete()


def forget_peers(peers: Iterable[Peer]) -> int:
    """Delete peers the operator never touched, with their keys; return how many."""
    pks = [peer.pk for peer in peers]
    made_for_them = _made_for(PeerKey.objects.filter(peer__in=pks))
    Peer.objects.filter(pk__in=pks).delete()
    PublicKey.objects.filter(pk__in=made_for_them).delete()
    return len(pks)


def _made_for(keys: QuerySet[PeerKey]) -> list[int]:
    """Return the public keys that were recorded together with these bindings.

    An older one stays: packets of a peer that was once imported and removed are still verified with it.
    """
    together = keys.filter(Q(public_key__added_at=F("added_at")), public_key__signing_key__isnull=True)
    return list(together.values_list("public_key", flat=True))


def note_address(peer: Peer, url: str, *, source: str, now: datetime, candidates: int = MAX_CANDIDATES) -> PeerAddress:
    """Record that a peer was heard at `url`, or that the operator names it; of candidates from the network few stay."""
    address, made = PeerAddress.objects.get_or_create(
        peer=peer, url=url, defaults={"source": source, "added_at": now, "last_heard": now}
    )
    if not made:
        if source not in _FROM_NETWORK:
            # What the operator names outlives the candidates.
            address.source = source
        address.last_heard = now
        address.save(update_fields=["source", "last_heard"])
    _trim_candidates(peer, candidates)
    return address


def prove_address(peer: Peer, url: str, *, now: datetime, candidates: int = MAX_CANDIDATES) -> None:
    """Record that a handshake at `url`, which this node dialled, proved the peer's key; it replaces the one proven before."""
    address = note_address(peer, url, source=PeerAddress.Source.CONTACT, now=now, candidates=candidates + 1)
    peer.addresses.exclude(pk=address.pk).filter(proven_at__isnull=False).update(proven_at=None)
    address.proven_at = now
    address.last_error = ""
    address.last_error_at = None
    address.save(update_fields=["proven_at", "last_error", "last_error_at"])
    _trim_candidates(peer, candidates)


def _trim_candidates(peer: Peer, candidates: int) -> None:
    unproven = peer.addresses.filter(source__in=_FROM_NETWORK, proven_at__isnull=True).order_by("-last_heard", "-pk")
    surplus = list(unproven.values_list("pk", flat=True)[candidates:])
    if surplus:
        PeerAddress.objects.filter(pk__in=surplus).delete()
