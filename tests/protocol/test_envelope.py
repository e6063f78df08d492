"""Envelopes: the signature covers exactly the bytes, and nothing forged, doubled or laid out anew gets past it."""

import ast
import copy
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785

from federation.protocol.envelope import (
    MAX_ENVELOPE_JSON_BYTES,
    Envelope,
    VerifiedPacket,
    envelope_from_json,
    envelope_to_json,
    sign_packet,
    signing_input,
    verify_packet,
    verify_parsed,
)
from federation.protocol.errors import Code, PacketError
from federation.protocol.packet import build_packet, packet_from_fields, parse_packet
from keys.ed25519 import keypair_from_seed, sign
from keys.encoding import fingerprint_of, node_id_of

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "docs/vectors/packets.json").read_text(encoding="utf-8"))
NOW = 1_700_000_000_000
PAIR = keypair_from_seed(b"\x01" * 32)
OTHER = keypair_from_seed(b"\x02" * 32)
PACKET = build_packet(
    origin=node_id_of(PAIR.public),
    kind="note.text",
    content={"text": "Pegel 3,41 m", "values": [1, 2.5, None], "deep": [[[["x"]]]]},
    created_at=NOW,
    title="Köln 🌊",
    tags=["river"],
    confidence=0.85,
)
ENVELOPE = sign_packet(PAIR, PACKET, timestamp=NOW + 5)


def outcome(function, *args, **kwargs):
    """Return the result, or the code of the PacketError; every other exception goes through."""
    try:
        return function(*args, **kwargs)
    except PacketError as error:
        return error.code


def verify_json(data):
    """Read and verify a JSON envelope, as a person's file is."""
    return verify_packet(*envelope_from_json(data))


@pytest.mark.parametrize("case", VECTORS["signatures"], ids=lambda case: case["name"])
def test_signature_vectors(case):
    """Signing input, signature and fingerprint are those published."""
    pair = keypair_from_seed(bytes.fromhex(case["seed"]))
    envelope = sign_packet(pair, json.loads(case["packet"]), timestamp=case["timestamp"])
    assert signing_input(envelope.timestamp, envelope.body).hex() == case["signing_input"]
    assert envelope.body == case["packet"].encode()
    assert envelope.signature.hex() == case["signature"]
    assert (pair.public.hex(), envelope.key_fingerprint.hex()) == (case["public_key"], case["key_fingerprint"])
    assert verify_packet(envelope, pair.public) == VerifiedPacket(parse_packet(envelope.body), envelope)


@pytest.mark.parametrize("case", VECTORS["envelopes"], ids=lambda case: case["name"])
def test_json_envelope_vectors(case):
    """Every published JSON envelope gives its packet's id or its error."""
    result = outcome(verify_json, case["text"].encode())
    assert result == case["error"] if "error" in case else result.packet.packet_id.hex() == case["id"]


def test_what_is_signed_verifies_and_keeps_its_bytes():
    """Signing a parsed packet or its fields gives the same envelope, and the very bytes come back."""
    assert sign_packet(PAIR, PACKET.document(), timestamp=NOW + 5) == ENVELOPE
    verified = verify_packet(ENVELOPE, PAIR.public)
    assert verified.packet == PACKET
    assert verified.envelope is ENVELOPE
    assert verified.envelope.body == PACKET.body


@pytest.mark.parametrize("timestamp", [-1, 2**53, 2**63, pytest.param(10**5000, id="5,001 digits"), 1e308, True, "now", None, 5.0])
def test_a_timestamp_that_is_none_is_refused(timestamp):
    """Neither signing nor verifying takes anything but an integer from 0 to 2^53-1."""
    assert outcome(sign_packet, PAIR, PACKET, timestamp=timestamp) == Code.MALFORMED
    assert outcome(verify_packet, replace(ENVELOPE, timestamp=timestamp), PAIR.public) == Code.MALFORMED


@pytest.mark.parametrize("timestamp", [0, 2**53 - 1])
def test_timestamps_at_their_limits_verify(timestamp):
    """Whether a time is plausible is another question than whether it is signed."""
    assert verify_packet(sign_packet(PAIR, PACKET, timestamp=timestamp), PAIR.public).envelope.timestamp == timestamp


def test_signing_follows_the_rules_of_receipt():
    """Nothing leaves here that another node would refuse."""
    assert outcome(sign_packet, PAIR, {**PACKET.document(), "title": None}, timestamp=NOW) == Code.MALFORMED
    assert outcome(sign_packet, PAIR, {**PACKET.document(), "content": 2**53}, timestamp=NOW) == Code.NOT_CANONICAL


