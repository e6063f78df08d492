"""The packet: every rule of its fields at its limit and one beyond, each refusal with its code."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import MAX_NESTING, MAX_PACKET_BYTES
from federation.protocol.packet import PacketId, PacketMould, build_packet, packet_from_fields, packet_id_of, parse_packet
from keys.encoding import NodeId
from peers.trust import Audience

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/packets.json").read_text(encoding="utf-8"))
ORIGIN = NodeId(bytes(range(16)))
NOW = 1_700_000_000_000
REQUIRED = {"v": 1, "origin": ORIGIN.hex(), "kind": "note.text", "created_at": NOW, "content": "text"}


def outcome(function, *args, **kwargs):
    """Return the result, or the code of the PacketError; every other exception goes through."""
    try:
        return function(*args, **kwargs)
    except PacketError as error:
        return error.code


def vector_body(case):
    text = case["text"]
    if "pad_content" in case:
        text = text.replace('"content":""', '"content":"' + "a" * case["pad_content"] + '"')
    return text.encode()


@pytest.mark.parametrize("case", VECTORS["packets"], ids=lambda case: case["name"])
def test_vectors(case):
    """Every published packet gives its id or its error."""
    body = vector_body(case)
    if "error" in case:
        assert outcome(parse_packet, body) == case["error"]
    else:
        packet = parse_packet(body)
        assert packet.packet_id.hex() == case["id"]
        assert packet.body == body


def test_every_field_is_read():
    """What stands in the bytes is what the packet says."""
    packet = build_packet(
        origin=ORIGIN,
        kind="note.text",
        content={"text": "Pegel", "values": [1, 2.5]},
        created_at=NOW,
        title="Köln 🌊",
        tags=("river", "level"),
        audience=Audience.PUBLIC,
        source="WSV",
        confidence=1,
        depends_on=(PacketId(b"\x01" * 32),),
        supersedes=PacketId(b"\x02" * 32),
        expires_at=NOW + 1,
    )
    assert packet == parse_packet(packet.body)
    assert (packet.origin, packet.kind, packet.created_at, packet.title) == (ORIGIN, "note.text", NOW, "Köln 🌊")
    assert (packet.tags, packet.audience, packet.source) == (("river", "level"), Audience.PUBLIC, "WSV")
    assert packet.confidence == 1.0 and isinstance(packet.confidence, float)
    assert (packet.depends_on, packet.supersedes, packet.expires_at) == ((b"\x01" * 32,), b"\x02" * 32, NOW + 1)
    assert packet.content() == {"text": "Pegel", "values": [1, 2.5]}
    assert packet.packet_id == hashlib.sha256(packet.body).digest() == packet_id_of(packet.body)


def test_what_is_not_given_is_absent():
    """A packet with the required fields only holds nothing else, and defaults are not written."""
    packet = build_packet(origin=ORIGIN, kind="note.text", content=None, created_at=NOW)
    assert packet.document() == {**REQUIRED, "content": None}
    assert packet.audience is Audience.CORE
    assert (packet.title, packet.tags, packet.depends_on) == ("", (), ())
    assert (packet.source, packet.confidence, packet.supersedes, packet.expires_at) == (None, None, None, None)


def test_unknown_keys_are_kept():
    """Keys of later versions survive, with null in them."""
    fields = {**REQUIRED, "mood": None, "weather": {"wind": [None, 7]}}
    assert packet_from_fields(fields).document() == fields


def test_reencoding_leaves_the_id_unchanged():
    """Whoever reads the canonical bytes and writes them again gets the same id."""
    for case in VECTORS["packets"]:
        if "id" in case:
            packet = parse_packet(vector_body(case))
            assert packet_from_fields(packet.document()).packet_id == packet.packet_id
            assert hashlib.sha256(rfc8785.dumps(json.loads(packet.body))).digest() == packet.packet_id


@pytest.mark.parametrize("value", [2**63, -1, 1e308, True, "now", None, 0.5, 2**53, [NOW]])
@pytest.mark.parametrize("field", ["created_at", "expires_at"])
def test_times_that_are_none_are_refused(field, value):
    """Only integers from 0 to 2^53-1 are times, at publishing and in received bytes."""
    assert outcome(packet_from_fields, {**REQUIRED, field: value}) in (Code.MALFORMED, Code.NOT_CANONICAL)
    body = json.dumps(dict(sorted({**REQUIRED, field: value}.items())), separators=(",", ":")).encode()
    assert outcome(parse_packet, body) in (Code.MALFORMED, Code.NOT_CANONICAL)


def test_a_vouch_lists_at_most_900_ids():
    """901 ids are against its shape; 900 are a vouch, which nothing here acts on yet."""
    ids = [f"{number:064x}" for number in range(901)]
    assert outcome(packet_from_fields, {**REQUIRED, "kind": "ark.vouch", "content": {"ids": ids[:900]}}) == Code.UNSUPPORTED
    assert outcome(packet_from_fields, {**REQUIRED, "kind": "ark.vouch", "content": {"ids": ids}}) == Code.MALFORMED


def test_size_counts_bytes_not_characters():
    """A packet of 65,536 bytes passes however few characters it has."""
    room = MAX_PACKET_BYTES - len(packet_from_fields({**REQUIRED, "content": ""}).body)
    text = "🌊" * (room // 4) + "a" * (room % 4)
    assert len(packet_from_fields({**REQUIRED, "content": text}).body) == MAX_PACKET_BYTES
    assert outcome(packet_from_fields, {**REQUIRED, "content": text + "a"}) == Code.TOO_LARGE


def test_messages_name_the_field_and_cut_the_value_short():
    """A refusal says what was wrong and what was expected, at a length the sender does not choose."""
    with pytest.raises(PacketError, match=r"^title is 'x{24}'…, expected a string of at most 200 characters$") as caught:
        packet_from_fields({**REQUIRED, "title": "x" * 5000})
    assert caught.value.code is Code.MALFORMED
    with pytest.raises(PacketError, match=r"^created_at is True, expected milliseconds since 1970"):
        packet_from_fields({**REQUIRED, "created_at": True})
    with pytest.raises(PacketError, match=r"^packet version 2 is not known here$"):
        packet_from_fields({**REQUIRED, "v": 2})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["v", "origin", "kind", "created_at", "content", "title", "tags", "audience", "source", "confidence", "depends_on"]
FIELDS += ["supersedes", "expires_at", "attachments", "recipients", "extra"]


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), st.sampled_from([None, *FIELDS[:5]]))
def test_any_value_in_any_field_is_read_or_refused_with_a_code(changes, removed):
    """No value in a field raises anything but PacketError; what passes is read back the same."""
    fields = {**REQUIRED, **changes}
    fields.pop(removed, None)
    packet = outcome(packet_from_fields, fields)
    assert isinstance(packet, Code) or parse_packet(packet.body) == packet


def test_mutated_bytes_raise_only_packet_errors():
    """5,000 packets with bytes changed, cut or doubled are read under another id, or refused with a code."""
    rng = random.Random(13)
    bodies = [vector_body(case) for case in VECTORS["packets"] if "id" in case and len(case["text"]) < 1500]
    for _ in range(5_000):
        body = bytearray(rng.choice(bodies))
        original = bytes(body)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(body) + 1)
            piece = bytes([rng.randrange(256)]) if rng.random() < 0.5 else bytes(body[start : start + rng.randint(0, 9)])
            body[start : start + rng.randint(0, 4)] = piece
        result = outcome(parse_packet, bytes(body))
        if not isinstance(result, Code):
            assert result.body == body and (body == original or result.packet_id != packet_id_of(original))


# Moulds

LOOKS_LIKE_IT = '"content":null,"created_at":0'


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"title": LOOKS_LIKE_IT, "tags": (LOOKS_LIKE_IT, "content", "created_at"), "source": LOOKS_LIKE_IT},
        {"audience": Audience.PUBLIC, "confidence": 0.5, "depends_on": (PacketId(bytes(32)),), "expires_at": NOW * 2},
        {"supersedes": PacketId(bytes(range(32))), "audience": Audience.PRIVATE, "confidence": 1},
    ],
    ids=["plain", "text that looks like the fields", "before and after", "other fields"],
)
@settings(max_examples=60, deadline=None)
@given(
    first=st.none() | st.dictionaries(st.text(), st.integers(0, 9)),
    content=st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner)),
    created_at=st.integers(-1, 2**53 - 1),
)
def test_a_cast_packet_is_the_built_one(common, first, content, created_at):
    """A mould gives the packet that `build_packet` gives, or its refusal."""
    fields = {"origin": ORIGIN, "kind": "note", **common}
    mould = PacketMould(build_packet(content=first, created_at=0, **fields))
    assert outcome(mould.cast, content, created_at) == outcome(build_packet, content=content, created_at=created_at, **fields)


def test_a_cast_packet_keeps_the_limits():
    """Size and depth at the limit and one beyond, counted over the whole packet."""
    mould = PacketMould(build_packet(origin=ORIGIN, kind="note", content="", created_at=NOW))
    room = MAX_PACKET_BYTES - len(mould.cast("", NOW).body)
    assert len(mould.cast("x" * room, NOW).body) == MAX_PACKET_BYTES
    assert outcome(mould.cast, "x" * (room + 1), NOW) == Code.TOO_LARGE
    deep = 0
    for _ in range(MAX_NESTING - 1):
        deep = [deep]
    assert parse_packet(mould.cast(deep, NOW).body) == mould.cast(deep, NOW)
    assert outcome(mould.cast, [deep], NOW) == Code.MALFORMED


def test_a_packet_with_other_keys_makes_no_mould():
    """An unknown key between content and time would be lost."""
    with pytest.raises(ValueError, match="other keys"):
        PacketMould(packet_from_fields(REQUIRED | {"count": 1}))
