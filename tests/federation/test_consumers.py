"""The sync port's consumer: whom it lets in, what it costs, how it ends. Through the project's own routers."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from channels.testing import WebsocketCommunicator

from arklattice.asgi import application
from federation import consumers
from federation.conf import http_bind, sync_bind
from federation.consumers import SUBPROTOCOL, InboundTransport, SyncConsumer
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndRequested
from federation.protocol.limits import Limits
from federation.runtime import NodeUnavailableError

pytestmark = pytest.mark.asyncio


class SilentDriver:
    """Takes frames and ends when told, like a driver whose session says nothing."""

    def __init__(self, host):
        self.host, self.frames, self.events, self.ended = host, [], [], asyncio.Event()
        self.gave_way = self.closed_with = None
        self.feed = self.frames.append
        self.post = self.events.append

    def closed(self, code):
        self.closed_with = code
        self.ended.set()

    def give_way(self, reason):
        self.gave_way = reason
        self.ended.set()


class Listener:
    """A node as the consumer sees it."""

    def __init__(self):
        self.stopping, self.limits, self.opened = False, Limits(half_open=4, half_open_per_address=2), []

    def open_link(self, transport, *, address, host):
        self.opened.append(SilentDriver(host))
        self.opened[-1].transport = transport
        return self.opened[-1]

    def half_open(self):
        return [driver for driver in self.opened if not driver.ended.is_set()]

    def strangers_from(self, host):
        return sum(driver.host == host for driver in self.half_open())


@pytest.fixture
def listener(monkeypatch):
    node = Listener()

    async def running_node():
        return node

    monkeypatch.setattr(consumers, "running_node", running_node)
    return node


def dial(path="/sync", *, port=None, subprotocols=(SUBPROTOCOL,), host="192.0.2.1", headers=()):
    communicator = WebsocketCommunicator(application, path, headers=list(headers), subprotocols=list(subprotocols))
    communicator.scope["server"] = ("127.0.0.1", port or sync_bind().port)
    communicator.scope["client"] = (host, 50_000)
    communicator.scope["root_path"] = "/from-a-header"
    return communicator


async def test_frames_reach_the_driver_in_order(listener):
    """Binary frames are handed over as they came, through both routers, whatever root path a header claims."""
    communicator = dial()
    assert await communicator.connect() == (True, SUBPROTOCOL)
    for number in range(5):
        await communicator.send_to(bytes_data=bytes([number]))
    await asyncio.sleep(0.01)
    assert listener.opened[0].frames == [bytes([number]) for number in range(5)]
    await communicator.disconnect(4000)
    assert listener.opened[0].closed_with == 4000


@pytest.mark.parametrize(
    "wrong",
    [
        {"headers": [(b"origin", b"https://evil.example")]},
        {"headers": [(b"origin", b"null")]},
        {"headers": [(b"origin", b"")]},
        {"subprotocols": ()},
        {"subprotocols": ("arklattice.sync.v2",)},
        {"subprotocols": (SUBPROTOCOL.upper(),)},
        {"path": "/"},
        {"path": "/sync/"},
        {"path": "/admin/"},
        {"port": http_bind().port},
        {"port": 1},
    ],
)
async def test_refused(listener, wrong):
    """A browser, another protocol, another path and another port are refused before they cost anything."""
    connected, _ = await dial(**wrong).connect()
    assert not connected
    assert not listener.opened


async def test_without_a_node_everybody_is_refused(monkeypatch):
    """A process that has no node refuses, and says nothing of why to a stranger."""

    async def running_node():
        raise NodeUnavailableError("no key")

    monkeypatch.setattr(consumers, "running_node", running_node)
    assert (await dial().connect())[0] is False


async def test_text_frame_is_a_protocol_error(listener):
    """A text frame ends the link with the Goodbye for it."""
    communicator = dial()
    await communicator.connect()
    await communicator.send_to(text_data="hello")
    await asyncio.sleep(0.01)
    assert listener.opened[0].events == [EndRequested(Goodbye.PROTOCOL, "a text frame")]
    await communicator.disconnect()


async def test_half_open_per_address_at_the_limit_and_one_beyond(listener):
    """An address has so many places and not one more; another address has its own."""
    for host, expected in [("192.0.2.1", True), ("192.0.2.1", True), ("192.0.2.1", False), ("192.0.2.2", True)]:
        assert (await dial(host=host).connect())[0] is expected
    assert len(listener.opened) == 3


async def test_oldest_of_the_fullest_address_gives_way(listener):
    """With every place taken, a newcomer gets the place of the oldest one of the fullest address."""
    for host in ["192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.7"]:
        assert (await dial(host=host).connect())[0]
    assert (await dial(host="192.0.2.50").connect())[0]
    assert [driver.gave_way is not None for driver in listener.opened] == [False, True, False, False, False]
    assert len(listener.half_open()) == 4


async def test_fault_in_the_consumer_is_one_line(listener, caplog):
    """An unexpected fault closes the connection and is logged without a traceback: a stranger does not fill the log."""

    def broken(transport, **where):
        raise RuntimeError("a bug")

    listener.open_link = broken
    communicator = dial()
    assert (await communicator.connect())[0] is True
    assert (await communicator.receive_output())["type"] == "websocket.close"
    assert [record.exc_info for record in caplog.records if record.name == "federation.consumers"] == [None]


async def test_cancelled_by_the_server_it_still_sends(listener):
    """When the server ends and cancels it, the link is not taken for lost: the goodbye still leaves."""
    communicator = dial()
    await communicator.connect()
    driver = listener.opened[0]
    communicator.future.cancel()
    await asyncio.sleep(0.01)
    assert driver.closed_with is None
    await asyncio.wait_for(driver.transport.close(4001, patient=True), 1)
    assert communicator.output_queue.get_nowait() == {"type": "websocket.close", "code": 4001}


async def test_closing_waits_for_the_peer():
    """A close returns when the peer answered it, so that nothing ends before the goodbye was read."""
    sent = []

    async def send(message):
        sent.append(message)

    transport = InboundTransport(send)
    closing = asyncio.ensure_future(transport.close(4001, patient=True))
    await asyncio.sleep(0.01)
    assert sent == [{"type": "websocket.close", "code": 4001}]
    assert not closing.done()
    transport.gone.set()
    await closing
    await transport.close(4000, patient=True)
    assert len(sent) == 1, "one that is closed is not closed again"


async def test_sending_waits_while_the_connection_is_full():
    """A frame handed to a connection that says it is full holds up the next one until it has drained."""
    producers = []
    connection = SimpleNamespace(
        registerProducer=lambda producer, streaming: producers.append(producer),
        unregisterProducer=lambda: None,
        abortConnection=lambda: producers.append("aborted"),
    )

    class Send:
        args = (SimpleNamespace(transport=connection),)

        async def __call__(self, message):
            pass

    transport = InboundTransport(Send())
    await asyncio.wait_for(transport.send(b"one"), 1)
    producers[0].pauseProducing()
    waiting = asyncio.ensure_future(transport.send(b"two"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    producers[0].resumeProducing()
    await asyncio.wait_for(waiting, 1)
    transport.abort()
    assert producers[-1] == "aborted"


async def test_a_message_is_cheap(listener):
    """A frame costs tens of microseconds at most, not the hundreds of the stock dispatch (measured: 1 to 2 here)."""
    queue: asyncio.Queue = asyncio.Queue()
    scope = dial().scope

    async def send(message):
        pass

    queue.put_nowait({"type": "websocket.connect"})
    count = 5_000
    for _ in range(count):
        queue.put_nowait({"type": "websocket.receive", "bytes": bytes(1_024)})
    queue.put_nowait({"type": "websocket.disconnect", "code": 1000})
    began = time.process_time()
    await SyncConsumer.as_asgi()(scope, queue.get, send)
    spent = time.process_time() - began
    assert len(listener.opened[0].frames) == count
    assert spent / count < 60e-6
