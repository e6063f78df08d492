"""Discovery over real UDP sockets on the loopback, between several instances and several processes."""

import asyncio
import itertools
import json
import os
import socket
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from federation.discovery import (
    ANSWER_EVERY_S,
    MAX_DATAGRAMS_PER_TICK,
    TICK_S,
    Discovery,
    DiscoverySettings,
    discovery_settings,
    own_announcer,
)
from federation.multicast import Interface, destination, multicast_interfaces, open_socket
from federation.neighbours import Heard, Neighbours
from federation.protocol.beacon import Announcer, Profile, encode_probe
from federation.protocol.limits import Limits
from federation.protocol.sightings import Departed, NewSighting, Refreshed, Registered, Source, UnfamiliarKey
from keys.ed25519 import keypair_from_seed
from keys.encoding import grouped, node_id_of
from keys.models import PublicKey
from peers.models import Peer, PeerKey
from tests.e2e.lone_nodes import lone_nodes

GROUP = "239.255.0.1"
LOOPBACK = Interface(name="lo", index=socket.if_nametoindex("lo"), address="127.0.0.1")


@pytest.fixture
def port():
    """A UDP port that nobody uses, so that tests beside this one are not heard."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return any_socket.getsockname()[1]


def announcer(number, *, network="arklattice", name=None, node_id=None):
    pair = keypair_from_seed(number.to_bytes(32, "big"))
    profile = Profile(
        node_id=node_id or node_id_of(pair.public),
        name=name or f"node {number}",
        port=8102,
        sync_port=8104 + number,
        network=network,
        version="1",
    )
    return Announcer(pair=pair, profile=profile)


@dataclass
class MemoryRegistry:
    """A registry in memory that can be made to fail."""

    peers: dict = field(default_factory=dict)
    failing: bool = False
    noted: list = field(default_factory=list)
    forgotten: int = 0

    def load(self):
        self._check()
        return dict(self.peers)

    def note(self, sightings):
        self._check()
        heard = []
        for sighting in sightings:
            self.noted.append(sighting)
            beacon = sighting.beacon
            if isinstance(sighting, UnfamiliarKey):
                continue
            known = isinstance(sighting, Refreshed) and sighting.known
            self.peers.setdefault(beacon.peer_id, Registered(unconfirmed=frozenset({beacon.key_fingerprint})))
            heard.append(Heard(beacon.peer_id, sighting.url, known, isinstance(sighting, NewSighting) or sighting.returned))
        return heard

    def forget(self, live):
        self._check()
        self.forgotten += 1
        return 0

    def _check(self):
        if self.failing:
            raise OperationalError("disk I/O error")


class Node:
    """A Discovery on the loopback and what it told."""

    def __init__(
        self, number, port, *, interfaces=("127.0.0.1",), interval_s=60.0, network="arklattice", registry=None, listener=None
    ):
        self.events = []
        self.announcer = announcer(number, network=network) if number else None
        self.registry = registry or MemoryRegistry()
        settings = DiscoverySettings(
            network=network, limits=Limits(), group=GROUP, port=port, interval_s=interval_s, interfaces=tuple(interfaces)
        )
        self.discovery = Discovery(
            settings=settings,
            announcer=self.announcer,
            on_event=listener or self.events.append,
            registry=self.registry,
        )

    @property
    def node_id(self):
        return self.announcer.profile.node_id

    def heard(self):
        return {event.node_id for event in self.events if isinstance(event, Heard)}

    async def until(self, condition, within=2.0):
        deadline = time.monotonic() + within
        while not condition(self):
            assert time.monotonic() < deadline, (self.events, self.discovery.status())
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*nodes):
    async with AsyncExitStack() as stack:
        for node in nodes:
            await node.discovery.start()
            stack.push_async_callback(node.discovery.stop)
        yield nodes[0] if len(nodes) == 1 else nodes


@asynccontextmanager
async def raw_socket(port):
    """A socket that sees and says whatever a test wants, as an attacker's would."""
    opened = open_socket(LOOPBACK, group=GROUP, port=port)
    try:
        yield opened
    finally:
        opened.close()


