"""Manage.py trusttier: decide how far a peer is trusted."""

import sys
from typing import Any

from django.core.management.base import CommandParser

from federation.management.peer_command import PeerCommand, UsageError, describe, operator, parse_tier
from peers.models import Peer
from peers.selectors import resolve_peer
from peers.services import PacketChoice, is_demotion, own_node_id, packet_holder, set_tier
from peers.trust import Tier


class Command(PeerCommand):
    help = "Put a peer into a tier: core, sandbox, external or unknown. A demotion asks what becomes of its packets."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_peer_argument(parser)
        parser.add_argument("tier", metavar="TIER", help="core, sandbox, external or unknown")
        parser.add_argument("--reason", default="", metavar="R", help="why, for the record")
        parser.add_argument("--packets", metavar="keep|hide|purge", help="what becomes of the packets that came from it")

    def run(self, **options: Any) -> dict[str, Any]:
        tier = parse_tier(options["tier"])
        choice = _parse_choice(options["packets"])
        peer = resolve_peer(options["peer"])
        if choice is None and is_demotion(Tier(peer.tier), tier):
            choice = self._ask(peer, tier)
        before = peer.tier
        peer = set_tier(
            peer=peer, tier=tier, actor=operator(), door="command", reason=options["reason"], packets=choice or PacketChoice.KEEP
        )
        self.say(describe(peer) if before != peer.tier else f"nothing changed in tier; {describe(peer)}")
        if peer.blocked:
            self.say("it stays blocked: blockpeer --undo lets it in again")
        return self.row(peer)

    def _ask(self, peer: Peer, tier: Tier) -> PacketChoice:
        """Show how many packets came from the peer, and ask at a terminal; elsewhere they are kept, and that is said."""
        count = packet_holder().count_packets_from(peer.node_id, own=own_node_id())
        if not count.packets:
            return PacketChoice.KEEP
        self.say(f"{count.packets} packets came from {peer} ({count.bytes:,} bytes, {count.hidden} hidden)")
        if self.as_json or not sys.stdin.isatty():
            self.say("they stay; --packets hide or --packets purge decides otherwise, now or later")
            return PacketChoice.KEEP
        answer = input(f"demoting to {tier.upper()}: keep, hide or purge them? [keep] ").strip().lower()
        return _parse_choice(answer or "keep") or PacketChoice.KEEP


def _parse_choice(text: str | None) -> PacketChoice | None:
    try:
        return None if text is None else PacketChoice(text.lower())
    except ValueError:
        raise UsageError(f"--packets {text[:32] if text else text!r}: choose {', '.join(PacketChoice)}") from None
