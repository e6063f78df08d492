"""Peers in the admin: to look at, and to decide about through the same services as every other door.

Nothing about trust is a form field. Tier, removal and blocking are actions; the first two have a page of
their own that shows what hangs on them (how many packets came from there) and asks for the reason.
"""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode

from keys.admin import ReadOnlyAdmin
from keys.encoding import grouped
from peers.errors import PeerNameError, PeersError
from peers.models import TIER_CHOICES, Peer, PeerAddress, PeerKey, TierChange
from peers.selectors import current_key, listed_peers
from peers.services import (
    MAX_REASON_CHARS,
    PacketChoice,
    check_peer_name,
    end_penalty,
    own_node_id,
    packet_holder,
    remove_peer,
    rename_peer,
    set_blocked,
    set_tier,
)
from peers.trust import Tier

DOOR = "admin"
# Peers decided about on one page; the list shows a hundred at once.
MAX_CHOSEN = 100

# A sign beside the word: the tier is never told by colour alone.
TIER_SIGNS = {Tier.CORE: "◆", Tier.SANDBOX: "◇", Tier.EXTERNAL: "○", Tier.UNKNOWN: "?"}

PACKET_CHOICES = [
    (PacketChoice.KEEP.value, "keep them"),
    (PacketChoice.HIDE.value, "hide them: they stay here and are offered to nobody"),
    (PacketChoice.PURGE.value, "purge them: deleted, and never accepted again"),
]


class TierForm(forms.Form):
    # No tier is chosen beforehand: a list would offer CORE first, and one click would be enough.
    tier = forms.ChoiceField(choices=TIER_CHOICES, widget=forms.RadioSelect)
    reason = forms.CharField(max_length=MAX_REASON_CHARS, required=False, help_text="For the record of decisions.")
    packets = forms.ChoiceField(
        choices=PACKET_CHOICES,
        initial=PacketChoice.KEEP.value,
        widget=forms.RadioSelect,
        label="Packets that came from there",
        help_text="Asked at a demotion; a promotion keeps them.",
    )


class RemoveForm(forms.Form):
    reason = forms.CharField(max_length=MAX_REASON_CHARS, required=False, help_text="For the record of decisions.")


class PeerForm(ModelForm):
    class Meta:
        model = Peer
        fields = ["name"]

    def clean_name(self) -> str | None:
        name = self.cleaned_data["name"]
        try:
            return check_peer_name(name) if name else None
        except PeerNameError as error:
            raise forms.ValidationError(str(error)) from error


class ReadOnlyInline(admin.TabularInline):
    """Rows of a peer, to look at."""

    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class PeerKeyInline(ReadOnlyInline):
    model = PeerKey
    fields = ["fingerprint", "status", "source", "added_at", "confirmed_at"]
    readonly_fields = ["fingerprint"]

    @admin.display(description="fingerprint")
    def fingerprint(self, key: PeerKey) -> str:
        return grouped(bytes.fromhex(key.public_key.fingerprint))


class PeerAddressInline(ReadOnlyInline):
    model = PeerAddress
    fields = ["url", "source", "proven_at", "last_heard", "last_error", "last_error_at"]


class TierChangeInline(ReadOnlyInline):
    model = TierChange
    fields = ["at", "actor", "door", "tier_from", "tier_to", "blocked_to", "reason", "packets", "packets_affected"]
    verbose_name_plural = "decisions"


