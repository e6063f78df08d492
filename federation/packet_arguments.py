"""What people type about packets: times, numbers and the filters that several commands share."""

import argparse
import re
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser

from federation.protocol.limits import MAX_SAFE_INTEGER
from federation.selectors import PacketFilters
from peers.selectors import resolve_peer

DEFAULT_LIMIT = 50


def moment(text: str) -> int:
    """Return milliseconds since the Unix epoch for ISO 8601 (UTC unless it says otherwise) or for such a number itself."""
    if re.fullmatch(r"[0-9]{1,16}", text):
        value = int(text)
    else:
        try:
            parsed = datetime.fromisoformat(text)
            value = round((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is no time: ISO 8601 (2026-01-31T12:00:00Z) or milliseconds since 1970 are expected"
            ) from None
    if not 0 <= value <= MAX_SAFE_INTEGER:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is out of range: 1970 to 2^53-1 milliseconds")
    return value


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 on")
    return int(text)


def add_filter_arguments(parser: CommandParser) -> None:
    parser.add_argument("--kind", action="append", default=[], help="packets of this kind; may be repeated (any of them)")
    parser.add_argument("--tag", action="append", default=[], help="packets with this tag; may be repeated (all of them)")
    parser.add_argument(
        "--origin", action="append", default=[], help="signed by this node (node_id, prefix or name); may be repeated"
    )
    parser.add_argument("--since", type=moment, help="created then or later: ISO 8601 or milliseconds since 1970")
    parser.add_argument("--until", type=moment, help="created before then")
    parser.add_argument("--limit", type=positive, default=DEFAULT_LIMIT, help=f"at most so many (default {DEFAULT_LIMIT})")
    parser.add_argument("--cursor", help="go on where an earlier answer ended")


def filters_of(options: dict[str, Any]) -> PacketFilters:
    """Return the filters in a command's options; the limit is the command's own business.

    Raises:
        peers.errors.PeersError: `--origin` is neither a whole node_id nor names one peer.
    """
    return PacketFilters(
        kinds=options["kind"],
        tags=options["tag"],
        origins=[_origin(text) for text in options["origin"]],
        since=options["since"],
        until=options["until"],
        cursor=options["cursor"],
    )


def _origin(text: str) -> str:
    # A whole node_id may be this node's own, or of a node whose registry row is gone.
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else resolve_peer(text).node_id
