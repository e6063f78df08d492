"""The WebSocket sync port: a thin transport between Daphne and a LinkDriver.

Accept, deliver, drain, close. No browser belongs here, so a request with an Origin header is refused. Before a
peer has proven its key it costs a bounded place; when all are taken, the oldest of the fullest address goes.

Source: docs/protocol.md, section 5.
"""

import asyncio
from collections import Counter
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer

from federation.driver import LinkDriver
from federation.node import FederationNode
from federation.protocol.errors import Goodbye
from federation.runtime import NodeUnavailableError, running_node

SUBPROTOCOL = "arklattice.sync.v1"


class SyncConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """One inbound link."""

    # Frames go through nothing but this process: no channel layer may drop or reorder them.
    channel_layer_alias = None  # type: ignore[assignment]

    async def connect(self) -> None:
        self.driver: LinkDriver | None = None
        headers = dict(self.scope["headers"])
        if b"origin" in headers or SUBPROTOCOL not in self.scope["subprotocols"]:
            await self.close()
            return
        try:
            node = await running_node()
        except NodeUnavailableError:
            await self.close()
            return
        host = str((self.scope.get("client") or ("",))[0])
        if node.stopping or not await make_room(node, host):
            await self.close()
            return
        await self.accept(SUBPROTOCOL)
        self.driver = node.open_link(self, address=host, host=host)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.driver is None:
            return
        if bytes_data is None:
            self.driver.closed(Goodbye.PROTOCOL.close_code)
            await AsyncWebsocketConsumer.close(self, code=Goodbye.PROTOCOL.close_code)
        else:
            self.driver.feed(bytes_data)

    async def disconnect(self, code: int) -> None:
        if self.driver is not None:
            self.driver.closed(code)
            await self.driver.ended.wait()

    # Transport, for the driver.

    async def send(self, data: Any = None, **kwargs: Any) -> None:
        if isinstance(data, bytes):
            await super().send(bytes_data=data)
        else:
            await super().send(data, **kwargs)


async def make_room(node: FederationNode, host: str) -> bool:
    """Return whether one more connection from `host` may begin a handshake, after the oldest gave way if it had to."""
    half_open = node.half_open()
    by_host = Counter(driver.host for driver in half_open)
    if by_host[host] >= node.limits.half_open_per_address:
        return False
    if len(half_open) >= node.limits.half_open:
        fullest = max(by_host, key=lambda candidate: by_host[candidate])
        oldest = next(driver for driver in half_open if driver.host == fullest)
        await asyncio.wait_for(oldest.end(Goodbye.BYE), 5.0)
    return True
