"""The whole node in one process and one event loop: server, links, dialler, discovery, watcher.

`run` returns after SIGTERM or SIGINT once the node has drained: no new connections, a true goodbye on every link
and by multicast, what was received committed. It ends within three seconds, cutting off what takes longer: a thread
watches over that, for a database that is locked or a name server that is silent may hold up more than the loop.

Source: docs/architecture.md, sections 1 and 2.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from channels.routing import get_default_application
from django.conf import settings
from django.db import DatabaseError

from federation import claims, requests, state
from federation.conf import http_bind, limits, static_peers, sync_bind
from federation.dialer import Dialer
from federation.discovery import Discovery, Event, discovery_settings, own_announcer
from federation.neighbours import Heard, Neighbours
from federation.node import FederationNode
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndLink
from federation.runtime import set_node
from federation.server import Server, reactor
from keys.encoding import NodeId

logger = logging.getLogger(__name__)

DRAIN_S = 2.6  # a drain that takes longer is cut off: SIGTERM promises an end within three seconds
HEARTBEAT_S = 60.0
DETAIL_S = 5.0  # between looks at whether there is something new to say of this node


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
        note: Tells other processes why no packets are accepted, "" when they are, without the database.
    """

    def __init__(
        self, node: FederationNode, parts: Parts, *, started: Callable[[], None], note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._node = node
        self._parts = parts
        self._started = started
        self._note = note
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._server: Server | None = None
        self._dialer: Dialer | None = None
        self._discovery: Discovery | None = None
        self._loading: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._auto_sync = True
        self._static = static_peers()
        self._stopping = False

    def run(self) -> None:
        """Run until told to stop.

        Raises:
            PortTakenError: a TCP port is not free.
            DatabaseError: the database cannot be used.
        """
        asyncio.set_event_loop(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop)
        # Everything is loaded before the first port opens, so that no peer meets half a node.
        self._loading = self._loop.create_task(self._load())
        try:
            self._loop.run_until_complete(self._loading)
        except asyncio.CancelledError:
            self._loop.run_until_complete(self._end())
            return
        set_node(self._node)
        if self._parts.serve:
            self._server = Server(
                get_default_application(),
                [http_bind(), sync_bind()],
                limits=limits(),
                guarded_port=sync_bind().port,
                ready=self._begin,
            )
            self._server.run()
            if self._server.failure is not None:
                self._loop.run_until_complete(self._end())
                raise self._server.failure
        else:
            reactor.callWhenRunning(self._begin)
            reactor.run(installSignalHandlers=False)

    # --- up ---

    async def _load(self) -> None:
        await self._node.start()
        self._auto_sync = await self._node.database.read(state.auto_sync)

    def _begin(self) -> None:
        if not self._stopping:
            self._tasks.append(self._loop.create_task(self._start_parts()))

    async def _start_parts(self) -> None:
        node = self._node
        if self._parts.dial:
            self._dialer = Dialer(node, static=self._static, enabled=lambda: self._auto_sync)
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
            try:
                await self._discovery.start()
            except Exception:
                logger.exception("discovery could not be started; peers are reached by their addresses only")
        node.asked = self._asked
        node.table_changed = self._table_changed
        node.link_changed = self._link_changed
        node.stopped_changed = self._stopped_changed
        try:
            await node.database.write(state.mark_started, now=_now(), detail=self._detail())
        except DatabaseError as error:
            logger.warning("the start of this run could not be recorded: %s", error)
        self._watch("heartbeat", self._beat)
        self._started()

    def _watch(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(self._loop.create_task(self._node.supervise(name, work), name=name))

    async def _beat(self) -> None:
        """Write what this node says of itself when it changed, and now and then that it is still there."""
        # What was written at the start counts for nothing: datagrams came in while it was.
        written: dict[str, Any] = {}
        written_at = self._loop.time()
        while True:
            await asyncio.sleep(DETAIL_S)
            detail, now = self._detail(), self._loop.time()
            if detail != written or now - written_at >= HEARTBEAT_S:
                await self._node.database.write(state.heartbeat, now=_now(), detail=detail)
                written, written_at = detail, now

    def _detail(self) -> dict[str, Any]:
        return {
            "http": str(http_bind()) if self._parts.serve else None,
            "sync": str(sync_bind()) if self._parts.serve else None,
            "dialling": self._parts.dial,
            "discovery": self._discovery.status() if self._discovery is not None else None,
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

    def _stopped_changed(self, reason: str | None) -> None:
        try:
            self._note(reason or "")
        except OSError as error:
            logger.error("the status cannot say why packets are declined: %s", error)

    async def _asked(self) -> None:
        """Take in what other processes want of the runner itself."""
        database = self._node.database
        on = await database.read(state.auto_sync)
        if on != self._auto_sync:
            self._auto_sync = on
            if self._dialer is not None and on:
                self._dialer.operator_decided()
        if self._dialer is not None:
            self._dialer.registry_changed()
        linked_elsewhere = None
        for request in await database.read(requests.waiting, kind=requests.SYNC):
            peer = requests.peer_of(request)
            if peer is None or peer in self._node.links:
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
        if self._stopping:
            return
        self._stopping = True
        watchdog = threading.Timer(DRAIN_S, _cut_off)
        watchdog.daemon = True
        watchdog.start()
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        else:
            self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            if self._server is not None:
                self._server.stop_listening()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._end()
        except Exception:
            logger.exception("not everything could be ended in order")
        finally:
            reactor.stop()

    async def _end(self) -> None:
        """Say goodbye everywhere, then write down what is left to be written."""
        endings = [self._node.stop()]
        if self._discovery is not None:
            endings.append(self._discovery.stop())
        for outcome in await asyncio.gather(*endings, return_exceptions=True):
            if isinstance(outcome, BaseException):
                logger.error("not everything could be ended in order: %r", outcome, exc_info=outcome)
        try:
            await self._node.database.write(state.mark_stopped)
        except DatabaseError as error:
            logger.warning("the end of this run could not be recorded: %s", error)
        await self._node.close()


def _cut_off() -> None:
    """In the watchdog's thread: the process is still there."""
    logger.error("stopping took more than %.1f s and was cut off; nothing acknowledged is lost", DRAIN_S)
    os._exit(0)


def _now() -> datetime:
    return datetime.now(UTC)
