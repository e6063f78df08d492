"""Where to verify signatures: on the loop, in a thread, or in a worker process; while the loop has work of its own.

Run: python -m benchmarks.verifying
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import report
from federation.protocol.admission import Candidate, verify_candidates
from federation.protocol.envelope import sign_packet
from federation.protocol.packet import build_packet
from federation.verifier import VerifierPool
from keys.ed25519 import keypair_from_seed
from keys.encoding import node_id_of

BATCH = 100
BATCHES = 40


def make_batch() -> list[Candidate]:
    """Return candidates of about 600 bytes each."""
    pair = keypair_from_seed(bytes(32))
    node_id = node_id_of(pair.public)
    candidates = []
    for number in range(BATCH):
        packet = build_packet(origin=node_id, kind="note", content={"n": number, "text": "x" * 450}, created_at=number)
        candidates.append(Candidate(packet, sign_packet(pair, packet, timestamp=number), pair.public, "accept-core-own"))
    return candidates


async def busy(share: float) -> None:
    """Hold the loop for `share` of the time, as parsing and session work do."""
    while True:
        until = time.perf_counter() + 0.005 * share
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0.005 * (1 - share))


async def rate(verify: Callable[[list[Candidate]], Awaitable[object]], share: float) -> float:
    """Return envelopes verified a second while the loop is busy for `share` of the time."""
    batch = make_batch()
    await verify(batch)
    work = asyncio.create_task(busy(share))
    began = time.perf_counter()
    for _ in range(BATCHES):
        await verify(batch)
    seconds = time.perf_counter() - began
    work.cancel()
    return BATCH * BATCHES / seconds


async def main() -> None:
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(2)
    pool = VerifierPool(1)

    async def in_thread(batch: list[Candidate]) -> None:
        await loop.run_in_executor(threads, verify_candidates, batch)

    for share in (0.0, 0.5, 0.9):
        thread = await rate(in_thread, share)
        process = await rate(pool.verify, share)
        report(f"verified in one worker process, loop {share:.0%} busy", process, "envelopes/s", at_least=thread, baseline=thread)
    await pool.close()


if __name__ == "__main__":
    asyncio.run(main())