@pytest.mark.parametrize(
    "change, code",
    [
        ({"signature": b"\x00" * 64}, Code.BAD_SIGNATURE),
        ({"signature": ENVELOPE.signature[:-1]}, Code.MALFORMED),
        ({"signature": ENVELOPE.signature + b"\x00"}, Code.MALFORMED),
        ({"signature": ENVELOPE.signature.hex()}, Code.MALFORMED),
        ({"signature": None}, Code.MALFORMED),
        ({"timestamp": NOW + 6}, Code.BAD_SIGNATURE),
        ({"key_fingerprint": OTHER.fingerprint}, Code.UNKNOWN_KEY),
        ({"key_fingerprint": ENVELOPE.key_fingerprint[:-1]}, Code.MALFORMED),
        ({"body": PACKET.body + b" "}, Code.NOT_CANONICAL),
        ({"body": PACKET.body.replace(b"3,41", b"8,41")}, Code.BAD_SIGNATURE),
        ({"body": b""}, Code.MALFORMED),
        ({"body": None}, Code.MALFORMED),
        ({"body": b"a" * 65_537}, Code.TOO_LARGE),
    ],
)
def test_each_changed_part_is_refused_with_its_code(change, code):
    """A changed envelope says by its code what is wrong with it."""
    assert outcome(verify_packet, replace(ENVELOPE, **change), PAIR.public) == code


def test_another_key_does_not_verify():
    """The key to verify with must be the one the envelope names, and a whole one."""
    assert outcome(verify_packet, ENVELOPE, OTHER.public) == Code.UNKNOWN_KEY
    assert outcome(verify_packet, replace(ENVELOPE, key_fingerprint=OTHER.fingerprint), OTHER.public) == Code.BAD_SIGNATURE
    for short_key in (b"", PAIR.public[:-1], PAIR.public + b"\x00", None):
        assert outcome(verify_packet, ENVELOPE, short_key) == Code.UNKNOWN_KEY


def test_a_signature_for_another_purpose_does_not_verify():
    """The label keeps packets apart from everything else the key signs."""
    for label in (b"", b"arklattice/manifest/v1\n", b"arklattice/beacon/v1\n", b"arklattice/packet/v2\n"):
        forged = sign(PAIR, label + str(NOW + 5).encode() + b"\n" + PACKET.body)
        assert outcome(verify_packet, replace(ENVELOPE, signature=forged), PAIR.public) == Code.BAD_SIGNATURE


def test_digits_cannot_move_between_timestamp_and_packet():
    """The line feed bounds the timestamp: no other split of the signed bytes is a packet."""
    signed = signing_input(ENVELOPE.timestamp, ENVELOPE.body)
    assert signed.startswith(b"arklattice/packet/v1\n%d\n{" % ENVELOPE.timestamp)
    assert signed == b"arklattice/packet/v1\n" + str(NOW + 5).encode() + b"\n" + PACKET.body


def test_a_packet_of_another_envelope_is_not_verified_by_it():
    """Parsed packet and envelope must hold the same bytes."""
    other = packet_from_fields({**PACKET.document(), "title": "another"})
    assert outcome(verify_parsed, other, ENVELOPE, PAIR.public) == Code.BAD_SIGNATURE
    assert verify_parsed(PACKET, ENVELOPE, PAIR.public).packet is PACKET


def test_the_json_form_holds_the_signed_bytes_and_exactly_four_fields():
    """The packet stands in the JSON envelope byte for byte, and the whole is canonical."""
    data = envelope_to_json(ENVELOPE, PAIR.public)
    assert PACKET.body in data
    value = json.loads(data)
    assert rfc8785.dumps(value) == data
    assert value == {
        "packet": PACKET.document(),
        "signature": ENVELOPE.signature.hex(),
        "timestamp": NOW + 5,
        "key": PAIR.public.hex(),
    }
    assert envelope_from_json(data) == (ENVELOPE, PAIR.public)


def test_json_envelope_size_at_the_limit_and_one_beyond():
    """256 KiB of blanks and envelope are read, one byte more is too large before it is looked at."""
    data = json.dumps(json.loads(envelope_to_json(ENVELOPE, PAIR.public)), indent=1).encode()
    padded = data + b" " * (MAX_ENVELOPE_JSON_BYTES - len(data))
    assert verify_json(padded).packet == PACKET
    assert outcome(verify_json, padded + b" ") == Code.TOO_LARGE
    assert outcome(envelope_from_json, b"\xff" * (MAX_ENVELOPE_JSON_BYTES + 1)) == Code.TOO_LARGE


def test_the_largest_packets_fit_into_a_json_envelope():
    """A packet at its size and nesting limits goes through the JSON form; one beyond is refused."""
    fields = {**PACKET.document(), "content": ""}
    room = 65_536 - len(packet_from_fields(fields).body)
    largest = sign_packet(PAIR, {**fields, "content": "a" * room}, timestamp=NOW)
    data = envelope_to_json(largest, PAIR.public)
    assert verify_json(data).envelope == largest
    assert outcome(verify_json, data.replace(b'"content":"a', b'"content":"aa')) == Code.TOO_LARGE
    deep = 0
    for _ in range(31):
        deep = [deep]
    deepest = sign_packet(PAIR, {**fields, "content": deep}, timestamp=NOW)
    data = envelope_to_json(deepest, PAIR.public)
    assert verify_json(data).envelope == deepest
    assert outcome(verify_json, data.replace(b"[0]", b"[[0]]")) == Code.MALFORMED


