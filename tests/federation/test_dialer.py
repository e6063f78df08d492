"""Dialling out: who is dialled when, what a failure costs, and whom no answer can send us to."""

import asyncio
from datetime import UTC, datetime

import pytest
from django.db import OperationalError

from federation import dialer as dialer_module
from federation.dialer import Dialer, DialError, open_websocket
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndLink
from federation.protocol.limits import Limits
from keys.encoding import NodeId
from peers.backoff import MAX_PENDING_BACKOFF_S
from peers.selectors import DialTarget
from peers.trust import Tier

pytestmark = pytest.mark.asyncio

PEER, OTHER = NodeId(bytes(15) + b"\x01"), NodeId(bytes(15) + b"\x02")
URL = "ws://192.0.2.1:8104/sync"


class Registry:
    """The database as the dialler uses it: answers with its targets, remembers what was noted."""

    def __init__(self, *targets):
        self.targets, self.looks, self.noted, self.broken = list(targets), 0, [], None

    async def read(self, function, now):
        assert isinstance(now, datetime)
        assert now.tzinfo is UTC
        self.looks += 1
        if self.broken:
            raise self.broken
        return self.targets

    async def write(self, function, **what):
        if self.broken:
            raise self.broken
        self.noted.append(what)


class Node:
    def __init__(self, *targets):
        self.database, self.links, self.stopping, self.limits = Registry(*targets), {}, False, Limits()


class Scripted(Dialer):
    """Dials nobody: each attempt has the outcome that comes next."""

    def __init__(self, node, *outcomes, static=()):
        super().__init__(node, static=static, enabled=lambda: True)
        self.outcomes, self.dialled = list(outcomes), []

    async def _connect(self, target, url):
        self.dialled.append(url)
        await asyncio.sleep(0)
        outcome = self.outcomes.pop(0) if self.outcomes else DialError("nobody there")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def backoff(self, peer=PEER):
        return self._targets[peer].backoff


def target(*urls, peer=PEER):
    return DialTarget(peer, Tier.CORE, urls or (URL,))


async def run(dialer, seconds=0.05):
    task = asyncio.ensure_future(dialer.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dialer_module, "ROUND_S", 0.002)


async def test_failure_is_noted_and_waits():
    """A dial that failed is shown at its address and not repeated at once; every address had its turn."""
    dialer = Scripted(Node(target(URL, URL + "2")))
    dialer._chance = lambda: 1.0
    await run(dialer)
    assert dialer.dialled == [URL, URL + "2"]
    assert [(noted["url"], noted["error"]) for noted in dialer._node.database.noted] == [
        (URL, "nobody there"),
        (URL + "2", "nobody there"),
    ]
    assert dialer.backoff().failures == 1


async def test_fault_of_the_database_does_not_spin():
    """A failure that cannot even be noted counts as a failed dial, not as one to repeat at once."""
    dialer = Scripted(Node(target()))
    dialer._chance = lambda: 1.0
    await dialer._refresh()
    dialer._node.database.broken = OperationalError("locked")
    dialer._stale, dialer._refreshed_at = False, asyncio.get_running_loop().time()
    await run(dialer)
    assert len(dialer.dialled) == 1
    assert dialer.backoff().failures == 1


@pytest.mark.parametrize("goodbye", [Goodbye.PENDING, Goodbye.BYE, Goodbye.BLOCKED, Goodbye.RESTARTING])
async def test_refusal_in_words_waits(goodbye):
    """A peer that answered is not asked at its other addresses, nor again at once; after `pending` within a minute."""
    node = Node(target(URL, URL + "2"))
    dialer = Scripted(node, EndLink(goodbye.close_code, goodbye, by_peer=True))
    dialer._chance = lambda: 1.0
    await run(dialer)
    assert dialer.dialled == [URL]
    assert dialer.backoff().failures == 1
    if goodbye is Goodbye.PENDING:
        for _ in range(30):
            dialer._put_off(dialer._targets[PEER], EndLink(4003, goodbye))
        assert dialer.backoff().ready_at - asyncio.get_running_loop().time() <= MAX_PENDING_BACKOFF_S