async def collect(opened, seconds):
    """Return every datagram that arrives within `seconds`."""
    loop = asyncio.get_running_loop()
    datagrams = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            datagrams.append(await asyncio.wait_for(loop.sock_recv(opened, 2_000), left))
        except TimeoutError:
            break
    return datagrams


def is_beacon(datagram):
    return json.loads(datagram)["type"] == "beacon"


@pytest.mark.asyncio
async def test_nodes_know_each_other_within_a_second_of_the_last_start(port):
    """Each of three hears the two others at once, at the source address and the declared sync port."""
    nodes = [Node(number, port) for number in (1, 2, 3)]
    async with running(*nodes):
        began = time.monotonic()
        for node in nodes:
            others = {other.node_id for other in nodes} - {node.node_id}
            await node.until(lambda node, others=others: node.heard() == others, within=1.5)
        assert time.monotonic() - began < 1.5
        urls = {event.node_id: event.url for event in nodes[0].events if isinstance(event, Heard)}
        assert urls[nodes[1].node_id] == "ws://127.0.0.1:8106/sync"


@pytest.mark.asyncio
async def test_a_newcomer_need_not_wait_for_the_next_round(port):
    """Who starts a while later is known and knows within a second, by its beacon and the answer to its probe."""
    async with running(Node(1, port)) as first:
        await asyncio.sleep(0.5)
        async with running(Node(2, port)) as second:
            began = time.monotonic()
            await first.until(lambda node: second.node_id in node.heard())
            await second.until(lambda node: first.node_id in node.heard())
            assert time.monotonic() - began < 1.0


@pytest.fixture
def short_looks(monkeypatch):
    """Interfaces are looked at five times a second."""
    monkeypatch.setattr("federation.discovery.LOOK_EVERY_S", 0.2)


