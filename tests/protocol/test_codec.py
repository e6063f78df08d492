"""Frames to messages and back: one encoding of each message, and nothing else gets through."""

import json
import random
import tracemalloc
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol import codec, messages
from federation.protocol.codec import decode, decode_row, encode, encode_packets, encode_result, row_bytes
from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, Goodbye, HandshakeError, RemoteProtocolError
from federation.protocol.limits import KIB, Limits
from federation.protocol.messages import Have, Interest, Message, Packets, Reconcile, Result, Role, Scope, Want, Welcome
from tests.protocol.build_vectors import ID, IGNORED, INVALID, MAX, ORIGIN, OTHER, OTHER_ID, SIGNATURE, VALID, build_messages, p

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/messages.json").read_text(encoding="utf-8"))
LIMITS = Limits()


def refusal(data, limits=LIMITS):
    """Return the error that ends the link for these bytes; any other exception goes through."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data, limits)
    assert not isinstance(caught.value, HandshakeError)
    assert len(caught.value.reason) <= 200
    assert caught.value.reason.isprintable()
    assert caught.value.reason.isascii()
    return caught.value


def numbered_ids(count, size=32):
    return [number.to_bytes(size) for number in range(count)]


def envelope(body=b"{}"):
    return Envelope(body, SIGNATURE, 1_760_000_000_000, ID)


def rows_of(sizes):
    return [msgspec.Raw(msgpack.packb((bytes(size), SIGNATURE, 0, ID))) for size in sizes]


def test_vectors_are_those_the_code_builds():
    """The file for other implementations says what this one does: `python -m tests.protocol.build_vectors` rewrites it."""
    assert build_messages() == VECTORS


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in VALID])
def test_round_trip(message):
    """What is encoded is read back equal, and its bytes are those of another MessagePack library."""
    data = encode(message)
    again = decode(data)
    assert type(again) is type(message)
    assert again == message
    assert encode(again) == data
    if not isinstance(message, Packets):
        assert msgpack.packb(msgpack.unpackb(data)) == data


def test_vectors_cover_every_message():
    assert {type(message) for _, message in VALID} == set(Message.__args__)
    assert [type_.__struct_config__.tag for type_ in Message.__args__] == list(range(1, 20))


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda case: case["name"])
def test_invalid_frames_end_the_link(case):
    assert refusal(bytes.fromhex(case["hex"])).goodbye == case["error"]


@pytest.mark.parametrize("case", VECTORS["ignored"], ids=lambda case: case["name"])
def test_extensions_are_ignored(case):
    assert decode(bytes.fromhex(case["hex"])) is None


@pytest.mark.parametrize("case", VECTORS["rows"], ids=lambda case: case["name"])
def test_rows_are_envelopes_or_malformed(case):
    row = decode_row(msgspec.Raw(bytes.fromhex(case["hex"])))
    expected = case["envelope"]
    if expected is None:
        assert row is None
    else:
        assert [row.body.hex(), row.signature.hex(), row.timestamp, row.key_fingerprint.hex()] == expected


def test_numbers_below_64_that_are_unknown_end_the_link():
    for number in [0, *range(20, 64)]:
        assert refusal(p(number)).goodbye is Goodbye.PROTOCOL
    for number in [64, 127, 128, 255, 256, 65_536, MAX]:
        assert decode(p(number, b"anything")) is None


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in VALID])
def test_every_truncation_and_extension_is_refused(message):
    """No prefix of a message is a message, and nothing may follow one."""
    data = encode(message)
    for end in range(len(data)):
        refusal(data[:end])
    refusal(data + b"\x00")
    refusal(data + data)


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in VALID])
def test_arity_is_exact_but_for_welcome(message):
    fields = msgpack.unpackb(encode(message))
    refusal(msgpack.packb(fields[:-1]))
    if isinstance(message, Welcome):
        assert decode(msgpack.packb([*fields, {"later": [1.5]}, None, *range(20)])) == message
    else:
        refusal(msgpack.packb([*fields, None]))


def test_wrong_types_are_refused_in_every_field():
    """Each field of each message in turn holds a float, nil, boolean, text, bytes, map, extension or a negative number."""
    wrong = [1.0, None, True, "text", b"bytes", {}, msgpack.ExtType(1, b"x"), msgpack.Timestamp(0), -1, 2**53, [[]], float("nan")]
    refused = 0
    for _, message in VALID:
        fields = msgpack.unpackb(encode(message), strict_map_key=False)
        for at in range(len(fields)):
            for value in wrong:
                data = msgpack.packb([*fields[:at], value, *fields[at + 1 :]])
                try:
                    taken = decode(data)
                except RemoteProtocolError:
                    refused += 1
                    continue
                # The few that fit: text or nil where a query may have them, a reason, a row that is only malformed...
                assert encode(taken) == data
                assert at > 0
    assert refused > 1_300


def long_forms(data):
    """Yield every encoding of a message in which one item, at any depth, is written longer than it need be."""
    packer = msgpack.Packer()

    def items(value):
        """Return the encodings of a value: the shortest first, then those with one thing longer."""
        short = packer.pack(value)
        if isinstance(value, bool | None):
            return [short]
        if isinstance(value, int):
            wider = [(0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)]
            fits = [(head, size) for head, size in wider if value < 2 ** (8 * size - (head >= 0xD0))]
            return [short, *({bytes([head]) + value.to_bytes(size) for head, size in fits} - {short})]
        if isinstance(value, str | bytes):
            raw = value.encode() if isinstance(value, str) else value
            heads = [(0xD9, 1), (0xDA, 2), (0xDB, 4)] if isinstance(value, str) else [(0xC4, 1), (0xC5, 2), (0xC6, 4)]
            fits = [(head, size) for head, size in heads if len(raw) < 2 ** (8 * size)]
            return [short, *({bytes([head]) + len(raw).to_bytes(size) + raw for head, size in fits} - {short})]
        inner = [items(item) for item in value]
        plain = b"".join(choices[0] for choices in inner)
        heads = [(0xDC, 2), (0xDD, 4)]
        longer = {bytes([head]) + len(value).to_bytes(size) + plain for head, size in heads} - {short}
        head = short[: len(short) - len(plain)]
        for at, choices in enumerate(inner):
            before = b"".join(other[0] for other in inner[:at])
            after = b"".join(other[0] for other in inner[at + 1 :])
            longer |= {head + before + choice + after for choice in choices[1:]}
        return [short, *longer]

    return items(msgpack.unpackb(data))[1:]


def test_every_longer_encoding_is_refused():
    """One item written longer, at any depth, ends the link; inside a row of Packets it only spoils the row."""
    tried = 0
    for _, message in VALID:
        if isinstance(message, Welcome):
            continue
        for data in long_forms(encode(message)):
            tried += 1
            try:
                taken = decode(data)
            except RemoteProtocolError as error:
                assert "shortest" in error.reason or "no message" in error.reason or "envelope" in error.reason
                continue
            assert isinstance(taken, Packets)
            assert None in [decode_row(row) for row in taken.rows]
    assert tried > 500


# Limits: at each, and one beyond.


@pytest.mark.parametrize(
    ("build", "most", "goodbye"),
    [
        pytest.param(lambda n: Interest([(o, 1) for o in numbered_ids(n, 16)]), 2_048, "protocol", id="interest"),
        pytest.param(lambda n: Scope([(o, 1, ORIGIN, ID) for o in numbered_ids(n, 16)]), 2_048, "protocol", id="scope"),
        pytest.param(lambda n: Have([(ORIGIN, packet_id) for packet_id in numbered_ids(n)]), 1_024, "protocol", id="have"),
        pytest.param(lambda n: Want(numbered_ids(n)), 1_024, "overrun", id="want"),
        pytest.param(lambda n: Packets(0, [], numbered_ids(n)), 1_024, "protocol", id="gone"),
        pytest.param(lambda n: Packets(0, rows_of([0] * n), []), 256, "protocol", id="rows"),
        pytest.param(lambda n: Packets(0, rows_of([n]), []), 192 * KIB, "protocol", id="bytes in one row"),
        pytest.param(lambda n: Packets(0, rows_of([n - 65_536, 65_536]), []), 192 * KIB, "protocol", id="bytes in two rows"),
        pytest.param(lambda n: messages.Ack(0, [Code.BUSY] * n), 256, "protocol", id="ack"),
        pytest.param(lambda n: Reconcile(ORIGIN, Role.REQUEST, bytes(n)), 60_000, "too-large", id="reconcile"),
        pytest.param(lambda n: Result(0, "ok", rows_of([0] * n), None), 100, "protocol", id="result"),
        pytest.param(lambda n: Result(0, "ok", rows_of([n - 65_536, 65_536]), None), 192 * KIB, "protocol", id="result bytes"),
        pytest.param(lambda n: messages.Auth((bytes(n), SIGNATURE), SIGNATURE), 32 * KIB, "protocol", id="auth"),
        pytest.param(lambda n: messages.Manifest(ORIGIN, (bytes(n), SIGNATURE)), 32 * KIB, "protocol", id="manifest"),
        pytest.param(lambda n: messages.HelloClient([1] * n, "a", ID), 16, "protocol", id="versions"),
        pytest.param(lambda n: messages.HelloClient([1], "é" * n, ID), 64, "protocol", id="network"),
        pytest.param(lambda n: messages.HelloServer(1, "é" * n, ID), 64, "protocol", id="network of a listener"),
        pytest.param(lambda n: messages.Bye(Goodbye.BYE, "é" * n), 256, "protocol", id="reason"),
        pytest.param(lambda n: Welcome(True, True, True, (512, MAX), 0, [64] * n), 64, "protocol", id="extensions"),
        pytest.param(lambda n: Welcome(True, True, True, (512, MAX), 0, ["x" * n]), 64, "protocol", id="extension"),
        pytest.param(lambda n: messages.Ping(n), MAX, "protocol", id="integer"),
        pytest.param(lambda n: messages.Query(0, "x" * n, *[None] * 7), 1_024, "protocol", id="query text"),
        pytest.param(lambda n: messages.Query(0, None, ["k"] * n, *[None] * 6), 32, "protocol", id="query kinds"),
        pytest.param(lambda n: messages.Query(0, None, ["k" * n], *[None] * 6), 64, "protocol", id="query kind"),
        pytest.param(lambda n: messages.Query(0, None, None, ["k"] * n, *[None] * 5), 32, "protocol", id="query tags"),
        pytest.param(lambda n: messages.Query(0, *[None] * 6, n, None), 100, "protocol", id="query limit"),
        pytest.param(lambda n: messages.Query(0, *[None] * 7, "x" * n), 256, "protocol", id="cursor"),
    ],
)
def test_limits(build, most, goodbye):
    """At the limit a message is read; one beyond ends the link with the code of the fault."""
    assert decode(encode(build(most))) == build(most)
    assert refusal(encode(build(most + 1))).goodbye == goodbye


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("scope_rows", lambda n: Interest([(o, 1) for o in numbered_ids(n, 16)])),
        ("have_rows", lambda n: Have([(ORIGIN, packet_id) for packet_id in numbered_ids(n)])),
        ("wants", lambda n: Want(numbered_ids(n))),
        ("batch_packets", lambda n: Packets(0, rows_of([0] * n), [])),
        ("batch_bytes", lambda n: Packets(0, rows_of([n]), [])),
        ("reconcile_frame_bytes", lambda n: Reconcile(ORIGIN, Role.REQUEST, bytes(n))),
    ],
)
def test_limits_are_the_callers(name, build):
    """The operator's limits count, not only the defaults."""
    limits = Limits(**{name: 5})
    assert decode(encode(build(5)), limits) == build(5)
    refusal(encode(build(6)), limits)


