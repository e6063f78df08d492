"""The whole node in one process and one event loop: server, links, dialler, discovery, watcher.

`run` returns after SIGTERM or SIGINT once the node has drained: no new connections, a true goodbye on every link
and by multicast, what was received committed. It ends within three seconds, cutting off what takes longer.

Source: docs/architecture.md, sections 1 and 2.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from channels.routing import get_default_application
from django.conf import settings
from django.db import DatabaseError
from twisted.internet import reactor as twisted_reactor

from federation import claims, requests, state
from federation.conf import http_bind, limits, sync_bind
from federation.dialer import Dialer
from federation.discovery import Discovery, Event, discovery_settings, own_announcer
from federation.neighbours import Heard, Neighbours
from federation.node import FederationNode
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndLink
from federation.runtime import set_node
from federation.server import Server
from keys.encoding import NodeId

logger = logging.getLogger(__name__)

# Twisted declares its reactor as an interface that names few of its methods.
reactor = cast(Any, twisted_reactor)

DRAIN_S = 2.6  # a drain that takes longer is cut off: SIGTERM promises an end within three seconds
HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts of the node run."""

    serve: bool = True
    discover: bool = True
    dial: bool = True


class FederationRunner:
    """One run of a node.

    Args:
        started: Called once everything is up.
    """

    def __init__(self, node: FederationNode, parts: Parts, *, started: Callable[[], None]) -> None:
        self._node = node
        self._parts = parts
        self._started = started
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._server: Server | None = None
        self._dialer: Dialer | None = None
        self._discovery: Discovery | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._auto_sync = True
        self._draining = False

    def run(self) -> None:
        """Run until told to stop.

        Raises:
            PortTakenError: a TCP port is not free.
            DatabaseError: the database cannot be used.
        """
        asyncio.set_event_loop(self._loop)
        # Everything is loaded before the first port opens, so that no peer meets half a node.
        self._loop.run_until_complete(self._node.start())
        set_node(self._node)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop)
        if self._parts.serve:
            self._server = Server(get_default_application(), [http_bind(), sync_bind()], limits=limits(), ready=self._begin)
            self._server.run()
            if self._server.failure is not None:
                self._loop.run_until_complete(self._node.stop())
                raise self._server.failure
        else:
            reactor.callWhenRunning(self._begin)
            reactor.run(installSignalHandlers=False)

    # --- up ---

    def _begin(self) -> None:
        self._tasks.append(self._loop.create_task(self._start_parts()))

    async def _start_parts(self) -> None:
        node = self._node
        if self._parts.dial:
            self._auto_sync = await node.database.read(state.auto_sync)
            self._dialer = Dialer(node, static=settings.ARK_STATIC_PEERS, enabled=lambda: self._auto_sync)
            self._watch("dialler", self._dialer.run)
        if self._parts.discover and settings.ARK_DISCOVERY:
            self._discovery = Discovery(
                settings=discovery_settings(),
                announcer=own_announcer(node.identity),
                on_event=self._heard,
                registry=Neighbours(node.limits),
                run_db=node.database.write,
                live=lambda: list(node.links),
            )
            await self._discovery.start()
        node.asked = self._asked
        node.table_changed = self._table_changed
        node.link_changed = self._link_changed
        await node.database.write(state.mark_started, now=_now(), detail=self._detail())
        self._watch("heartbeat", self._beat)
        self._started()

    def _watch(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(self._loop.create_task(self._node.supervise(name, work), name=name))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._node.database.write(state.heartbeat, now=_now(), detail=self._detail())

    def _detail(self) -> dict[str, Any]:
        return {
            "http": str(http_bind()) if self._parts.serve else None,
            "sync": str(sync_bind()) if self._parts.serve else None,
            "dialling": self._parts.dial,
            "discovery": self._discovery.status() if self._discovery is not None else None,
            "acceptance_stopped": self._node.committer.stopped,
        }

    # --- what happens ---

    def _heard(self, event: Event) -> None:
        if isinstance(event, Heard) and self._dialer is not None:
            self._dialer.sign_of_life(event.node_id)

    def _table_changed(self) -> None:
        if self._dialer is not None:
            self._dialer.operator_decided()

    def _link_changed(self, peer: NodeId, ending: EndLink | None) -> None:
        if ending is not None and ending.goodbye in (None, Goodbye.DEAD) and self._discovery is not None:
            self._discovery.look_for(peer)
        if self._dialer is None:
            return
        if ending is None:
            self._dialer.link_up(peer)
        else:
            self._dialer.link_ended(peer, ending)

    async def _asked(self) -> None:
        """Take in what other processes want of the runner itself."""
        database = self._node.database
        on = await database.read(state.auto_sync)
        if on != self._auto_sync:
            self._auto_sync = on
            if self._dialer is not None and on:
                self._dialer.operator_decided()
        linked_elsewhere = None
        for request in await database.read(requests.waiting, kind=requests.SYNC):
            peer = NodeId(bytes.fromhex(request.argument["peer"]))
            if peer in self._node.links:
                continue
            if linked_elsewhere is None:
                rows = await database.read(claims.live_claims, _now(), without=[self._node.process])
                linked_elsewhere = {row.peer for row in rows}
            if peer.hex() not in linked_elsewhere and await database.write(requests.take, pk=request.pk):
                self._node.spawn(self._dial_and_sync(peer, request.pk))

    async def _dial_and_sync(self, peer: NodeId, request: int) -> None:
        problem: str | None = "the node was started with --no-dial"
        if self._dialer is not None:
            try:
                problem = await self._dialer.dial_now(peer)
            except KeyError:
                problem = "no address of this peer is known, or its tier does not let this node dial it"
        await self._node.sync_now(peer, request, problem)

    # --- down ---

    def _stop(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._loop.call_later(DRAIN_S, self._cut_off)
        self._tasks.append(self._loop.create_task(self._drain()))

    async def _drain(self) -> None:
        try:
            if self._server is not None:
                self._server.stop_listening()
            for task in self._tasks[:-1]:
                task.cancel()
            await asyncio.gather(*self._tasks[:-1], return_exceptions=True)
            if self._discovery is not None:
                await self._discovery.stop()
            try:
                await self._node.database.write(state.mark_stopped)
            except DatabaseError as error:
                logger.warning("the end of this run could not be recorded: %s", error)
            await self._node.stop()
        finally:
            reactor.stop()

    def _cut_off(self) -> None:
        logger.error("stopping took more than %.1f s and was cut off; nothing acknowledged is lost", DRAIN_S)
        os._exit(0)


def _now() -> datetime:
    return datetime.now(UTC)