async def test_signs_of_life_reset_the_back_off():
    """A beacon, or the operator's decision, and the peer is dialled now."""
    dialer = Scripted(Node(target()))
    dialer._chance = lambda: 1.0
    await run(dialer)
    for reset in (lambda: dialer.sign_of_life(PEER), dialer.operator_decided):
        dialled = len(dialer.dialled)
        reset()
        await run(dialer)
        assert len(dialer.dialled) == dialled + 1


async def test_link_that_falls_at_once_does_not_reset_the_back_off():
    """Links that come up and fall again are dialled ever more slowly; one that held is dialled soon."""
    dialer = Scripted(Node(target()))
    dialer._chance = lambda: 1.0
    await dialer._refresh()
    for failures in (1, 2, 3):
        dialer.link_up(PEER)
        dialer.link_ended(PEER, EndLink(1006, by_peer=True))
        assert dialer.backoff().failures == failures
    dialer.link_up(PEER)
    dialer._targets[PEER].up_at -= dialer_module.STEADY_S
    dialer.link_ended(PEER, EndLink(1006, by_peer=True))
    assert dialer.backoff().failures == 1


async def test_links_that_end_with_bye_do_not_storm():
    """`bye` means connect again, but not for ever at once."""
    dialer = Scripted(Node(target()))
    dialer._chance = lambda: 1.0
    await dialer._refresh()
    waits = []
    for _ in range(6):
        dialer.link_up(PEER)
        dialer.link_ended(PEER, EndLink(4000, Goodbye.BYE, by_peer=True))
        waits.append(dialer.backoff().ready_at - asyncio.get_running_loop().time())
    assert max(waits[:3]) <= dialer_module.BYE_PAUSE_S
    assert min(waits[3:]) > 10


async def test_one_dial_a_peer_at_a_time():
    """The operator's dial and the dialler's own never meet."""
    node = Node(target())
    dialer = Scripted(node)
    under_way = []

    async def slow(target, url):
        under_way.append(url)
        assert len(under_way) == 1
        await asyncio.sleep(0.02)
        under_way.remove(url)
        raise DialError("nobody there")

    dialer._connect = slow
    running = asyncio.ensure_future(dialer.run())
    problems = await asyncio.gather(*(dialer.dial_now(PEER) for _ in range(3)))
    assert set(problems) == {"nobody there"}
    running.cancel()
    with pytest.raises(KeyError):
        await dialer.dial_now(OTHER)


async def test_quiet_registry_is_not_read_each_round():
    """The registry is read when something may have changed there, not twice a second."""
    dialer = Scripted(Node(target()))
    dialer._chance = lambda: 1.0
    await run(dialer, 0.1)
    assert dialer._node.database.looks == 1
    dialer.registry_changed()
    await run(dialer, 0.02)
    assert dialer._node.database.looks == 2


async def test_redirect_is_not_followed():
    """An answer that names another address is a stranger's word on whom to dial: nobody is."""
    visitors = []

    async def victim(reader, writer):
        visitors.append(writer.get_extra_info("peername"))
        writer.close()

    async def redirecting(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(victim, "127.0.0.1", 0) as there:
        port = there.sockets[0].getsockname()[1]
        async with await asyncio.start_server(redirecting, "127.0.0.1", 0) as here:
            with pytest.raises(DialError):
                await open_websocket(f"ws://127.0.0.1:{here.sockets[0].getsockname()[1]}", Limits())
    assert visitors == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\xff" * 100, b"HTTP/1.1 101\r\n\r\n", b"x" * 100_000])
async def test_what_is_no_node_is_said_in_one_line(answer):
    """Whatever answers at an address, a dial ends with one short reason."""

    async def stranger(reader, writer):
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(stranger, "127.0.0.1", 0) as server:
        with pytest.raises(DialError) as refused:
            await open_websocket(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", Limits())
    assert "\n" not in str(refused.value)
    assert 0 < len(str(refused.value)) <= 200