def test_a_frame_beyond_the_limit_is_too_large():
    """Size is checked before anything is read."""
    head = b"\x92\x40\xc6" + (LIMITS.frame_bytes - 7).to_bytes(4)
    assert decode(head + bytes(LIMITS.frame_bytes - 7)) is None
    assert refusal(head + bytes(LIMITS.frame_bytes - 6)).goodbye is Goodbye.TOO_LARGE


def test_the_largest_batch_fits_a_frame():
    rows = [envelope(bytes(768)) for _ in range(256)]
    data = encode_packets(MAX, rows, numbered_ids(1_024))
    assert len(data) + 17 <= LIMITS.frame_bytes
    assert [decode_row(row) for row in decode(data).rows] == rows


def test_the_smallest_window_holds_a_full_batch():
    assert LIMITS.batch_packets == messages.MIN_WINDOW_PACKETS
    assert LIMITS.batch_bytes == messages.MIN_WINDOW_BYTES


# Rows.


def test_encode_packets_and_result_write_what_decode_reads():
    rows = [envelope(b""), envelope(b"{}" * 40_000)]
    packets = decode(encode_packets(7, rows, [ID]))
    assert (packets.batch, packets.gone) == (7, [ID])
    assert [decode_row(row) for row in packets.rows] == rows
    result = decode(encode_result(1, "ok", rows, "on"))
    assert (result.number, result.code, result.cursor) == (1, "ok", "on")
    assert [decode_row(row) for row in result.rows] == rows
    assert [row_bytes(row) for row in result.rows] == [0, 80_000]


