"""Verifying signatures without holding up the event loop: few inline, many in worker processes.

A thread would have to win the interpreter lock back after every signature; a process does not
(docs/decisions/0003-verifying-in-processes.md has the figures). A worker that dies or hangs is started again and
its request repeated: verification is a pure function. Workers end with their parent, for their input ends.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from federation.protocol.admission import Candidate, Refused, verify_candidates
from federation.protocol.envelope import VerifiedPacket, signing_input
from federation.protocol.errors import Code
from federation.verifier_worker import LENGTH_BYTES

logger = logging.getLogger(__name__)

INLINE = 4  # candidates verified on the loop: about 0.25 ms, less than the way to a worker and back
ATTEMPTS = 3
ANSWER_S = 10.0  # a batch takes 15 ms; a worker that needs this long is stopped or stuck
CLOSE_S = 0.5  # for a worker to see that its input ended
ROOT = Path(__file__).resolve().parent.parent


class VerifierPool:
    """A few worker processes; each takes one request at a time."""

    def __init__(self, workers: int | None = None) -> None:
        count = workers if workers is not None else max(1, (os.cpu_count() or 2) - 1)
        self._workers = [_Worker() for _ in range(count)]
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        for worker in self._workers:
            self._idle.put_nowait(worker)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def verify(self, candidates: Sequence[Candidate]) -> list[VerifiedPacket | Refused]:
        """Check the signatures; one outcome for each candidate, in its place."""
        if len(candidates) <= INLINE:
            return verify_candidates(candidates)
        worker = await self._idle.get()
        try:
            for attempt in range(ATTEMPTS):
                try:
                    holds = await worker.ask(candidates)
                except (OSError, asyncio.IncompleteReadError) as error:
                    logger.warning("a verifier process ended (%r), attempt %d", error, attempt + 1)
                else:
                    return [_outcome(candidate, held) for candidate, held in zip(candidates, holds, strict=True)]
        finally:
            self._idle.put_nowait(worker)
        return verify_candidates(candidates)

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self._workers))


def _outcome(candidate: Candidate, holds: int) -> VerifiedPacket | Refused:
    packet = candidate.packet
    if holds:
        # The worker verified exactly what `verify_parsed` would have: these bytes, this timestamp, the origin's key.
        return VerifiedPacket(packet, candidate.envelope)
    return Refused(packet.packet_id, packet.origin, Code.BAD_SIGNATURE, "the signature does not hold")


class _Worker:
    """One process, started when first needed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._killed: list[asyncio.subprocess.Process] = []

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def ask(self, candidates: Sequence[Candidate]) -> bytes:
        """Return a byte for each candidate, 1 where the signature holds.

        Raises:
            OSError, asyncio.IncompleteReadError: The process could not be started, ended, or did not answer in time;
                the next call starts another.
        """
        triples = [
            (
                signing_input(candidate.envelope.timestamp, candidate.envelope.body),
                candidate.envelope.signature,
                candidate.verify_key,
            )
            for candidate in candidates
        ]
        request = msgspec.msgpack.encode(triples)
        try:
            process = self._process or await self._start()
            if process.stdin is None or process.stdout is None:
                raise OSError("the verifier process has no pipes")
            async with asyncio.timeout(ANSWER_S):
                process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
                await process.stdin.drain()
                return await process.stdout.readexactly(len(candidates))
        except BaseException:
            # Also when the caller is cancelled: an answer left in the pipe would pass for that of the next request.
            self.kill()
            raise

    def kill(self) -> None:
        process, self._process = self._process, None
        self._killed = [killed for killed in self._killed if killed.returncode is None]
        if process is not None and process.returncode is None:
            self._killed.append(process)
            try:
                process.kill()
            except ProcessLookupError:
                pass  # it ended by itself

    async def close(self) -> None:
        """End the process and return when it, and any killed before it, is gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._process.wait()
            except TimeoutError:
                pass  # killed below
        self.kill()
        for killed in self._killed:
            await killed.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        # Its own session: Ctrl-C in a terminal reaches the node, which then closes its workers' input.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "federation.verifier_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        return self._process
