"""PeerManifest: what a node says of itself is bounded, canonical, signed by its key and backed by its succession."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.canonical import canonicalize
from federation.protocol.errors import PacketError
from federation.protocol.manifest import (
    MANIFEST_LABEL,
    ManifestError,
    PeerManifest,
    SignedManifest,
    parse_manifest,
    sign_manifest,
    signing_input,
)
from keys.ed25519 import sign, verify
from keys.encoding import node_id_of
from keys.succession import Reason
from tests.identities import make_manifest, make_pair, rotated

PAIR = make_pair(1)
MANIFEST = make_manifest(1)
MAX = 2**53 - 1


def fields_of(signed=MANIFEST):
    return json.loads(signed.body)


def parse_fields(fields, pair=PAIR):
    """Sign whatever these fields are, as the node's own key would, and parse it."""
    body = canonicalize(fields)
    return parse_manifest(body, sign(pair, signing_input(body)))


def changed(**changes):
    return parse_fields(fields_of() | changes)


def without(name):
    return {field: value for field, value in fields_of().items() if field != name}


# What is read is what was said.


def test_a_signed_manifest_is_read_back_whole():
    """Every field survives, and the bytes are those that were signed."""
    signed = make_manifest(
        1,
        addresses=("ws://192.0.2.1:8104/sync", "wss://[2001:db8::1]:8104/sync"),
        http_port=8102,
        sync_port=8104,
        capabilities=("query",),
        version="0.1.0",
        trust_tier="core",
        unknown={"later": {"nested": [1, None, 0.5]}},
    )
    again = parse_manifest(signed.body, signed.signature)
    assert again == signed
    assert canonicalize(again.manifest.as_json()) == signed.body
    assert (again.node_id, again.verify_key, again.key_fingerprint) == (node_id_of(PAIR.public), PAIR.public, PAIR.fingerprint)
    assert again.chain.current == PAIR.public
    assert again.manifest.unknown == {"later": {"nested": [1, None, 0.5]}}


def test_the_signature_covers_label_and_bytes():
    assert MANIFEST_LABEL == b"arklattice/manifest/v1\n"
    verify(PAIR.public, b"arklattice/manifest/v1\n" + MANIFEST.body, MANIFEST.signature)
    with pytest.raises(ManifestError, match="signature"):
        parse_manifest(MANIFEST.body, sign(PAIR, MANIFEST.body))


def test_what_is_optional_may_be_absent():
    """Only six fields must be there, and what is absent reads as none."""
    fields = {name: value for name, value in fields_of().items() if name not in ("addresses", "capabilities")}
    assert len(fields) == 6
    manifest = parse_fields(fields).manifest
    assert (manifest.addresses, manifest.capabilities, manifest.unknown) == ((), (), {})
    assert {manifest.http_port, manifest.sync_port, manifest.version, manifest.trust_tier} == {None}


@pytest.mark.parametrize("name", ["node_id", "name", "public_key", "succession", "network", "issued_at"])
def test_what_is_required_must_be_there(name):
    with pytest.raises(ManifestError, match=f"without {name}"):
        parse_fields(without(name))


def test_absent_means_absent():
    """No field known here may be null; in one that is not known it is allowed."""
    for name in ["name", "addresses", "http_port", "sync_port", "capabilities", "version", "trust_tier"]:
        with pytest.raises(ManifestError, match=name):
            changed(**{name: None})
    assert changed(later=None).manifest.unknown == {"later": None}


# Bounds: at each, and one beyond.


