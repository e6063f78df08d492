"""Who is around: what discovery datagrams may change, and how little a flood of them costs.

`Sightings` is a bounded table in memory, one entry for each (node_id, key) heard. Datagrams go in with
their source address and both clocks; one effect comes out, for the shell to execute:

    NewSighting     a node the registry does not hold: register it as UNKNOWN
    Refreshed       a node the registry holds, under a key it holds: it is there, at this address
    UnfamiliarKey   a valid beacon for a node whose *other* key we hold: show it, change nothing
    Departed        it said goodbye
    Probed          somebody asks for beacons: answer soon
    Ignored         nothing changes, and why
    Stale           (from `expire`) not heard for five minutes

Anybody can sign a beacon naming any node_id with a key of their own. So freshness is kept per key, an
unfamiliar key brings no address, and a goodbye removes only what the same key announced.

Checks go from cheap to dear: size, rate, form, own, clock, key, freshness, room, and the signature last.
What a flood meets, in this order: a token bucket for its source address, one bucket for all addresses
that nobody is known at, at most 8 strangers for each address and 256 in all. Those already here are never
pushed out by those who come. Peers the operator knows count nowhere here.

An entry that is stale or has departed is kept until its last beacon can no longer be replayed.

Source: docs/protocol.md, section 4.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import Any

from federation.protocol.beacon import (
    Beacon,
    BeaconError,
    GoodbyeDatagram,
    Probe,
    Refusal,
    VerifiedBeacon,
    VerifiedGoodbye,
    parse,
    verify,
)
from federation.protocol.limits import MAX_BEACON_BYTES, Limits
from keys.encoding import KeyFingerprint, NodeId

__all__ = [
    "Departed",
    "Effect",
    "Ignored",
    "NewSighting",
    "NotePace",
    "Probed",
    "Refreshed",
    "Registered",
    "Sighting",
    "Sightings",
    "Source",
    "Stale",
    "TokenBuckets",
    "UnfamiliarKey",
    "candidate_url",
]

# A beacon stamped further from our clock changes nothing: a replay has this long to be tried, and no longer.
CLOCK_WINDOW_MS = 300_000
STALE_AFTER_S = 300.0

# Datagrams one source address may have read: a dozen nodes on one machine, each with several addresses, starting at once.
ADDRESS_BURST = 64.0
ADDRESS_PER_S = 8.0
# The same for all addresses together at which nobody is known: source addresses are forged at no cost, so each
# forged one brings a full bucket. At some 60 µs a verified beacon this bounds a flood to about 1 % of a core.
STRANGERS_BURST = 256.0
STRANGERS_PER_S = 100.0
# Buckets kept; the one unused longest gives way, and what it held is forgiven.
MAX_BUCKETS = 1_024
# Keys heard for one node_id: the one we hold, its successor, and room for a forger or two to be seen.
MAX_KEYS_PER_NODE = 4
# How often a sighting is written at most: see NotePace. Those noted are remembered up to this number; the one noted
# longest ago gives way, and may be noted again too soon.
NOTE_NEWS_EVERY_S = 2.0
NOTE_EVERY_S = 30.0
MAX_NOTED = 2_048
# Below it are other programs' ports (22, 25, 53, 80…). A beacon is no way to make nodes knock on them.
MIN_SYNC_PORT = 1_024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a datagram came from, by the kernel's word."""

    address: str
    """IP address as text, without zone."""
    zone: str = ""
    """Name of the interface it came in by, for a link-local IPv6 address; else empty."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry holds of one peer, as far as beacons are concerned."""

    pinned: frozenset[KeyFingerprint] = frozenset()
    """Keys that the operator imported or confirmed, or that a handshake proved."""
    unconfirmed: frozenset[KeyFingerprint] = frozenset()
    """Keys known by nothing but beacons."""
    refused: frozenset[KeyFingerprint] = frozenset()
    """Retired and revoked keys."""
    known: bool = False
    """The operator decided something about it: it counts as no stranger."""
    last_beacon_ms: int = 0
    """Timestamp in the newest beacon believed, so that a restart opens no door to replays."""


