"""What datagrams change in the table of who was heard, and what a flood of them costs."""

import random
import tracemalloc
from dataclasses import replace

import pytest

from federation.protocol.beacon import Announcer, Profile, Refusal, encode_probe
from federation.protocol.limits import Limits
from federation.protocol.sightings import (
    ADDRESS_BURST,
    ADDRESS_PER_S,
    CLOCK_WINDOW_MS,
    MAX_BUCKETS,
    MAX_KEYS_PER_NODE,
    MAX_NOTED,
    NOTE_EVERY_S,
    NOTE_NEWS_EVERY_S,
    STALE_AFTER_S,
    STRANGERS_BURST,
    STRANGERS_PER_S,
    Departed,
    Ignored,
    NewSighting,
    NotePace,
    Probed,
    Refreshed,
    Registered,
    Sightings,
    Source,
    Stale,
    TokenBuckets,
    UnfamiliarKey,
    candidate_url,
)
from keys.ed25519 import keypair_from_seed
from keys.encoding import NodeId, node_id_of
from peers.addresses import parse_url, sync_url
from tests.protocol.test_beacon import mutated

NETWORK = "arklattice"
OWN = NodeId(b"own node id 0123")
HOME = Source("192.0.2.7")
START_MS = 1_763_000_000_000


def announcer(number, *, node_id=None, network=NETWORK, sync_port=8104):
    pair = keypair_from_seed(number.to_bytes(32, "big"))
    profile = Profile(
        node_id=node_id or node_id_of(pair.public),
        name=f"node {number}",
        port=8102,
        sync_port=sync_port,
        network=network,
        version="1",
    )
    return Announcer(pair=pair, profile=profile)


class Table:
    """A Sightings with its two clocks, so that tests read as transcripts."""

    def __init__(self, *, limits=None, registry=None):
        self.sightings = Sightings(own=OWN, network=NETWORK, limits=limits or Limits())
        self.sightings.set_registry(registry or {})
        self.now = 1_000.0

    @property
    def now_ms(self):
        return START_MS + round((self.now - 1_000.0) * 1_000)

    def wait(self, seconds):
        self.now += seconds
        return self.sightings.expire(now=self.now, now_ms=self.now_ms)

    def hear(self, datagram, source=HOME):
        return self.sightings.receive(datagram, source, now=self.now, now_ms=self.now_ms)

    def beacon(self, node, source=HOME, *, ahead_ms=0):
        return self.hear(node.beacon(address="10.9.9.9", timestamp=self.now_ms + ahead_ms), source)

    def goodbye(self, node, *, ahead_ms=0):
        return self.hear(node.goodbye(timestamp=self.now_ms + ahead_ms))


def known(*nodes, **changes):
    """A registry in which the operator knows these nodes by their keys."""
    return {node.profile.node_id: Registered(pinned=frozenset({node.pair.fingerprint}), known=True, **changes) for node in nodes}


ATLAS = announcer(1)
ATLAS_ID = ATLAS.profile.node_id


def test_an_unregistered_node_is_a_new_sighting_at_its_source_address():
    """A first beacon brings the node with the URL of where it came from, not of what it says."""
    effect = Table().beacon(ATLAS)
    assert isinstance(effect, NewSighting)
    assert effect.beacon.address == "10.9.9.9"
    assert effect.url == "ws://192.0.2.7:8104/sync"


def test_a_registered_node_is_refreshed():
    """A node of the registry is refreshed, and said to have returned when it was not here before."""
    table = Table(registry=known(ATLAS))
    first = table.beacon(ATLAS)
    assert isinstance(first, Refreshed) and first.known and first.returned
    table.wait(60)
    second = table.beacon(ATLAS)
    assert isinstance(second, Refreshed) and not second.returned


def test_only_newer_beacons_count():
    """The same beacon again, an equal time and an older one change nothing, from whatever address."""
    table = Table()
    datagram = ATLAS.beacon(address="", timestamp=table.now_ms)
    assert isinstance(table.hear(datagram), NewSighting)
    assert table.hear(datagram) == Ignored(Refusal.OLD)
    assert table.hear(datagram, Source("192.0.2.66")) == Ignored(Refusal.OLD)
    assert table.beacon(ATLAS, ahead_ms=-1) == Ignored(Refusal.OLD)
    assert isinstance(table.beacon(ATLAS, ahead_ms=1), NewSighting)


