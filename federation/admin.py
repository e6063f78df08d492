"""What a node stores and does, in the admin: to search and read. Packets are hidden and shown through the services.

A damaged row is listed with what is wrong about it, and never keeps the others from being shown. Text from other
nodes is escaped twice over: for HTML by Django, and with control and bidirectional characters made visible.
"""

import json
import re
import time
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import DatabaseError
from django.db.models import Count, Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from federation.models import (
    KnowledgePacket,
    LinkClaim,
    NodeRequest,
    NodeState,
    OriginUsage,
    PeerCounter,
    PurgedPacket,
    Refusal,
)
from federation.packet_printing import content_text, node_label, one_line, utc
from federation.selectors import StoredPacket, load_rows, operator_names, packet_id_span, read_row
from federation.services import hide_packets, unhide_packets
from keys.admin import ReadOnlyAdmin
from keys.command import printable
from keys.encoding import grouped
from peers.trust import explain

LISTED = 50
# Values a filter offers: the most frequent ones; the rest is found by searching.
MAX_FILTER_VALUES = 30
DAY_MS = 86_400_000
ABSENT = "-"

_HEX_PREFIX = re.compile(r"[0-9a-f]{6,64}")


class TolerantChangeList(ChangeList):
    """A list of packets in which a row that cannot be read is an empty one, marked as damaged."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = _prepared(load_rows(self.result_list))


class NamingChangeList(ChangeList):
    """A list of rows that name nodes, with the operator's names at hand."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        names = operator_names()
        self.result_list = list(self.result_list)
        for row in self.result_list:
            row.__dict__["_ark_names"] = names


class ValuesFilter(admin.SimpleListFilter):
    """The most frequent values of one column."""

    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        counted = KnowledgePacket.objects.order_by().values_list(self.column).annotate(packets=Count("pk")).order_by("-packets")
        try:
            values = [str(value) for value, _ in counted[:MAX_FILTER_VALUES]]
        except (DatabaseError, ValueError):
            # A value that cannot be decoded: the list is worth showing without this filter.
            return []
        return [(value, one_line(self.label(value))) for value in values if value]

    def label(self, value: str) -> str:
        return value

    def queryset(self, request: HttpRequest, queryset: QuerySet[KnowledgePacket]) -> QuerySet[KnowledgePacket]:
        value = self.value()
        return queryset if value is None else queryset.filter(**{self.column: value.replace("\0", "")})


class KindFilter(ValuesFilter):
    title = "kind"
    parameter_name = column = "kind"


