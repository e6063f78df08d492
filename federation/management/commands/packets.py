"""Manage.py packets: what is stored here, newest arrival first."""

import itertools
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser

from federation.packet_arguments import add_filter_arguments, filters_of
from federation.packet_printing import SHORT_ID, node_label, one_line, table, utc
from federation.selectors import PacketLookupError, StoredPacket, cursor_of, operator_names, search_packets
from keys.command import ArkCommand, Exit
from peers.errors import AmbiguousPeerError, UnknownPeerError

# On a terminal: what fits 80 characters; piped, lines hold all cells of `_cells`.
COLUMNS = ("id", "received", "kind", "title", "origin", "from", "audience", "tags")
FIXED = ("id", "received")


class Command(ArkCommand):
    help = "List the packets stored here, newest arrival first."
    failures = {UnknownPeerError: Exit.NOT_FOUND, AmbiguousPeerError: Exit.USAGE, PacketLookupError: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        add_filter_arguments(parser)

    def run(self, **options: Any) -> None:
        found = search_packets(filters_of(options))
        # One more than asked for tells whether a cursor leads anywhere.
        rows = itertools.islice(found, options["limit"])
        last = self._write_json(rows) if self.as_json else self._write_table(rows, colour=not options["no_color"])
        if last is not None and next(found, None) is not None:
            line = f"next cursor: {cursor_of(last)}"
            if self.as_json:
                self.stderr.write(line)
            else:
                self.say(line)

    def _write_json(self, rows: Iterable[StoredPacket]) -> StoredPacket | None:
        """Write the array row by row, so that no limit makes it too large for memory."""
        last = None
        self.stdout.write("[", ending="")
        for row in rows:
            self.stdout.write(("" if last is None else ", ") + self.json_text(row.as_json()), ending="")
            last = row
        self.stdout.write("]")
        return last

    def _write_table(self, rows: Iterable[StoredPacket], *, colour: bool) -> StoredPacket | None:
        names = operator_names()
        last = None
        if not self.stdout.isatty():
            for row in rows:
                self.say("\t".join(one_line(cell) for cell in _cells(row, names)))
                last = row
            return last
        shown = list(rows)
        if not shown:
            self.say("no packets")
            return None
        self.stdout.write(table(COLUMNS, [_short_cells(row, names) for row in shown], fixed=FIXED, colour=colour))
        return shown[-1]


def _cells(row: StoredPacket, names: dict[str, str]) -> tuple[str, ...]:
    packet_id = row.packet_id.hex() or f"row {row.arrival}"
    came_from = node_label(row.received_from, names) if row.received_from else "published here"
    packet = row.packet
    if packet is None:
        return (packet_id, "damaged", row.damage, "", "", utc(row.received_at), came_from, "", "")
    return (
        packet_id,
        packet.kind,
        packet.title,
        packet.origin.hex(),
        utc(packet.created_at),
        utc(row.received_at),
        came_from,
        _audience(row),
        ", ".join(packet.tags),
    )


def _short_cells(row: StoredPacket, names: dict[str, str]) -> tuple[str, ...]:
    packet_id = row.packet_id.hex()[:SHORT_ID] or f"row {row.arrival}"
    came_from = node_label(row.received_from, names) if row.received_from else "here"
    packet = row.packet
    if packet is None:
        return (packet_id, utc(row.received_at), "damaged", row.damage, "", came_from, "", "")
    origin = node_label(packet.origin.hex(), names)
    return (packet_id, utc(row.received_at), packet.kind, packet.title, origin, came_from, _audience(row), ", ".join(packet.tags))


def _audience(row: StoredPacket) -> str:
    audience = row.packet.audience.value if row.packet else ""
    return f"{audience}, hidden" if row.hidden else audience
