"""Own and foreign public keys in the admin, to look at: keys are made and replaced by commands. No secret is in any row."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from keys.encoding import grouped
from keys.models import PublicKey, SigningKey


class ReadOnlyAdmin(admin.ModelAdmin):
    """A table to search and read; nothing in it is added, changed or deleted here."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(SigningKey)
class SigningKeyAdmin(ReadOnlyAdmin):
    list_display = ["name", "status", "node_id", "fingerprint", "created_at"]
    list_filter = ["status", "created_at"]
    list_select_related = ["public_key"]
    search_fields = ["name", "node_id", "public_key__public_key", "public_key__fingerprint"]
    fields = ["name", "status", "node_id", "public_key_hex", "fingerprint", "next_key_hash", "created_at"]

    @admin.display(description="public key")
    def public_key_hex(self, row: SigningKey) -> str:
        return row.public_key.public_key

    @admin.display(description="fingerprint", ordering="public_key__fingerprint")
    def fingerprint(self, row: SigningKey) -> str:
        return grouped(bytes.fromhex(row.public_key.fingerprint))


@admin.register(PublicKey)
class PublicKeyAdmin(ReadOnlyAdmin):
    list_display = ["grouped_fingerprint", "owner", "added_at"]
    list_filter = [("signing_key", admin.EmptyFieldListFilter), "added_at"]
    list_select_related = ["signing_key"]
    search_fields = ["public_key", "fingerprint"]
    fields = ["public_key", "grouped_fingerprint", "owner", "added_at"]

    @admin.display(description="fingerprint", ordering="fingerprint")
    def grouped_fingerprint(self, row: PublicKey) -> str:
        return grouped(bytes.fromhex(row.fingerprint))

    @admin.display(description="whose")
    def owner(self, row: PublicKey) -> str:
        own = getattr(row, "signing_key", None)
        return f"own key {own}" if own is not None else "another node's"