def test_one_malformed_row_leaves_the_others_readable():
    good = envelope()
    bad = [None, 1, "x", [], [b"", b"", 0, b""], {}, [good.body, good.signature, -1, good.key_fingerprint]]
    row = [good.body, good.signature, good.timestamp, good.key_fingerprint]
    packets = decode(p(12, 0, [row, *bad, row], []))
    assert [decode_row(raw) for raw in packets.rows] == [good, *[None] * len(bad), good]


def test_junk_in_place_of_a_row_counts_with_all_its_bytes():
    """A malformed row cannot carry bytes past the window by declaring a small body."""
    for fields in [(b"", bytes(100_000), 0, ID), (b"", bytes(100_000)), b"x" * 100_000, ("x" * 100_000, SIGNATURE, 0, ID)]:
        raw = msgspec.Raw(msgpack.packb(fields))
        assert decode_row(raw) is None
        assert row_bytes(raw) >= 100_000
    for size in [0, 1, 255, 256, 65_535, 65_536, 190_000]:
        for timestamp in [0, 127, 128, 65_536, MAX]:
            raw = msgspec.Raw(msgpack.packb((bytes(size), SIGNATURE, timestamp, ID)))
            assert decode_row(raw) is not None
            assert row_bytes(raw) == size


# Junk and cost.


