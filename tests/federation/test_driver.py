"""One link's driver: turns, timers, and every way a link ends."""

import asyncio
import logging

import pytest
from django.db import OperationalError

from federation import driver as driver_module
from federation.driver import INBOX_BYTES, INBOX_FRAMES, OUTBOX_BYTES, LinkDriver
from federation.protocol.errors import Goodbye
from federation.protocol.events import (
    EndLink,
    EndRequested,
    FindMissing,
    FrameArrived,
    LinkUp,
    MissingFound,
    Opened,
    SendFrame,
    TimerFired,
    TransportClosed,
)

pytestmark = pytest.mark.asyncio


class ScriptedSession:
    """Answers each event with what the script says, and remembers the events."""

    is_dialler = False
    peer = None
    deadline = None

    def __init__(self, script=None):
        self.script = script or {}
        self.events = []

    def handle(self, event, *, now, now_ms):
        self.events.append(event)
        effects = self.script.get(type(event), [])
        if isinstance(event, EndRequested) and EndRequested not in self.script:
            return [EndLink(event.goodbye.close_code, event.goodbye, event.reason)]
        if isinstance(event, TransportClosed) and TransportClosed not in self.script:
            return [EndLink(event.close_code or 1006, by_peer=True)]
        if isinstance(effects, Exception):
            raise effects
        return list(effects(event) if callable(effects) else effects)


class RecordingTransport:
    def __init__(self, *, reads=True, answers_close=True):
        self.sent, self.closed_with, self.aborted = [], None, False
        self.reads, self.answers_close = reads, answers_close

    async def send(self, data):
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(data)

    async def close(self, code, *, patient):
        self.closed_with = code
        if not self.answers_close:
            await asyncio.Event().wait()

    def abort(self):
        self.aborted = True


class RecordingShell:
    def __init__(self, answer=None):
        self.up, self.ended, self.tasks, self.failures = [], [], set(), []
        self._answer = answer

    async def answer(self, driver, question):
        return await self._answer(question)

    def link_up(self, driver):
        self.up.append(driver)

    def link_ended(self, driver, ending):
        self.ended.append(ending)

    async def carry_out(self, driver, effect):
        raise AssertionError("nothing to carry out")

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.failures.append(task.exception())


def make(script=None, *, transport=None, shell=None):
    session, transport, shell = ScriptedSession(script), transport or RecordingTransport(), shell or RecordingShell()
    return LinkDriver(session, transport, shell, address="somewhere", host="192.0.2.1"), session, transport, shell


async def over(driver):
    async with asyncio.timeout(5):
        await driver.ended.wait()
    for _ in range(3):
        await asyncio.sleep(0)  # for callbacks of what just ended


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100])
async def test_frames_before_the_close_still_count(count):
    """However many frames wait when the transport closes, each is handled, and the link then ends."""
    driver, session, _, shell = make()
    for number in range(count):
        driver.feed(bytes([number]))
    driver.closed(4000)
    await over(driver)
    assert [event.data for event in session.events if isinstance(event, FrameArrived)] == [bytes([n]) for n in range(count)]
    assert [(ending.close_code, ending.by_peer) for ending in shell.ended] == [(4000, True)]
    assert not shell.tasks


async def test_answers_go_before_frames():
    """A reply to an effect is seen before the next thing the peer says."""
    driver, session, *_ = make()
    driver.feed(b"frame")
    driver.post(LinkUp())
    driver.start()
    driver.closed(None)
    await over(driver)
    assert [type(event) for event in session.events] == [LinkUp, Opened, FrameArrived, TransportClosed]


