import base64
import json
from hashlib import sha256

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from keys.encoding import (
    MAX_CARD_ADDRESS_CHARS,
    MAX_CARD_ADDRESSES,
    MAX_CARD_CHARS,
    MAX_NAME_CHARS,
    ContactCard,
    EncodingError,
    fingerprint_of,
    grouped,
    node_id_of,
    parse_fingerprint,
    parse_hex,
    parse_node_id,
    short,
)

KEY = bytes(range(32))


def card(**changes):
    fields = {"node_id": node_id_of(KEY), "name": "ann’s box", "public_key": KEY, "addresses": ("ws://192.0.2.1:8104/sync",)}
    return ContactCard(**fields | changes)


def raw(document: bytes) -> str:
    return "ark1" + base64.urlsafe_b64encode(document).rstrip(b"=").decode()


def with_checksum(rest: dict) -> dict:
    return {**rest, "checksum": sha256(b"arklattice/card/v1\n" + rfc8785.dumps(rest)).hexdigest()[:8]}


def fields_of(text: str) -> dict:
    value = json.loads(base64.urlsafe_b64decode(text[4:] + "=" * (-len(text[4:]) % 4)))
    del value["checksum"]
    return value


def test_hex_round_trips():
    """Exactly 2n lower-case digits give n bytes."""
    assert parse_hex(KEY.hex(), size=32) == KEY
    assert parse_node_id("00" * 15 + "ff") == bytes(15) + b"\xff"
    assert parse_fingerprint("ab" * 32) == b"\xab" * 32
    assert parse_hex("", size=0) == b""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KEY.hex().upper(), "not lower-case hex"),
        (KEY.hex()[:-1], "63 characters"),
        (KEY.hex() + "0", "65 characters"),
        (KEY.hex() + "\n", "65 characters"),
        (KEY.hex()[:-1] + "\n", "not lower-case hex"),
        (" " + KEY.hex()[1:], "not lower-case hex"),
        ("0x" + KEY.hex()[2:], "not lower-case hex"),
        ("٠" * 64, "not lower-case hex"),
        ("0" * 1_000_000, "1000000 characters"),
        ("", "0 characters"),
        (None, "not text"),
        (KEY, "not text"),
        (7, "not text"),
    ],
)
def test_hex_is_strict(text, said):
    """Nothing is skipped, folded or guessed; the message names the value cut short and what was expected."""
    with pytest.raises(EncodingError, match=said) as caught:
        parse_hex(text, size=32)
    assert "expected 64 hex digits" in str(caught.value)
    assert len(str(caught.value)) < 150


def test_fingerprint_and_node_id_are_the_hashes_of_section_1():
    """A fingerprint is SHA-256 of the key; a node id the first half of the labelled hash of the first key."""
    assert fingerprint_of(KEY) == sha256(KEY).digest()
    assert node_id_of(KEY) == sha256(b"arklattice/node-id/v1\n" + KEY).digest()[:16]
    for wrong in (KEY[:-1], KEY + b"\0", KEY.hex(), None):
        with pytest.raises(EncodingError, match="is not 32 bytes"):
            fingerprint_of(wrong)
        with pytest.raises(EncodingError, match="is not 32 bytes"):
            node_id_of(wrong)


def test_fingerprints_are_read_in_groups_of_four():
    """64 digits become 16 groups."""
    assert grouped(b"\x01\x23\x45\x67\x89") == "0123 4567 89"
    assert len(grouped(fingerprint_of(KEY)).split(" ")) == 16


def test_short_cuts_anything():
    """Whatever is quoted in a message stays short."""
    assert short("abc") == "'abc'"
    assert all(len(short(value)) < 120 for value in ("x" * 10_000, b"\0" * 10_000, list(range(10_000)), 10**4000))


def test_a_card_round_trips():
    """What encode writes, decode reads; addresses and a name in any script stay as they are."""
    text = card().encode()
    assert text.startswith("ark1") and text.isascii()
    assert ContactCard.decode(text) == card()
    assert ContactCard.decode(card(addresses=()).encode()) == card(addresses=())


