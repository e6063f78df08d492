"""Manage.py showpacket: one packet with everything its origin said and how it came here."""

from typing import Any

from django.core.management.base import CommandParser

from federation.packet_printing import content_text, node_label, one_line, utc
from federation.protocol.envelope import envelope_to_json
from federation.selectors import (
    AmbiguousPacketError,
    MalformedIdError,
    StoredPacket,
    UnknownPacketError,
    operator_names,
    resolve_packet,
    stored_packet,
)
from keys.command import ArkCommand, Exit, escaped_json, fail
from keys.ed25519 import KeysError
from keys.models import PublicKey
from keys.services import load_identity
from peers.trust import explain


class Command(ArkCommand):
    help = "Show one packet: what its origin signed, who handed it over, when, and which rule let it in."
    failures = {UnknownPacketError: Exit.NOT_FOUND, MalformedIdError: Exit.USAGE, AmbiguousPacketError: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="packet id, or at least its first 6 digits")
        parser.add_argument("--envelope", action="store_true", help="print exactly the JSON envelope, for verifyenvelope")

    def run(self, **options: Any) -> dict[str, Any] | None:
        row = stored_packet(resolve_packet(options["id"]))
        if options["envelope"]:
            self._write_envelope(row)
            return None
        if row.packet is None:
            if self.as_json:
                return row.as_json()
            raise fail(f"packet {row.packet_id.hex()} is damaged here: {row.damage}")
        self._describe(row)
        return {**row.as_json(), **_details(row)}

    def _write_envelope(self, row: StoredPacket) -> None:
        if row.envelope is None:
            raise fail(f"packet {row.packet_id.hex()} is damaged here: {row.damage}")
        public_key = _public_key(row.envelope.key_fingerprint)
        if public_key is None:
            raise fail(f"the public key {row.envelope.key_fingerprint.hex()} that signed it is not held here any more")
        text = envelope_to_json(row.envelope, public_key).decode()
        # A terminal obeys some characters that JSON leaves as they are; written as escapes they mean the same.
        self.stdout.write(escaped_json(text) if self.stdout.isatty() else text)

    def _describe(self, row: StoredPacket) -> None:
        packet = row.packet
        assert packet is not None and row.envelope is not None  # noqa: S101 - sound rows only; narrows the types
        names = operator_names()
        details = _details(row)
        lines = [
            ("id", row.packet_id.hex()),
            ("origin", packet.origin.hex() + (f" ({names[packet.origin.hex()]})" if packet.origin.hex() in names else "")),
            ("kind", packet.kind),
            ("title", packet.title),
            ("tags", ", ".join(packet.tags)),
            ("audience", packet.audience.value),
            ("created", utc(packet.created_at)),
            ("signed", f"{utc(row.envelope.timestamp)} with key {row.envelope.key_fingerprint.hex()}"),
            ("source", details["source"] or ""),
            ("confidence", "" if details["confidence"] is None else str(details["confidence"])),
            ("depends on", ", ".join(details["depends_on"])),
            ("supersedes", details["supersedes"] or ""),
            ("expires", "" if details["expires_at"] is None else utc(details["expires_at"])),
            ("received", f"{utc(row.received_at)}, {received_phrase(row, names)}"),
            ("rule", f"{row.received_rule}: {explain(row.received_rule)}".rstrip(": ") if row.received_from else ""),
            ("hidden", "yes: kept here, offered to nobody" if row.hidden else ""),
        ]
        for label, value in lines:
            if value:
                self.say(f"{label:<11} {one_line(value)}")
        self.say("content")
        for line in content_text(packet.content()).split("\n"):
            # Indented, so that no line of the content can pass for one of ours.
            self.say(f"    {line}")


def received_phrase(row: StoredPacket, names: dict[str, str]) -> str:
    """Say in a few words how a packet came here."""
    return f"handed over by {node_label(row.received_from, names)}" if row.received_from else "published here"


def _public_key(fingerprint: bytes) -> bytes | None:
    """Return the public key with this fingerprint: a node's met before, or this node's own."""
    row = PublicKey.objects.filter(fingerprint=fingerprint.hex()).first()
    if row is not None:
        return bytes.fromhex(row.public_key)
    try:
        pair = load_identity().pair
    except KeysError:
        return None
    return pair.public if pair.fingerprint == fingerprint else None


def _details(row: StoredPacket) -> dict[str, Any]:
    """Return what the packet row of a list leaves out."""
    packet, envelope = row.packet, row.envelope
    assert packet is not None and envelope is not None  # noqa: S101 - sound rows only; narrows the types
    return {
        "source": packet.source,
        "confidence": packet.confidence,
        "depends_on": [packet_id.hex() for packet_id in packet.depends_on],
        "supersedes": packet.supersedes.hex() if packet.supersedes else None,
        "expires_at": packet.expires_at,
        "timestamp": envelope.timestamp,
        "key_fingerprint": envelope.key_fingerprint.hex(),
        "received_rule": row.received_rule,
        "hidden": row.hidden,
    }