@pytest.mark.asyncio
async def test_a_peer_whose_link_broke_off_is_looked_for_until_it_is_heard(port, short_looks):
    """Beacons leave at every look, not once a minute, until the peer says something; one never heard is not looked for."""
    async with raw_socket(port) as ear, running(Node(1, port)) as node:
        node.discovery.look_for(node_id_of(announcer(3).pair.public))
        lost = announcer(2)
        to = destination(LOOPBACK, group=GROUP, port=port)
        ear.sendto(lost.beacon(address="", timestamp=time.time_ns() // 1_000_000), to)
        await node.until(lambda node: lost.profile.node_id in node.heard())
        await collect(ear, 0.5)
        assert not any(map(is_beacon, await collect(ear, 0.7)))
        node.discovery.look_for(lost.profile.node_id)
        assert sum(map(is_beacon, await collect(ear, 1.5))) >= 3
        ear.sendto(lost.beacon(address="", timestamp=time.time_ns() // 1_000_000), to)
        await collect(ear, 0.3)
        assert not any(map(is_beacon, await collect(ear, 0.7)))


@pytest.mark.asyncio
async def test_a_peer_is_not_looked_for_for_ever(port, short_looks, monkeypatch):
    """After five minutes only a node that hears nobody goes on; among others it is left to the next round."""
    monkeypatch.setattr("federation.discovery.LOOK_FOR_S", 0.6)
    async with raw_socket(port) as ear, running(Node(1, port)) as node:
        lost, other = announcer(2), announcer(3)
        to = destination(LOOPBACK, group=GROUP, port=port)
        for each in (lost, other):
            ear.sendto(each.beacon(address="", timestamp=time.time_ns() // 1_000_000), to)
        await node.until(lambda node: len(node.heard()) == 2)
        node.discovery.look_for(lost.profile.node_id)
        await collect(ear, 1.2)
        assert not any(map(is_beacon, await collect(ear, 0.7)))
        node.discovery.look_for(lost.profile.node_id)
        monkeypatch.setattr("federation.protocol.sightings.STALE_AFTER_S", 0.1)
        await collect(ear, 1.2)
        assert sum(map(is_beacon, await collect(ear, 1.0))) >= 2


@pytest.mark.asyncio
async def test_a_goodbye_is_told(port):
    """A node that stops is told as departed, and as returned when it is back."""
    async with running(Node(1, port)) as first:
        second = Node(2, port)
        async with running(second):
            await first.until(lambda node: second.node_id in node.heard())
        await first.until(lambda node: Departed(second.node_id, known=False) in node.events)
        assert first.discovery.status()["present"] == 0
        first.events.clear()
        async with running(Node(2, port)):
            await first.until(lambda node: second.node_id in node.heard(), within=4)
            assert first.events[0].returned


@pytest.mark.asyncio
async def test_beacons_come_each_interval(port):
    """With an interval of 0.3 s some seven beacons come in two seconds, not in step with the clock."""
    async with raw_socket(port) as ear, running(Node(1, port, interval_s=0.3)):
        beacons = [datagram for datagram in await collect(ear, 2.0) if is_beacon(datagram)]
    # A machine under load may delay beacons, never hasten them.
    assert 4 <= len(beacons) <= 9
    times = [json.loads(datagram)["timestamp"] for datagram in beacons]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap >= 265 for gap in gaps), gaps
    assert len(set(gaps)) > 1


@pytest.mark.asyncio
async def test_probes_are_answered_at_most_once_a_second(port):
    """A hundred probes in two seconds bring two or three beacons."""
    async with raw_socket(port) as ear, running(Node(1, port)):
        await collect(ear, 0.5)
        to = destination(LOOPBACK, group=GROUP, port=port)
        answers = []
        for _ in range(100):
            ear.sendto(encode_probe("arklattice"), to)
            answers += [datagram for datagram in await collect(ear, 0.02) if is_beacon(datagram)]
    assert 2 <= len(answers) <= 3
    times = [json.loads(datagram)["timestamp"] for datagram in answers]
    assert all(later - earlier >= ANSWER_EVERY_S * 1_000 - 20 for earlier, later in itertools.pairwise(times))


@pytest.mark.asyncio
async def test_a_probe_that_comes_too_early_is_answered_late(port):
    """The second of two probes within a second is answered too, when the second is over."""
    async with raw_socket(port) as ear, running(Node(1, port)):
        await collect(ear, 0.5)
        to = destination(LOOPBACK, group=GROUP, port=port)
        ear.sendto(encode_probe("arklattice"), to)
        assert sum(map(is_beacon, await collect(ear, 0.4))) == 1
        ear.sendto(encode_probe("arklattice"), to)
        assert sum(map(is_beacon, await collect(ear, 1.1))) == 1


@pytest.mark.asyncio
async def test_another_network_on_the_same_port_is_not_there(port):
    """Nodes of two networks neither hear nor answer each other (T20)."""
    ours, theirs = Node(1, port), Node(2, port, network="elsewhere")
    async with raw_socket(port) as ear, running(ours, theirs):
        await collect(ear, 0.5)
        ear.sendto(encode_probe("third"), destination(LOOPBACK, group=GROUP, port=port))
        assert not any(map(is_beacon, await collect(ear, 0.4)))
        assert ours.events == theirs.events == []
        assert ours.registry.noted == []
        assert ours.discovery.status()["counters"]["network"] >= 2


@pytest.mark.asyncio
async def test_junk_is_counted_and_changes_nothing(port):
    """Empty, random and oversize datagrams raise nothing and are counted by cause."""
    async with raw_socket(port) as mouth, running(Node(1, port)) as node:
        to = destination(LOOPBACK, group=GROUP, port=port)
        for junk in (b"", b"\0" * 1_200, b"{" * 1_201, os.urandom(700), b'{"type":"beacon"}'):
            mouth.sendto(junk, to)
        await node.until(lambda node: sum(node.discovery.status()["counters"].values()) >= 5)
        counters = node.discovery.status()["counters"]
        assert counters["too-large"] == 1 and counters["malformed"] == 4
        assert node.events == []


@pytest.mark.asyncio
async def test_an_unknown_interface_is_said_once_and_the_node_lives(port, caplog):
    """Without an interface the node runs, says so once and in its status, and goes on looking."""
    caplog.set_level("INFO", logger="federation.discovery")
    node = Node(1, port, interfaces=("nosuch0",), interval_s=0.2)
    async with running(node):
        await asyncio.sleep(1.3)
        assert node.discovery.status()["problem"] == "none of ARK_DISCOVERY_INTERFACES is up here: nosuch0"
        assert node.discovery.status()["interfaces"] == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.asyncio
async def test_a_port_taken_is_said_once_and_tried_again(port, caplog):
    """A port that another program holds alone is named with its setting; once it is free discovery works."""
    caplog.set_level("INFO", logger="federation.discovery")
    node = Node(1, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", port))
        await node.discovery.start()
        await asyncio.sleep(1.2)
        assert "cannot be bound: Address already in use (ARK_DISCOVERY_PORT)" in node.discovery.status()["problem"]
    async with running(Node(2, port)) as other:
        await node.until(lambda node: other.node_id in node.heard(), within=3)
        assert node.discovery.status()["problem"] == ""
    await node.discovery.stop()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.asyncio
async def test_a_network_that_takes_nothing_is_said_and_survived(port, monkeypatch):
    """When every send fails the loop goes on, the status says why, and the first send that passes mends it."""
    from federation import discovery as module

    # Port 0 is refused by the kernel on every network.
    monkeypatch.setattr(module, "destination", lambda interface, *, group, port: (group, 0))
    async with running(Node(1, port, interval_s=0.2)) as node:
        assert "cannot send" in node.discovery.status()["problem"]
        await asyncio.sleep(0.7)
        assert "cannot send" in node.discovery.status()["interfaces"][0]["error"]
        monkeypatch.setattr(module, "destination", destination)
        await node.until(lambda node: node.discovery.status()["problem"] == "", within=3)


@pytest.mark.asyncio
async def test_a_database_that_fails_loses_no_neighbour(port):
    """Sightings wait while the registry cannot be written, and are told once it can."""
    async with running(Node(1, port)) as first:
        first.registry.failing = True
        async with running(Node(2, port)) as second:
            await asyncio.sleep(0.5)
            assert first.events == []
            assert first.discovery.status()["registry_problem"] == "the registry cannot be used: disk I/O error"
            first.registry.failing = False
            await first.until(lambda node: second.node_id in node.heard(), within=3)
            assert first.discovery.status()["registry_problem"] == ""


@pytest.mark.asyncio
async def test_known_peers_are_written_before_a_crowd_of_strangers(port):
    """Strangers are written eight at a time, and a peer the operator knows does not wait behind them."""
    batches = []
    registry = MemoryRegistry()
    note = registry.note
    registry.note = lambda sightings: batches.append(list(sightings)) or note(sightings)
    friend = announcer(999)
    strangers = [sighting_of(announcer(number), host=f"10.0.0.{number}") for number in range(1, 20)]
    known = sighting_of(friend, kind=Refreshed, known=True, returned=False)
    async with running(Node(1, port, registry=registry)) as node:
        for sighting in [*strangers, known]:
            node.discovery._execute(sighting)
        await node.until(lambda node: len(registry.noted) == 20, within=5)
    assert [len(batch) for batch in batches] == [9, 8, 3]
    assert batches[0][0] == known


@pytest.mark.asyncio
async def test_an_unforeseen_fault_of_the_registry_ends_nothing(port, caplog):
    """An exception that is no database error is logged, and discovery goes on."""
    registry = MemoryRegistry()
    note = registry.note
    faults = [RuntimeError("a bug elsewhere")]

    def faulty(sightings):
        if faults:
            raise faults.pop()
        return note(sightings)

    registry.note = faulty
    async with running(Node(1, port, registry=registry)) as node, running(Node(2, port)):
        await node.until(lambda node: not faults)
        async with running(Node(3, port)) as third:
            await node.until(lambda node: third.node_id in node.heard(), within=4)
    assert "failed and goes on" in caplog.text


@pytest.mark.asyncio
async def test_a_listener_that_fails_does_not_end_discovery(port, caplog):
    """An exception in the node's callback is logged, and the next event is told."""
    told = []

    def listener(event):
        told.append(event)
        raise RuntimeError("a bug elsewhere")

    async with running(Node(1, port, listener=listener)), running(Node(2, port)), running(Node(3, port)):
        deadline = time.monotonic() + 2
        while len(told) < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
    assert len(told) >= 2
    assert "a listener failed" in caplog.text


@pytest.mark.asyncio
async def test_a_flood_is_read_by_the_tick(port):
    """Of a flood at most 200 datagrams a tick are read, the loop stays free, and a friend is heard afterwards (T4)."""
    async with running(Node(1, port)) as node:
        flood = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import socket,sys,time\n"
            "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_IF,socket.inet_aton('127.0.0.1'))\n"
            "end=time.monotonic()+2\n"
            "while time.monotonic()<end:\n"
            "    for _ in range(50): s.sendto(b'x'*700,(sys.argv[1],int(sys.argv[2])))\n"
            "    time.sleep(0.005)\n",
            GROUP,
            str(port),
        )
        lags = []
        began = time.monotonic()
        cpu = time.process_time()
        while flood.returncode is None:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - before - 0.005)
        spent, passed = time.process_time() - cpu, time.monotonic() - began
        received = node.discovery.status()["interfaces"][0]["received"]
        assert received > MAX_DATAGRAMS_PER_TICK
        assert received <= MAX_DATAGRAMS_PER_TICK * (passed / TICK_S + 2)
        assert sorted(lags)[int(len(lags) * 0.99)] < 0.1
        assert spent < 0.5 * passed
        await asyncio.sleep(0.3)
        async with running(Node(2, port)) as friend:
            # The flood came from the address that the friend shares, so it waits for that bucket to fill.
            await asyncio.sleep(1.0)
            friend.discovery.announce()
            await node.until(lambda node: friend.node_id in node.heard(), within=3)


def test_three_processes_share_the_port(port):
    """Three processes of one machine hear each other on one port, and a goodbye when one ends."""
    with lone_nodes({number: [] for number in (1, 2, 3)}, "--port", str(port), "--interfaces", "127.0.0.1") as nodes:
        for number, node in nodes.items():
            for other in nodes.keys() - {number}:
                node.wait_for("heard", other)
        nodes[3].end()
        nodes[1].wait_for("departed", 3)


# --- the registry ---


def sighting_of(node, *, kind=NewSighting, host="192.0.2.7", timestamp=1_763_000_000_000, **more):
    from federation.protocol.beacon import parse, verify

    beacon = verify(parse(node.beacon(address="", timestamp=timestamp), network="arklattice")).beacon
    return kind(beacon=beacon, source=Source(host), url=f"ws://{host}:{beacon.sync_port}/sync", **more)


@pytest.mark.django_db
def test_a_new_sighting_becomes_an_unknown_peer():
    """A stranger is registered UNKNOWN with its key unconfirmed, its words and its source address."""
    node = announcer(1)
    heard = Neighbours(Limits()).note([sighting_of(node)])
    assert heard == [Heard(node.profile.node_id, "ws://192.0.2.7:8105/sync", known=False, returned=True)]
    peer = Peer.objects.get()
    assert (peer.node_id, peer.tier, peer.declared_name) == (node.profile.node_id.hex(), "unknown", "node 1")
    assert [address.url for address in peer.addresses.all()] == ["ws://192.0.2.7:8105/sync"]
    assert peer.keys.get().status == PeerKey.Status.UNCONFIRMED
    registered = Neighbours(Limits()).load()[node.profile.node_id]
    assert registered == Registered(unconfirmed=frozenset({node.pair.fingerprint}), last_beacon_ms=1_763_000_000_000)


@pytest.mark.django_db
def test_an_unfamiliar_key_is_shown_and_changes_nothing_else():
    """A valid beacon under another key leaves address, words and pinned key as they are, and tells nobody."""
    node = announcer(1)
    peer = Peer.objects.create(node_id=node.profile.node_id.hex(), tier="core", touched=True)
    row = PublicKey.objects.create(public_key=node.pair.public.hex(), fingerprint=node.pair.fingerprint.hex())
    PeerKey.objects.create(peer=peer, public_key=row, status=PeerKey.Status.TRUSTED, source="imported")
    neighbours = Neighbours(Limits())
    registered = neighbours.load()[node.profile.node_id]
    assert registered == Registered(pinned=frozenset({node.pair.fingerprint}), known=True)
    forger = announcer(2, node_id=node.profile.node_id)
    assert neighbours.note([sighting_of(forger, kind=UnfamiliarKey, host="192.0.2.66")]) == []
    peer.refresh_from_db()
    assert (peer.declared_name, peer.last_beacon_ms, peer.addresses.count()) == ("", 0, 0)
    assert neighbours.load()[node.profile.node_id] == registered


@pytest.mark.django_db
def test_retired_and_revoked_keys_are_refused_keys():
    """Keys that the registry holds as retired or revoked are loaded as refused."""
    peer = Peer.objects.create(node_id="ab" * 16)
    for number, status in enumerate([PeerKey.Status.RETIRED, PeerKey.Status.REVOKED]):
        row = PublicKey.objects.create(public_key=f"{number:064x}", fingerprint=f"{number:064x}")
        PeerKey.objects.create(peer=peer, public_key=row, status=status, source="imported")
    registered = Neighbours(Limits()).load()[bytes.fromhex("ab" * 16)]
    assert registered.refused == {bytes(32), bytes(31) + b"\1"} and not registered.pinned


@pytest.mark.django_db
def test_one_poisoned_sighting_does_not_stop_the_others(caplog):
    """A sighting whose row the database refuses is logged and left out; the others are recorded."""
    from dataclasses import replace

    bad = sighting_of(announcer(1))
    bad = replace(bad, beacon=replace(bad.beacon, public_key=bytes([1]) + bytes(31)))
    heard = Neighbours(Limits()).note([sighting_of(announcer(2)), bad, sighting_of(announcer(3))])
    assert [event.node_id for event in heard] == [announcer(2).profile.node_id, announcer(3).profile.node_id]
    assert Peer.objects.count() == 2
    assert "not recorded" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_beacons_reach_the_real_registry(port):
    """A node heard over UDP is a row of the registry before it is told, and known after the operator's change."""

    def in_database(function, *args):
        try:
            return function(*args)
        finally:
            connection.close()

    async def run_db(function, *args):
        return await asyncio.to_thread(in_database, function, *args)

    node = Node(1, port, registry=Neighbours(Limits()))
    node.discovery._run_db = run_db
    async with running(node), running(Node(2, port, interval_s=0.3)) as other:
        await node.until(lambda node: other.node_id in node.heard())
        rows = await run_db(lambda: list(Peer.objects.values_list("node_id", "tier")))
        assert rows == [(other.node_id.hex(), "unknown")]
        await run_db(lambda: Peer.objects.update(tier="external", touched=True))
        await node.until(lambda node: any(isinstance(event, Heard) and event.known for event in node.events), within=10)
        assert node.discovery.status()["strangers"] == 0


# --- settings and command ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ARK_DISCOVERY_GROUP", "192.0.2.1"),
        ("ARK_DISCOVERY_GROUP", "group.example"),
        ("ARK_DISCOVERY_PORT", 0),
        ("ARK_DISCOVERY_PORT", 65_536),
        ("ARK_DISCOVERY_INTERVAL_S", 0.1),
        ("ARK_DISCOVERY_INTERVAL_S", 300.0),
    ],
)
def test_settings_that_cannot_be_are_named(settings, name, value):
    """A wrong setting is refused by its name."""
    setattr(settings, name, value)
    with pytest.raises(ImproperlyConfigured, match=name):
        discovery_settings()


def test_the_announcer_says_what_the_settings_say(settings):
    """Name, ports, tier, capabilities and network come from the settings; a name too long is cut."""
    from keys.services import Identity

    pair = keypair_from_seed(bytes(32))
    identity = Identity(name="node", node_id=node_id_of(pair.public), pair=pair, succession=(), next_key_hash="")
    settings.ARK_NODE_NAME = "x" * 70 + "\n"
    settings.ARK_HTTP_BIND, settings.ARK_SYNC_BIND = "127.0.0.1:18102", "[::]:18104"
    settings.ARK_CAPABILITIES, settings.ARK_DECLARED_TIER = ["relay"], "core"
    profile = own_announcer(identity).profile
    assert (profile.name, profile.port, profile.sync_port) == ("x" * 64, 18102, 18104)
    assert (profile.capabilities, profile.trust_tier, profile.network) == (("relay",), "core", "arklattice")
    settings.ARK_CAPABILITIES = ["Full Text"]
    with pytest.raises(ImproperlyConfigured, match=r"capabilities 'Full Text' does not match .* \(ARK_CAPABILITIES"):
        own_announcer(identity)


def test_the_loopback_is_used_only_when_wanted():
    """By default the loopback is left out; wanted by name or by address it is there."""
    assert not [interface for interface in multicast_interfaces() if interface.name == "lo"]
    assert multicast_interfaces(["127.0.0.1"]) == multicast_interfaces(["lo"]) == [LOOPBACK]
    assert multicast_interfaces(["192.0.2.250", "nosuch0"]) == []


def test_only_the_group_is_heard(port):
    """A datagram sent to an address of this machine, not to the group, never arrives."""
    opened = open_socket(LOOPBACK, group=GROUP, port=port)
    with opened, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"unicast", ("127.0.0.1", port))
        opened.sendto(b"multicast", (GROUP, port))
        opened.settimeout(1)
        assert opened.recvfrom(100) == (b"multicast", ("127.0.0.1", port))
        with pytest.raises(BlockingIOError):
            opened.setblocking(False)
            opened.recvfrom(100)


async def discover(port, settings, capsys, *options):
    """Run the command beside this test's loop; return its standard output."""
    settings.ARK_DISCOVERY_PORT = port
    settings.ARK_DISCOVERY_INTERFACES = ["127.0.0.1"]

    def run():
        try:
            # A node answers one probe a second, after up to 0.25 s: another one's may have come just before.
            call_command("discover", "--seconds", "1.6", *options)
        finally:
            connection.close()

    await asyncio.to_thread(run)
    return capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_discover_lists_who_answers_and_registers_nothing(port, settings, capsys, keys_dir):
    """Without a key of its own and beside running nodes, the command lists them with fingerprint, address and tier."""
    known = announcer(2)

    def register():
        peer = Peer.objects.create(node_id=known.profile.node_id.hex(), name="bob", tier="sandbox", touched=True)
        row = PublicKey.objects.create(public_key=known.pair.public.hex(), fingerprint=known.pair.fingerprint.hex())
        PeerKey.objects.create(peer=peer, public_key=row, status=PeerKey.Status.TRUSTED, source="imported")
        connection.close()

    await asyncio.to_thread(register)
    async with running(Node(1, port), Node(2, port)):
        await asyncio.sleep(0.4)
        text = await discover(port, settings, capsys)
        await asyncio.sleep(1.1)
        rows = {row["declared_name"]: row for row in json.loads(await discover(port, settings, capsys, "--json"))}
    assert grouped(known.pair.fingerprint) in text and "SANDBOX" in text and "UNKNOWN" in text
    assert "ws://127.0.0.1:8105/sync" in text and "known here as bob" in text
    assert rows["node 1"]["tier"] == "unknown" and rows["node 1"]["name"] is None and rows["node 1"]["key_status"] is None
    assert rows["node 2"]["tier"] == "sandbox" and rows["node 2"]["name"] == "bob" and rows["node 2"]["key_status"] == "trusted"
    assert rows["node 2"]["fingerprint"] == known.pair.fingerprint.hex()

    def registered():
        try:
            return Peer.objects.count()
        finally:
            connection.close()

    assert await asyncio.to_thread(registered) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_discover_alone_says_so(port, settings, capsys, keys_dir):
    """With nobody around the list is empty, exit status 0."""
    assert json.loads(await discover(port, settings, capsys, "--json")) == []
    assert "nobody answered" in await discover(port, settings, capsys)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("interfaces", "status"), [(["127.0.0.1"], 3), (["nosuch0"], 1)])
def test_discover_without_a_network_fails_in_one_line(port, settings, keys_dir, interfaces, status):
    """A port taken exits 3 naming the setting, no interface exits 1."""
    settings.ARK_DISCOVERY_PORT, settings.ARK_DISCOVERY_INTERFACES = port, interfaces
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", port))
        with pytest.raises(CommandError, match=r"ARK_DISCOVERY_(PORT|INTERFACES)") as caught:
            call_command("discover", "--seconds", "0.1")
    assert caught.value.returncode == status