@pytest.mark.parametrize("sign", [1, -1])
def test_clock_at_five_minutes_and_one_beyond(sign):
    """Five minutes from our clock is believed, a millisecond more is not."""
    assert Table().beacon(ATLAS, ahead_ms=sign * (CLOCK_WINDOW_MS + 1)) == Ignored(Refusal.CLOCK)
    assert isinstance(Table().beacon(ATLAS, ahead_ms=sign * CLOCK_WINDOW_MS), NewSighting)


def test_a_restart_opens_no_door_to_replays():
    """A known peer's beacon from before our restart is not believed again: the registry remembers its time."""
    table = Table(registry=known(ATLAS, last_beacon_ms=START_MS))
    assert table.beacon(ATLAS) == Ignored(Refusal.OLD)
    assert isinstance(table.beacon(ATLAS, ahead_ms=1), Refreshed)


def test_our_own_datagrams_are_ignored():
    """What multicast loops back changes nothing and is not answered."""
    table = Table()
    own = announcer(9, node_id=OWN)
    assert table.beacon(own) == Ignored(Refusal.OWN)
    assert table.hear(own.goodbye(timestamp=table.now_ms)) == Ignored(Refusal.OWN)
    assert table.hear(own.probe()) == Ignored(Refusal.OWN)


def test_probes_are_answered_whoever_asks():
    """A probe of another node, or of an onlooker, asks for a beacon and leaves no entry."""
    table = Table()
    assert table.hear(ATLAS.probe()) == Probed()
    assert table.hear(encode_probe(NETWORK)) == Probed()
    assert len(table.sightings) == 0


def test_another_network_leaves_no_trace():
    """Nothing of another network makes an entry or an answer (T20)."""
    table = Table()
    other = announcer(3, network="elsewhere")
    for datagram in (other.beacon(address="", timestamp=START_MS), other.probe(), other.goodbye(timestamp=START_MS)):
        assert table.hear(datagram) == Ignored(Refusal.NETWORK)
    assert len(table.sightings) == 0


def test_a_node_goes_stale_once_and_returns():
    """At five minutes without a beacon the node is stale, said once; a beacon brings it back."""
    table = Table(registry=known(ATLAS))
    table.beacon(ATLAS)
    assert table.wait(STALE_AFTER_S - 0.001) == []
    assert table.wait(0.001) == [Stale(ATLAS_ID, known=True)]
    assert table.wait(1) == []
    effect = table.beacon(ATLAS)
    assert isinstance(effect, Refreshed) and effect.returned


def test_a_goodbye_departs_and_nothing_from_before_it_returns():
    """After a goodbye the node is gone, it does not become stale, and an older beacon is a replay."""
    table = Table(registry=known(ATLAS))
    table.beacon(ATLAS)
    between = ATLAS.beacon(address="", timestamp=START_MS + 5)
    assert table.goodbye(ATLAS, ahead_ms=10) == Departed(ATLAS_ID, known=True)
    assert table.sightings.present() == []
    assert table.hear(between) == Ignored(Refusal.OLD)
    assert table.goodbye(ATLAS, ahead_ms=20) == Ignored(Refusal.ABSENT)
    assert table.wait(STALE_AFTER_S) == []
    assert isinstance(table.beacon(ATLAS), Refreshed)


def test_only_the_same_key_says_goodbye():
    """A goodbye under another key, badly signed, or of somebody absent takes nobody off the air."""
    table = Table(registry=known(ATLAS))
    table.beacon(ATLAS)
    forger = announcer(2, node_id=ATLAS_ID)
    assert table.goodbye(forger, ahead_ms=10) == Ignored(Refusal.ABSENT)
    assert isinstance(table.beacon(forger, ahead_ms=11), UnfamiliarKey)
    assert table.goodbye(forger, ahead_ms=12) == Ignored(Refusal.KEY)
    good = ATLAS.goodbye(timestamp=START_MS + 20)
    assert table.hear(good.replace(b"1763000000020", b"1763000000021")) == Ignored(Refusal.SIGNATURE)
    assert table.sightings.present() == [ATLAS_ID]


def test_entries_are_kept_until_nothing_can_be_replayed():
    """A stale entry stays as long as its last beacon would pass the clock check, then it is forgotten."""
    table = Table()
    datagram = ATLAS.beacon(address="", timestamp=START_MS + CLOCK_WINDOW_MS)
    table.hear(datagram)
    assert table.wait(STALE_AFTER_S) == [Stale(ATLAS_ID, known=False)]
    table.wait(CLOCK_WINDOW_MS / 1_000)
    assert len(table.sightings) == 1
    assert table.hear(datagram) == Ignored(Refusal.OLD)
    table.wait(0.001)
    assert len(table.sightings) == 0
    assert table.hear(datagram) == Ignored(Refusal.CLOCK)