@dataclass(frozen=True, slots=True)
class NewSighting:
    """A node that the registry does not hold. `url` is where it may be dialled."""

    beacon: Beacon
    source: Source
    url: str


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A node that the registry holds is there; `returned` when it was stale, gone or not heard since the start."""

    beacon: Beacon
    source: Source
    url: str
    known: bool
    returned: bool


@dataclass(frozen=True, slots=True)
class UnfamiliarKey:
    """A key that is not the one held for this node: unconfirmed until a handshake proves a succession to it.

    `url` is where it was heard and no address of the node: whoever signs with a key of their own may name any node.
    """

    beacon: Beacon
    source: Source
    url: str


@dataclass(frozen=True, slots=True)
class Departed:
    """The node said goodbye, under the key that announced it."""

    node_id: NodeId
    known: bool


@dataclass(frozen=True, slots=True)
class Stale:
    """No beacon of this node for five minutes."""

    node_id: NodeId
    known: bool


@dataclass(frozen=True, slots=True)
class Probed:
    """Somebody of our network asks for beacons."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The datagram changed nothing."""

    refusal: Refusal


Sighting = NewSighting | Refreshed | UnfamiliarKey
Effect = Sighting | Departed | Probed | Ignored


class TokenBuckets:
    """A token bucket for each of at most `capacity` names; time is monotonic seconds, handed in."""

    def __init__(self, *, burst: float, per_s: float, capacity: int) -> None:
        self._burst = burst
        self._per_s = per_s
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, now: float) -> bool:
        """Take one token of this name's bucket; False when it is empty."""
        tokens, at = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._per_s)
        granted = tokens >= 1.0
        self._buckets[name] = (tokens - 1.0 if granted else tokens, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return granted


class NotePace:
    """Which believed sightings are worth a row: writing costs fifty times what believing does.

    A peer the operator knows, one that returned, and one heard at another port are noted within two seconds, and
    every two seconds at most; a stranger that merely is still there every thirty. So strangers that beacon as fast as
    they may, or say goodbye and return all the time, keep no database busy.
    """

    def __init__(self) -> None:
        self._noted: OrderedDict[tuple[NodeId, KeyFingerprint, str], tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._noted)

    def wait_s(self, sighting: Sighting, now: float) -> float | None:
        """Return in how many seconds to note it, 0 for at once, None for not at all. `now` is monotonic seconds."""
        noted_at, url = self._noted.get(_noted_as(sighting), (-NOTE_EVERY_S, ""))
        if url != sighting.url or (isinstance(sighting, Refreshed) and (sighting.known or sighting.returned)):
            return max(0.0, noted_at + NOTE_NEWS_EVERY_S - now)
        return 0.0 if now - noted_at >= NOTE_EVERY_S else None

    def noted(self, sighting: Sighting, now: float) -> None:
        """Count this sighting as noted now."""
        key = _noted_as(sighting)
        self._noted[key] = (now, sighting.url)
        self._noted.move_to_end(key)
        if len(self._noted) > MAX_NOTED:
            self._noted.popitem(last=False)


def _noted_as(sighting: Sighting) -> tuple[NodeId, KeyFingerprint, str]:
    return sighting.beacon.peer_id, sighting.beacon.key_fingerprint, sighting.source.address


class _Standing(Enum):
    HELD = "held"
    """Signed by a key we hold for this node, or we hold none and this is as good as any."""
    UNFAMILIAR = "unfamiliar"
    """We hold another key for this node."""


@dataclass(slots=True)
class _Entry:
    charged_to: str
    """The source address whose share of strangers it takes."""
    last_ms: int
    heard_at: float
    standing: _Standing
    known: bool
    present: bool = True
    addresses: list[str] = field(default_factory=list)


_Key = tuple[NodeId, KeyFingerprint]


class Sightings:
    """The bounded table of who was heard; see the module for its rules.

    Args:
        own: Our node_id, or None for an onlooker without a key.
        network: Datagrams of other networks change nothing.
        limits: `unknown_peers`, `unknown_peers_per_address`, `addresses_per_peer` are used.
    """

    def __init__(self, *, own: NodeId | None, network: str, limits: Limits) -> None:
        self._own = own
        self._network = network
        self._limits = limits
        self._registry: Mapping[NodeId, Registered] = {}
        self._entries: dict[_Key, _Entry] = {}
        self._keys_of: Counter[NodeId] = Counter()
        # Entries heard at an address, of whatever standing; and those of strangers charged to it.
        self._heard_at: Counter[str] = Counter()
        self._strangers_at: Counter[str] = Counter()
        self._strangers = 0
        self._by_address = TokenBuckets(burst=ADDRESS_BURST, per_s=ADDRESS_PER_S, capacity=MAX_BUCKETS)
        self._by_strangers = TokenBuckets(burst=STRANGERS_BURST, per_s=STRANGERS_PER_S, capacity=1)
        self.counters: Counter[str] = Counter()
        """Datagrams by effect (`believed`, `unfamiliar-key`, `goodbye`, `probe`) or by refusal."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def strangers(self) -> int:
        """Entries that count against the bounds: nobody the operator knows, or a key nobody knows."""
        return self._strangers

    def present(self) -> list[NodeId]:
        """Return the nodes heard in the last five minutes under a key that is not unfamiliar."""
        return [node_id for (node_id, _), entry in self._entries.items() if entry.present and entry.standing is _Standing.HELD]

    def set_registry(self, registry: Mapping[NodeId, Registered]) -> None:
        """Replace what is known of the registry; who counts as a stranger follows at once."""
        self._registry = registry
        self._strangers = 0
        self._strangers_at.clear()
        for key, entry in self._entries.items():
            entry.standing, entry.known = self._standing(*key)
            self._count_stranger(entry, 1)

    def receive(self, data: bytes, source: Source, *, now: float, now_ms: int) -> Effect:
        """Return what one datagram changes. Raises nothing, whatever the bytes.

        Args:
            now: Monotonic seconds.
            now_ms: Wall clock, ms.
        """
        try:
            effect = self._receive(data, source, now, now_ms)
        except BeaconError as error:
            effect = Ignored(error.refusal)
        self.counters[_counted_as(effect)] += 1
        return effect

    def expire(self, *, now: float, now_ms: int) -> list[Stale]:
        """Return the nodes that have become stale, each once, and forget entries that need no memory."""
        stale = []
        for key, entry in list(self._entries.items()):
            if entry.present and now - entry.heard_at >= STALE_AFTER_S:
                entry.present = False
                if entry.standing is _Standing.HELD and not self._is_present(key[0]):
                    stale.append(Stale(node_id=key[0], known=entry.known))
            if not entry.present and now_ms - entry.last_ms > CLOCK_WINDOW_MS:
                self._drop(key, entry)
        return stale

    def _receive(self, data: bytes, source: Source, now: float, now_ms: int) -> Effect:
        if len(data) > MAX_BEACON_BYTES:
            return Ignored(Refusal.TOO_LARGE)
        if not self._by_address.take(source.address, now):
            return Ignored(Refusal.RATE)
        if not self._heard_at[source.address] and not self._by_strangers.take("", now):
            return Ignored(Refusal.RATE)
        datagram = parse(data, network=self._network)
        if isinstance(datagram, Probe):
            is_own = datagram.peer_id is not None and datagram.peer_id == self._own
            return Ignored(Refusal.OWN) if is_own else Probed()
        content = datagram.content
        if content.peer_id == self._own:
            return Ignored(Refusal.OWN)
        if abs(content.timestamp - now_ms) > CLOCK_WINDOW_MS:
            return Ignored(Refusal.CLOCK)
        registered = self._registry.get(content.peer_id, _NOBODY)
        if content.key_fingerprint in registered.refused:
            return Ignored(Refusal.KEY)
        key = (content.peer_id, content.key_fingerprint)
        entry = self._entries.get(key)
        last_ms = entry.last_ms if entry is not None else 0
        if content.key_fingerprint in registered.pinned:
            last_ms = max(last_ms, registered.last_beacon_ms)
        if content.timestamp <= last_ms:
            return Ignored(Refusal.OLD)
        if isinstance(content, GoodbyeDatagram) and (entry is None or not entry.present):
            return Ignored(Refusal.ABSENT)
        if entry is None and not self._has_room(key, source):
            return Ignored(Refusal.FULL)
        match verify(datagram):
            case VerifiedGoodbye(goodbye=goodbye):
                return self._goodbye(key, self._entries[key], goodbye)
            case VerifiedBeacon(beacon=beacon):
                return self._beacon(key, entry, beacon, source, now)

    def _beacon(self, key: _Key, entry: _Entry | None, beacon: Beacon, source: Source, now: float) -> Effect:
        url = candidate_url(source, beacon.sync_port)
        if url is None:
            return Ignored(Refusal.ADDRESS)
        returned = entry is None or not entry.present
        if entry is None:
            standing, known = self._standing(*key)
            entry = _Entry(charged_to=source.address, last_ms=0, heard_at=now, standing=standing, known=known)
            self._entries[key] = entry
            self._keys_of[key[0]] += 1
            self._count_stranger(entry, 1)
        entry.last_ms = beacon.timestamp
        entry.heard_at = now
        entry.present = True
        self._note_address(entry, source.address)
        if entry.standing is _Standing.UNFAMILIAR:
            return UnfamiliarKey(beacon=beacon, source=source, url=url)
        if key[0] not in self._registry:
            return NewSighting(beacon=beacon, source=source, url=url)
        return Refreshed(beacon=beacon, source=source, url=url, known=entry.known, returned=returned)

    def _goodbye(self, key: _Key, entry: _Entry, goodbye: GoodbyeDatagram) -> Effect:
        # Kept with its time, so that no beacon from before the goodbye can be replayed.
        entry.last_ms = goodbye.timestamp
        entry.present = False
        if entry.standing is _Standing.UNFAMILIAR or self._is_present(key[0]):
            return Ignored(Refusal.KEY)
        return Departed(node_id=key[0], known=entry.known)

    def _standing(self, node_id: NodeId, fingerprint: KeyFingerprint) -> tuple[_Standing, bool]:
        registered = self._registry.get(node_id, _NOBODY)
        if not registered.pinned or fingerprint in registered.pinned:
            return _Standing.HELD, registered.known
        return _Standing.UNFAMILIAR, False

    def _has_room(self, key: _Key, source: Source) -> bool:
        if self._keys_of[key[0]] >= MAX_KEYS_PER_NODE:
            return False
        _, known = self._standing(*key)
        if known:
            return True
        return (
            self._strangers < self._limits.unknown_peers
            and self._strangers_at[source.address] < self._limits.unknown_peers_per_address
        )

    def _is_present(self, node_id: NodeId) -> bool:
        return self._keys_of[node_id] > 0 and any(
            entry.present and entry.standing is _Standing.HELD for (holder, _), entry in self._entries.items() if holder == node_id
        )

    def _count_stranger(self, entry: _Entry, step: int) -> None:
        if entry.known:
            return
        self._strangers += step
        _add(self._strangers_at, entry.charged_to, step)

    def _note_address(self, entry: _Entry, address: str) -> None:
        if address in entry.addresses:
            return
        entry.addresses.append(address)
        self._heard_at[address] += 1
        if len(entry.addresses) > self._limits.addresses_per_peer:
            _add(self._heard_at, entry.addresses.pop(0), -1)

    def _drop(self, key: _Key, entry: _Entry) -> None:
        del self._entries[key]
        self._count_stranger(entry, -1)
        _add(self._keys_of, key[0], -1)
        for address in entry.addresses:
            _add(self._heard_at, address, -1)


_NOBODY = Registered()


def candidate_url(source: Source, sync_port: int) -> str | None:
    """Return where to dial whoever sent a datagram from `source`, or None when it may not be dialled.

    Only the source address counts, never one inside the datagram: a stranger could name a victim.
    """
    if sync_port < MIN_SYNC_PORT:
        return None
    try:
        address = ip_address(source.address)
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast or source.address == "255.255.255.255":
        return None
    if isinstance(address, IPv6Address):
        zone = f"%{source.zone}" if source.zone and address.is_link_local else ""
        return f"ws://[{address}{zone}]:{sync_port}/sync"
    return f"ws://{address}:{sync_port}/sync"


def _add(counter: Counter[Any], name: object, step: int) -> None:
    """Count, and keep no zeros: their number would be the attacker's."""
    counter[name] += step
    if counter[name] <= 0:
        del counter[name]


def _counted_as(effect: Effect) -> str:
    match effect:
        case NewSighting() | Refreshed():
            return "believed"
        case UnfamiliarKey():
            return "unfamiliar-key"
        case Departed():
            return "goodbye"
        case Probed():
            return "probe"
        case Ignored(refusal=refusal):
            return refusal.value
