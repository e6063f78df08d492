"""What the commands about peers share: exit statuses, who decided, and the peer row with its live state."""

import getpass
import os
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from federation.claims import links_up
from keys.command import ArkCommand, Exit
from keys.ed25519 import InvalidKeyError
from keys.encoding import EncodingError, grouped
from peers.errors import (
    AddressError,
    AmbiguousPeerError,
    ElevationRefusedError,
    KeyConflictError,
    PacketChoiceError,
    PeerNameError,
    UnknownPeerError,
)
from peers.models import Peer
from peers.selectors import current_key, peer_row
from peers.trust import Tier


class UsageError(Exception):
    """An argument that cannot mean anything; the message says what can."""


class PeerCommand(ArkCommand):
    """A command about peers: their errors have the exit statuses of docs/architecture.md, section 2."""

    failures = {
        UnknownPeerError: Exit.NOT_FOUND,
        AmbiguousPeerError: Exit.USAGE,
        UsageError: Exit.USAGE,
        EncodingError: Exit.USAGE,
        InvalidKeyError: Exit.USAGE,
        AddressError: Exit.USAGE,
        PeerNameError: Exit.USAGE,
        PacketChoiceError: Exit.USAGE,
        KeyConflictError: Exit.REFUSED,
        ElevationRefusedError: Exit.REFUSED,
    }

    def add_peer_argument(self, parser: CommandParser) -> None:
        parser.add_argument("peer", metavar="PEER", help="its name here, its node_id, or the first digits of it")

    def row(self, peer: Peer) -> dict[str, Any]:
        """Return the peer as programs see it, with its state by the links that live now."""
        return peer_row(peer, live=live_peers())


def live_peers() -> set[str]:
    """Return the node_ids, hex, of peers that a process of this node holds a link with."""
    return {row.peer for row in links_up(timezone.now())}


def operator() -> str:
    """Return the system account that runs this command, for the record of decisions."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # No entry in the password file, as in many containers.
        return f"uid {os.getuid()}"


def parse_tier(text: str) -> Tier:
    """Return the tier of this name, in any case.

    Raises:
        UsageError: There is no such tier.
    """
    try:
        return Tier(text.lower())
    except ValueError:
        raise UsageError(f"{text[:32]!r} is no tier: choose {', '.join(Tier)}") from None


def describe(peer: Peer) -> str:
    """Return a peer in one line: name, id, tier, and the fingerprint to compare."""
    key = current_key(peer)
    shown = f"fingerprint {grouped(bytes.fromhex(key.public_key.fingerprint))} ({key.status})" if key else "no key known"
    return f"{peer.name or peer.node_id[:8]} ({peer.node_id}): {peer.tier}{', blocked' if peer.blocked else ''}; {shown}"