def test_hostile_nesting_is_refused():
    """A megabyte of opening brackets neither crashes nor hangs, wherever it stands."""
    for deep in [b"\x91" * 200_000, b"\x81\x01" * 100_000, b"\x91" * 100_000 + b"\xc0"]:
        for head in [b"", b"\x92\x40", b"\x94\x0c\x00\x91", b"\x95\x11\x00\xa2ok\x91", b"\x98\x04\xc2\xc2\xc2"]:
            refusal(head + deep)
    # Well-formed all the way, too deep for anyone: still no other exception.
    refusal(b"\x94\x0c\x00\x91" + b"\x91" * 100_000 + b"\xc0\x90")
    assert decode_row(msgspec.Raw(b"\x91" * 100_000 + b"\xc0")) is None


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**24])
def test_declared_lengths_allocate_nothing(length):
    """A few bytes that promise gigabytes cost a few bytes."""
    size = length.to_bytes(4)
    heads = [b"", b"\x92\x40", b"\x92\x0b", b"\x92\x06", b"\x94\x0c\x00", b"\x94\x0c\x00\x91", b"\x92\x0e\x91", b"\x93\x0d\x00"]
    heads += [
        b"\x94\x0a\xc4\x10" + ORIGIN + b"\x00",
        b"\x94\x01",
        b"\x93\x05",
        b"\x93\x03\x92",
        b"\x9a\x10\x00",
        b"\x95\x11\x00\xa2ok",
    ]
    tracemalloc.start()
    try:
        for head in heads:
            for kind in [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]:
                refusal(head + kind + size)
                refusal(head + kind + size + bytes(64))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def mutate(rng, data):
    """Return `data` with a few random edits of the kinds that break parsers."""
    edited = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(edited) + 1)
        match rng.randrange(6):
            case 0 if at < len(edited):
                edited[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(edited):
                edited[at] = rng.choice([0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xCF, 0xD3, 0xDC, 0xDD, 0xDF, 0xFF])
            case 2:
                del edited[at : at + rng.randint(1, 8)]
            case 3:
                edited[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                edited[at:at] = edited[at : at + rng.randint(1, 40)]
            case _:
                edited[at:] = rng.randbytes(rng.randint(0, 40))
    return bytes(edited)


def read_or_refuse(data):
    """Return True when the bytes are a message; RemoteProtocolError is the only exception, and reading is faithful."""
    try:
        message = decode(data)
    except RemoteProtocolError:
        return False
    if isinstance(message, Packets):
        for row in message.rows:
            decode_row(row)
    if message is not None and not isinstance(message, Welcome):
        assert encode(message) == data
    return True


def test_thirty_thousand_mutations_raise_nothing_else():
    """Every mutation of a message is another message, letter by letter, or ends the link."""
    seed = 20_261_123
    rng = random.Random(seed)
    corpus = [encode(message) for _, message in VALID] + [data for _, data in IGNORED] + [data for _, data in INVALID if data]
    taken = sum(read_or_refuse(mutate(rng, rng.choice(corpus))) for _ in range(30_000))
    assert 300 < taken < 20_000, f"seed {seed}: the mutations test nothing"


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_junk_raises_nothing_else(data):
    read_or_refuse(data)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=66),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 70), st.lists(_JUNK, max_size=9))
