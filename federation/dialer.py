"""Dialling out: one attempt a peer at a time, back-off after failures, at once when there is reason to.

Dialled are CORE and SANDBOX peers with a trusted key and an address (while auto-sync is on), and the URLs of
ARK_STATIC_PEERS until the handshake tells who is there. A peer with a live link is left alone. Any sign of life
(a beacon, a contact, the operator's decision) resets the back-off.

Source: docs/protocol.md, sections 4 to 6.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import websockets
from django.db import DatabaseError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from federation.driver import LinkDriver
from federation.node import FederationNode
from federation.protocol.errors import Goodbye
from federation.protocol.events import EndLink, EndRequested
from federation.protocol.limits import Limits
from keys.encoding import NodeId
from peers.addresses import host_of
from peers.backoff import Backoff
from peers.encounters import note_dial_failure
from peers.models import Peer
from peers.selectors import dial_targets

logger = logging.getLogger(__name__)

SUBPROTOCOL = "arklattice.sync.v1"
OPEN_TIMEOUT_S = 10.0
ROUND_S = 0.5
REFRESH_S = 5.0  # between looks into the registry when nothing there is known to have changed
STEADY_S = 10.0  # a link that ends sooner did not prove that dialling again at once is of use
DUPLICATE_PAUSE_S = 1.0
BYE_PAUSE_S = 0.2
BYES_IN_A_ROW = 3  # short links that ended so; beyond it the back-off counts
AT_ONCE = 8  # dials under way; beyond it targets wait for the next round


class DialError(Exception):
    """A dial that did not become a link; the message is for people."""


class OutboundTransport:
    """A WebSocket this side dialled."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> None:
        await self._connection.send(data)

    async def close(self, code: int, *, patient: bool) -> None:
        await self._connection.close(code)

    def abort(self) -> None:
        self._connection.transport.abort()


