"""Manage.py why: where a packet came from, what was refused of it, and whether a peer would get it."""

from typing import Any

from django.core.management.base import CommandParser

from federation.packet_printing import node_label, one_line, utc
from federation.selectors import (
    AmbiguousPacketError,
    MalformedIdError,
    UnknownPacketError,
    WhyReport,
    operator_names,
    resolve_packet,
    why,
)
from keys.command import ArkCommand, Exit
from keys.ed25519 import KeysError
from keys.encoding import NodeId
from keys.services import load_identity
from peers.errors import AmbiguousPeerError, UnknownPeerError
from peers.models import Peer
from peers.selectors import resolve_peer, trust_table
from peers.trust import explain


class Command(ArkCommand):
    help = "Say why a packet is here or not: from whom, by which rule, what was refused; with --peer, whether P would get it."
    failures = {
        UnknownPacketError: Exit.NOT_FOUND,
        UnknownPeerError: Exit.NOT_FOUND,
        MalformedIdError: Exit.USAGE,
        AmbiguousPacketError: Exit.USAGE,
        AmbiguousPeerError: Exit.USAGE,
        KeysError: Exit.FAILED,
    }

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="packet id, or at least its first 6 digits")
        parser.add_argument("--peer", help="would this peer get it? node_id, prefix or name")

    def run(self, **options: Any) -> dict[str, Any]:
        packet_id = resolve_packet(options["id"], heard_of=True)
        peer = resolve_peer(options["peer"]) if options["peer"] else None
        if peer is None:
            report = why(packet_id)
        else:
            report = why(packet_id, table=trust_table(load_identity()), peer=NodeId(bytes.fromhex(peer.node_id)))
        self._describe(report, peer, operator_names())
        return _as_json(report, peer)

    def _describe(self, report: WhyReport, peer: Peer | None, names: dict[str, str]) -> None:
        row = report.stored
        if row is None:
            self.say(f"packet {report.packet_id.hex()} is not here")
        elif row.damage:
            self.say(f"packet {report.packet_id.hex()} is here, damaged: {row.damage}")
        else:
            title = row.packet.title if row.packet else ""
            self.say(f"packet {report.packet_id.hex()} is here" + (f": {one_line(title)}" if title else ""))
        if row is not None:
            source = f"handed over by {node_label(row.received_from, names)}" if row.received_from else "published here"
            self.say(f"received {utc(row.received_at)}, {one_line(source)}")
            if row.received_from:
                self.say(f"let in by {one_line(row.received_rule)}: {explain(row.received_rule)}".rstrip(": "))
            if row.hidden:
                self.say("hidden by the operator: kept here, offered to nobody")
        if report.purged_at is not None:
            self.say(f"purged {report.purged_at:%Y-%m-%d %H:%M:%SZ}: never accepted again")
        for refusal in report.refusals:
            who = node_label(refusal.peer, names)
            self.say(one_line(f"refused {utc(refusal.at)} from {who}: {refusal.code}: {refusal.reason}"))
        if peer is not None and report.would_send is not None:
            answer = "would get it" if report.would_send.allowed else "would not get it"
            self.say(one_line(f"{node_label(peer.node_id, names)} {answer}: {report.would_send.reason} [{report.would_send.rule}]"))


def _as_json(report: WhyReport, peer: Peer | None) -> dict[str, Any]:
    row = report.stored
    answer: dict[str, Any] = {
        "id": report.packet_id.hex(),
        "here": row is not None,
        "damaged": (row.damage or None) if row else None,
        "hidden": row.hidden if row else None,
        "received_at": row.received_at if row else None,
        "received_from": (row.received_from or None) if row else None,
        "rule": row.received_rule if row else None,
        "rule_reason": explain(row.received_rule) if row else None,
        "purged_at": None if report.purged_at is None else round(report.purged_at.timestamp() * 1000),
        "refusals": [
            {
                "code": refusal.code,
                "peer": refusal.peer,
                "origin": refusal.origin or None,
                "at": refusal.at,
                "reason": refusal.reason,
            }
            for refusal in report.refusals
        ],
    }
    if peer is not None and report.would_send is not None:
        decision = report.would_send
        answer["peer"] = peer.node_id
        answer["would_send"] = {
            "allowed": decision.allowed,
            "code": decision.code,
            "rule": decision.rule,
            "reason": decision.reason,
        }
    return answer