def test_a_retired_or_revoked_key_says_nothing():
    """Beacons under a key that the registry refuses change nothing."""
    registry = {ATLAS_ID: Registered(pinned=frozenset({b"n" * 32}), refused=frozenset({ATLAS.pair.fingerprint}), known=True)}
    assert Table(registry=registry).beacon(ATLAS) == Ignored(Refusal.KEY)


def test_a_thousand_forgeries_change_no_address():
    """Forged beacons of a known peer, whatever the forger does, never refresh it (T5)."""
    table = Table(registry=known(ATLAS))
    recorded = ATLAS.beacon(address="", timestamp=START_MS)
    assert isinstance(table.hear(recorded), Refreshed)
    rng = random.Random(5)
    effects = []
    for number in range(1_000):
        table.wait(0.2)
        attacker = Source(f"192.0.2.{rng.randrange(50, 250)}")
        forger = announcer(1_000 + number, node_id=ATLAS_ID)
        fresh = ATLAS.beacon(address="", timestamp=table.now_ms)
        match number % 5:
            case 0:
                effects.append(table.beacon(forger, attacker))
            case 1:
                effects.append(table.hear(recorded, attacker))
            case 2:
                effects.append(table.hear(fresh.replace(b'"sync_port":8104', b'"sync_port":9104'), attacker))
            case 3:
                # The peer's own words and key under the forger's signature.
                mixed = Announcer(pair=forger.pair, profile=ATLAS.profile).beacon(address="", timestamp=table.now_ms)
                swap = mixed.replace(forger.pair.public.hex().encode(), ATLAS.pair.public.hex().encode())
                swap = swap.replace(forger.pair.fingerprint.hex().encode(), ATLAS.pair.fingerprint.hex().encode())
                effects.append(table.hear(swap, attacker))
            case _:
                effects.append(table.beacon(forger, attacker, ahead_ms=CLOCK_WINDOW_MS))
    assert all(isinstance(effect, Ignored | UnfamiliarKey) for effect in effects)
    assert isinstance(table.beacon(ATLAS), Refreshed)


def test_an_unfamiliar_key_does_not_hold_back_the_real_one():
    """A forger's beacon stamped five minutes ahead does not make the real one 'old'."""
    table = Table(registry=known(ATLAS))
    forger = announcer(2, node_id=ATLAS_ID)
    assert isinstance(table.beacon(forger, ahead_ms=CLOCK_WINDOW_MS), UnfamiliarKey)
    assert isinstance(table.beacon(ATLAS), Refreshed)
    assert table.sightings.present() == [ATLAS_ID]


def test_keys_of_one_node_are_bounded():
    """At most four keys are remembered for one node_id; the real one, already here, stays."""
    table = Table(registry=known(ATLAS))
    table.beacon(ATLAS)
    for number in range(MAX_KEYS_PER_NODE - 1):
        assert isinstance(table.beacon(announcer(100 + number, node_id=ATLAS_ID), Source(f"192.0.2.{number}")), UnfamiliarKey)
    assert table.beacon(announcer(200, node_id=ATLAS_ID), Source("192.0.2.99")) == Ignored(Refusal.FULL)


def test_strangers_of_one_address_at_the_limit_and_one_beyond():
    """Eight strangers of one address are recorded, the ninth is not; one the operator knows always is."""
    friend = announcer(50)
    table = Table(registry=known(friend))
    for number in range(8):
        assert isinstance(table.beacon(announcer(10 + number)), NewSighting)
    assert table.beacon(announcer(20)) == Ignored(Refusal.FULL)
    assert isinstance(table.beacon(announcer(20), Source("192.0.2.8")), NewSighting)
    assert isinstance(table.beacon(friend), Refreshed)
    assert table.sightings.strangers == 9


def test_strangers_in_all_at_the_limit_and_one_beyond():
    """256 strangers are recorded, the next is not, until somebody is forgotten."""
    table = Table()
    for number in range(256):
        table.wait(0.02)
        assert isinstance(table.beacon(announcer(1_000 + number), Source(f"10.0.{number}.1")), NewSighting)
    assert table.beacon(announcer(2_000), Source("10.1.0.1")) == Ignored(Refusal.FULL)
    table.wait(STALE_AFTER_S + 1)
    assert len(table.sightings) == 0
    assert isinstance(table.beacon(announcer(2_000), Source("10.1.0.1")), NewSighting)