@pytest.mark.parametrize(
    ("name", "build", "most"),
    [
        ("name", lambda n: "é" * n, 64),
        ("network", lambda n: "é" * n, 64),
        ("version", lambda n: "1" * n, 32),
        ("trust_tier", lambda n: "c" * n, 16),
        ("addresses", lambda n: ["ws://a"] * n, 16),
        ("addresses", lambda n: ["a" * n], 255),
        ("capabilities", lambda n: ["query"] * n, 32),
        ("capabilities", lambda n: ["q" * n], 64),
        ("http_port", lambda n: n, 65_535),
        ("sync_port", lambda n: n, 65_535),
        ("issued_at", lambda n: n, MAX),
    ],
)
def test_limits(name, build, most):
    """At the limit a field is taken, one beyond it is not."""
    value = build(most)
    taken = getattr(changed(**{name: value}).manifest, name)
    assert taken == (tuple(value) if isinstance(value, list) else value)
    # Beyond 2^53-1 no canonical form exists, so such a manifest can only be signed by other means.
    body = canonicalize(fields_of() | {name: build(most)}).replace(str(MAX).encode(), str(MAX + 1).encode())
    if name != "issued_at":
        body = canonicalize(fields_of() | {name: build(most + 1)})
    with pytest.raises(ManifestError):
        parse_manifest(body, sign(PAIR, signing_input(body)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("node_id", ["", "A" * 32, "0" * 31, "0" * 33, " " + "0" * 31, 0, ["0" * 32]]),
        ("public_key", ["", PAIR.public.hex().upper(), PAIR.public.hex()[:-2], PAIR.public.hex() + "00", 1]),
        ("name", ["", 1, ["a"], "a\x00", "a\nb", "\u202egnp", "\x1b[31m"]),
        ("network", ["", 1, "a\x00"]),
        ("issued_at", [-1, 1.5, True, "now", [1]]),
        ("http_port", [0, -1, 65_536, True, "8102", 1.5]),
        ("sync_port", [0, False, "8104"]),
        ("addresses", ["ws://a", {}, [1], [""], ["a\x00"], [["ws://a"]]]),
        ("capabilities", ["query", {}, [1], [""], ["a\n"]]),
        ("version", [1, ["1"], "1\x00"]),
        ("trust_tier", [True, {}, "core\n"]),
        ("succession", ["", {}, [], [1], [[]], [{}], [None], [{"statement": {}, "signatures": []}]]),
    ],
)
def test_fields_of_another_shape_are_refused(name, values):
    for value in values:
        with pytest.raises(ManifestError):
            changed(**{name: value})


def test_canonical_json_of_at_most_32_kib():
    """Padded to the limit it is taken; with one byte more it is not."""
    room = 32 * 1024 - len(canonicalize(fields_of() | {"later": ""}))
    at_limit = changed(later="x" * room)
    assert len(at_limit.body) == 32 * 1024
    with pytest.raises(ManifestError, match="32769 bytes, at most 32768"):
        changed(later="x" * (room + 1))


def test_a_succession_of_at_most_20_statements():
    """Twenty fit well within 16 KiB and are taken; a twenty-first is refused."""
    pairs, entries = rotated(20)
    fields = fields_of() | {"succession": entries, "public_key": pairs[19].public.hex()}
    assert len(canonicalize(entries)) < 16 * 1024
    assert parse_fields(fields, pairs[19]).chain.current == pairs[19].public
    with pytest.raises(ManifestError, match="1 to 20 statements"):
        parse_fields(fields | {"succession": [*entries, entries[-1]]}, pairs[19])


def test_a_succession_of_at_most_16_kib():
    """Whatever is in it, it is not looked at beyond its size."""
    filler = [{"statement": {"x": ""}, "signatures": []}]
    filler[0]["statement"]["x"] = "x" * (16 * 1024 - len(canonicalize(filler)))
    with pytest.raises(ManifestError, match="expected exactly the fields"):
        changed(succession=filler)
    filler[0]["statement"]["x"] += "x"
    with pytest.raises(ManifestError, match="succession of 16385 bytes, at most 16384"):
        changed(succession=filler)


