"""Manage.py verifyenvelope: check a JSON envelope with nothing but the envelope."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from federation.packet_printing import one_line, utc
from federation.protocol.envelope import MAX_ENVELOPE_JSON_BYTES, envelope_from_json, verify_packet
from federation.protocol.errors import PacketError
from keys.command import ArkCommand, Exit, fail
from keys.encoding import grouped, node_id_of


class Command(ArkCommand):
    help = "Check a JSON envelope offline: is it well formed, and did the key in it sign exactly this packet? Exit 6 if not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", help="file with one JSON envelope, or - for standard input")

    def run(self, **options: Any) -> dict[str, Any]:
        data = _read(options["file"])
        try:
            envelope, public_key = envelope_from_json(data)
            packet = verify_packet(envelope, public_key).packet
        except PacketError as error:
            raise fail(f"not verified: {error.code}: {error}", Exit.UNVERIFIED) from None
        # A first key proves the origin by itself. After a rotation only the origin's succession can, which is not in the file.
        is_first_key = node_id_of(public_key) == packet.origin
        self.say(f"verified: packet {packet.packet_id.hex()}")
        self.say(f"  kind       {packet.kind}")
        if packet.title:
            self.say(f"  title      {one_line(packet.title)}")
        self.say(f"  signed     {utc(envelope.timestamp)}")
        self.say(f"  by key     {grouped(envelope.key_fingerprint)}")
        if is_first_key:
            self.say(f"  origin     {packet.origin.hex()}, whose first key this is")
        else:
            self.say(
                f"  origin     {packet.origin.hex()} by its own account: whether the key is that node's, this file cannot tell"
            )
        return {
            "verified": True,
            "id": packet.packet_id.hex(),
            "origin": packet.origin.hex(),
            "origin_proven": is_first_key,
            "kind": packet.kind,
            "title": packet.title,
            "created_at": packet.created_at,
            "timestamp": envelope.timestamp,
            "public_key": public_key.hex(),
            "fingerprint": envelope.key_fingerprint.hex(),
        }


def _read(name: str) -> bytes:
    """Return at most one byte more than an envelope may have, which is enough to refuse it."""
    try:
        if name == "-":
            if sys.stdin is None:  # started with its standard input closed
                raise fail("cannot read standard input: it is closed")
            return sys.stdin.buffer.read(MAX_ENVELOPE_JSON_BYTES + 1)
        with Path(name).open("rb") as file:
            return file.read(MAX_ENVELOPE_JSON_BYTES + 1)
    except OSError as error:
        raise fail(f"cannot read {name}: {error.strerror or error}") from None