def test_who_becomes_known_stops_counting():
    """A stranger that the operator accepts frees its place, and takes one again when removed."""
    table = Table(limits=replace(Limits(), unknown_peers=1))
    table.beacon(ATLAS)
    table.sightings.set_registry(known(ATLAS))
    assert table.sightings.strangers == 0
    assert isinstance(table.beacon(announcer(2)), NewSighting)
    table.sightings.set_registry({})
    assert table.sightings.strangers == 2
    assert table.beacon(announcer(3)) == Ignored(Refusal.FULL)


def test_one_address_may_say_so_much_and_no_more():
    """A source address has its burst, then its rate; other addresses are not held up."""
    table = Table()
    for _ in range(int(ADDRESS_BURST)):
        assert table.hear(encode_probe(NETWORK)) == Probed()
    assert table.hear(encode_probe(NETWORK)) == Ignored(Refusal.RATE)
    assert table.hear(encode_probe(NETWORK), Source("192.0.2.8")) == Probed()
    table.wait(1)
    for _ in range(int(ADDRESS_PER_S)):
        assert table.hear(encode_probe(NETWORK)) == Probed()
    assert table.hear(encode_probe(NETWORK)) == Ignored(Refusal.RATE)


def test_all_unfamiliar_addresses_share_one_bucket():
    """Forged source addresses bring no more than one bucket between them; where somebody is heard, that goes on."""
    table = Table()
    table.beacon(ATLAS)
    for number in range(int(STRANGERS_BURST) - 1):
        assert table.hear(encode_probe(NETWORK), Source(f"10.0.{number}.1")) == Probed()
    assert table.hear(encode_probe(NETWORK), Source("10.9.0.1")) == Ignored(Refusal.RATE)
    assert isinstance(table.beacon(ATLAS, ahead_ms=1), NewSighting)
    table.wait(1)
    for number in range(int(STRANGERS_PER_S)):
        assert table.hear(encode_probe(NETWORK), Source(f"10.1.{number}.1")) == Probed()
    assert table.hear(encode_probe(NETWORK), Source("10.9.0.2")) == Ignored(Refusal.RATE)


def test_buckets_are_bounded():
    """Token buckets are kept for a bounded number of addresses; the one unused longest gives way."""
    buckets = TokenBuckets(burst=1, per_s=0, capacity=2)
    assert buckets.take("a", 0) and not buckets.take("a", 0)
    assert buckets.take("b", 0) and buckets.take("c", 0)
    assert len(buckets) == 2
    assert buckets.take("a", 0)
    assert not buckets.take("c", 0)


def test_a_clock_that_runs_backwards_fills_no_bucket():
    """Time going backwards gives no tokens."""
    buckets = TokenBuckets(burst=1, per_s=1, capacity=2)
    assert buckets.take("a", 10)
    assert not buckets.take("a", 5)


def test_what_is_worth_a_row():
    """A stranger still there is noted each 30 s; a known, returned or moved peer within 2 s, at the limit and just before."""
    stranger = Table().beacon(ATLAS)
    pace = NotePace()
    assert pace.wait_s(stranger, 0.0) == 0.0
    pace.noted(stranger, 0.0)
    assert pace.wait_s(stranger, NOTE_EVERY_S - 0.001) is None
    assert pace.wait_s(stranger, NOTE_EVERY_S) == 0.0
    assert pace.wait_s(replace(stranger, source=Source("192.0.2.8")), 0.0) == 0.0
    moved = replace(stranger, url="ws://192.0.2.7:9104/sync")
    known, returned = (
        Refreshed(beacon=stranger.beacon, source=stranger.source, url=stranger.url, **changes)
        for changes in ({"known": True, "returned": False}, {"known": False, "returned": True})
    )
    for news in (moved, known, returned):
        assert pace.wait_s(news, 0.5) == NOTE_NEWS_EVERY_S - 0.5
        assert pace.wait_s(news, NOTE_NEWS_EVERY_S) == 0.0


def test_what_was_noted_is_remembered_within_bounds():
    """However many addresses a sighting comes from, the memory of what was noted stays bounded."""
    sighting = Table().beacon(ATLAS)
    pace = NotePace()
    for number in range(MAX_NOTED + 10):
        pace.noted(replace(sighting, source=Source(f"address {number}")), 1.0)
    assert len(pace) == MAX_NOTED


