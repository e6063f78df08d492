"""Beacons, probes and goodbyes: what is written, what is read, what is refused and why."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.beacon import (
    BEACON_LABEL,
    MAX_CAPABILITIES,
    Announcer,
    Beacon,
    BeaconError,
    GoodbyeDatagram,
    Probe,
    Profile,
    Refusal,
    SignedDatagram,
    VerifiedBeacon,
    VerifiedGoodbye,
    encode_probe,
    parse,
    verify,
)
from federation.protocol.canonical import canonicalize
from federation.protocol.errors import LocalProtocolError
from federation.protocol.limits import MAX_BEACON_BYTES
from keys.ed25519 import keypair_from_seed, sign
from keys.encoding import node_id_of

VECTORS = Path(__file__).parents[2] / "docs" / "vectors" / "beacon.json"
NETWORK = "arklattice"
NOW_MS = 1_763_000_000_000
PAIR = keypair_from_seed(bytes(range(32)))
PROFILE = Profile(
    node_id=node_id_of(PAIR.public),
    name="atlas",
    port=8102,
    sync_port=8104,
    network=NETWORK,
    version="0.1.0",
    capabilities=("relay",),
)
ANNOUNCER = Announcer(pair=PAIR, profile=PROFILE)


def beacon_fields(**changes):
    """The fields of a good beacon as JSON, without signature; None as a value removes a field."""
    fields = json.loads(ANNOUNCER.beacon(address="192.0.2.7", timestamp=NOW_MS))
    del fields["signature"]
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def signed(fields, pair=PAIR):
    return canonicalize({**fields, "signature": sign(pair, BEACON_LABEL + canonicalize(fields)).hex()})


def refusal_of(data, network=NETWORK):
    with pytest.raises(BeaconError) as caught:
        datagram = parse(data, network=network)
        if isinstance(datagram, SignedDatagram):
            verify(datagram)
    return caught.value.refusal


def test_a_beacon_says_what_the_profile_says():
    """A beacon read back carries profile, key, address and time, and verifies."""
    verified = verify(parse(ANNOUNCER.beacon(address="192.0.2.7", timestamp=NOW_MS), network=NETWORK))
    assert verified == VerifiedBeacon(
        Beacon(
            peer_id=PROFILE.node_id,
            public_key=PAIR.public,
            key_fingerprint=PAIR.fingerprint,
            timestamp=NOW_MS,
            peer_name="atlas",
            address="192.0.2.7",
            port=8102,
            sync_port=8104,
            trust_tier="unknown",
            capabilities=("relay",),
            version="0.1.0",
        )
    )


def test_a_goodbye_is_signed_and_names_the_key():
    """A goodbye read back carries id, key and time, and verifies."""
    verified = verify(parse(ANNOUNCER.goodbye(timestamp=NOW_MS), network=NETWORK))
    assert verified == VerifiedGoodbye(GoodbyeDatagram(PROFILE.node_id, PAIR.public, PAIR.fingerprint, NOW_MS))


def test_a_probe_names_a_node_or_nobody():
    """A node's probe carries its id, an onlooker's none."""
    assert parse(ANNOUNCER.probe(), network=NETWORK) == Probe(peer_id=PROFILE.node_id)
    assert parse(encode_probe(NETWORK), network=NETWORK) == Probe(peer_id=None)


def test_a_beacon_has_exactly_the_fields_of_the_protocol():
    """The keys on the wire are those of docs/protocol.md, section 4."""
    assert set(json.loads(ANNOUNCER.beacon(address="", timestamp=NOW_MS))) == {
        "type", "peer_id", "peer_name", "address", "port", "sync_port", "trust_tier", "key_fingerprint", "public_key",
        "capabilities", "version", "network", "timestamp", "signature",
    }  # fmt: skip


def test_the_longest_beacon_fits_and_says_fewer_capabilities():
    """With every field at its longest the datagram still fits: capabilities give way, nothing else does."""
    profile = Profile(
        node_id=PROFILE.node_id,
        name="\N{GRINNING FACE}" * 64,
        port=65_535,
        sync_port=65_535,
        network="\N{GRINNING FACE}" * 64,
        version="9" * 32,
        trust_tier="x" * 16,
        capabilities=tuple("c" * 31 + digit for digit in "0123456789abcdefgh"),
    )
    datagram = Announcer(pair=PAIR, profile=profile).beacon(address="f" * 64, timestamp=2**53 - 1)
    assert len(datagram) <= MAX_BEACON_BYTES
    beacon = verify(parse(datagram, network=profile.network)).beacon
    assert beacon.capabilities == profile.capabilities[: len(beacon.capabilities)]
    assert beacon.peer_name == profile.name


def test_sixteen_short_capabilities_are_said():
    """Up to sixteen capabilities are said, a seventeenth is not."""
    names = tuple(f"c{number}" for number in range(MAX_CAPABILITIES + 1))
    announcer = Announcer(pair=PAIR, profile=replace(PROFILE, capabilities=names))
    beacon = verify(parse(announcer.beacon(address="", timestamp=NOW_MS), network=NETWORK)).beacon
    assert beacon.capabilities == names[:MAX_CAPABILITIES]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"name": "line\nbreak"},
        {"sync_port": 0},
        {"port": 65_536},
        {"network": ""},
        {"network": "n" * 65},
        {"version": "two words"},
        {"trust_tier": "CORE"},
        {"capabilities": ("Relay",)},
        {"node_id": b"short"},
    ],
)
def test_a_profile_no_receiver_would_accept_is_our_bug(changes):
    """A value that the parser would refuse cannot be announced."""
    with pytest.raises(LocalProtocolError, match=r"^(beacon|network)"):
        replace(PROFILE, **changes)


def test_size_at_the_limit_and_one_beyond():
    """1,200 bytes are read, 1,201 are refused before anything is parsed."""
    room = MAX_BEACON_BYTES - len(signed(beacon_fields(padding="")))
    assert len(signed(beacon_fields(padding="x" * room))) == MAX_BEACON_BYTES
    verify(parse(signed(beacon_fields(padding="x" * room)), network=NETWORK))
    assert refusal_of(signed(beacon_fields(padding="x" * (room + 1)))) is Refusal.TOO_LARGE
    assert refusal_of(b"\xff" * (MAX_BEACON_BYTES + 1)) is Refusal.TOO_LARGE


def test_unknown_keys_are_allowed_and_covered_by_the_signature():
    """A key of a later version neither breaks the signature nor can be changed under it."""
    datagram = signed(beacon_fields(later={"any": [1, None]}))
    verify(parse(datagram, network=NETWORK))
    assert refusal_of(datagram.replace(b'"any":[1', b'"any":[2')) is Refusal.SIGNATURE


@pytest.mark.parametrize("field", sorted(beacon_fields()))
def test_every_field_is_required(field):
    """A beacon without one of its fields is malformed, whoever signed it."""
    assert refusal_of(signed(beacon_fields(**{field: None}))) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("peer_name", ["x", "x" * 64, "Ångström 星"], ["", "x" * 65, "bell\a", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "\0", 5, ["x"]]),
        ("address", ["", "a" * 64, "fe80::1%eth0"], ["a" * 65, "a b", "http://x", 5]),
        ("port", [1, 65_535], [0, 65_536, -1, "8102", 8102.5, True]),
        ("sync_port", [1, 65_535], [0, 65_536, True, {}]),
        ("trust_tier", ["x", "x" * 16, "core"], ["", "x" * 17, "CORE", 1]),
        ("capabilities", [[], ["c"] * 16, ["c" * 32]], [["c"] * 17, ["c" * 33], [""], ["C"], [1], "relay", {}]),
        ("version", ["1", "1" * 32, "1.0rc1+x"], ["", "1" * 33, "1 0", 1]),
        ("timestamp", [0, 2**53 - 1], [-1, 1.5, True, "0"]),
        ("peer_id", [], ["", "a" * 31, "A" * 32, " " + "a" * 31, 5]),
        ("public_key", [], ["a" * 63, "A" * 64, 5]),
        ("key_fingerprint", [], ["a" * 64, "A" * 64, 5]),
        ("network", [], [5, ["arklattice"]]),
        ("type", [], ["Beacon", "", 5, ["beacon"]]),
    ],
)
def test_field_rules_at_the_limit_and_one_beyond(field, good, bad):
    """Every field is accepted at its limits and malformed beyond them."""
    for value in good:
        verify(parse(signed(beacon_fields(**{field: value})), network=NETWORK))
    for value in bad:
        assert refusal_of(signed(beacon_fields(**{field: value}))) is Refusal.MALFORMED, value


def test_only_the_canonical_bytes_are_read():
    """JSON that means the same in other bytes is refused, as is JSON that could mean two things (T13)."""
    datagram = ANNOUNCER.beacon(address="", timestamp=NOW_MS)
    fields = json.loads(datagram)
    assert refusal_of(json.dumps(fields).encode()) is Refusal.NOT_CANONICAL
    assert refusal_of(datagram + b" ") is Refusal.NOT_CANONICAL
    assert refusal_of(json.dumps(dict(reversed(fields.items())), separators=(",", ":")).encode()) is Refusal.NOT_CANONICAL
    assert refusal_of(datagram.replace(b'"port":8102', b'"port":8102,"port":8102')) is Refusal.MALFORMED
    assert refusal_of(datagram.replace(b'"port":8102', b'"port":NaN')) is Refusal.MALFORMED
    assert refusal_of(datagram.replace(b'"port":8102', b'"port":8102.0')) is Refusal.NOT_CANONICAL
    assert refusal_of(b"\xef\xbb\xbf" + datagram) is Refusal.MALFORMED
    assert refusal_of(datagram.decode().encode("utf-16")) is Refusal.MALFORMED
    assert refusal_of(b"[" * 40 + b"]" * 40) is Refusal.MALFORMED


def test_another_network_is_told_apart_from_bad_manners():
    """Beacon, goodbye and probe of another network are refused as such, before their fields are judged (T20)."""
    other = Announcer(pair=PAIR, profile=replace(PROFILE, network="elsewhere"))
    for datagram in (other.beacon(address="", timestamp=NOW_MS), other.goodbye(timestamp=NOW_MS), other.probe()):
        assert refusal_of(datagram) is Refusal.NETWORK
    assert refusal_of(b'{"network":"elsewhere","type":"beacon"}') is Refusal.NETWORK


def test_a_key_and_another_keys_fingerprint_do_not_go_together():
    """The fingerprint must be that of the key in the same datagram."""
    stranger = keypair_from_seed(bytes(32))
    assert refusal_of(signed(beacon_fields(public_key=stranger.public.hex()), stranger)) is Refusal.MALFORMED


def test_each_flipped_bit_is_noticed():
    """No single changed bit of a beacon leaves it believed with another meaning."""
    datagram = ANNOUNCER.beacon(address="192.0.2.7", timestamp=NOW_MS)
    for position in range(len(datagram) * 8):
        changed = bytearray(datagram)
        changed[position // 8] ^= 1 << position % 8
        refusal_of(bytes(changed))


def test_a_low_order_key_signs_nothing():
    """The key for which any signature of zeros would 'verify' is refused."""
    low_order = bytes([1]) + bytes(31)
    from keys.encoding import fingerprint_of

    fields = beacon_fields(public_key=low_order.hex(), key_fingerprint=fingerprint_of(low_order).hex())
    assert refusal_of(canonicalize({**fields, "signature": (low_order + bytes(32)).hex()})) is Refusal.SIGNATURE


def mutated(rng, datagram):
    """Return `datagram` damaged in one of the ways that fuzzers find things with."""
    data = bytearray(datagram)
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(1_400))
        case 1:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            del data[rng.randrange(len(data)) :]
        case 3:
            start = rng.randrange(len(data))
            data[start:start] = data[start : start + rng.randrange(200)] * rng.randrange(1, 4)
        case 4:
            start = rng.randrange(len(data))
            data[start : start + rng.randrange(1, 20)] = rng.choice(
                [b"null", b"1e999", b"-0", b"[[[[", b'"\\ud800"', b"{}", b"\x00", b"true", b'""', b"18446744073709551616"]
            )
        case _:
            data = bytearray(b"{" + b",".join(rng.choices(bytes(data[1:-1]).split(b","), k=rng.randrange(1, 12))) + b"}")
    return bytes(data)


def fuzz(count, seed):
    rng = random.Random(seed)
    seeds = [ANNOUNCER.beacon(address="192.0.2.7", timestamp=NOW_MS), ANNOUNCER.goodbye(timestamp=NOW_MS), ANNOUNCER.probe()]
    slowest = 0.0
    for _ in range(count):
        data = mutated(rng, rng.choice(seeds))
        began = time.perf_counter()
        try:
            datagram = parse(data, network=NETWORK)
            if isinstance(datagram, SignedDatagram):
                verify(datagram)
        except BeaconError:
            pass
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


def test_a_hundred_thousand_damaged_datagrams_raise_nothing_else():
    """Whatever arrives, the parser raises BeaconError or nothing, and never takes 100 ms (T1)."""
    assert fuzz(100_000, seed=1) < 0.1


@given(st.binary(max_size=MAX_BEACON_BYTES + 50) | st.text(max_size=400).map(lambda text: json.dumps({"type": text}).encode()))
def test_any_bytes_are_parsed_or_refused(data):
    """No bytes raise anything but the documented error."""
    try:
        parse(data, network=NETWORK)
    except BeaconError:
        pass


def test_the_vectors_another_implementation_checks():
    """Each vector in docs/vectors/beacon.json parses to its fields or fails with the named refusal."""
    document = json.loads(VECTORS.read_text(encoding="utf-8"))
    seen = set()
    for vector in document["vectors"]:
        data = bytes.fromhex(vector["datagram_hex"]) if "datagram_hex" in vector else vector["datagram"].encode()
        if "error" in vector:
            assert refusal_of(data, document["network"]) == vector["error"], vector["name"]
            seen.add(vector["error"])
            continue
        datagram = parse(data, network=document["network"])
        if isinstance(datagram, Probe):
            assert vector["type"] == "probe"
            continue
        verify(datagram)
        assert BEACON_LABEL + datagram.signed_bytes == vector["signed"].encode(), vector["name"]
        pair = keypair_from_seed(bytes.fromhex(document["seed"]))
        assert sign(pair, vector["signed"].encode()) == datagram.signature, vector["name"]
        assert datagram.content.peer_id == node_id_of(pair.public)
    assert seen == {"too-large", "malformed", "not-canonical", "network", "signature"}
