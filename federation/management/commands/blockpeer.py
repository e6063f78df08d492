"""Manage.py blockpeer: keep a peer out, whatever its tier."""

from typing import Any

from django.core.management.base import CommandParser

from federation.management.peer_command import PeerCommand, describe, operator
from peers.selectors import resolve_peer
from peers.services import set_blocked


class Command(PeerCommand):
    help = "Block a peer: its links end at once, nothing is accepted from it or sent to it. --undo lets it in again."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_peer_argument(parser)
        parser.add_argument("--undo", action="store_true", help="unblock it; its tier is what it was")
        parser.add_argument("--reason", default="", metavar="R", help="why, for the record")

    def run(self, **options: Any) -> dict[str, Any]:
        peer = resolve_peer(options["peer"])
        peer = set_blocked(peer=peer, blocked=not options["undo"], actor=operator(), door="command", reason=options["reason"])
        self.say(describe(peer))
        return self.row(peer)
