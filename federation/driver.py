"""Drives one PeerSession: events in, effects executed, in order, without ever waiting inside an event.

    transport --feed()--> inbox --\\
    shell answers, notices --------+--> PeerSession.handle --> effects --> outbox --> transport
    timer ------------------------/                              \\--> questions (tasks) --> answers

Answers go before frames, so a reply to an effect is seen before the next thing the peer says. Inbox and outbox
are bounded: the protocol's windows keep an honest peer far below the bounds, and beyond them the link ends.

However a link ends, its transport is closed for good within `GOODBYE_S`: gently where the peer reads, by force
where it does not. Questions still under way then are answered to nobody; what they store is stored.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from django.db import InterfaceError, OperationalError

from federation.protocol.errors import Goodbye
from federation.protocol.events import (
    Authenticated,
    Effect,
    EndLink,
    EndRequested,
    Event,
    FindMissing,
    FrameArrived,
    JudgeBatch,
    LinkUp,
    LoadEnvelopes,
    LoadManifest,
    ManifestArrived,
    Opened,
    Penalise,
    ReadFeed,
    SendFrame,
    TimerFired,
    TransportClosed,
)
from federation.protocol.session import PeerSession
from peers.models import Peer

logger = logging.getLogger(__name__)

INBOX_FRAMES = 2_048  # frames waiting to be handled; beyond it the peer ignores its windows: overrun
INBOX_BYTES = 4 * 1024 * 1024
OUTBOX_BYTES = 8 * 1024 * 1024  # frames waiting for the transport; beyond it the peer does not read: dead
FRAMES_A_TURN = 32  # handled before the loop gets its turn again
STALL_S = 20.0  # for the transport to take one frame; beyond it the peer does not read: dead
GOODBYE_S = 1.5  # for queued frames, the Goodbye and the closing handshake; beyond it the connection is cut
DECISION_S = 30.0  # for the database to say whether a link may stand; beyond it the link ends
RETRY_S = 1.0  # between looks at a database that does not answer
MIN_TIMER_S = 0.001  # a deadline in the past is no reason to spin


class Transport(Protocol):
    """A WebSocket, inbound or outbound."""

    async def send(self, data: bytes) -> None:
        """Take a frame; return when there is room for another."""

    async def close(self, code: int, *, patient: bool) -> None:
        """Close with this code; return when the peer has answered, or at once if not `patient`."""

    def abort(self) -> None:
        """Cut the connection at once; of no effect on one that is closed."""


class Shell(Protocol):
    """What answers a driver's questions; the node."""

    async def answer(self, driver: "LinkDriver", question: Effect) -> Event: ...

    def link_up(self, driver: "LinkDriver") -> None: ...

    def link_ended(self, driver: "LinkDriver", ending: EndLink) -> None: ...

    async def carry_out(self, driver: "LinkDriver", effect: Effect) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of a link; the shell awaits or cancels what is left of them when it stops."""


class LinkDriver:
    """One link. `feed`, `post` and `closed` never block and may be called from the loop at any time.

    Args:
        address: The other end as a URL or host, for people.
        host: Its host, for what is counted by address.
        found_by: How the address came here.
    """

    def __init__(
        self,
        session: PeerSession,
        transport: Transport,
        shell: Shell,
        *,
        address: str,
        host: str,
        found_by: Peer.FoundBy = Peer.FoundBy.CONTACT,
    ) -> None:
        self.session = session
        self.address = address
        self.host = host
        self.found_by = found_by
        self.opened_at = time.time()
        self.ended = asyncio.Event()
        self.settled = asyncio.Event()  # the link is up, or will never be
        self.ending: EndLink | None = None
        self._transport = transport
        self._shell = shell
        self._loop = asyncio.get_running_loop()
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._events: deque[Event] = deque()
        self._scheduled = False
        self._closed: TransportClosed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    # --- from outside ---

    def start(self) -> None:
        self.post(Opened())

    def feed(self, frame: bytes) -> None:
        """Take one frame from the transport."""
        if self.ending is not None:
            return
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        if len(self._frames) > INBOX_FRAMES or self._frames_bytes > INBOX_BYTES:
            self._frames.clear()
            self._frames_bytes = 0
            self.post(EndRequested(Goodbye.OVERRUN, "more frames than can be handled"))
        self._schedule()

    def post(self, event: Event) -> None:
        """Take an answer or a notice."""
        if self.ending is None:
            self._events.append(event)
            self._schedule()

    def closed(self, close_code: int | None) -> None:
        """The transport is gone; frames that came before it still count."""
        self._closed = TransportClosed(close_code)
        self._schedule()

    async def end(self, goodbye: Goodbye, reason: str = "") -> None:
        """End the link and return when the transport is closed."""
        self.post(EndRequested(goodbye, reason))
        await self.ended.wait()

    def give_way(self, reason: str) -> None:
        """End the link and cut the connection at once: a place is needed that a closing one would hold on to."""
        self._handle(EndRequested(Goodbye.BYE, reason))
        self._transport.abort()

    # --- the turn ---

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(FRAMES_A_TURN):
            if self.ending is not None:
                return
            if self._events:
                self._handle(self._events.popleft())
            elif self._frames:
                frame = self._frames.popleft()
                self._frames_bytes -= len(frame)
                self._handle(FrameArrived(frame))
            elif self._closed is not None:
                self._handle(self._closed)
            else:
                break
        if self._events or self._frames or self._closed is not None:
            self._schedule()
        self._arm()

    def _handle(self, event: Event) -> None:
        if self.ending is not None:
            return
        for effect in self._effects_of(event):
            if self.ending is not None:
                return  # nothing follows the end of a link
            self._execute(effect)

    def _effects_of(self, event: Event) -> list[Effect]:
        try:
            return self._tell(event)
        except Exception:
            # A bug of this program ends this link, and only this one; the peer learns no details.
            logger.exception("link with %s: %s could not be handled", self.address, type(event).__name__)
        try:
            self._tell(TransportClosed(None))  # so that the session lets go of what it shares with other links
        except Exception:
            logger.exception("link with %s: could not be taken down in order", self.address)
        return [EndLink(close_code=Goodbye.PROTOCOL.close_code, goodbye=Goodbye.PROTOCOL, reason="internal error")]

    def _tell(self, event: Event) -> list[Effect]:
        return self.session.handle(event, now=self._loop.time(), now_ms=time.time_ns() // 1_000_000)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.session.deadline if self.ending is None else None
        if deadline is not None:
            self._timer = self._loop.call_at(max(deadline, self._loop.time() + MIN_TIMER_S), self.post, TimerFired())

    # --- effects ---

    def _execute(self, effect: Effect) -> None:
        match effect:
            case SendFrame(data):
                self._send(data)
            case JudgeBatch() | ReadFeed() | LoadEnvelopes() | FindMissing() | LoadManifest() | Authenticated():
                self._spawn(self._ask(effect))
            case ManifestArrived() | Penalise():
                self._spawn(self._shell.carry_out(self, effect))
            case LinkUp():
                self.settled.set()
                self._shell.link_up(self)
            case EndLink():
                self._finish(effect)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._shell.spawn(work).add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        # The shell logged it.
        if not task.cancelled() and task.exception() is not None:
            self.post(EndRequested(Goodbye.BYE, "internal error"))

    async def _ask(self, question: Effect) -> None:
        """Get a question answered, at least once also when the link ends meanwhile: what was received is still stored."""
        give_up_at = self._loop.time() + DECISION_S if isinstance(question, Authenticated) else None
        while True:
            try:
                answer = await self._shell.answer(self, question)
            except (OperationalError, InterfaceError) as error:
                logger.warning("link with %s: the database does not answer, trying again: %s", self.address, error)
            else:
                self.post(answer)
                return
            await asyncio.sleep(RETRY_S)
            if self.ending is not None:
                return
            if give_up_at is not None and self._loop.time() >= give_up_at:
                self.post(EndRequested(Goodbye.BYE, "the database does not answer"))
                return

    def _send(self, data: bytes) -> None:
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if self._outbox_bytes > OUTBOX_BYTES:
            self._does_not_read()
        elif self._writer is None:
            self._writer = self._loop.create_task(self._write())

    def _does_not_read(self) -> None:
        self._outbox.clear()
        self._finish(EndLink(close_code=Goodbye.DEAD.close_code, goodbye=Goodbye.DEAD, reason="the peer does not read"))
        self._effects_of(TransportClosed(None))

    async def _write(self) -> None:
        try:
            while self._outbox:
                data = self._outbox.popleft()
                self._outbox_bytes -= len(data)
                async with asyncio.timeout(STALL_S):
                    await self._transport.send(data)
        except TimeoutError:
            self._writer = None
            self._does_not_read()
        except Exception as error:
            # Whatever a WebSocket library raises here means the same: the connection is gone.
            logger.debug("link with %s: %r while sending", self.address, error)
            self.closed(None)
        finally:
            self._writer = None

    def _finish(self, ending: EndLink) -> None:
        if self.ending is not None:
            return
        self.ending = ending
        self.settled.set()
        if self._timer is not None:
            self._timer.cancel()
        self._frames.clear()
        self._events.clear()
        self._spawn(self._close(ending))
        self._shell.link_ended(self, ending)

    async def _close(self, ending: EndLink) -> None:
        try:
            async with asyncio.timeout(GOODBYE_S):
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                # A stranger is not waited for: those who are would be places that nobody counts.
                await self._transport.close(ending.close_code, patient=self.session.peer is not None)
        except Exception as error:
            logger.debug("link with %s: %r while closing", self.address, error)
        finally:
            if self._writer is not None:
                self._writer.cancel()
            self._outbox.clear()
            self._transport.abort()
            self.ended.set()