def test_every_changed_character_of_a_card_is_noticed():
    """A copying fault anywhere in a card is refused."""
    text = card().encode()
    for position in range(len(text)):
        for other in "A_x":
            if text[position] != other:
                with pytest.raises(EncodingError):
                    ContactCard.decode(text[:position] + other + text[position + 1 :])
        with pytest.raises(EncodingError):
            ContactCard.decode(text[:position])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a contact card"),
        (KEY.hex(), "not a contact card"),
        (None, "not a contact card"),
        ("ark2" + card().encode()[4:], "not a contact card"),
        ("ark1", "not JSON inside"),
        (card().encode() + "=", "base64url without padding"),
        (card().encode() + "\n", "base64url without padding"),
        ("ark1" + "A" * MAX_CARD_CHARS, "at most 2048"),
        ("ark1" + "é" * 8, "base64url without padding"),
        (raw(b"[" * 1400), "not JSON inside"),
        (raw(b"\xff\xfe"), "not JSON inside"),
        (raw(b'{"name":"\\ud800"}'), "not JSON inside"),
        (raw(b'{"a":NaN}'), "not JSON inside"),
        (raw(b'{"a":1e999}'), "not JSON inside"),
        (raw(b'{"a":' + b"9" * 1200 + b"}"), "not JSON inside"),
        (raw(b'{"a":1,"a":1}'), "canonical form"),
        (raw(json.dumps(with_checksum(fields_of(card().encode()))).encode()), "canonical form"),
        (raw(b"[]"), "exactly the fields"),
        (raw(b"null"), "exactly the fields"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "more": 1}))), "exactly the fields"),
        (raw(rfc8785.dumps({**fields_of(card().encode()), "checksum": "00000000"})), "checksum '00000000' does not match"),
        (raw(rfc8785.dumps({**fields_of(card().encode()), "checksum": 1})), "checksum 1 does not match"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "addresses": "ws://a"}))), "is not a list"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "addresses": [1]}))), "address 1 is not"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "addresses": ["http://a"]}))), "not a ws://"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "name": 5}))), "name 5 is not"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "node_id": "AB" * 16}))), "not lower-case hex"),
        (raw(rfc8785.dumps(with_checksum({**fields_of(card().encode()), "public_key": None}))), "not text"),
    ],
)
def test_a_wrong_card_is_refused_with_what_is_wrong(text, said):
    """Only the one canonical text of a card is read."""
    with pytest.raises(EncodingError, match=said):
        ContactCard.decode(text)


def test_base64_with_stray_bits_is_refused():
    """Base64 whose unused bits are set spells the same bytes twice, and is no card."""
    text = next(text for text in (card(name="x" * n).encode() for n in range(1, 5)) if len(text[4:]) % 4 == 2)
    stray = text[:-1] + chr(ord(text[-1]) + 1)
    assert base64.urlsafe_b64decode(stray[4:] + "==") == base64.urlsafe_b64decode(text[4:] + "==")
    with pytest.raises(EncodingError, match="canonical form"):
        ContactCard.decode(stray)


def test_card_limits_hold_at_and_beyond():
    """Names to 64 characters, 8 addresses of 255, 2,048 characters in all."""
    assert card(name="n" * MAX_NAME_CHARS)
    for name in ("", "n" * (MAX_NAME_CHARS + 1), "a\x1b[2J", "a\u202eb", "line\nline"):
        with pytest.raises(EncodingError, match="printable characters"):
            card(name=name)
    longest = "ws://" + "a" * (MAX_CARD_ADDRESS_CHARS - 5)
    assert card(addresses=(longest,))
    with pytest.raises(EncodingError, match="is not a ws://"):
        card(addresses=(longest + "a",))
    assert card(addresses=("ws://a",) * MAX_CARD_ADDRESSES).encode()
    with pytest.raises(EncodingError, match="9 addresses"):
        card(addresses=("ws://a",) * (MAX_CARD_ADDRESSES + 1))
    with pytest.raises(EncodingError, match="leave out addresses"):
        card(addresses=(longest,) * MAX_CARD_ADDRESSES).encode()
    # The longest text that encode gives is one that decode takes.
    lengths = [card(addresses=("ws://" + "a" * 245,) * 5 + ("ws://" + "a" * n,)) for n in range(1, 200)]
    fitting = []
    for one in lengths:
        try:
            fitting.append(one.encode())
        except EncodingError:
            break
    assert MAX_CARD_CHARS - 2 <= len(fitting[-1]) <= MAX_CARD_CHARS
    assert ContactCard.decode(fitting[-1])


@pytest.mark.parametrize("address", ["ws://a b", "ws://", "ws://a\n", "ws://ä", "WS://a", "javascript:1", "ws://a\x1b[m"])
def test_an_address_that_no_link_may_use_is_refused(address):
    """Cards carry printable ws:// and wss:// URLs only."""
    with pytest.raises(EncodingError, match="is not a ws:// or wss:// URL"):
        card(addresses=(address,))


@given(
    st.one_of(st.text(max_size=300), st.binary(max_size=300).map(raw), st.from_regex(r"ark1[A-Za-z0-9_-]{0,99}", fullmatch=True))
)
def test_junk_raises_nothing_but_encoding_errors(text):
    """Any text is a card or an EncodingError."""
    with pytest.raises(EncodingError):
        ContactCard.decode(text)
