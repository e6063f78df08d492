"""Canonical JSON: one meaning, one sequence of bytes, and nothing else gets through."""

import json
import math
import random
from pathlib import Path

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation.protocol import canonical
from federation.protocol.canonical import canonicalize, decode, parse, parse_canonical
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import MAX_PACKET_BYTES, MAX_SAFE_INTEGER

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/canonical.json").read_text(encoding="utf-8"))


def vector_input(case):
    return bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()


def outcome(function, *args, **kwargs):
    """Return the result, or the code of the PacketError; every other exception goes through."""
    try:
        return function(*args, **kwargs)
    except PacketError as error:
        return error.code


class NotPlain(Exception):
    """The reference refuses this text."""


def reference(data):
    """Return the value of JSON text by the plainest means there are, or raise NotPlain."""

    def unique(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            raise NotPlain
        return dict(pairs)

    def refuse(literal):
        raise NotPlain

    def depth(value):
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise NotPlain from None
    if depth(value) > 32:
        raise NotPlain
    return value


def is_canonical(data):
    """The definition, without any short cut: rfc8785 writes the value of `data` as `data`."""
    try:
        value = reference(data)
        if rfc8785.dumps(value) != data:
            return False
    except (NotPlain, rfc8785.CanonicalizationError):
        return False
    return not any(isinstance(n, float) and n.is_integer() and MAX_SAFE_INTEGER < abs(n) < 1e21 for n in numbers(value))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    else:
        yield value


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a", "\U0001f600", "\ufb33", "\ue000", "\x7f", "\x1f", "é"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.1, 0.85, 1.0, -0.0, 1e21, 1e20, 1e16, 5e-324, 1e-6, 1e-7, 123456.789, 1e15, 9007199254740991.0])
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=5), max_leaves=20)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vectors(case):
    """Every published vector gives its output or its error."""
    data = vector_input(case)
    if case.get("canonical"):
        assert canonicalize(parse_canonical(data)) == data
        assert is_canonical(data)
    elif "output" in case:
        output = case["output"].encode()
        assert outcome(parse_canonical, data) == Code.NOT_CANONICAL
        assert canonicalize(parse(data)) == output
        assert canonicalize(parse_canonical(output)) == output
    else:
        assert outcome(parse, data) == outcome(parse_canonical, data) == case["error"]


def test_every_character_is_escaped_as_rfc8785_does():
    """orjson and rfc8785 agree on every character there is, alone in its string."""
    for start in range(0, 0x110000, 0x1000):
        block = [chr(code) for code in range(start, start + 0x1000) if not 0xD800 <= code <= 0xDFFF]
        expected = rfc8785.dumps(block)
        assert canonicalize(block, max_bytes=10**6) == expected
        assert decode(expected, max_bytes=10**6) == (block, True)


@settings(max_examples=800, deadline=None)
@given(values)
@example({"\U0001f600": 1, "\ufb33": 2})
@example([1e16])
@example(1e21)
def test_canonical_form_equals_rfc8785(value):
    """What is written is what rfc8785 writes, and it reads back as itself, on whichever path."""
    if any(isinstance(n, float) and n.is_integer() and MAX_SAFE_INTEGER < abs(n) < 1e21 for n in numbers(value)):
        assert outcome(canonicalize, value) == Code.NOT_CANONICAL
        return
    data = rfc8785.dumps(value)
    assert canonicalize(value) == data
    assert parse_canonical(data) == value
    assert parse(json.dumps(value, indent=1).encode()) == value


@settings(max_examples=800, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_a_changed_byte_is_judged_as_the_definition_says(value, rng):
    """Bytes near canonical ones are accepted exactly when the definition accepts them."""
    data = bytearray(rfc8785.dumps(value))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randint(0, 2)] = rng.choice(
            [b"", b" ", b"0", b".0", b"e1", b'"', b"1", b"{", b"[]", b",", b"\xf0", b"\\u0061", b"-"]
        )
    result = outcome(parse_canonical, bytes(data))
    assert not isinstance(result, Code) or result in (Code.MALFORMED, Code.NOT_CANONICAL)
    assert (not isinstance(result, Code)) == is_canonical(bytes(data))


@settings(max_examples=600, deadline=None)
@given(st.text(st.sampled_from('{}[]:,"\\ab01.-eE \ud83d\n'), max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'["\\\\",[]]')
@example(b"-")
def test_junk_is_malformed_exactly_when_the_reference_refuses_it(data):
    """Any bytes are parsed or refused with a code; the strict parser and Python's agree on what is JSON."""
    result = outcome(parse, data)
    try:
        expected = reference(data)
    except NotPlain:
        assert result == Code.MALFORMED
    else:
        assert result == Code.NOT_CANONICAL or result == expected


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.just([]) | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=60
    )
)
def test_the_scan_for_depth_counts_levels_and_nothing_else(value):
    """The cheap scan finds the depth a parser finds, whatever stands in the strings."""

    def depth(value):
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    data = json.dumps(value).encode()
    levels = depth(value)
    assert canonical._closes_within(data, levels)
    assert levels == 0 or not canonical._closes_within(data, levels - 1)


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_at_the_limit_and_one_beyond(opening, closing):
    """32 levels pass, 33 are malformed, and tens of thousands overflow no parser."""
    assert outcome(parse_canonical, opening * 32 + b"1" + closing * 32) not in list(Code)
    assert outcome(parse_canonical, opening * 33 + b"1" + closing * 33) == Code.MALFORMED
    assert outcome(parse, opening * 10_000 + closing * 3_000) == Code.MALFORMED
    with pytest.raises(PacketError, match="nested deeper than 32"):
        parse(opening * 10_000)


