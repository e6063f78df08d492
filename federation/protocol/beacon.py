"""Discovery datagrams: what a node says of itself to everybody within reach, and how that is read.

Three types, each one canonical JSON object in one UDP datagram of at most 1,200 bytes:

    beacon    "I am here": signed, carries its own verify key
    goodbye   "I am leaving": signed too, or anybody could take peers off the air
    probe     "who is there?": unsigned, since it changes nothing and is answered at a bounded rate

Bytes become a type in `parse` (size, canonical form, network, every field), and a signed type becomes
a verified one only in `verify`. The signature covers every key of the object but `signature` itself,
unknown keys included. That it is valid says only that the holder of *that key* wrote these bytes;
whose key it is, is decided in `sightings`.

Source: docs/protocol.md, section 4.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from federation.protocol.canonical import JSONValue, canonicalize, parse_canonical
from federation.protocol.errors import Code, LocalProtocolError, PacketError
from federation.protocol.limits import MAX_BEACON_BYTES, MAX_SAFE_INTEGER
from keys.ed25519 import SIGNATURE_BYTES, InvalidSignatureError, KeyPair, sign
from keys.ed25519 import verify as verify_signature
from keys.encoding import (
    MAX_NAME_CHARS,
    PUBLIC_KEY_BYTES,
    EncodingError,
    KeyFingerprint,
    NodeId,
    fingerprint_of,
    parse_fingerprint,
    parse_hex,
    parse_node_id,
    short,
)

__all__ = [
    "Announcer",
    "Beacon",
    "BeaconError",
    "GoodbyeDatagram",
    "Probe",
    "Profile",
    "Refusal",
    "SignedDatagram",
    "VerifiedBeacon",
    "VerifiedGoodbye",
    "encode_probe",
    "parse",
    "verify",
]

BEACON_LABEL = b"arklattice/beacon/v1\n"

# More would crowd the datagram; the manifest has room for all of them.
MAX_CAPABILITIES = 16
MAX_NETWORK_CHARS = 64
MAX_PORT = 65_535

_CAPABILITY = re.compile(r"[a-z0-9._-]{1,32}")
_TIER = re.compile(r"[a-z-]{1,16}")
_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,32}")
# An IP address with or without a zone, or a host name. Shown to people, never dialled.
_ADDRESS = re.compile(r"[0-9A-Za-z.:%_-]{0,64}")


class Refusal(StrEnum):
    """Why a datagram changed nothing; counted by this name and shown in the node's status."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    NOT_CANONICAL = "not-canonical"
    NETWORK = "network"
    """Another network's: well-formed, and none of our business."""
    SIGNATURE = "signature"
    RATE = "rate"
    """Its source address, or all unfamiliar ones together, said too much."""
    OWN = "own"
    """Our own datagram, looped back."""
    CLOCK = "clock"
    """Stamped more than five minutes from our clock."""
    OLD = "old"
    """Not newer than the last one of this key: a replay, or the same beacon by a second way."""
    KEY = "key"
    """Signed by a key that the registry holds as retired or revoked."""
    ADDRESS = "address"
    """From an address, or naming a port, that no node is dialled at."""
    FULL = "full"
    """A bound on strangers is reached; those already here are not pushed out."""
    ABSENT = "absent"
    """A goodbye of somebody who was not here."""


