"""Discovery: finds nodes on every network this machine is on, and lets itself be found.

One `Discovery` lives on the node's event loop. Datagrams go from the sockets (`multicast`) into the bounded table
(`protocol.sightings`); what that believes is written to the registry in batches, in a database thread
(`neighbours`), and only then told to the node, which dials.

- At start: a probe and a beacon by every interface at once; then a beacon each 60 s ± 10 %.
- Interfaces are looked at every few seconds. One that appears, or whose cable is plugged in again, gets a probe and a
  beacon at once; one that goes is closed.
- While a peer whose link broke off is looked for (`look_for`), a beacon goes out at every look: a cable that lost
  packets silently, and loses none now, is noticed by nothing else before the next minute.
- A probe is answered after a random 0-250 ms, at most once a second: answers of many nodes do not collide, and a
  flood of probes makes no flood of beacons. A probe that comes too early is answered late, not never.
- A socket hands over at most 200 datagrams each 100 ms. Then it is not read until the next tick, and what the kernel's
  buffer cannot hold is lost. Beacons come again; the loop has links to serve.
- Nothing of the network ends the loop. No interface, or a port that cannot be bound, is logged once, stands in
  `status()`, and is tried again.

Source: docs/protocol.md, section 4.
"""

import asyncio
import errno
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, Protocol

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError

from federation import conf
from federation.multicast import Interface, destination, multicast_interfaces, open_socket
from federation.neighbours import Heard
from federation.protocol.beacon import Announcer, Profile, encode_probe
from federation.protocol.errors import LocalProtocolError
from federation.protocol.limits import MAX_BEACON_BYTES, Limits
from federation.protocol.sightings import (
    STALE_AFTER_S,
    Departed,
    Effect,
    Ignored,
    NewSighting,
    NotePace,
    Probed,
    Refreshed,
    Registered,
    Sighting,
    Sightings,
    Source,
    Stale,
    UnfamiliarKey,
)
from keys.encoding import NodeId
from keys.services import Identity

__all__ = ["GROUP_IPV6", "Discovery", "DiscoverySettings", "Event", "Registry", "discovery_settings", "own_announcer"]

log = logging.getLogger(__name__)

GROUP_IPV6 = "ff02::a:1f"

# Datagrams read of one socket in one tick; the rest of the tick belongs to the links.
MAX_DATAGRAMS_PER_TICK = 200
TICK_S = 0.1
# More often than this would be a flood of our own.
MIN_INTERVAL_S = 0.2
# Beacons spread over the interval, so that nodes started together do not stay in step.
JITTER = 0.1
ANSWER_WITHIN_S = 0.25
ANSWER_EVERY_S = 1.0
# How often interfaces are looked at and the registry is read again, and how often while something cannot be sent.
LOOK_EVERY_S = 5.0
LOOK_SOON_S = 1.0
FORGET_EVERY_S = 60.0
# A peer whose link broke off is looked for this long; beyond it a node that hears nobody at all goes on, being the one cut off.
LOOK_FOR_S = 300.0
# A batch of sightings waits this long for others of the same moment, and the next one this long for the database.
GATHER_S = 0.05
WRITE_EVERY_S = 0.5
# Sightings written at once. One costs 7 to 13 ms in the thread that also stores packets: strangers get an eighth of it.
MAX_KNOWN_AT_ONCE = 32
MAX_STRANGERS_AT_ONCE = 8
# Sightings that wait for the database; beyond it the newest are dropped, and their beacons come again.
MAX_WAITING = 1_024

Event = Heard | Departed | Stale


