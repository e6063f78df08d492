"""Manage.py removepeer: forget a peer."""

from typing import Any

from django.core.management.base import CommandParser

from federation.management.peer_command import PeerCommand, operator
from peers.selectors import resolve_peer
from peers.services import remove_peer


class Command(PeerCommand):
    help = "Remove a peer from the registry, with its keys and addresses. Its packets and the record of decisions stay."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_peer_argument(parser)
        parser.add_argument("--reason", default="", metavar="R", help="why, for the record")

    def run(self, **options: Any) -> dict[str, Any]:
        peer = resolve_peer(options["peer"])
        row = self.row(peer)
        remove_peer(peer=peer, actor=operator(), door="command", reason=options["reason"])
        self.say(f"{peer} ({peer.node_id}) is removed; met again it is UNKNOWN (to keep it out: blockpeer)")
        return row