def test_envelopes_and_verified_packets_cross_processes():
    """Workers in other processes get and give back equal values."""
    verified = verify_packet(ENVELOPE, PAIR.public)
    assert pickle.loads(pickle.dumps(verified)) == verified  # noqa: S301 - our own bytes


def test_verified_packets_are_made_where_signatures_are_checked():
    """Only the envelope module, and the pool whose processes check signatures, make a VerifiedPacket."""
    makers = set()
    for app in ("arklattice", "federation", "peers", "keys"):
        for source in (ROOT / app).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "VerifiedPacket":
                    makers.add(str(source.relative_to(ROOT)))
    assert makers <= {"federation/protocol/envelope.py", "federation/verifier.py"}


# 20,000 mutations: of the JSON envelope as text, of its structure, and of the binary envelope.


def mutate_text(rng, data):
    """Change, cut, double or insert bytes, or spell one thing in a way JSON readers disagree about."""
    text = bytearray(data)
    ambiguous = [
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"\\u0000",
        b"NaN",
        b"1e400",
        b"-0",
        b"1.0",
        b"18446744073709551616",
        b"[" * 40,
        b"\xc0\x80",
    ]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(6):
            case 0:
                text[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del text[at : at + rng.randint(1, 8)]
            case 2:
                text[at:at] = text[at : at + rng.randint(1, 40)]
            case 3:
                text[at:at] = rng.choice(ambiguous)
            case 4:
                # A field once more, with another value, at the start or the end of some object.
                field = b'"%s":%s' % (
                    rng.choice([b"v", b"origin", b"content", b"timestamp", b"packet", b"key"]),
                    rng.choice([b"1", b'"x"', b"{}"]),
                )
                at = text.find(b"{", at) if rng.random() < 0.5 else text.find(b"}", at)
                text[max(at, 0) + 1 : max(at, 0) + 1] = field + b"," if rng.random() < 0.5 else b"," + field
            case 5:
                if rng.random() < 0.1:
                    text = bytearray(
                        bytes(text).decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig"]))
                    )
                else:
                    text[at:at] = rng.choice([b" ", b"\n", b"\t", b"\r", b"\x00", b"\x0b", b"\xc2\xa0"])
    return bytes(text)


ODD_VALUES = [
    None,
    True,
    0,
    -1,
    2**53,
    2**63,
    1e308,
    0.5,
    "",
    "now",
    "\x00",
    "\ufeff",
    [],
    {},
    [[]],
    {"v": 1},
    "ab" * 16,
    "ab" * 32,
]


def mutate_structure(rng, data):
    """Put another value, a further key or nothing into some place of the envelope, then write it anew."""
    value = json.loads(data)
    holder = rng.choice([value, value["packet"], value["packet"]["content"]])
    key = rng.choice([*holder, "extra"])
    if rng.random() < 0.2:
        holder.pop(key, None)
    elif rng.random() < 0.3 and isinstance(holder.get(key), str):
        digits = list(holder[key])
        digits[rng.randrange(len(digits))] = rng.choice("0123456789abcdefABCDEF \n")
        holder[key] = "".join(digits)
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode("utf-8", "surrogatepass")


def mutate_binary(rng):
    """Change one part of the binary envelope, or several."""
    body, signature = bytearray(ENVELOPE.body), bytearray(ENVELOPE.signature)
    timestamp, fingerprint = ENVELOPE.timestamp, bytearray(ENVELOPE.key_fingerprint)
    for _ in range(rng.randint(1, 2)):
        part = rng.choice([body, body, body, signature, signature, fingerprint, None])
        if part is None:
            timestamp = rng.choice([timestamp + 1, -timestamp, 0, 2**63, True, timestamp * 10])
        else:
            part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
    return Envelope(bytes(body), bytes(signature), timestamp, bytes(fingerprint))


def test_none_of_20_000_mutations_is_a_forgery():
    """A changed envelope is refused with a code, or it still says exactly what was signed."""
    rng = random.Random(13)
    data = envelope_to_json(ENVELOPE, PAIR.public)
    codes = {}
    for number in range(20_000):
        if number % 4 == 3:
            result = outcome(verify_packet, mutate_binary(rng), PAIR.public)
        else:
            mutation = mutate_text(rng, data) if number % 2 else mutate_structure(rng, data)
            result = outcome(verify_json, mutation)
        if isinstance(result, VerifiedPacket):
            assert result.envelope == ENVELOPE and result.packet == PACKET
            result = Code.ACCEPTED
        codes[result] = codes.get(result, 0) + 1
    assert set(codes) >= {Code.MALFORMED, Code.NOT_CANONICAL, Code.BAD_SIGNATURE, Code.UNSUPPORTED, Code.UNKNOWN_KEY}
    assert sum(codes.values()) == 20_000


def test_fingerprint_of_the_json_key_is_the_envelopes():
    """The JSON form names the key, the binary one its fingerprint."""
    envelope, public_key = envelope_from_json(envelope_to_json(ENVELOPE, PAIR.public))
    assert envelope.key_fingerprint == fingerprint_of(public_key)
