"""Worker processes that verify: right, restarted when they die, and gone with their parent."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from federation import verifier as verifier_module
from federation.protocol.admission import Candidate, Refused
from federation.protocol.envelope import VerifiedPacket
from federation.protocol.errors import Code
from federation.verifier import INLINE, ROOT, VerifierPool
from tests.federation.makers import make_verified
from tests.harness import alive, wait_for
from tests.identities import make_pair

pytestmark = pytest.mark.asyncio


def make_candidates(count, *, forged=()):
    candidates = []
    for number in range(count):
        verified = make_verified(number)
        envelope = verified.envelope
        if number in forged:
            envelope = dataclasses.replace(envelope, signature=bytes(64))
        candidates.append(Candidate(verified.packet, envelope, make_pair(1).public, "rule"))
    return candidates


def codes(outcomes):
    return [outcome.code if isinstance(outcome, Refused) else None for outcome in outcomes]


@pytest.mark.parametrize("count", [1, INLINE, INLINE + 1, 60])
async def test_each_signature_is_judged_in_its_place(count):
    """Inline or in a process, forged ones are refused and the others verified, in order."""
    pool = VerifierPool(1)
    outcomes = await pool.verify(make_candidates(count, forged={0, count - 1}))
    assert codes(outcomes) == [Code.BAD_SIGNATURE if number in {0, count - 1} else None for number in range(count)]
    assert bool(pool.pids) is (count > INLINE)
    await pool.close()


async def test_killed_in_the_middle_of_a_batch():
    """A worker killed while it has a batch is started again and the batch verified whole."""
    pool = VerifierPool(1)
    await pool.verify(make_candidates(10))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.ensure_future(pool.verify(make_candidates(40, forged={7})))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    outcomes = await asyncio.wait_for(waiting, 10)
    assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, VerifiedPacket)] == [7]
    assert pool.pids != [pid]
    await pool.close()


async def test_stuck_worker_is_replaced(monkeypatch):
    """A worker that answers nothing is killed after a while and its batch verified by another."""
    monkeypatch.setattr(verifier_module, "ANSWER_S", 0.5)
    pool = VerifierPool(1)
    await pool.verify(make_candidates(10))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    outcomes = await asyncio.wait_for(pool.verify(make_candidates(10)), 10)
    assert codes(outcomes) == [None] * 10
    wait_for(lambda: not alive(pid), 2)
    await pool.close()


async def test_cancelled_request_leaves_no_answer_for_the_next():
    """The answer to a request that was given up is not taken for that of the next one."""
    pool = VerifierPool(1)
    await pool.verify(make_candidates(10))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    given_up = asyncio.ensure_future(pool.verify(make_candidates(10, forged=set(range(10)))))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert codes(await asyncio.wait_for(pool.verify(make_candidates(10)), 10)) == [None] * 10
    await pool.close()


async def test_without_processes_it_verifies_itself(monkeypatch):
    """On a machine that can start no process everything is still verified."""

    async def failing(*args, **kwargs):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    outcomes = await VerifierPool(1).verify(make_candidates(8, forged={3}))
    assert codes(outcomes) == [None] * 3 + [Code.BAD_SIGNATURE] + [None] * 4


@pytest.mark.parametrize("stopped", [False, True])
async def test_closing_ends_the_processes(stopped):
    """A closed pool has no processes, also when one of them is stuck, and is closed quickly."""
    pool = VerifierPool(2)
    await asyncio.gather(*(pool.verify(make_candidates(10)) for _ in range(2)))
    pids = pool.pids
    assert len(pids) == 2
    if stopped:
        os.kill(pids[0], signal.SIGSTOP)
    began = time.monotonic()
    await pool.close()
    assert time.monotonic() - began < 1.5
    wait_for(lambda: not any(alive(pid) for pid in pids), 2)


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\1\0half", b"\0\0\0\1\xc1"])
async def test_worker_ends_quietly_with_its_input(said):
    """A worker whose parent died ends at once and says nothing, also in the middle of a request."""
    done = subprocess.run(
        [sys.executable, "-m", "federation.verifier_worker"], input=said, cwd=ROOT, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
