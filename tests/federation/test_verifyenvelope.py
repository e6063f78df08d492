"""verifyenvelope: a verdict about an envelope from the envelope alone, and an exit status for each way to fail."""

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from federation.protocol.envelope import envelope_to_json, sign_packet
from federation.protocol.packet import build_packet
from keys.ed25519 import keypair_from_seed
from keys.encoding import node_id_of

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/packets.json").read_text(encoding="utf-8"))
NOW = 1_700_000_000_000
PAIR = keypair_from_seed(b"\x01" * 32)
OTHER = keypair_from_seed(b"\x02" * 32)
PACKET = build_packet(origin=node_id_of(PAIR.public), kind="note.text", content="Pegel 3,41 m", created_at=NOW, title="Köln 🌊")
ENVELOPE = sign_packet(PAIR, PACKET, timestamp=NOW + 5)


def run(*arguments):
    out = io.StringIO()
    call_command("verifyenvelope", *arguments, stdout=out)
    return out.getvalue()


def failure(*arguments):
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    return caught.value.returncode, str(caught.value)


def test_names_the_signer_and_the_packet(tmp_path):
    """A good envelope is described for people and, with --json, for programs."""
    file = tmp_path / "envelope.json"
    file.write_bytes(envelope_to_json(ENVELOPE, PAIR.public))
    text = run(str(file))
    assert PACKET.packet_id.hex() in text
    assert "whose first key this is" in text
    result = json.loads(run(str(file), "--json"))
    assert result["id"] == PACKET.packet_id.hex()
    assert result["fingerprint"] == hashlib.sha256(PAIR.public).hexdigest()
    assert (result["origin"], result["origin_proven"], result["title"]) == (PACKET.origin.hex(), True, "Köln 🌊")


def test_says_when_the_file_cannot_prove_the_origin(tmp_path):
    """Anyone can sign a packet in another's name: the signature holds, the origin is not proven."""
    file = tmp_path / "envelope.json"
    file.write_bytes(envelope_to_json(sign_packet(OTHER, PACKET, timestamp=NOW), OTHER.public))
    assert "this file cannot tell" in run(str(file))
    assert json.loads(run(str(file), "--json"))["origin_proven"] is False


def test_reads_standard_input(monkeypatch):
    """A dash stands for standard input, read as bytes."""
    data = envelope_to_json(ENVELOPE, PAIR.public)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert PACKET.packet_id.hex() in run("-")


@pytest.mark.parametrize("case", [case for case in VECTORS["envelopes"] if "error" in case], ids=lambda case: case["name"])
def test_exits_6_for_what_does_not_verify(tmp_path, case):
    """Malformed and badly signed envelopes fail verification and name the code."""
    file = tmp_path / "envelope.json"
    file.write_text(case["text"], encoding="utf-8")
    status, message = failure(str(file))
    assert status == 6
    assert message.startswith(f"not verified: {case['error']}: ")


def test_exits_6_for_junk_and_for_endless_files(tmp_path):
    """Any bytes are refused with one line, and of an endless file only the start is read."""
    file = tmp_path / "junk"
    for junk in (b"", b"\x00" * 100, bytes(range(256)), b"[" * 100_000):
        file.write_bytes(junk)
        assert failure(str(file))[0] == 6
    assert failure("/dev/zero") == (6, "not verified: too-large: 262145 bytes, at most 262144 are allowed")


def test_exits_1_when_there_is_nothing_to_read(tmp_path, monkeypatch):
    """A missing file, a folder or a closed standard input is no verdict about an envelope."""
    monkeypatch.setattr(sys, "stdin", None)
    assert failure("-") == (1, "cannot read standard input: it is closed")
    assert failure(str(tmp_path / "missing.json"))[0] == 1
    status, message = failure(str(tmp_path))
    assert (status, message) == (1, f"cannot read {tmp_path}: Is a directory")


def test_a_title_cannot_move_the_cursor(tmp_path):
    """Control characters of a stranger's packet reach the terminal as escapes."""
    file = tmp_path / "envelope.json"
    envelope = sign_packet(PAIR, {**PACKET.document(), "title": "\x1b[2J\nverified: packet"}, timestamp=NOW)
    file.write_bytes(envelope_to_json(envelope, PAIR.public))
    text = run(str(file))
    assert "\x1b" not in text
    assert text.count("\nverified:") == 0
