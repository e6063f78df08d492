"""Peers as this node's registry knows them: identity, trust, addresses, and who changed what and why."""

from django.db import models
from django.utils import timezone

from keys.models import PublicKey
from peers.trust import Tier

TIER_CHOICES = [(tier.value, tier.value.upper()) for tier in Tier]


class Peer(models.Model):
    """Another node. Unique by node_id; `name` is given by this operator, `declared_name` by the peer itself."""

    class FoundBy(models.TextChoices):
        BEACON = "beacon", "beacon"
        CONTACT = "contact", "it connected to us"
        OPERATOR = "operator", "added by the operator"
        STATIC = "static", "ARK_STATIC_PEERS"

    node_id = models.CharField(max_length=32, unique=True)
    name = models.CharField(max_length=64, unique=True, null=True, blank=True, help_text="Given here; never taken from the peer.")
    declared_name = models.CharField(max_length=64, blank=True, help_text="What the peer calls itself; shown, never resolved.")
    tier = models.CharField(max_length=8, choices=TIER_CHOICES, default=Tier.UNKNOWN.value)
    blocked = models.BooleanField(default=False)
    declared_tier = models.CharField(max_length=16, blank=True)
    capabilities = models.JSONField(default=list, blank=True)
    version = models.CharField(max_length=32, blank=True)
    found_by = models.CharField(max_length=8, choices=FoundBy.choices, default=FoundBy.BEACON)
    touched = models.BooleanField(default=False, help_text="The operator decided something here; never forgotten by itself.")
    first_seen = models.DateTimeField(default=timezone.now)
    last_seen = models.DateTimeField(null=True, blank=True, help_text="Last beacon or frame on a link.")
    last_beacon_ms = models.BigIntegerField(default=0, help_text="Timestamp inside the newest believed beacon.")
    manifest = models.BinaryField(null=True, blank=True)
    manifest_signature = models.BinaryField(null=True, blank=True)
    manifest_issued_ms = models.BigIntegerField(default=0)
    clock_offset_ms = models.IntegerField(null=True, blank=True)
    penalty_until = models.DateTimeField(null=True, blank=True)
    penalty_reason = models.CharField(max_length=200, blank=True)
    penalties = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["first_seen", "pk"]
        constraints = [models.CheckConstraint(condition=models.Q(tier__in=[tier.value for tier in Tier]), name="peer_tier_known")]

    def __str__(self) -> str:
        return self.name or self.declared_name or self.node_id[:8]


class PeerKey(models.Model):
    """A public key of a peer and what this node makes of it."""

    class Status(models.TextChoices):
        TRUSTED = "trusted", "trusted: imported or confirmed by the operator"
        UNCONFIRMED = "unconfirmed", "unconfirmed: seen, not compared"
        RETIRED = "retired", "retired"
        REVOKED = "revoked", "revoked"

    peer = models.ForeignKey(Peer, on_delete=models.CASCADE, related_name="keys")
    public_key = models.OneToOneField(PublicKey, on_delete=models.PROTECT, related_name="peer_key")
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.UNCONFIRMED)
    source = models.CharField(max_length=12, default="beacon", help_text="imported, handshake, beacon, claim, manifest")
    added_at = models.DateTimeField(default=timezone.now)
    confirmed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["added_at", "pk"]

    def __str__(self) -> str:
        return f"{self.public_key} ({self.status})"


class PeerAddress(models.Model):
    """Where a peer may be dialled. Candidates are bounded; the proven one stays until another is proven."""

    class Source(models.TextChoices):
        BEACON = "beacon", "source address of a beacon"
        CONTACT = "contact", "source address of its connection"
        OPERATOR = "operator", "given by the operator"
        STATIC = "static", "ARK_STATIC_PEERS"

    peer = models.ForeignKey(Peer, on_delete=models.CASCADE, related_name="addresses")
    url = models.CharField(max_length=255)
    source = models.CharField(max_length=8, choices=Source.choices)
    added_at = models.DateTimeField(default=timezone.now)
    last_heard = models.DateTimeField(null=True, blank=True)
    proven_at = models.DateTimeField(null=True, blank=True, help_text="A handshake at this address proved the peer's key.")
    last_error = models.CharField(max_length=200, blank=True)
    last_error_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-proven_at", "pk"]
        verbose_name_plural = "peer addresses"
        constraints = [models.UniqueConstraint(fields=["peer", "url"], name="peer_address_once")]

    def __str__(self) -> str:
        return self.url


class TierChange(models.Model):
    """One trust decision: who, when, from, to, why. Never edited, never deleted with its peer."""

    peer = models.ForeignKey(Peer, null=True, on_delete=models.SET_NULL, related_name="tier_changes")
    node_id = models.CharField(max_length=32, db_index=True)
    at = models.DateTimeField(default=timezone.now)
    actor = models.CharField(max_length=150, help_text="Admin user or system account that decided.")
    door = models.CharField(max_length=16, help_text="admin, command, api, protocol")
    tier_from = models.CharField(max_length=8)
    tier_to = models.CharField(max_length=8)
    blocked_from = models.BooleanField(default=False)
    blocked_to = models.BooleanField(default=False)
    reason = models.CharField(max_length=500, blank=True)
    key_fingerprint = models.CharField(max_length=64, blank=True)
    packets = models.CharField(max_length=8, blank=True, help_text="What became of its packets: keep, hide or purge.")
    packets_affected = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-at", "-pk"]

    def __str__(self) -> str:
        return f"{self.node_id[:8]}: {self.tier_from} -> {self.tier_to}"


class PolicyRevision(models.Model):
    """Row 1: its number grows in the same transaction as any change of trust, key or visibility.

    Running processes re-read the registry when it differs from the number they hold. Row 2 counts changes of
    visibility alone (federation/state.py): only they make a node rebuild what it offers.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    number = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.number)
