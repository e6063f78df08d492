"""Manage.py importkey: trust another node's key."""

import sys
from typing import Any

from django.core.management.base import CommandParser

from federation.management.peer_command import PeerCommand, UsageError, describe, operator, parse_tier
from keys.encoding import PUBLIC_KEY_BYTES, ContactCard, parse_hex
from peers.services import import_peer_key

# A key is 64 characters, a card at most 2,048; more on standard input is something else.
MAX_STDIN_CHARS = 4_096


class Command(PeerCommand):
    help = "Trust a key that its operator gave you. Compare the fingerprint shown here with theirs, over another channel."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("peer", metavar="PEER", help="your name for the node the key belongs to, or its node_id")
        parser.add_argument("key", metavar="KEY", help="64 hex digits, a contact card (ark1…), or - for standard input")
        parser.add_argument("--tier", metavar="T", help="core, sandbox, external or unknown; without it the peer stays UNKNOWN")
        parser.add_argument("--url", metavar="U", help="ws:// or wss:// URL to dial it at")

    def run(self, **options: Any) -> dict[str, Any]:
        tier = parse_tier(options["tier"]) if options["tier"] is not None else None
        key = _parse_key(_read_stdin() if options["key"] == "-" else options["key"])
        peer = import_peer_key(peer=options["peer"], key=key, tier=tier, url=options["url"], actor=operator(), door="command")
        self.say(describe(peer))
        return self.row(peer)


def _read_stdin() -> str:
    try:
        text = sys.stdin.read(MAX_STDIN_CHARS + 1)
    except UnicodeDecodeError:
        raise UsageError("standard input is not text: expected 64 hex digits or a contact card") from None
    if len(text) > MAX_STDIN_CHARS:
        raise UsageError(f"standard input is longer than {MAX_STDIN_CHARS} characters: expected 64 hex digits or a contact card")
    return text


def _parse_key(text: str) -> bytes | ContactCard:
    text = text.strip()
    if text.startswith("ark1"):
        return ContactCard.decode(text)
    return parse_hex(text, size=PUBLIC_KEY_BYTES)