class BeaconError(Exception):
    """A datagram was refused; `refusal` says why to counters and vectors, the message to people."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Profile:
    """What a node says of itself in every beacon, apart from key, address and time.

    Raises:
        LocalProtocolError: A value that no beacon may carry.
    """

    node_id: NodeId
    name: str
    """1 to 64 printable characters; receivers show it and resolve nothing by it."""
    port: int
    """TCP port of HTTP, informational."""
    sync_port: int
    """TCP port of `/sync`; dialled at the *source address* of the datagram."""
    network: str
    version: str
    trust_tier: str = "unknown"
    """Self-declared and informational."""
    capabilities: tuple[str, ...] = ()
    """As many of the first 16 as fit into the datagram are said."""

    def __post_init__(self) -> None:
        if len(self.node_id) != 16:
            raise LocalProtocolError(f"beacon: node_id {short(self.node_id)} is not 16 bytes")
        _network_name(self.network)
        rules: list[tuple[str, object]] = [
            ("peer_name", self.name),
            ("port", self.port),
            ("sync_port", self.sync_port),
            ("version", self.version),
            ("trust_tier", self.trust_tier),
            ("capabilities", list(self.capabilities[:MAX_CAPABILITIES])),
        ]
        try:
            for field, value in rules:
                _BEACON_FIELDS[field](field, value)
        except BeaconError as error:
            raise LocalProtocolError(f"beacon: {error}") from None


@dataclass(frozen=True, slots=True)
class Beacon:
    """What one beacon says. Nothing in it is obeyed: see `sightings` for what it may change."""

    peer_id: NodeId
    public_key: bytes
    key_fingerprint: KeyFingerprint
    timestamp: int
    """Sender's wall clock, ms."""
    peer_name: str
    address: str
    """What the sender takes for its address: shown, never dialled."""
    port: int
    sync_port: int
    trust_tier: str
    capabilities: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class GoodbyeDatagram:
    """The node with this id and key leaves the network of its own will."""

    peer_id: NodeId
    public_key: bytes
    key_fingerprint: KeyFingerprint
    timestamp: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Somebody asks for beacons. `peer_id` is theirs if they say so, which lets a node ignore its own probe."""

    peer_id: NodeId | None


@dataclass(frozen=True, slots=True)
class SignedDatagram:
    """A beacon or goodbye as parsed: well-formed and of our network, and *untrusted* until `verify`."""

    content: Beacon | GoodbyeDatagram
    signed_bytes: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedBeacon:
    """A beacon that the holder of the key in it signed. Only `verify` makes one."""

    beacon: Beacon


@dataclass(frozen=True, slots=True)
class VerifiedGoodbye:
    """A goodbye that the holder of the key in it signed. Only `verify` makes one."""

    goodbye: GoodbyeDatagram


@dataclass(frozen=True, slots=True)
class Announcer:
    """Writes this node's datagrams: its profile and the key that signs them."""

    pair: KeyPair
    profile: Profile

    def beacon(self, *, address: str, timestamp: int) -> bytes:
        """Return a signed beacon of at most 1,200 bytes.

        Args:
            address: Own address on the interface it leaves by, or empty.
            timestamp: Wall clock in ms, greater than in any datagram this node sent before: receivers
                drop what is not newer.
        """
        profile = self.profile
        said = list(profile.capabilities[:MAX_CAPABILITIES])
        while True:
            datagram = self._signed(
                {
                    "type": "beacon",
                    "peer_name": profile.name,
                    "address": address,
                    "port": profile.port,
                    "sync_port": profile.sync_port,
                    "trust_tier": profile.trust_tier,
                    "capabilities": said,
                    "version": profile.version,
                },
                timestamp,
            )
            # Without capabilities the longest values of every field fit (a test holds it), so this ends.
            if len(datagram) <= MAX_BEACON_BYTES or not said:
                return datagram
            said = said[:-1]

    def goodbye(self, *, timestamp: int) -> bytes:
        """Return a signed goodbye; `timestamp` as in `beacon`."""
        return self._signed({"type": "goodbye"}, timestamp)

    def probe(self) -> bytes:
        """Return a probe that names us, so that we do not answer ourselves."""
        return encode_probe(self.profile.network, peer_id=self.profile.node_id)

    def _signed(self, fields: Mapping[str, JSONValue], timestamp: int) -> bytes:
        rest: dict[str, JSONValue] = {
            **fields,
            "peer_id": self.profile.node_id.hex(),
            "key_fingerprint": self.pair.fingerprint.hex(),
            "public_key": self.pair.public.hex(),
            "network": self.profile.network,
            "timestamp": timestamp,
        }
        signature = sign(self.pair, BEACON_LABEL + canonicalize(rest))
        return canonicalize({**rest, "signature": signature.hex()})


def encode_probe(network: str, *, peer_id: NodeId | None = None) -> bytes:
    """Return a probe for `network`; a node names itself, a mere onlooker (`discover`) does not."""
    probe: dict[str, JSONValue] = {"type": "probe", "network": _network_name(network)}
    if peer_id is not None:
        probe["peer_id"] = peer_id.hex()
    return canonicalize(probe)