# Canonical form.


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda body: b" " + body, id="a blank"),
        pytest.param(lambda body: body + b"\n", id="a line end"),
        pytest.param(lambda body: b"\xef\xbb\xbf" + body, id="byte order mark"),
        pytest.param(lambda body: body.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda body: body.replace(b'"network"', b'"name":"other","network"'), id="duplicate key"),
        pytest.param(lambda body: body.replace(b'"name":"node-1",', b"")[:-1] + b',"name":"node-1"}', id="another order"),
        pytest.param(lambda body: body.replace(b"node-1", b"node\\u002d1"), id="another escape"),
        pytest.param(lambda body: body.replace(b"1760000000000", b"1.76e12"), id="another number form"),
        pytest.param(lambda body: body.replace(b'"node-1"', b'"\\ud800"'), id="lone surrogate"),
        pytest.param(lambda body: body.replace(b'"node-1"', b'"\xff"'), id="not UTF-8"),
        pytest.param(lambda body: body.replace(b'"node-1"', b"NaN"), id="NaN"),
        pytest.param(lambda body: body[:-1], id="cut"),
        pytest.param(lambda body: b"", id="nothing"),
        pytest.param(lambda body: b"[" * 10_000, id="nesting"),
        pytest.param(lambda body: b"[]", id="a list"),
        pytest.param(lambda body: b"null", id="null"),
    ],
)
def test_only_canonical_bytes_are_read(spoil):
    """Even well signed, bytes that are not the one form of what they say are refused."""
    body = spoil(MANIFEST.body)
    assert body != MANIFEST.body
    with pytest.raises(ManifestError, match=r"^manifest: "):
        parse_manifest(body, sign(PAIR, signing_input(body)))


# Who says it.


@pytest.mark.parametrize("signature", [b"", bytes(64), MANIFEST.signature[:-1], MANIFEST.signature + b"\x00"], ids=len)
def test_a_wrong_signature_is_refused(signature):
    with pytest.raises(ManifestError, match="signature"):
        parse_manifest(MANIFEST.body, signature)


def test_a_signature_by_another_key_is_refused():
    with pytest.raises(ManifestError, match="does not match"):
        parse_manifest(MANIFEST.body, sign(make_pair(2), signing_input(MANIFEST.body)))


def test_an_older_key_does_not_speak_for_the_node():
    """After a rotation the former key signs a manifest that names the new one: refused."""
    pairs, entries = rotated(2)
    fields = fields_of() | {"succession": entries, "public_key": pairs[1].public.hex()}
    assert parse_fields(fields, pairs[1]).node_id == node_id_of(pairs[0].public)
    with pytest.raises(ManifestError, match="does not match"):
        parse_fields(fields, pairs[0])
    with pytest.raises(ManifestError, match="does not end with its public key"):
        parse_fields(fields | {"public_key": pairs[0].public.hex()}, pairs[0])


@pytest.mark.parametrize("reason", Reason)
def test_a_rotated_node_keeps_its_id(reason):
    """The chain carries the id of the first key to the current one, for every reason of rotation."""
    pairs, entries = rotated(3, reason=reason)
    signed = parse_fields(fields_of() | {"succession": entries, "public_key": pairs[2].public.hex()}, pairs[2])
    assert signed.node_id == node_id_of(pairs[0].public)
    assert signed.chain.keys == tuple(pair.public for pair in pairs[:3])
    assert [signed.follows(pair.public) for pair in pairs] == [True, True, True, False]


def test_another_nodes_succession_is_refused():
    """A thief of names has a chain of its own only, and a chain names its node."""
    other = make_pair(2)
    own = json.loads(make_manifest(2).body)
    with pytest.raises(ManifestError, match="of another node"):
        parse_fields(own | {"node_id": MANIFEST.node_id.hex()}, other)
    with pytest.raises(ManifestError, match="does not end with its public key"):
        parse_fields(fields_of() | {"public_key": other.public.hex()}, other)