class _Connect(connect):
    """A connection to the address that was dialled, and no other: redirects are a stranger's word on whom to dial."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_websocket(url: str, limits: Limits) -> ClientConnection:
    """Return an open WebSocket to a node's sync port.

    Raises:
        DialError: nobody there, not a node, or no answer in time.
    """
    target = url if url.rstrip("/").endswith("/sync") else f"{url.rstrip('/')}/sync"
    try:
        connection = await _Connect(
            target,
            subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=limits.frame_bytes,
            ping_interval=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=2,
            user_agent_header=None,
            proxy=None,
        )
    except TimeoutError:
        raise DialError("no answer in time") from None
    except (OSError, WebSocketException, ValueError) as error:
        raise DialError(_first_line(error)) from None
    if connection.subprotocol != SUBPROTOCOL:
        await connection.close(4400)
        raise DialError("what answers there does not speak the sync protocol")
    return connection


async def pump(connection: ClientConnection, driver: LinkDriver) -> None:
    """Hand every frame to the driver until the connection ends."""
    try:
        async for frame in connection:
            if isinstance(frame, str):
                driver.post(EndRequested(Goodbye.PROTOCOL, "a text frame"))
            else:
                driver.feed(frame)
    except ConnectionClosed:
        pass  # its code is read below
    driver.closed(connection.close_code)
    await driver.ended.wait()


@dataclass(slots=True)
class _Target:
    """Somebody to dial: where, who is expected there, and when next."""

    urls: tuple[str, ...]
    expected: NodeId | None
    backoff: Backoff = field(default_factory=Backoff)
    task: asyncio.Task[str | None] | None = None
    up_at: float | None = None
    """When the link that stands came up, monotonic seconds."""


class Dialer:
    """Keeps links with the peers this node links with by itself.

    Args:
        static: URLs of ARK_STATIC_PEERS, normalised.
        enabled: Says whether auto-sync is on.
    """

    def __init__(self, node: FederationNode, *, static: Sequence[str], enabled: Callable[[], bool]) -> None:
        self._node = node
        self._enabled = enabled
        self._targets: dict[NodeId, _Target] = {}
        self._static = {url: _Target(urls=(url,), expected=None) for url in static}
        self._static_peers: dict[str, NodeId] = {}
        self._wake = asyncio.Event()
        self._stale = True
        self._refreshed_at = 0.0
        self._chance = random.SystemRandom().random

    def sign_of_life(self, peer: NodeId) -> None:
        """A peer was heard: dial it without waiting for its back-off."""
        self._stale = True
        if peer in self._targets:
            self._targets[peer].backoff = Backoff()
            self._wake.set()

    def operator_decided(self) -> None:
        """Trust changed: whoever may be dialled now is dialled now."""
        for target in self._all():
            target.backoff = Backoff()
        self._stale = True
        self._wake.set()

    def registry_changed(self) -> None:
        """Something may have changed in the registry: read it at the next round."""
        self._stale = True

    def link_up(self, peer: NodeId) -> None:
        if peer in self._targets:
            self._targets[peer].up_at = _clock()

    def link_ended(self, peer: NodeId, ending: EndLink) -> None:
        """Decide when a peer whose link ended is dialled again."""
        target = self._targets.get(peer)
        if target is None or peer in self._node.links:
            return
        if target.up_at is not None and _clock() - target.up_at >= STEADY_S:
            target.backoff = Backoff()
        was_up, target.up_at = target.up_at is not None, None
        if was_up:
            # A dial that led to no link is judged where it was made.
            self._put_off(target, ending, was_up=True)
            self._wake.set()

    async def dial_now(self, peer: NodeId) -> str | None:
        """Dial a peer at the operator's word and return None once it is linked, otherwise why not.

        Raises:
            KeyError: it is none of the peers to dial.
        """
        await self._refresh()
        target = self._targets[peer]
        if target.task is not None:
            await asyncio.wait([target.task])
        if peer in self._node.links:
            return None
        task = target.task or self._begin(target)
        await asyncio.wait([task])
        return "it is not to be dialled any more" if task.cancelled() else task.result()

    async def run(self) -> None:
        """Dial until cancelled; dials under way are cancelled with it."""
        try:
            while True:
                self._wake.clear()
                if self._enabled() and not self._node.stopping:
                    if self._stale or _clock() - self._refreshed_at >= REFRESH_S:
                        await self._refresh()
                    self._dial_due()
                try:
                    # Not wait_for: see federation/wakeups.py.
                    async with asyncio.timeout(ROUND_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # the next round
        except asyncio.CancelledError:
            for target in self._all():
                if target.task is not None:
                    target.task.cancel()
            raise

    def _all(self) -> list[_Target]:
        return [*self._targets.values(), *self._static.values()]

    async def _refresh(self) -> None:
        """Bring the targets in line with the registry."""
        self._stale, self._refreshed_at = False, _clock()
        found = {target.node_id: target.urls for target in await self._node.database.read(dial_targets, datetime.now(UTC))}
        for peer in [peer for peer in self._targets if peer not in found]:
            gone = self._targets.pop(peer)
            if gone.task is not None:
                gone.task.cancel()
        for peer, urls in found.items():
            if peer in self._targets:
                self._targets[peer].urls = urls
            else:
                self._targets[peer] = _Target(urls=urls, expected=peer)

    def _dial_due(self) -> None:
        now = _clock()
        busy = sum(target.task is not None for target in self._all())
        for target in self._all():
            if busy >= AT_ONCE:
                return
            if target.task is None and target.backoff.is_ready(now) and not self._is_linked(target):
                self._begin(target)
                busy += 1

    def _is_linked(self, target: _Target) -> bool:
        if target.expected is not None:
            return target.expected in self._node.links
        # A static URL whose peer is known by now is that peer's address, and dialled as such when it is trusted.
        peer = self._static_peers.get(target.urls[0])
        return peer is not None and (peer in self._node.links or peer in self._targets)

    def _begin(self, target: _Target) -> "asyncio.Task[str | None]":
        target.task = asyncio.create_task(self._dial(target))
        return target.task

    async def _dial(self, target: _Target) -> str | None:
        problem: str | None
        try:
            problem = await self._attempt(target)
        except Exception as error:
            # A fault here must not look like a dial that went well: the next round would dial again at once.
            problem = f"internal error: {error!r}"
            target.backoff = target.backoff.after_failure(now=_clock(), jitter=self._chance())
            if not isinstance(error, DatabaseError):
                logger.exception("dialling %s", " ".join(target.urls))
        finally:
            target.task = None
        if problem is not None:
            logger.debug("dialling %s: %s", " ".join(target.urls), problem)
        return problem

    async def _attempt(self, target: _Target) -> str | None:
        """Try the addresses in turn; return None when one led to a link, otherwise the last problem."""
        problem: str | None = "no address"
        for url in target.urls:
            try:
                ending = await self._connect(target, url)
            except DialError as error:
                problem = str(error)
                if target.expected is not None:
                    await self._note_failure(target.expected, url, problem)
                continue
            if ending is None:
                return None
            problem = ending.reason or str(ending.goodbye or ending.close_code)
            if ending.goodbye is Goodbye.DUPLICATE:
                self._put_off(target, ending)
                return None
            if ending.goodbye is not None and ending.goodbye is not Goodbye.PROTOCOL:
                # The peer itself answered there: its other addresses would say the same.
                self._put_off(target, ending)
                return problem
            if target.expected is not None:
                await self._note_failure(target.expected, url, problem)
        target.backoff = target.backoff.after_failure(now=_clock(), jitter=self._chance())
        return problem

    async def _connect(self, target: _Target, url: str) -> EndLink | None:
        """Dial one address; return None when the link is up, or how it ended before that."""
        connection = await open_websocket(url, self._node.limits)
        driver = self._node.open_link(
            OutboundTransport(connection),
            address=url,
            host=host_of(url),
            dial=True,
            expected=target.expected,
            found_by=Peer.FoundBy.STATIC if target.expected is None else Peer.FoundBy.CONTACT,
        )
        self._node.spawn(pump(connection, driver))
        await driver.settled.wait()
        if target.expected is None and driver.session.peer is not None:
            self._static_peers[url] = driver.session.peer_id
        return driver.ending

    def _put_off(self, target: _Target, ending: EndLink, *, was_up: bool = False) -> None:
        now = _clock()
        match ending.goodbye:
            case Goodbye.DUPLICATE:
                # No fault: the other link stands. Looked at again soon, in case that one fell meanwhile.
                target.backoff = Backoff(target.backoff.failures, now + DUPLICATE_PAUSE_S)
            case Goodbye.BYE if was_up and target.backoff.failures < BYES_IN_A_ROW:
                # What may be done here changed: the new link says so.
                target.backoff = Backoff(target.backoff.failures + 1, now + BYE_PAUSE_S * self._chance())
            case Goodbye.PENDING:
                target.backoff = target.backoff.after_pending(now=now, jitter=self._chance())
            case _:
                target.backoff = target.backoff.after_failure(now=now, jitter=self._chance())

    async def _note_failure(self, peer: NodeId, url: str, problem: str) -> None:
        await self._node.database.write(note_dial_failure, node_id=peer, url=url, error=problem, now=datetime.now(UTC))


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
