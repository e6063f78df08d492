"""The WebSocket sync port: a thin transport between Daphne and a LinkDriver.

Accept, deliver, drain, close. No browser belongs here, so a request with an Origin header is refused. Before a
peer has proven its key it costs a bounded place; when all are taken, the oldest of the fullest address goes.

Source: docs/protocol.md, section 5.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from federation.driver import LinkDriver
from federation.node import FederationNode
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndRequested
from federation.runtime import NodeUnavailableError, running_node

logger = logging.getLogger(__name__)

SUBPROTOCOL = "arklattice.sync.v1"

Message = dict[str, Any]


class InboundTransport:
    """A WebSocket that Daphne accepted.

    Args:
        send: The ASGI send of the connection.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self.gone = asyncio.Event()
        self._send = send
        self._is_detached = False
        self._connection = _connection_behind(send)
        self._drain = _Drain()
        if self._connection is not None:
            # Daphne buffers without bound; Twisted tells the producer of a connection when to pause. The one that the
            # HTTP request left registered has nothing to say any more.
            self._connection.unregisterProducer()
            self._connection.registerProducer(self._drain, True)

    async def send(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": data})
        await self._drain.drained.wait()

    async def close(self, code: int, *, patient: bool) -> None:
        if self.gone.is_set():
            return
        await self._send({"type": "websocket.close", "code": code})
        if not patient and self._connection is not None:
            self._connection.loseConnection()  # after what is written has left
        if not self._is_detached:
            await self.gone.wait()

    def abort(self) -> None:
        if self._connection is not None and not self.gone.is_set() and not self._is_detached:
            self._connection.abortConnection()

    def detach(self) -> None:
        """The server ends: nobody tells any more that the peer closed, but what is sent still leaves."""
        self._is_detached = True


class SyncConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """One inbound link.

    Frames go straight to the driver, which only queues them: the stock dispatch costs ten times what this does
    (a thread hop to close database connections, two tasks a message), and no channel layer may drop or reorder them.
    """

    channel_layer_alias = None  # type: ignore[assignment]

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.scope, self.base_send, self.channel_layer = scope, send, None
        self.driver: LinkDriver | None = None
        self.transport: InboundTransport | None = None
        try:
            while True:
                message = await receive()
                if message["type"] == "websocket.receive":
                    self._deliver(message)
                else:
                    await self.dispatch(message)
        except StopConsumer:
            pass
        except asyncio.CancelledError:
            if self.transport is not None:
                self.transport.detach()
            raise
        except Exception as error:
            # One line: how much the log says is not up to a stranger.
            logger.error("a connection to the sync port could not be served: %r", error)
            await self.close()
            if self.driver is not None:
                self.driver.closed(None)

    async def connect(self) -> None:
        headers = {name for name, _ in self.scope["headers"]}
        host = str((self.scope.get("client") or ("",))[0])
        if b"origin" in headers or SUBPROTOCOL not in self.scope["subprotocols"]:
            await self._refuse()
        try:
            node = await running_node()
        except NodeUnavailableError:
            await self._refuse()
        # Nothing is awaited between the count and the new link, so that no two connections take one place.
        if node.stopping or not make_room(node, host):
            await self._refuse()
        await self.accept(SUBPROTOCOL)
        self.transport = InboundTransport(self.base_send)
        self.driver = node.open_link(self.transport, address=host, host=host)

    async def disconnect(self, code: int) -> None:
        if self.driver is not None and self.transport is not None:
            self.transport.gone.set()
            self.driver.closed(code)
            await self.driver.ended.wait()

    def _deliver(self, message: Message) -> None:
        if self.driver is None:
            return
        frame = message.get("bytes")
        if frame is None:
            self.driver.post(EndRequested(Goodbye.PROTOCOL, "a text frame"))
        else:
            self.driver.feed(frame)

    async def _refuse(self) -> None:
        await self.close()
        raise StopConsumer


def make_room(node: FederationNode, host: str) -> bool:
    """Return whether one more connection from `host` may begin a handshake, after the oldest gave way if it had to."""
    if node.strangers_from(host) >= node.limits.half_open_per_address:
        return False
    half_open = node.half_open()
    if len(half_open) >= node.limits.half_open:
        by_host = Counter(driver.host for driver in half_open)
        fullest = max(by_host, key=lambda candidate: by_host[candidate])
        next(driver for driver in half_open if driver.host == fullest).give_way("another connection needs the place")
    return True


class _Drain:
    """Told by a Twisted connection when to pause writing and when to go on (its IPushProducer)."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.drained.set()

    def pauseProducing(self) -> None:
        self.drained.clear()

    def resumeProducing(self) -> None:
        self.drained.set()

    def stopProducing(self) -> None:
        self.drained.set()


def _connection_behind(send: Callable[[Message], Awaitable[None]]) -> Any:
    """Return the Twisted connection that Daphne's `send` leads to; None under another server or in a test."""
    protocol = next(iter(getattr(send, "args", ())), None)
    connection = getattr(protocol, "transport", None)
    return connection if hasattr(connection, "registerProducer") else None