def parse(data: bytes, *, network: str) -> SignedDatagram | Probe:
    """Return what one datagram says, untrusted.

    Checks, in this order: size before anything is parsed, canonical form, type, network, every field.
    Unknown keys are allowed and covered by the signature.

    Raises:
        BeaconError: Anything else, whatever the bytes; with the first rule that it broke.
    """
    if len(data) > MAX_BEACON_BYTES:
        raise BeaconError(Refusal.TOO_LARGE, f"{len(data)} bytes, at most {MAX_BEACON_BYTES} are read")
    try:
        value = parse_canonical(data, max_bytes=MAX_BEACON_BYTES)
    except PacketError as error:
        raise BeaconError(_REFUSAL_OF_CODE.get(error.code, Refusal.MALFORMED), str(error)) from None
    if not isinstance(value, dict):
        _malformed(f"{short(value)} is not an object")
    kind = value.get("type")
    if kind not in ("beacon", "goodbye", "probe"):
        _malformed(f"type {short(kind)}: expected beacon, goodbye or probe")
    # Before the other fields: another network may have other rules for them, and that is no fault.
    theirs = value.get("network")
    if not isinstance(theirs, str):
        _malformed(f"network {short(theirs)} is not text")
    if theirs != network:
        raise BeaconError(Refusal.NETWORK, f"network {short(theirs)}, this node is of {short(network)}")
    try:
        if kind == "probe":
            return Probe(peer_id=parse_node_id(value["peer_id"]) if "peer_id" in value else None)
        return _signed_datagram(value, is_beacon=kind == "beacon")
    except EncodingError as error:
        raise BeaconError(Refusal.MALFORMED, str(error)) from None


def verify(datagram: SignedDatagram) -> VerifiedBeacon | VerifiedGoodbye:
    """Return the content if the holder of the key in it signed exactly these bytes.

    Raises:
        BeaconError: `Refusal.SIGNATURE`.
    """
    content = datagram.content
    try:
        verify_signature(content.public_key, BEACON_LABEL + datagram.signed_bytes, datagram.signature)
    except InvalidSignatureError as error:
        raise BeaconError(Refusal.SIGNATURE, str(error)) from None
    return VerifiedBeacon(content) if isinstance(content, Beacon) else VerifiedGoodbye(content)


_REFUSAL_OF_CODE = {Code.TOO_LARGE: Refusal.TOO_LARGE, Code.NOT_CANONICAL: Refusal.NOT_CANONICAL}


def _signed_datagram(value: dict[str, JSONValue], *, is_beacon: bool) -> SignedDatagram:
    fields = _BEACON_FIELDS if is_beacon else _GOODBYE_FIELDS
    for field in (*fields, "signature"):
        if field not in value:
            _malformed(f"{field} is missing")
    read = {field: rule(field, value[field]) for field, rule in fields.items()}
    if fingerprint_of(read["public_key"]) != read["key_fingerprint"]:
        _malformed("key_fingerprint is not the public key's")
    signature = parse_hex(value["signature"], size=SIGNATURE_BYTES)
    signed_bytes = canonicalize({key: item for key, item in value.items() if key != "signature"})
    content = Beacon(**read) if is_beacon else GoodbyeDatagram(**read)
    return SignedDatagram(content=content, signed_bytes=signed_bytes, signature=signature)


def _malformed(message: str) -> NoReturn:
    raise BeaconError(Refusal.MALFORMED, message)


def _network_name(network: str) -> str:
    if not 1 <= len(network) <= MAX_NETWORK_CHARS or not network.isprintable():
        raise LocalProtocolError(f"network {short(network)} is not 1 to {MAX_NETWORK_CHARS} printable characters")
    return network


def _name(field: str, value: object) -> str:
    # Printable: no control or format character reaches a terminal, a database or an eye by this way.
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARS or not value.isprintable():
        _malformed(f"{field} {short(value)} is not 1 to {MAX_NAME_CHARS} printable characters")
    return value


def _port(field: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_PORT:
        _malformed(f"{field} {short(value)} is not a port from 1 to {MAX_PORT}")
    return value


def _time(field: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INTEGER:
        _malformed(f"{field} {short(value)} is not a time in ms from 0 to 2^53-1")
    return value


def _capabilities(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_CAPABILITIES:
        _malformed(f"{field} {short(value)} is not a list of at most {MAX_CAPABILITIES}")
    return tuple(_matching(_CAPABILITY)(field, item) for item in value)


def _matching(pattern: re.Pattern[str]) -> Callable[[str, object], str]:
    def rule(field: str, value: object) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            _malformed(f"{field} {short(value)} does not match {pattern.pattern}")
        return value

    return rule


_GOODBYE_FIELDS: dict[str, Callable[[str, object], Any]] = {
    "peer_id": lambda _, value: parse_node_id(value),
    "public_key": lambda _, value: parse_hex(value, size=PUBLIC_KEY_BYTES),
    "key_fingerprint": lambda _, value: parse_fingerprint(value),
    "timestamp": _time,
}

_BEACON_FIELDS: dict[str, Callable[[str, object], Any]] = {
    **_GOODBYE_FIELDS,
    "peer_name": _name,
    "address": _matching(_ADDRESS),
    "port": _port,
    "sync_port": _port,
    "trust_tier": _matching(_TIER),
    "capabilities": _capabilities,
    "version": _matching(_VERSION),
}