class NodeFilter(ValuesFilter):
    """Nodes are shown by the operator's names for them."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        self._names = operator_names()
        return super().lookups(request, model_admin)

    def label(self, value: str) -> str:
        return node_label(value, self._names)


class OriginFilter(NodeFilter):
    title = "origin"
    parameter_name = column = "origin"


class HandedOverFilter(NodeFilter):
    title = "handed over by"
    parameter_name = column = "received_from"


class AgeFilter(admin.SimpleListFilter):
    """How long ago something happened, by a column of milliseconds."""

    title = "received"
    parameter_name = "age"
    column = "received_at"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "past 24 hours"), ("7", "past 7 days"), ("30", "past 30 days"), ("older", "longer ago")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value not in ("1", "7", "30", "older"):
            return queryset
        days = 30 if value == "older" else int(value)
        since = time.time_ns() // 1_000_000 - days * DAY_MS
        return queryset.filter(**{f"{self.column}__lt" if value == "older" else f"{self.column}__gte": since})


class RefusedFilter(AgeFilter):
    title = "refused"
    column = "at"


class PacketIdSearchAdmin(ReadOnlyAdmin):
    """Finds rows by the beginning of their packet id, beside what `search_fields` finds."""

    list_per_page = LISTED

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        found, distinct = super().get_search_results(request, queryset, search_term)
        term = search_term.strip()
        if _HEX_PREFIX.fullmatch(term):
            low, high = packet_id_span(term)
            found = queryset.filter(Q(packet_id__gte=low, packet_id__lte=high) | Q(pk__in=found.order_by().values("pk")))
        return found, distinct


@admin.register(KnowledgePacket)
class KnowledgePacketAdmin(PacketIdSearchAdmin):
    list_display = ["short_id", "kind_text", "title_text", "origin_name", "audience_text", "created", "received", "handed_over_by"]
    list_filter = [KindFilter, "audience", "hidden", OriginFilter, HandedOverFilter, AgeFilter]
    search_fields = ["title", "kind"]
    search_help_text = "Title, kind, or the first digits of an id (6 at least)."
    ordering = ["-arrival"]
    actions = ["hide", "unhide"]
    fieldsets = [
        (
            None,
            {"fields": ["damage", "whole_id", "origin_name", "kind_text", "title_text", "tag_list", "audience_text", "content"]},
        ),
        ("What else its origin says", {"fields": ["created", "source", "confidence", "depends_on", "supersedes", "expires"]}),
        ("How it came here", {"fields": ["received", "handed_over_by", "rule", "arrival"]}),
        ("Signature", {"fields": ["signed_at", "key", "signature_hex", "canonical"], "classes": ["collapse"]}),
    ]

    class Media:
        css = {"all": ["federation/packets.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TolerantChangeList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> KnowledgePacket | None:
        if not re.fullmatch(r"[0-9]{1,18}", object_id):
            return None
        rows = _prepared(load_rows(self.get_queryset(request).filter(arrival=int(object_id))))
        return rows[0] if rows else None

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return [name for _, options in self.fieldsets for name in options["fields"] if isinstance(name, str)]

    def has_hide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("federation.change_knowledgepacket")

    @admin.action(description="Hide: keep here, offer to nobody", permissions=["hide"])
    def hide(self, request: HttpRequest, queryset: QuerySet[KnowledgePacket]) -> None:
        changed = hide_packets(_ids(queryset))
        self.message_user(request, f"{changed} packets are hidden now.", messages.SUCCESS)

    @admin.action(description="Show again: offer as the policy says", permissions=["hide"])
    def unhide(self, request: HttpRequest, queryset: QuerySet[KnowledgePacket]) -> None:
        changed = unhide_packets(_ids(queryset))
        self.message_user(request, f"{changed} packets are offered again.", messages.SUCCESS)

    @admin.display(description="id", ordering="packet_id")
    def short_id(self, row: KnowledgePacket) -> str:
        return _stored(row).packet_id.hex()[:12] or f"row {row.pk}"

    @admin.display(description="id")
    def whole_id(self, row: KnowledgePacket) -> str:
        return _hex(_stored(row).packet_id)

    @admin.display(description="damage")
    def damage(self, row: KnowledgePacket) -> str:
        damage = _stored(row).damage
        return format_html('<span class="ark-damage">{}</span>', f"⚠ {damage}") if damage else "none"

    @admin.display(description="kind", ordering="kind")
    def kind_text(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return packet.kind if packet else self.damage(row)

    @admin.display(description="title", ordering="title")
    def title_text(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return one_line(packet.title) if packet and packet.title else ABSENT

    @admin.display(description="origin", ordering="origin")
    def origin_name(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return one_line(node_label(packet.origin.hex(), _names(row))) if packet else ABSENT

    @admin.display(description="audience", ordering="audience")
    def audience_text(self, row: KnowledgePacket) -> str:
        stored = _stored(row)
        return (stored.packet.audience.value if stored.packet else ABSENT) + (", hidden" if stored.hidden else "")

    @admin.display(description="created", ordering="created_at")
    def created(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return utc(packet.created_at) if packet else ABSENT

    @admin.display(description="received", ordering="received_at")
    def received(self, row: KnowledgePacket) -> str:
        return utc(_stored(row).received_at)

    @admin.display(description="handed over by", ordering="received_from")
    def handed_over_by(self, row: KnowledgePacket) -> str:
        peer = _stored(row).received_from
        return one_line(node_label(peer, _names(row))) if peer else "published here"

    @admin.display(description="let in by")
    def rule(self, row: KnowledgePacket) -> str:
        rule = _stored(row).received_rule
        return one_line(f"{rule}: {explain(rule)}".rstrip(": "))

    @admin.display(description="tags")
    def tag_list(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return one_line(", ".join(packet.tags)) if packet and packet.tags else ABSENT

    @admin.display(description="content")
    def content(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return _text(content_text(packet.content())) if packet else ABSENT

    @admin.display(description="source")
    def source(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return one_line(packet.source) if packet and packet.source else ABSENT

    @admin.display(description="confidence")
    def confidence(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return ABSENT if packet is None or packet.confidence is None else str(packet.confidence)

    @admin.display(description="depends on")
    def depends_on(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return _text("\n".join(packet_id.hex() for packet_id in packet.depends_on)) if packet and packet.depends_on else ABSENT

    @admin.display(description="supersedes")
    def supersedes(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return _hex(packet.supersedes) if packet and packet.supersedes else ABSENT

    @admin.display(description="expires")
    def expires(self, row: KnowledgePacket) -> str:
        packet = _stored(row).packet
        return ABSENT if packet is None or packet.expires_at is None else utc(packet.expires_at)

    @admin.display(description="signed at")
    def signed_at(self, row: KnowledgePacket) -> str:
        envelope = _stored(row).envelope
        return utc(envelope.timestamp) if envelope else ABSENT

    @admin.display(description="key fingerprint")
    def key(self, row: KnowledgePacket) -> str:
        envelope = _stored(row).envelope
        return _text(grouped(envelope.key_fingerprint)) if envelope else ABSENT

    @admin.display(description="signature")
    def signature_hex(self, row: KnowledgePacket) -> str:
        envelope = _stored(row).envelope
        return _hex(envelope.signature) if envelope else ABSENT

    @admin.display(description="canonical bytes")
    def canonical(self, row: KnowledgePacket) -> str:
        envelope = _stored(row).envelope
        return _text(envelope.body.decode(errors="replace")) if envelope else ABSENT


class NodeNamesMixin:
    """A table whose rows name nodes: shown by the operator's names, looked up once a page."""

    class Media:
        css = {"all": ["federation/packets.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NamingChangeList

    @admin.display(description="packet", ordering="packet_id")
    def short_id(self, row: Any) -> str:
        return bytes(row.packet_id).hex()[:12]

    @admin.display(description="packet id")
    def whole_id(self, row: Any) -> str:
        return _hex(bytes(row.packet_id))

    @admin.display(description="peer", ordering="peer")
    def peer_name(self, row: Any) -> str:
        return _node(row, row.peer)

    @admin.display(description="origin", ordering="origin")
    def origin_name(self, row: Any) -> str:
        return _node(row, row.origin)


@admin.register(Refusal)
class RefusalAdmin(NodeNamesMixin, PacketIdSearchAdmin):
    list_display = ["short_id", "code", "peer_name", "origin_name", "reason_text", "refused"]
    list_filter = ["code", RefusedFilter]
    search_fields = ["peer", "origin", "reason"]
    search_help_text = "The first digits of a packet id (6 at least), a node_id, or words of the reason."
    fields = ["whole_id", "code", "reason_text", "peer_name", "peer", "origin_name", "origin", "refused"]

    @admin.display(description="reason", ordering="reason")
    def reason_text(self, row: Refusal) -> str:
        return one_line(row.reason)

    @admin.display(description="when", ordering="at")
    def refused(self, row: Refusal) -> str:
        return utc(row.at)


@admin.register(PurgedPacket)
class PurgedPacketAdmin(NodeNamesMixin, PacketIdSearchAdmin):
    list_display = ["short_id", "origin_name", "at"]
    list_filter = ["at"]
    search_fields = ["origin"]
    search_help_text = "The first digits of a packet id (6 at least), or an origin's node_id."
    fields = ["whole_id", "origin_name", "origin", "at"]
    ordering = ["-at", "-pk"]


class PlainNodeAdmin(NodeNamesMixin, ReadOnlyAdmin):
    """Rows about nodes that name no packet."""

    list_per_page = LISTED


@admin.register(OriginUsage)
class OriginUsageAdmin(PlainNodeAdmin):
    list_display = ["origin_name", "packets", "bytes"]
    search_fields = ["origin"]
    fields = ["origin_name", "origin", "packets", "bytes"]
    ordering = ["-bytes"]


@admin.register(PeerCounter)
class PeerCounterAdmin(PlainNodeAdmin):
    list_display = ["peer_name", "name", "count", "since"]
    list_filter = ["name"]
    search_fields = ["peer", "name"]
    fields = ["peer_name", "peer", "name", "count", "since"]


@admin.register(LinkClaim)
class LinkClaimAdmin(PlainNodeAdmin):
    list_display = ["peer_name", "dialled_by", "address", "since", "refreshed", "pid"]
    search_fields = ["peer", "address"]
    fields = ["peer_name", "peer", "dialled_by", "address", "since", "refreshed", "pid", "state_text"]

    @admin.display(description="dialled by", ordering="dialler")
    def dialled_by(self, row: LinkClaim) -> str:
        return "the peer" if row.dialler == row.peer else "this node"

    @admin.display(description="state")
    def state_text(self, row: LinkClaim) -> str:
        return _text(json.dumps(row.state, ensure_ascii=False, indent=2))


@admin.register(NodeState)
class NodeStateAdmin(PlainNodeAdmin):
    list_display = ["__str__", "pid", "started_at", "heartbeat_at", "auto_sync"]
    fields = ["pid", "started_at", "heartbeat_at", "auto_sync", "detail_text"]

    @admin.display(description="detail")
    def detail_text(self, row: NodeState) -> str:
        return _text(json.dumps(row.detail, ensure_ascii=False, indent=2))


@admin.register(NodeRequest)
class NodeRequestAdmin(PlainNodeAdmin):
    list_display = ["kind", "asked_at", "taken_at", "answered_at"]
    list_filter = ["kind", "asked_at"]
    fields = ["kind", "argument_text", "asked_at", "taken_at", "answered_at", "answer_text"]
    ordering = ["-pk"]

    @admin.display(description="argument")
    def argument_text(self, row: NodeRequest) -> str:
        return _text(json.dumps(row.argument, ensure_ascii=False, indent=2))

    @admin.display(description="answer")
    def answer_text(self, row: NodeRequest) -> str:
        return ABSENT if row.answer is None else _text(json.dumps(row.answer, ensure_ascii=False, indent=2))


def _prepared(rows: list[KnowledgePacket]) -> list[KnowledgePacket]:
    """Read the packets in rows once, so that each column of a page need not."""
    names = operator_names()
    for row in rows:
        row.__dict__["_ark_stored"] = read_row(row)
        row.__dict__["_ark_names"] = names
    return rows


def _stored(row: KnowledgePacket) -> StoredPacket:
    stored: StoredPacket = row.__dict__["_ark_stored"]
    return stored


def _names(row: Model) -> dict[str, str]:
    if "_ark_names" not in row.__dict__:
        row.__dict__["_ark_names"] = operator_names()
    names: dict[str, str] = row.__dict__["_ark_names"]
    return names


def _node(row: Model, node_id: str) -> str:
    return one_line(node_label(node_id, _names(row))) if node_id else ABSENT


def _ids(packets: QuerySet[KnowledgePacket]) -> list[bytes]:
    return [bytes(packet_id) for packet_id in packets.order_by().values_list("packet_id", flat=True)]


def _text(text: str) -> str:
    """Return text of several lines as HTML that neither widens the page nor runs."""
    return format_html('<pre class="ark-text">{}</pre>', printable(text))


def _hex(value: bytes) -> str:
    return format_html('<code class="ark-hex">{}</code>', value.hex())