@admin.register(Peer)
class PeerAdmin(admin.ModelAdmin):
    form = PeerForm
    list_display = ["called", "tier_shown", "blocked", "fingerprint", "short_node_id", "last_seen"]
    list_filter = ["tier", "blocked", "found_by", "keys__status", "last_seen"]
    search_fields = ["name", "declared_name", "node_id", "keys__public_key__fingerprint", "addresses__url"]
    search_help_text = "Name, self-declared name, node_id, fingerprint or address."
    actions = ["change_tier", "block", "unblock", "end_penalties", "remove"]
    inlines = [PeerKeyInline, PeerAddressInline, TierChangeInline]
    fieldsets = [
        (None, {"fields": ["name", "node_id", "tier_shown", "blocked", "fingerprint", "key_status"]}),
        ("What it says of itself", {"fields": ["declared_name", "declared_tier", "capabilities", "version"]}),
        ("Seen", {"fields": ["found_by", "first_seen", "last_seen", "clock_offset_ms"]}),
        ("Penalty", {"fields": ["penalty_until", "penalty_reason", "penalties"]}),
    ]
    # Everything but the operator's own name for the peer.
    readonly_fields = [
        *("node_id", "tier_shown", "blocked", "fingerprint", "key_status"),
        *("declared_name", "declared_tier", "capabilities", "version"),
        *("found_by", "first_seen", "last_seen", "clock_offset_ms"),
        *("penalty_until", "penalty_reason", "penalties"),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Peer]:
        return listed_peers().order_by("first_seen", "pk")

    # Peers come by discovery, contact, addpeer and importkey; they go by the action, which keeps the record.
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Peer | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Peer, form: Any, change: bool) -> None:
        rename_peer(peer=obj, name=form.cleaned_data["name"])

    def get_urls(self) -> list[URLPattern]:
        return [
            path("tier/", self.admin_site.admin_view(self.tier_view), name="peers_peer_tier"),
            path("remove/", self.admin_site.admin_view(self.remove_view), name="peers_peer_remove"),
            *super().get_urls(),
        ]

    @admin.display(description="name", ordering="name")
    def called(self, peer: Peer) -> str:
        if not peer.declared_name or peer.declared_name == peer.name:
            return peer.name or f"(unnamed) {peer.node_id[:8]}"
        return f"{peer.name or '(unnamed)'} – calls itself “{peer.declared_name}”"

    @admin.display(description="tier", ordering="tier")
    def tier_shown(self, peer: Peer) -> str:
        return f"{TIER_SIGNS[Tier(peer.tier)]} {peer.tier.upper()}"

    @admin.display(description="key fingerprint")
    def fingerprint(self, peer: Peer) -> str:
        key = current_key(peer)
        return grouped(bytes.fromhex(key.public_key.fingerprint)) if key else "no key known"

    @admin.display(description="key")
    def key_status(self, peer: Peer) -> str:
        key = current_key(peer)
        return key.get_status_display() if key else "no key known"

    @admin.display(description="node_id", ordering="node_id")
    def short_node_id(self, peer: Peer) -> str:
        return peer.node_id[:8]

    @admin.action(description="Change the tier…", permissions=["change"])
    def change_tier(self, request: HttpRequest, queryset: QuerySet[Peer]) -> HttpResponse:
        return _redirect_with("admin:peers_peer_tier", queryset)

    @admin.action(description="Remove from the registry…", permissions=["change"])
    def remove(self, request: HttpRequest, queryset: QuerySet[Peer]) -> HttpResponse:
        return _redirect_with("admin:peers_peer_remove", queryset)

    @admin.action(description="Block", permissions=["change"])
    def block(self, request: HttpRequest, queryset: QuerySet[Peer]) -> None:
        self._set_blocked(request, queryset, blocked=True)

    @admin.action(description="Unblock", permissions=["change"])
    def unblock(self, request: HttpRequest, queryset: QuerySet[Peer]) -> None:
        self._set_blocked(request, queryset, blocked=False)

    @admin.action(description="End the penalty", permissions=["change"])
    def end_penalties(self, request: HttpRequest, queryset: QuerySet[Peer]) -> None:
        for peer in queryset:
            end_penalty(peer=peer)
            self.log_change(request, peer, "penalty ended")
        messages.success(request, "Ended.")

    def tier_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the tier, the reason and what becomes of the packets; then decide about each chosen peer."""
        peers = self._chosen(request)
        form = TierForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            for peer in peers:
                self._decide_tier(request, peer, form.cleaned_data)
            return HttpResponseRedirect(reverse("admin:peers_peer_changelist"))
        return self._page(request, "admin/peers/tier.html", "Change the tier", form, peers)

    def remove_view(self, request: HttpRequest) -> HttpResponse:
        """Ask once more and for the reason; then remove each chosen peer."""
        peers = self._chosen(request)
        form = RemoveForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            for peer in peers:
                remove_peer(peer=peer, actor=request.user.get_username(), door=DOOR, reason=form.cleaned_data["reason"])
                messages.success(request, f"{peer} is removed.")
            return HttpResponseRedirect(reverse("admin:peers_peer_changelist"))
        return self._page(request, "admin/peers/remove.html", "Remove from the registry", form, peers)

    def _set_blocked(self, request: HttpRequest, peers: QuerySet[Peer], *, blocked: bool) -> None:
        for peer in peers:
            set_blocked(peer=peer, blocked=blocked, actor=request.user.get_username(), door=DOOR)
            self.log_change(request, peer, "blocked" if blocked else "unblocked")
        messages.success(request, "Blocked." if blocked else "Unblocked.")

    def _decide_tier(self, request: HttpRequest, peer: Peer, decided: dict[str, str]) -> None:
        before = peer.tier
        try:
            peer = set_tier(
                peer=peer,
                tier=Tier(decided["tier"]),
                actor=request.user.get_username(),
                door=DOOR,
                reason=decided["reason"],
                packets=PacketChoice(decided["packets"]),
            )
        except PeersError as error:
            messages.error(request, f"{peer}: {error}")
            return
        self.log_change(request, peer, f"tier {before} to {peer.tier}")
        messages.success(request, f"{peer}: {before.upper()} to {peer.tier.upper()}.")

    def _chosen(self, request: HttpRequest) -> list[Peer]:
        if not self.has_change_permission(request):
            raise PermissionDenied
        given = [text for text in request.GET.get("ids", "").split(",") if text.isascii() and text.isdigit()]
        # A number beyond the column's range would be the database's error, not an empty answer.
        return list(self.get_queryset(request).filter(pk__in=[int(text) for text in given[:MAX_CHOSEN] if len(text) < 19]))

    def _page(self, request: HttpRequest, template: str, title: str, form: forms.Form, peers: Sequence[Peer]) -> TemplateResponse:
        own = own_node_id()
        holder = packet_holder()
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.model._meta,
            "form": form,
            "rows": [
                (self.called(peer), self.tier_shown(peer), self.fingerprint(peer), holder.count_packets_from(peer.node_id, own=own))
                for peer in peers
            ],
        }
        return TemplateResponse(request, template, context)


@admin.register(PeerKey)
class PeerKeyAdmin(ReadOnlyAdmin):
    list_display = ["fingerprint", "peer", "status", "source", "added_at", "confirmed_at"]
    list_filter = ["status", "source", "added_at"]
    list_select_related = ["peer", "public_key"]
    search_fields = ["peer__name", "peer__node_id", "public_key__fingerprint", "public_key__public_key"]
    fields = ["fingerprint", "public_key_hex", "peer", "status", "source", "added_at", "confirmed_at"]

    @admin.display(description="fingerprint", ordering="public_key__fingerprint")
    def fingerprint(self, key: PeerKey) -> str:
        return grouped(bytes.fromhex(key.public_key.fingerprint))

    @admin.display(description="public key")
    def public_key_hex(self, key: PeerKey) -> str:
        return key.public_key.public_key


@admin.register(PeerAddress)
class PeerAddressAdmin(ReadOnlyAdmin):
    list_display = ["url", "peer", "source", "proven_at", "last_heard", "last_error"]
    list_filter = ["source", ("proven_at", admin.EmptyFieldListFilter), "last_heard"]
    list_select_related = ["peer"]
    search_fields = ["url", "peer__name", "peer__node_id"]


@admin.register(TierChange)
class TierChangeAdmin(ReadOnlyAdmin):
    list_display = ["at", "who", "tier_from", "tier_to", "blocked_to", "actor", "door", "reason", "packets", "packets_affected"]
    list_filter = ["tier_to", "blocked_to", "door", "packets", "at"]
    list_select_related = ["peer"]
    search_fields = ["node_id", "peer__name", "actor", "reason", "key_fingerprint"]
    date_hierarchy = "at"

    @admin.display(description="peer", ordering="node_id")
    def who(self, change: TierChange) -> str:
        return str(change.peer) if change.peer else change.node_id[:8]


def _redirect_with(view: str, peers: QuerySet[Peer]) -> HttpResponseRedirect:
    ids = ",".join(str(pk) for pk in peers.values_list("pk", flat=True)[:MAX_CHOSEN])
    return HttpResponseRedirect(f"{reverse(view)}?{urlencode({'ids': ids})}")