class Registry(Protocol):
    """What discovery asks of the peer registry; `neighbours.Neighbours` has it."""

    def load(self) -> dict[NodeId, Registered]: ...
    def note(self, sightings: Sequence[Sighting]) -> list[Heard]: ...
    def forget(self, live: Iterable[NodeId]) -> int: ...


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Where and how often to say and hear beacons."""

    network: str
    limits: Limits
    group: str = "239.255.0.1"
    port: int = 8103
    interval_s: float = 60.0
    interfaces: tuple[str, ...] = ()
    """Names or addresses; empty: every multicast-capable one."""


def discovery_settings() -> DiscoverySettings:
    """Return what the `ARK_DISCOVERY_…` settings say.

    Raises:
        ImproperlyConfigured: A value that cannot be; the message names the setting.
    """
    group, port, interval_s = (
        django_settings.ARK_DISCOVERY_GROUP,
        django_settings.ARK_DISCOVERY_PORT,
        django_settings.ARK_DISCOVERY_INTERVAL_S,
    )
    if not _is_ipv4_group(group):
        raise ImproperlyConfigured(f"ARK_DISCOVERY_GROUP must be an IPv4 multicast address such as 239.255.0.1, not {group!r}")
    if not 1 <= port <= 65_535:
        raise ImproperlyConfigured(f"ARK_DISCOVERY_PORT must be a UDP port, not {port!r}")
    if not MIN_INTERVAL_S <= interval_s < STALE_AFTER_S:
        raise ImproperlyConfigured(
            f"ARK_DISCOVERY_INTERVAL_S must be from {MIN_INTERVAL_S:g} to below {STALE_AFTER_S:g} seconds, not {interval_s:g}"
        )
    return DiscoverySettings(
        network=django_settings.ARK_NETWORK,
        limits=conf.limits(),
        group=group,
        port=port,
        interval_s=interval_s,
        interfaces=tuple(entry.strip() for entry in django_settings.ARK_DISCOVERY_INTERFACES if entry.strip()),
    )


def _is_ipv4_group(text: str) -> bool:
    try:
        return IPv4Address(text).is_multicast
    except ValueError:
        return False


def own_announcer(identity: Identity) -> Announcer:
    """Return the writer of this node's datagrams, as the settings and its identity have it.

    Raises:
        ImproperlyConfigured: A setting that no beacon can carry; the message names the field.
    """
    name = "".join(character for character in django_settings.ARK_NODE_NAME if character.isprintable())
    try:
        profile = Profile(
            node_id=identity.node_id,
            name=name[:64] or identity.node_id.hex()[:8],
            port=conf.http_bind().port,
            sync_port=conf.sync_bind().port,
            network=django_settings.ARK_NETWORK,
            version=conf.VERSION,
            trust_tier=django_settings.ARK_DECLARED_TIER,
            capabilities=tuple(django_settings.ARK_CAPABILITIES),
        )
    except LocalProtocolError as error:
        raise ImproperlyConfigured(f"{error} (ARK_CAPABILITIES, ARK_DECLARED_TIER or ARK_NETWORK)") from None
    return Announcer(pair=identity.pair, profile=profile)


class _Port:
    """One open socket: hands its datagrams to `deliver`, at most 200 a tick."""

    def __init__(self, interface: Interface, opened: socket.socket, deliver: Callable[[bytes, Source], None]) -> None:
        self.interface = interface
        self.error = ""
        self.sent = 0
        self.received = 0
        self.owes = True
        """The probe and beacon that a new interface gets did not go out yet."""
        self._socket = opened
        self._deliver = deliver
        self._tick_ends = 0.0
        self._left = MAX_DATAGRAMS_PER_TICK
        self._resume: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(opened, self._read)

    def send(self, datagram: bytes, to: tuple[str, int] | tuple[str, int, int, int]) -> bool:
        """Send if the network lets us; False when not, with the reason in `error`."""
        try:
            self._socket.sendto(datagram, to)
        except OSError as error:
            self.error = f"cannot send: {os.strerror(error.errno or 0)}"
            return False
        self.error = ""
        self.sent += 1
        return True

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._tick_ends:
            self._tick_ends = now + TICK_S
            self._left = MAX_DATAGRAMS_PER_TICK
        while self._left:
            try:
                # One byte more than allowed: a longer datagram is cut here, and still seen to be too long.
                data, address = self._socket.recvfrom(MAX_BEACON_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as error:
                # An error of an earlier send may be reported here; reading goes on.
                self._left -= 1
                self.error = os.strerror(error.errno or 0)
                continue
            self._left -= 1
            self.received += 1
            host, _, _ = address[0].partition("%")
            self._deliver(data, Source(address=host, zone=self.interface.name if self.interface.is_ipv6 else ""))
        loop.remove_reader(self._socket)
        self._resume = loop.call_at(self._tick_ends, loop.add_reader, self._socket, self._read)


class Discovery:
    """Announces this node and hears others, until stopped.

    Args:
        settings: Group, port, interval, interfaces, network and limits.
        announcer: Writes our datagrams; None for an onlooker, who probes and listens only. May be replaced after a
            rotation: the next beacon is the new key's.
        on_event: Called on the loop with `Heard`, `Departed` and `Stale`; `Heard` only once the registry has it.
        registry: Where peers are read and written; None writes nothing.
        run_db: Runs one synchronous registry call away from the loop: `await run_db(function, *args)`.
        live: Peers with a link now, which are not forgotten however long they send no beacon.
        on_sighting: Called with every believed sighting at once, before any registry; what `discover` listens to.
    """

    def __init__(
        self,
        *,
        settings: DiscoverySettings,
        announcer: Announcer | None,
        on_event: Callable[[Event], None] = lambda event: None,
        registry: Registry | None = None,
        run_db: Callable[..., Awaitable[Any]] | None = None,
        live: Callable[[], Iterable[NodeId]] = lambda: (),
        on_sighting: Callable[[Sighting], None] = lambda sighting: None,
    ) -> None:
        self.announcer = announcer
        self._settings = settings
        self._on_event = on_event
        self._registry = registry
        self._run_db = run_db or asyncio.to_thread
        self._live = live
        self._on_sighting = on_sighting
        own = announcer.profile.node_id if announcer is not None else None
        self._sightings = Sightings(own=own, network=settings.network, limits=settings.limits)
        self._ports: dict[Interface, _Port] = {}
        self._failed: dict[Interface, str] = {}
        self._problem = ""
        self._registry_problem = ""
        self._pace = NotePace()
        # What waits for the database, with the monotonic time before which it is not written.
        self._waiting: dict[tuple[NodeId, bytes, str], tuple[float, Sighting]] = {}
        self._has_waiting = asyncio.Event()
        self._last_ms = 0
        self._last_answer = 0.0
        self._forget_at = 0.0
        # Peers looked for, each with the monotonic time since when, and when a beacon for them went out last.
        self._missed: dict[NodeId, float] = {}
        self._called_at = 0.0
        self._answer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # Not a secret: it only spreads datagrams over time.
        self._uniform = random.SystemRandom().uniform

    async def start(self) -> None:
        """Open the sockets, send probe and beacon at once, and go on until `stop`. Raises nothing of the network."""
        await self._read_registry()
        self._look_at_interfaces()
        rounds = (self._announce_rounds, self._look_rounds, self._write_rounds)
        self._tasks = [asyncio.create_task(_kept_going(each), name=f"discovery{each.__name__}") for each in rounds]

    async def stop(self) -> None:
        """Say goodbye by every interface and close. Sightings not yet written are dropped: their beacons come again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None
        for port in self._ports.values():
            if self.announcer is not None:
                self._send(port, self.announcer.goodbye(timestamp=self._next_ms()))
            port.close()
        self._ports = {}

    def probe(self) -> None:
        """Ask everybody for a beacon now."""
        for port in self._ports.values():
            self._send(port, self._probe_datagram())

    def announce(self) -> None:
        """Send a beacon by every interface now, as after a change of key, name or port."""
        for port in self._ports.values():
            self._send_beacon(port)

    def look_for(self, node_id: NodeId) -> None:
        """Announce this node more often until a peer whose link broke off is heard again.

        Both ends of a broken link do so, and whichever hears the other first dials. For five minutes at most, unless
        nobody at all is heard. A peer that no beacon came from lately is out of reach of ours and not looked for.
        """
        if node_id in self._sightings.present():
            self._missed[node_id] = time.monotonic()

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know, JSON-able.

        `problem` is empty when datagrams can be heard and sent by at least one interface. Of `counters`, `believed` are
        beacons that counted, the others say why datagrams changed nothing.
        """
        return {
            "group": self._settings.group,
            "port": self._settings.port,
            "problem": self._problem,
            "registry_problem": self._registry_problem,
            "interfaces": [
                {
                    "name": interface.name,
                    "address": interface.address,
                    "error": port.error,
                    "sent": port.sent,
                    "received": port.received,
                }
                for interface, port in self._ports.items()
            ]
            + [
                {"name": interface.name, "address": interface.address, "error": error, "sent": 0, "received": 0}
                for interface, error in self._failed.items()
            ],
            "present": len(set(self._sightings.present())),
            "strangers": self._sightings.strangers,
            "counters": dict(self._sightings.counters),
        }

    # --- what arrives ---

    def _deliver(self, data: bytes, source: Source) -> None:
        effect = self._sightings.receive(data, source, now=time.monotonic(), now_ms=_wall_ms())
        self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Ignored():
                return
            case Probed():
                self._answer_soon()
            case Departed(node_id=node_id):
                self._missed.pop(node_id, None)
                # What still waits to be written would be told after the goodbye, and dialled.
                self._waiting = {key: waiting for key, waiting in self._waiting.items() if key[0] != node_id}
                self._tell(effect)
            case NewSighting() | Refreshed() | UnfamiliarKey():
                if not isinstance(effect, UnfamiliarKey):
                    self._missed.pop(effect.beacon.peer_id, None)
                _call(self._on_sighting, effect)
                if self._registry is not None:
                    self._queue(effect)

    def _queue(self, sighting: Sighting) -> None:
        now = time.monotonic()
        wait_s = self._pace.wait_s(sighting, now)
        if wait_s is None:
            return
        key = _waits_as(sighting)
        # Taken out first, so that the newest comes last: the registry believes ascending times only.
        former = self._waiting.pop(key, None)
        if former is None and len(self._waiting) >= MAX_WAITING:
            return
        if isinstance(sighting, Refreshed) and former is not None and isinstance(former[1], Refreshed):
            # That it returned is still untold.
            sighting = replace(sighting, returned=sighting.returned or former[1].returned)
        self._waiting[key] = (now + wait_s, sighting)
        self._has_waiting.set()

    def _answer_soon(self) -> None:
        if self.announcer is None or self._answer is not None:
            return
        loop = asyncio.get_running_loop()
        at = max(loop.time() + self._uniform(0.0, ANSWER_WITHIN_S), self._last_answer + ANSWER_EVERY_S)
        self._answer = loop.call_at(at, self._send_answer)

    def _send_answer(self) -> None:
        self._answer = None
        self._last_answer = asyncio.get_running_loop().time()
        self.announce()

    # --- what goes out ---

    async def _announce_rounds(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s * self._uniform(1 - JITTER, 1 + JITTER))
            self._look_at_interfaces()
            self.announce()

    def _send_beacon(self, port: _Port) -> bool:
        if self.announcer is None:
            return True
        # One beacon an interface, each newer than the last: so the second way by which a peer hears us
        # brings it a second address, and is not taken for a replay.
        return self._send(port, self.announcer.beacon(address=port.interface.address, timestamp=self._next_ms()))

    def _send(self, port: _Port, datagram: bytes) -> bool:
        group = GROUP_IPV6 if port.interface.is_ipv6 else self._settings.group
        return port.send(datagram, destination(port.interface, group=group, port=self._settings.port))

    def _probe_datagram(self) -> bytes:
        return self.announcer.probe() if self.announcer is not None else encode_probe(self._settings.network)

    def _next_ms(self) -> int:
        self._last_ms = max(self._last_ms + 1, _wall_ms())
        return self._last_ms

    # --- interfaces ---

    async def _look_rounds(self) -> None:
        while True:
            unwell = self._problem or self._failed or any(port.owes for port in self._ports.values())
            await asyncio.sleep(LOOK_SOON_S if unwell else LOOK_EVERY_S)
            self._look_at_interfaces()
            await self._expire()
            self._call_missed()
            await self._read_registry()

    def _call_missed(self) -> None:
        """Send a beacon for those looked for; after `_expire`, which finds out whether anybody else is heard."""
        now = time.monotonic()
        live = set(self._live())
        alone = not self._sightings.present()
        self._missed = {
            node_id: since for node_id, since in self._missed.items() if node_id not in live and (alone or now - since < LOOK_FOR_S)
        }
        # Looks come every second while an interface is unwell, and these beacons do not.
        if self._missed and now - self._called_at >= LOOK_EVERY_S - LOOK_SOON_S / 2:
            self._called_at = now
            self.announce()

    async def _expire(self) -> None:
        now = time.monotonic()
        live = set(self._live())
        for stale in self._sightings.expire(now=now, now_ms=_wall_ms()):
            if stale.node_id not in live:
                self._tell(stale)
        if self._registry is not None and now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_S
            await self._ask_registry(self._registry.forget, live)

    def _look_at_interfaces(self) -> None:
        """Open what is new, close what is gone, and greet by what never sent anything yet."""
        try:
            wanted = multicast_interfaces(self._settings.interfaces)
        except OSError as error:
            log.debug("interfaces cannot be listed: %s", error)
            wanted = []
        for interface in [known for known in self._ports if known not in wanted]:
            self._ports.pop(interface).close()
        self._failed = {}
        for interface in wanted:
            if interface not in self._ports:
                self._open(interface)
        for port in self._ports.values():
            if port.owes:
                port.owes = not (self._send(port, self._probe_datagram()) and self._send_beacon(port))
        self._say_problem(self._what_is_wrong(wanted))

    def _open(self, interface: Interface) -> None:
        group = GROUP_IPV6 if interface.is_ipv6 else self._settings.group
        try:
            opened = open_socket(interface, group=group, port=self._settings.port)
        except OSError as error:
            self._failed[interface] = _why_not_opened(error, self._settings.port)
        else:
            self._ports[interface] = _Port(interface, opened, self._deliver)

    def _what_is_wrong(self, wanted: Sequence[Interface]) -> str:
        if not wanted and self._settings.interfaces:
            return f"none of ARK_DISCOVERY_INTERFACES is up here: {', '.join(self._settings.interfaces)}"
        if not wanted:
            return "no multicast-capable interface is up"
        if not self._ports:
            return "; ".join(sorted(set(self._failed.values())))
        if all(port.owes for port in self._ports.values()):
            return "; ".join(sorted({f"{interface}: {port.error}" for interface, port in self._ports.items()}))
        return ""

    def _say_problem(self, problem: str) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        if self.announcer is None:
            # An onlooker asks `status()` and tells the person itself.
            return
        if problem:
            log.warning("discovery: %s; peers are still reached by address, and discovery is tried again", problem)
        else:
            log.info("discovery: works again")

    # --- the registry ---

    async def _write_rounds(self) -> None:
        while True:
            await self._has_waiting.wait()
            await asyncio.sleep(GATHER_S)
            batch = self._take_batch(time.monotonic())
            if self._registry is None or not batch:
                await asyncio.sleep(WRITE_EVERY_S)
                continue
            heard = await self._ask_registry(self._registry.note, batch)
            if heard is None:
                # They are written again, unless newer ones came meanwhile.
                newer, self._waiting = self._waiting, {}
                for sighting in batch:
                    self._waiting[_waits_as(sighting)] = (0.0, sighting)
                self._waiting |= newer
                self._has_waiting.set()
                await asyncio.sleep(LOOK_SOON_S)
                continue
            for sighting in batch:
                self._pace.noted(sighting, time.monotonic())
            for event in heard:
                self._tell(event)
            await self._read_registry()
            await asyncio.sleep(WRITE_EVERY_S)

    def _take_batch(self, now: float) -> list[Sighting]:
        """Take some of the sightings that are due, those of peers the operator knows first, in the order they came."""
        self._has_waiting.clear()
        due = [sighting for not_before, sighting in self._waiting.values() if not_before <= now]
        known = [sighting for sighting in due if _is_known(sighting)][:MAX_KNOWN_AT_ONCE]
        batch = known + [sighting for sighting in due if not _is_known(sighting)][:MAX_STRANGERS_AT_ONCE]
        for sighting in batch:
            del self._waiting[_waits_as(sighting)]
        if self._waiting:
            self._has_waiting.set()
        return batch

    async def _read_registry(self) -> None:
        if self._registry is None:
            return
        registered = await self._ask_registry(self._registry.load)
        if registered is not None:
            self._sightings.set_registry(registered)

    async def _ask_registry(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the answer, or None when the database fails; discovery goes on by memory, and it is said once."""
        try:
            answer = await self._run_db(function, *args)
        except DatabaseError as error:
            problem = f"the registry cannot be used: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            if problem != self._registry_problem:
                log.warning("discovery: %s", problem)
            self._registry_problem = problem
            return None
        self._registry_problem = ""
        return answer

    def _tell(self, event: Event) -> None:
        _call(self._on_event, event)


async def _kept_going(rounds: Callable[[], Awaitable[None]]) -> None:
    """Run endless rounds; what nobody foresaw is logged, and they go on."""
    while True:
        try:
            await rounds()
        except Exception:
            log.exception("discovery: %s failed and goes on", rounds)
            await asyncio.sleep(LOOK_SOON_S)


def _waits_as(sighting: Sighting) -> tuple[NodeId, bytes, str]:
    return sighting.beacon.peer_id, sighting.beacon.key_fingerprint, sighting.url


def _is_known(sighting: Sighting) -> bool:
    return isinstance(sighting, Refreshed) and sighting.known


def _call(listener: Callable[[Any], None], value: Any) -> None:
    """Call a listener; its fault is logged and does not end discovery."""
    try:
        listener(value)
    except Exception:
        log.exception("discovery: a listener failed")


def _why_not_opened(error: OSError, port: int) -> str:
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return f"UDP port {port} cannot be bound: {reason} (ARK_DISCOVERY_PORT)"
    return f"no multicast: {reason}"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
