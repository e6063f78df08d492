"""Manage.py packets: what is stored here, newest arrival first."""

import itertools
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser

from federation.packet_arguments import add_filter_arguments, filters_of
from federation.packet_printing import SHORT_ID, node_label, one_line, table, utc
from federation.selectors import PacketLookupError, StoredPacket, cursor_of, operator_names, search_packets
from keys.command import ArkCommand, Exit, json_text
from peers.errors import AmbiguousPeerError, UnknownPeerError

COLUMNS = ("id", "kind", "title", "origin", "created", "received", "from", "audience", "tags")


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
            self.stdout.write(("" if last is None else ", ") + json_text(row.as_json()), ending="")
            last = row
        self.stdout.write("]")
        return last

    def _write_table(self, rows: Iterable[StoredPacket], *, colour: bool) -> StoredPacket | None:
        names = operator_names()
        last = None
        if not self.stdout.isatty():
            for row in rows:
                self.say("\t".join(one_line(cell) for cell in _cells(row, names, short=False)))
                last = row
            return last
        shown = list(rows)
        if not shown:
            self.say("no packets")
            return None
        self.stdout.write(table(COLUMNS, (_cells(row, names, short=True) for row in shown), colour=colour))
        return shown[-1]


def _cells(row: StoredPacket, names: dict[str, str], *, short: bool) -> tuple[str, ...]:
    packet_id = row.packet_id.hex() or f"row {row.arrival}"
    if short:
        packet_id = packet_id[:SHORT_ID]
    came_from = node_label(row.received_from, names) if row.received_from else "published here"
    packet = row.packet
    if packet is None:
        return (packet_id, "damaged", row.damage, "", "", utc(row.received_at), came_from, "", "")
    return (
        packet_id,
        packet.kind,
        packet.title,
        node_label(packet.origin.hex(), names) if short else packet.origin.hex(),
        utc(packet.created_at),
        utc(row.received_at),
        came_from,
        packet.audience.value + (", hidden" if row.hidden else ""),
        ", ".join(packet.tags),
    )