def test_a_broken_succession_is_refused():
    """A statement left out, changed or out of order breaks the chain."""
    pairs, entries = rotated(3)
    fields = fields_of() | {"public_key": pairs[2].public.hex()}
    forged = json.loads(json.dumps(entries))
    forged[1]["statement"]["issued_at"] += 1
    for broken in [entries[1:], [entries[0], entries[2]], [entries[1], entries[0], entries[2]], forged]:
        with pytest.raises(ManifestError):
            parse_fields(fields | {"succession": broken}, pairs[2])


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(bytes(32), id="order 4"),
        pytest.param(b"\x01" + bytes(31), id="order 1"),
        pytest.param(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), id="order 8"),
        pytest.param((2**255 - 19).to_bytes(32, "little"), id="not canonical"),
        pytest.param(b"\xff" * 32, id="no point"),
    ],
)
def test_keys_nobody_can_own_are_refused(key):
    """A key of low order would verify what nobody signed."""
    with pytest.raises(ManifestError, match="not a usable Ed25519 public key"):
        changed(public_key=key.hex(), node_id=node_id_of(key).hex())


def test_signing_checks_what_receipt_checks():
    """A manifest that peers would refuse is refused here first, and so is one of another key."""
    with pytest.raises(ManifestError, match="name"):
        make_manifest(1, name="")
    with pytest.raises(ManifestError, match="signature"):
        sign_manifest(make_pair(2), MANIFEST.manifest)
    with pytest.raises(ManifestError):
        make_manifest(1, unknown={"later": float("nan")})
    with pytest.raises(ManifestError):
        make_manifest(1, unknown={"later": object()})


def test_unknown_keys_never_replace_known_ones():
    signed = make_manifest(1, unknown={"name": "other", "later": 1})
    assert signed.manifest.name == "node-1"
    assert isinstance(signed.manifest, PeerManifest)


# Junk.


def read_or_refuse(body, signature):
    """Return what was read; ManifestError is the only exception, with a short printable reason."""
    try:
        return parse_manifest(body, signature)
    except ManifestError as error:
        assert len(str(error)) <= 400
        assert str(error).isprintable()
        return None


def test_five_thousand_mutations_forge_nothing():
    """Whatever edit is made, unsigned or signed anew by the node's own key, nothing but ManifestError comes out."""
    seed = 20_261_123
    rng = random.Random(seed)
    taken = 0
    for number in range(5_000):
        body = bytearray(MANIFEST.body)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body))
            match rng.randrange(4):
                case 0:
                    body[at] ^= 1 << rng.randrange(8)
                case 1:
                    del body[at : at + rng.randint(1, 30)]
                case 2:
                    body[at:at] = rng.choice([b"{", b"[", b'"', b",", b"null", b"1e999", b"\\u0000", b"\xff", b'"name":1,'])
                case _:
                    body[at] = rng.randrange(256)
        body = bytes(body)
        if body == MANIFEST.body:
            continue
        assert read_or_refuse(body, MANIFEST.signature) is None, f"seed {seed}, mutation {number}"
        signed = read_or_refuse(body, sign(PAIR, signing_input(body)))
        if signed is not None:
            taken += 1
            # Its own key may say many things, but only of its own node.
            assert signed.node_id == MANIFEST.node_id
            assert signed.body == body
    assert taken > 10, f"seed {seed}: the mutations test nothing"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX, MAX) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted([*fields_of(), "http_port", "sync_port", "version", "trust_tier", "later"])), _JSON)
def test_junk_in_any_field_raises_nothing_else(name, value):
    try:
        body = canonicalize(fields_of() | {name: value})
    except PacketError:  # what has no canonical form cannot be sent in one
        return
    signed = read_or_refuse(body, sign(PAIR, signing_input(body)))
    assert signed is None or isinstance(signed, SignedManifest)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=70))
def test_junk_raises_nothing_else(body, signature):
    assert read_or_refuse(body, signature) is None