@pytest.mark.parametrize(
    ("source", "port", "url"),
    [
        (Source("192.0.2.7"), 8104, "ws://192.0.2.7:8104/sync"),
        (Source("192.0.2.7"), 1_024, "ws://192.0.2.7:1024/sync"),
        (Source("192.0.2.7"), 1_023, None),
        (Source("192.0.2.7"), 22, None),
        (Source("fe80::1", "eth0"), 8104, "ws://[fe80::1%eth0]:8104/sync"),
        (Source("fd00::2", "eth0"), 65_535, "ws://[fd00::2]:65535/sync"),
        (Source("127.0.0.1"), 8104, "ws://127.0.0.1:8104/sync"),
        (Source("0.0.0.0"), 8104, None),  # noqa: S104 - an address, nothing is bound
        (Source("::"), 8104, None),
        (Source("239.255.0.1"), 8104, None),
        (Source("ff02::1", "eth0"), 8104, None),
        (Source("255.255.255.255"), 8104, None),
        (Source("host.example"), 8104, None),
        (Source(""), 8104, None),
    ],
)
def test_where_a_node_may_be_dialled(source, port, url):
    """Only a plain source address and an unprivileged port make a URL, spelt as the registry spells it."""
    assert candidate_url(source, port) == url
    if url is not None:
        zone = f"%{source.zone}" if source.address.startswith("fe80") else ""
        assert url == parse_url(url) == sync_url(source.address + zone, port)


def test_no_beacon_names_a_victim():
    """Ten thousand beacons naming other hosts and ports bring no URL but of their own source address (T3)."""
    rng = random.Random(3)
    victims = ["127.0.0.1", "169.254.169.254", "198.51.100.9", "10.0.0.1", "::1"]
    table = Table()
    node = ATLAS
    urls = set()
    for number in range(10_000):
        table.wait(1)
        sync_port = rng.choice([22, 25, 80, 1_023, 1_024, 8104, 65_535])
        profile = replace(node.profile, sync_port=sync_port, port=rng.choice([22, 80]))
        datagram = Announcer(pair=node.pair, profile=profile).beacon(address=rng.choice(victims), timestamp=table.now_ms)
        source = Source(f"192.0.2.{number % 3 + 1}")
        effect = table.hear(datagram, source)
        if sync_port < 1_024:
            assert effect == Ignored(Refusal.ADDRESS)
        else:
            assert effect.url == f"ws://{source.address}:{sync_port}/sync"
            urls.add(effect.url)
    assert len(urls) == 9


def fakes(count):
    """Beacons of ever new nodes under ever new keys, validly signed, as bytes."""
    for number in range(count):
        pair = keypair_from_seed((1 << 64 | number).to_bytes(32, "big"))
        profile = Profile(node_id=node_id_of(pair.public), name="x", port=8102, sync_port=8104, network=NETWORK, version="1")
        yield Announcer(pair=pair, profile=profile).beacon(address="", timestamp=START_MS + number % 60_000)


@pytest.mark.parametrize("addresses", [1, 254])
@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_flood_of_fakes_stays_within_bounds(addresses, count):
    """Unique fakes fill no more than the table, cost under 16 MB, and push out none of eight honest nodes (T2)."""
    honest = [announcer(10 + number) for number in range(8)]
    table = Table(registry=known(*honest[:4]))
    for number, node in enumerate(honest):
        table.beacon(node, Source(f"192.0.2.{number + 1}"), ahead_ms=-CLOCK_WINDOW_MS)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, datagram in enumerate(fakes(count)):
        # 10,000 a second, for as long as it takes.
        table.now += 0.0001
        table.hear(datagram, Source(f"198.51.100.{number % addresses + 1}"))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert table.sightings.strangers <= (256 if addresses > 1 else 8 + 4)
    assert len(table.sightings._by_address) <= MAX_BUCKETS
    assert grown < 16 * 2**20
    assert {node.profile.node_id for node in honest} <= set(table.sightings.present())
    for number, node in enumerate(honest):
        assert isinstance(table.beacon(node, Source(f"192.0.2.{number + 1}")), Refreshed | NewSighting)


def test_damaged_datagrams_raise_nothing():
    """Damaged datagrams of every kind come back as effects, counted, whoever they come from (T1)."""
    rng = random.Random(7)
    table = Table(registry=known(ATLAS))
    seeds = [ATLAS.beacon(address="", timestamp=START_MS), ATLAS.goodbye(timestamp=START_MS), ATLAS.probe()]
    for number in range(20_000):
        table.wait(0.01)
        table.hear(mutated(rng, rng.choice(seeds)), Source(f"10.{number % 200}.0.1"))
    assert sum(table.sightings.counters.values()) == 20_000
    assert table.sightings.counters["malformed"] > 10_000
