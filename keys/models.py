"""Public halves of keys, as rows. Secrets live in files only (keys/files.py)."""

from django.db import models
from django.utils import timezone


class PublicKey(models.Model):
    """An Ed25519 public key this node has met: its own or another node's."""

    public_key = models.CharField(max_length=64, unique=True, help_text="32 bytes, 64 lower-case hex digits.")
    fingerprint = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the key, hex.")
    added_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.fingerprint[:16]


class SigningKey(models.Model):
    """Public data of a key pair this node owns; the pair itself is `<name>.key` in the keys folder."""

    class Status(models.TextChoices):
        ACTIVE = "active", "active"
        RETIRED = "retired", "retired"
        REPLACED = "replaced", "replaced by a new identity"

    name = models.CharField(max_length=64)
    node_id = models.CharField(max_length=32)
    public_key = models.OneToOneField(PublicKey, on_delete=models.PROTECT, related_name="signing_key")
    next_key_hash = models.CharField(max_length=64, blank=True, help_text="Committed fingerprint of the next key.")
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-created_at", "-pk"]
        constraints = [
            models.UniqueConstraint(fields=["status"], condition=models.Q(status="active"), name="one_active_signing_key")
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.status})"