def test_many_shallow_brackets_are_fine():
    """Only depth is bounded: 20,000 empty objects side by side are read."""
    assert len(parse_canonical(b"[" + b",".join([b"{}"] * 20_000) + b"]")) == 20_000


def test_a_value_that_contains_itself_is_refused():
    """Encoding ends at the nesting limit, however the value is built."""
    value = []
    value.append(value)
    assert outcome(canonicalize, value) == Code.MALFORMED
    deep = 1
    for _ in range(32):
        deep = [deep]
    assert canonicalize(deep) == b"[" * 32 + b"1" + b"]" * 32
    assert outcome(canonicalize, [deep]) == Code.MALFORMED


def test_size_at_the_limit_and_one_beyond():
    """65,536 bytes pass and 65,537 are too large, before anything else is looked at."""
    largest = b'"' + b"a" * (MAX_PACKET_BYTES - 2) + b'"'
    assert canonicalize(parse_canonical(largest)) == largest
    assert outcome(parse_canonical, b"\xff" * (MAX_PACKET_BYTES + 1)) == Code.TOO_LARGE
    assert outcome(canonicalize, "a" * (MAX_PACKET_BYTES - 1)) == Code.TOO_LARGE
    assert outcome(parse, b"[1,2]", max_bytes=4) == Code.TOO_LARGE
    assert parse(b"[1,2]", max_bytes=5) == [1, 2]


@pytest.mark.parametrize(
    "value, code",
    [
        (math.nan, Code.MALFORMED),
        (math.inf, Code.NOT_CANONICAL),
        ([-math.inf], Code.NOT_CANONICAL),
        ({"a": 2**53}, Code.NOT_CANONICAL),
        (-(2**53), Code.NOT_CANONICAL),
        (2.0**53, Code.NOT_CANONICAL),
        ("\ud800", Code.NOT_CANONICAL),
        ({"\udfff": 1}, Code.NOT_CANONICAL),
        ({1: 2}, Code.MALFORMED),
        (b"bytes", Code.MALFORMED),
        ({"a": {1, 2}}, Code.MALFORMED),
        (Path("x"), Code.MALFORMED),
    ],
)
def test_what_cannot_be_said_is_refused_when_encoding(value, code):
    """Our own values pass the same rules as those of others."""
    assert outcome(canonicalize, value) == code


def test_booleans_stay_booleans():
    """True is written as true, never as 1."""
    assert canonicalize({"a": True, "b": 1, "c": (False, None)}) == b'{"a":true,"b":1,"c":[false,null]}'


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", " ", "ü😀"]), values), max_size=4),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n")]),
    st.booleans(),
)
def test_text_as_people_write_it_has_one_meaning_or_is_refused(pairs, separators, ascii_only):
    """Blanks, order and escapes do not matter; a key twice in one object does, however the text is laid out."""
    item, key = separators
    members = [
        f"{json.dumps(name)}{key}{json.dumps(value, separators=separators, ensure_ascii=ascii_only)}" for name, value in pairs
    ]
    data = ("{" + item.join(members) + "}").encode("utf-8", "surrogatepass")
    try:
        expected = outcome(canonicalize, reference(data))
    except NotPlain:
        expected = Code.MALFORMED
    parsed = outcome(parse, data)
    assert (parsed if isinstance(parsed, Code) else canonicalize(parsed)) == expected


def test_messages_name_the_key_that_stands_twice_and_cut_it_short():
    """A refusal shows what was wrong, never at a length the sender chose."""
    key = "k" * 5000
    with pytest.raises(PacketError, match=r"^the key 'k{40}' stands twice"):
        parse(json.dumps({key: 1}).encode()[:-1] + b',"' + key.encode() + b'":2}')


def test_ordinary_packets_take_the_fast_path():
    """Text with umlauts, floats and emoji is proven canonical without rfc8785."""
    ordinary = [{"text": "Köln 🌊", "confidence": 0.85, "values": [1, -2, 0.5, 1e-7]}, {"heart": "\u2764\ufe0f"}]
    for value in ordinary:
        assert decode(rfc8785.dumps(value)) == (value, True)
    both = {"\ufe0f": 1, "\U0001f600": 2}
    assert decode(rfc8785.dumps(both)) == (both, False)
    assert parse_canonical(rfc8785.dumps(both)) == both


def test_long_numbers_cost_little_and_raise_nothing():
    """Digits without end reach neither int() nor its limit."""
    assert outcome(parse, b"1" * 60_000) == Code.NOT_CANONICAL
    assert outcome(parse, b"[" + b"9" * 18 + b"]") == Code.NOT_CANONICAL
    assert parse(b"0." + b"1" * 60_000) == 0.1111111111111111


def test_random_bytes_raise_only_packet_errors():
    """20,000 random texts of JSON's own characters are parsed or refused with a code."""
    rng = random.Random(13)
    alphabet = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"1",
        b"-",
        b".",
        b"e",
        b"\\",
        b"u",
        b"d800",
        b"null",
        b" ",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"NaN",
    ]
    for _ in range(20_000):
        data = b"".join(rng.choices(alphabet, k=rng.randint(0, 25)))
        result = outcome(parse_canonical, data)
        assert result in (Code.MALFORMED, Code.NOT_CANONICAL) or canonicalize(result) == data
