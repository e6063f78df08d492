"""What a node stores: packets with their receipts, refusals, and the running state other processes read."""

from django.db import models
from django.utils import timezone

from federation.lookups import JSONHasElement

models.JSONField.register_lookup(JSONHasElement)


class KnowledgePacket(models.Model):
    """One verified packet, its signed bytes exactly as they arrived, and its receipt.

    `arrival` numbers are taken in commit order (docs/protocol.md, section 9): a reader that follows
    them misses nothing. The receipt says who handed the packet over, when, and which rule let it in.
    """

    class Audience(models.TextChoices):
        PRIVATE = "private", "private"
        CORE = "core", "core"
        PUBLIC = "public", "public"

    arrival = models.BigAutoField(primary_key=True)
    packet_id = models.BinaryField(max_length=32, unique=True)
    origin = models.CharField(max_length=32, help_text="node_id of the signer, hex.")
    kind = models.CharField(max_length=64, db_index=True)
    title = models.CharField(max_length=200, blank=True)
    tags = models.JSONField(default=list)
    audience = models.CharField(max_length=8, choices=Audience.choices)
    created_at = models.BigIntegerField(help_text="Milliseconds since the Unix epoch, by the origin's clock.")
    expires_at = models.BigIntegerField(null=True, blank=True)
    body = models.BinaryField(help_text="Canonical bytes, as signed.")
    signature = models.BinaryField(max_length=64)
    timestamp = models.BigIntegerField(help_text="Time of signing, ms.")
    key_fingerprint = models.BinaryField(max_length=32)
    hidden = models.BooleanField(default=False, help_text="Kept, not shared: the operator's decision.")
    received_at = models.BigIntegerField(help_text="Milliseconds since the Unix epoch, by our clock.")
    received_from = models.CharField(max_length=32, blank=True, help_text="node_id that handed it over; empty: published here.")
    received_rule = models.CharField(max_length=64, help_text="The policy rule that let it in.")

    class Meta:
        ordering = ["-arrival"]
        indexes = [
            models.Index(fields=["origin", "arrival"]),
            models.Index(fields=["received_from", "arrival"]),
            models.Index(fields=["created_at"]),
        ]

    def __str__(self) -> str:
        # The title is another node's text, and no page or log that shows this asks whether it is harmless.
        return f"packet {self.arrival}"


class Refusal(models.Model):
    """A packet offered here and not accepted, newest outcome per peer and packet; bounded per peer."""

    packet_id = models.BinaryField(max_length=32)
    peer = models.CharField(max_length=32, help_text="node_id that offered it.")
    origin = models.CharField(max_length=32, blank=True)
    code = models.CharField(max_length=16)
    reason = models.CharField(max_length=200)
    at = models.BigIntegerField(help_text="Milliseconds since the Unix epoch, by our clock.")

    class Meta:
        ordering = ["-at", "-pk"]
        constraints = [models.UniqueConstraint(fields=["peer", "packet_id"], name="refusal_once")]
        indexes = [models.Index(fields=["packet_id"]), models.Index(fields=["peer", "at"])]

    def __str__(self) -> str:
        return f"{bytes(self.packet_id).hex()[:12]} {self.code}"


class PurgedPacket(models.Model):
    """Id of a packet the operator purged: never accepted again."""

    packet_id = models.BinaryField(max_length=32, unique=True)
    origin = models.CharField(max_length=32)
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return bytes(self.packet_id).hex()[:12]


class OriginUsage(models.Model):
    """What one origin's packets take up here; kept in the same transaction as the packets."""

    origin = models.CharField(max_length=32, primary_key=True)
    packets = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return self.origin[:8]


class PeerCounter(models.Model):
    """How often something happened with a peer, for ever: sent, received, duplicate, rejected and declined by code."""

    peer = models.CharField(max_length=32)
    name = models.CharField(max_length=40)
    count = models.BigIntegerField(default=0)
    since = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["peer", "name"]
        constraints = [models.UniqueConstraint(fields=["peer", "name"], name="peer_counter_once")]

    def __str__(self) -> str:
        return f"{self.peer[:8]} {self.name}: {self.count}"


class LinkClaim(models.Model):
    """The one live link with a peer, whichever process of this node holds it (docs/protocol.md, section 9)."""

    peer = models.CharField(max_length=32, primary_key=True)
    process = models.CharField(max_length=32, help_text="Token of the process that holds the link.")
    pid = models.PositiveIntegerField()
    link = models.CharField(max_length=32, help_text="Token of the link inside that process.")
    dialler = models.CharField(max_length=32, help_text="node_id of the side that dialled.")
    address = models.CharField(max_length=255, blank=True)
    since = models.DateTimeField(default=timezone.now)
    refreshed = models.DateTimeField(default=timezone.now)
    state = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"link with {self.peer[:8]}"


class NodeState(models.Model):
    """One row: what a running node says of itself, and what the operator asked of it for good."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    auto_sync = models.BooleanField(default=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    detail = models.JSONField(default=dict)

    def __str__(self) -> str:
        return "running" if self.pid else "stopped"


class NodeRequest(models.Model):
    """Something a command asks of the running node, with the answer it waits for."""

    kind = models.CharField(max_length=16)
    argument = models.JSONField(default=dict)
    asked_at = models.DateTimeField(default=timezone.now)
    taken_at = models.DateTimeField(null=True, blank=True)
    answered_at = models.DateTimeField(null=True, blank=True)
    answer = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.kind