@pytest.mark.parametrize(("frames", "size"), [(INBOX_FRAMES, 1), (INBOX_BYTES // 65_536, 65_536)])
async def test_inbox_at_its_bound_and_one_beyond(frames, size):
    """A full inbox is handled; one frame more, and the peer ignores its windows: overrun."""
    driver, session, transport, _ = make()
    for _ in range(frames):
        driver.feed(bytes(size))
    driver.closed(None)
    await over(driver)
    assert sum(isinstance(event, FrameArrived) for event in session.events) == frames

    driver, session, transport, shell = make()
    for _ in range(frames + 1):
        driver.feed(bytes(size))
    await over(driver)
    assert shell.ended[0].goodbye is Goodbye.OVERRUN
    assert transport.closed_with == Goodbye.OVERRUN.close_code


async def test_peer_that_never_reads_is_cut_off(monkeypatch):
    """Frames beyond the outbox end the link as dead; the connection is cut though the peer answers nothing."""
    monkeypatch.setattr(driver_module, "GOODBYE_S", 0.05)
    transport = RecordingTransport(reads=False, answers_close=False)
    driver, session, _, shell = make({FrameArrived: [SendFrame(bytes(OUTBOX_BYTES // 2))]}, transport=transport)
    for _ in range(4):
        driver.feed(b"more")
    await over(driver)
    assert shell.ended[0].goodbye is Goodbye.DEAD
    assert transport.aborted
    assert isinstance(session.events[-1], TransportClosed), "the session lets go of what it shares"
    assert not shell.tasks


async def test_peer_that_stops_reading_is_noticed(monkeypatch):
    """A frame that cannot leave for too long ends the link, however little waits behind it."""
    monkeypatch.setattr(driver_module, "STALL_S", 0.05)
    monkeypatch.setattr(driver_module, "GOODBYE_S", 0.05)
    driver, _, transport, shell = make({Opened: [SendFrame(b"one")]}, transport=RecordingTransport(reads=False))
    driver.start()
    await over(driver)
    assert shell.ended[0].goodbye is Goodbye.DEAD
    assert transport.aborted


async def test_goodbye_that_is_not_taken_does_not_hang(monkeypatch):
    """A peer that reads nothing any more when the link is ended holds it up for the goodbye's time only."""
    monkeypatch.setattr(driver_module, "GOODBYE_S", 0.05)
    driver, _, transport, shell = make({Opened: [SendFrame(b"one")]}, transport=RecordingTransport(reads=False))
    driver.start()
    await asyncio.sleep(0.01)
    await asyncio.wait_for(driver.end(Goodbye.RESTARTING), 1)
    await over(driver)
    assert (transport.closed_with, transport.aborted) == (None, True)
    assert not shell.tasks


async def test_queued_frames_leave_before_the_close():
    """What was queued before the end, the Goodbye among it, is sent; nothing after the end is."""
    goodbye = [SendFrame(b"bye"), EndLink(4000, Goodbye.BYE), SendFrame(b"too late")]
    driver, _, transport, shell = make({Opened: [SendFrame(b"one"), SendFrame(b"two")], EndRequested: goodbye})
    driver.start()
    await driver.end(Goodbye.BYE)
    assert transport.sent == [b"one", b"two", b"bye"]
    assert transport.closed_with == 4000
    assert len(shell.ended) == 1


async def test_connection_that_breaks_while_writing_ends_the_link():
    """Whatever the transport raises while sending means that the connection is gone."""

    class Broken(RecordingTransport):
        async def send(self, data):
            raise ConnectionResetError

    driver, _, _, shell = make({Opened: [SendFrame(b"one"), SendFrame(b"two")]}, transport=Broken())
    driver.start()
    await over(driver)
    assert shell.ended[0].by_peer
    assert not shell.tasks


async def test_bug_in_the_session_ends_this_link_only(caplog):
    """An exception in the session closes the link without details, and the session is taken down in order."""
    driver, session, transport, shell = make({FrameArrived: RuntimeError("secret detail")})
    driver.feed(b"poison")
    await over(driver)
    assert transport.closed_with == 4400
    assert shell.ended[0].reason == "internal error"
    assert isinstance(session.events[-1], TransportClosed)
    assert "FrameArrived could not be handled" in caplog.text


async def test_answer_for_an_ended_link_is_harmless():
    """An answer that comes after the end reaches no session, and the question was still asked."""
    asked, go = [], asyncio.Event()

    async def answer(question):
        asked.append(question)
        await go.wait()
        return MissingFound(asked=(), missing=())

    question = FindMissing(ids=())
    driver, session, _, shell = make({FrameArrived: [question]}, shell=RecordingShell(answer))
    driver.feed(b"question")
    driver.closed(None)
    await over(driver)
    go.set()
    while shell.tasks:
        await asyncio.sleep(0.001)
    assert asked == [question], "asked although the link had ended by then"
    assert not any(isinstance(event, MissingFound) for event in session.events)


async def test_database_that_does_not_answer_is_asked_again(monkeypatch, caplog):
    """A question is repeated until the database answers; one line a try, no traceback."""
    monkeypatch.setattr(driver_module, "RETRY_S", 0.01)
    answers = iter([OperationalError("database is locked"), OperationalError("database is locked"), MissingFound((), ())])

    async def answer(question):
        outcome = next(answers)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    driver, session, _, shell = make({Opened: [FindMissing(ids=())]}, shell=RecordingShell(answer))
    driver.start()
    async with asyncio.timeout(2):
        while not any(isinstance(event, MissingFound) for event in session.events):
            await asyncio.sleep(0.005)
    assert [record.exc_info for record in caplog.records if record.levelno == logging.WARNING] == [None, None]
    await driver.end(Goodbye.BYE)
    assert not shell.failures


async def test_failing_question_ends_the_link():
    """A question that fails for another reason than the database ends the link in words."""

    async def answer(question):
        raise RuntimeError("a bug")

    driver, _, _, shell = make({Opened: [FindMissing(ids=())]}, shell=RecordingShell(answer))
    driver.start()
    await over(driver)
    assert (shell.ended[0].goodbye, shell.ended[0].reason) == (Goodbye.BYE, "internal error")


async def test_deadline_in_the_past_does_not_spin():
    """A session whose deadline never moves on costs a timer a millisecond, not the whole processor."""
    driver, session, *_ = make()
    session.deadline = 0.0
    driver.start()
    await asyncio.sleep(0.1)
    fired = sum(isinstance(event, TimerFired) for event in session.events)
    assert 1 <= fired <= 110
    await driver.end(Goodbye.BYE)
    count = len(session.events)
    await asyncio.sleep(0.02)
    assert len(session.events) == count, "the timer ended with the link"


async def test_giving_way_is_immediate():
    """A link that gives way has ended and its connection is cut when the call returns."""
    driver, _, transport, shell = make()
    driver.give_way("another needs the place")
    assert shell.ended[0].reason == "another needs the place"
    assert transport.aborted
    await over(driver)