def test_well_formed_junk_raises_nothing_else(number, fields):
    read_or_refuse(msgpack.packb([number, *fields]))


_ORIGINS = st.binary(min_size=16, max_size=16)
_IDS = st.binary(min_size=32, max_size=32)
_NATURALS = st.integers(0, MAX)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.builds(Interest, st.lists(st.tuples(_ORIGINS, _NATURALS), unique_by=lambda row: row[0], max_size=40)),
        st.builds(Scope, st.lists(st.tuples(_ORIGINS, _NATURALS, _ORIGINS, _IDS), unique_by=lambda row: row[0], max_size=40)),
        st.builds(Have, st.lists(st.tuples(_ORIGINS, _IDS), max_size=40)),
        st.builds(Want, st.lists(_IDS, max_size=40)),
        st.builds(messages.Ack, _NATURALS, st.lists(st.sampled_from(Code), max_size=256)),
        st.builds(messages.Bye, st.sampled_from(Goodbye), st.text(max_size=256)),
        st.builds(messages.Pong, _NATURALS, _NATURALS),
        st.builds(Reconcile, _ORIGINS, st.sampled_from(Role), st.binary(max_size=300)),
    )
)
def test_any_message_survives_the_wire(message):
    data = encode(message)
    assert decode(data) == message
    assert msgpack.packb(msgpack.unpackb(data)) == data


def test_an_origin_twice_is_refused_anywhere_in_the_list():
    origins = numbered_ids(2_047, 16)
    for message in [
        Interest([(o, 1) for o in [*origins, origins[0]]]),
        Scope([(o, 1, OTHER, OTHER_ID) for o in [*origins, origins[-1]]]),
    ]:
        assert "twice" in refusal(encode(message)).reason


def test_the_reason_never_repeats_the_sender_raw():
    """Control characters and long text of a stranger do not reach logs or the other side."""
    error = refusal(p(13, 0, ["\x1b[31m\u202e" + "A" * 10_000]))
    assert "\x1b" not in error.reason
    assert "A" * 200 not in error.reason


def test_codes_on_the_wire_are_the_pages():
    """Ack carries the strings of the protocol page, all of them and no others."""
    assert [code.value for code in decode(p(13, 0, [code.value for code in Code])).codes] == [code.value for code in Code]
    for code in ["ok", "Accepted", "accepted ", "bye", ""]:
        refusal(p(13, 0, [code]))
    assert codec.decode(p(17, 0, "busy", [], None)).code == "busy"
