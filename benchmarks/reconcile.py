"""What the reconciliation index takes in memory and time, and what reconciling costs: `python -m benchmarks.reconcile`.

Sets are of random ids and of times spread over a year. Times are of this process's CPU; the store is a
throwaway SQLite database, read in wall time from a warm page cache.
"""

import argparse
import os
import sqlite3
import tempfile
import time
import tracemalloc
from bisect import insort
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import report
from federation.protocol.itemset import ItemSet
from federation.protocol.negentropy import MAX_FRAME_BYTES, Bound, Fingerprint, encode_ranges
from federation.protocol.reconcile import EMPTY_FRAME, Initiator, Responder

FIRST_SECOND = 1_700_000_000
YEAR_S = 31_000_000
INSERTS = 20_000
# A packet of ordinary size, canonical bytes; the store reads past it.
BODY_BYTES = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="size of the large sets (default: a million)")
    items = parser.parse_args().items
    generator = np.random.default_rng(1)
    measure_memory(generator, 100_000, 5.5)
    measure_memory(generator, 1_000_000, 36)
    measure_changes(generator, items)
    measure_differences(generator, items)
    measure_many_missing(generator)
    measure_hostile(generator)
    measure_store(items)


def random_items(generator: np.random.Generator, count: int) -> tuple[Any, Any]:
    return generator.integers(FIRST_SECOND, FIRST_SECOND + YEAR_S, count), generator.integers(0, 256, (count, 32), dtype=np.uint8)


def cpu(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and its result."""
    started = time.process_time()
    result = work(*arguments)
    return time.process_time() - started, result


def quickest(work: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds that the quickest of three calls took, waiting for the disk included."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work(*arguments)
        taken.append(time.perf_counter() - started)
    return min(taken)


def measure_memory(generator: np.random.Generator, count: int, at_most: float) -> None:
    seconds, ids = random_items(generator, count)
    tracemalloc.start()
    held = ItemSet.from_arrays(seconds, ids)
    size = tracemalloc.get_traced_memory()[0]
    del held
    plain = sorted(zip(seconds.tolist(), map(bytes, ids), strict=True))
    plain_size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del plain
    report(f"index, {count} ids: memory", size / 1e6, "MB", at_most=at_most, baseline=plain_size / 1e6)


def measure_changes(generator: np.random.Generator, count: int) -> None:
    seconds, ids = random_items(generator, count)
    plain = list(zip(seconds.tolist(), map(bytes, ids), strict=True))
    taken, held = cpu(ItemSet.from_arrays, seconds, ids)
    plain_taken, _ = cpu(plain.sort)
    report("index, built from arrays", count / taken, "ids/s", at_least=500_000, baseline=count / plain_taken)
    seconds, ids = random_items(generator, INSERTS)
    new = list(zip(seconds.tolist(), map(bytes, ids), strict=True))
    taken, _ = cpu(lambda: [held.add(*item) for item in new])
    plain_taken, _ = cpu(lambda: [insort(plain, item) for item in new[: INSERTS // 100]])
    report("index, a random insert", taken / INSERTS * 1e6, "µs", at_most=10, baseline=plain_taken / (INSERTS // 100) * 1e6)
    taken, _ = cpu(lambda: [held.discard(*item) for item in new])
    report("index, a random discard", taken / INSERTS * 1e6, "µs", at_most=10)


def join(here: ItemSet, there: ItemSet) -> tuple[int, int, int, float]:
    """Reconcile two sets; return ids learned, round trips, bytes, and the longest CPU seconds on one frame."""
    initiator, responder = Initiator(here, split_seed=1), Responder(there, split_seed=2)
    need: set[bytes] = set()
    rounds = size = 0
    longest = 0.0
    frame: bytes | None = initiator.initiate()
    while frame is not None:
        answering, answer = cpu(responder.answer, frame)
        receiving, step = cpu(initiator.receive, answer)
        longest = max(longest, answering, receiving)
        rounds += 1
        size += len(frame) + len(answer)
        need.update(step.need)
        frame = step.next_frame
    return len(need), rounds, size, longest


def measure_differences(generator: np.random.Generator, count: int) -> None:
    seconds, ids = random_items(generator, count + 50)
    here, there = ItemSet.from_arrays(seconds[50:], ids[50:]), ItemSet.from_arrays(seconds[:-50], ids[:-50])
    taken, (learned, rounds, size, longest) = cpu(join, here, there)
    if learned != 50:
        raise SystemExit(f"{learned} of 50 lacking ids learned")
    name = f"100 differences in {count} a side"
    ours, theirs = set(map(bytes, ids[50:])), set(map(bytes, ids[:-50]))
    plain_taken, _ = cpu(theirs.difference, ours)
    report(f"{name}: round trips", rounds, "round trips", at_most=3)
    report(f"{name}: bytes both ways", size / 1e3, "KB", at_most=200, baseline=32 * count / 1e3)
    report(f"{name}: CPU of both sides", taken, "s", at_most=0.3, baseline=plain_taken)
    report(f"{name}: longest frame", longest * 1e3, "ms", at_most=250)


def measure_many_missing(generator: np.random.Generator) -> None:
    for held in (0, 100_000):
        seconds, ids = random_items(generator, 100_000 + held)
        here, there = ItemSet.from_arrays(seconds[:held], ids[:held]), ItemSet.from_arrays(seconds, ids)
        taken, (learned, rounds, _, _) = cpu(join, here, there)
        if learned != 100_000:
            raise SystemExit(f"{learned} of 100,000 lacking ids learned")
        report(f"100,000 missing beside {held}: round trips", rounds, "round trips", at_most=64 + (100_000 + held) // 250)
        report(f"100,000 missing beside {held}: CPU of both sides", taken, "s")


def measure_hostile(generator: np.random.Generator) -> None:
    """Frames of 60,000 bytes made to cost much, at 10,000 items."""
    seconds, ids = random_items(generator, 10_000)
    held = ItemSet.from_arrays(seconds, ids)
    start = encode_ranges([Fingerprint(Bound(FIRST_SECOND, b""), bytes(16))], 0)[0]
    bodies = [b"\x00", b"\x01" + bytes(16), b"\x02\x00", b"\x02\x01" + bytes(32)]
    # 0x81 is the first digit of a step of 128 s and more: the ranges reach over as much of the year as they can.
    frames = [
        EMPTY_FRAME + start + (step + b"\x00" + body) * ((MAX_FRAME_BYTES - 40) // (len(step) + 1 + len(body)))
        for body in bodies
        for step in (b"\x01", b"\x02", b"\xc6\x00")
    ]
    longest = 0.0
    for frame in frames:
        for role in (Responder(held, split_seed=1).answer, Initiator(held, split_seed=1).receive):
            longest = max(longest, cpu(role, frame)[0])
    report("hostile frames at 10,000 items: longest", longest * 1e3, "ms", at_most=250)


def measure_store(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ark-bench-") as home:
        os.environ.update(ARK_HOME=home, ARK_ENV_FILE=os.devnull, DJANGO_SETTINGS_MODULE="arklattice.settings")
        os.environ.pop("DATABASE_URL", None)
        import django  # after the environment that its settings are read from

        django.setup()
        from django.core.management import call_command

        from federation.index import OriginIndex

        call_command("migrate", verbosity=0)
        fill(Path(home) / "ark.sqlite3", count)
        plain = count / quickest(fetch, Path(home) / "ark.sqlite3")
        report(
            f"index, {count} ids from the store", count / quickest(OriginIndex().load), "ids/s", at_least=500_000, baseline=plain
        )


def fill(database: Path, count: int) -> None:
    """Store `count` rows of three origins behind Django's back: what is measured is reading."""
    values = {
        "packet_id": None,
        "origin": None,
        "created_at": None,
        "kind": "note",
        "title": "",
        "tags": "[]",
        "audience": "core",
        "body": bytes(BODY_BYTES),
        "signature": bytes(64),
        "timestamp": 0,
        "key_fingerprint": bytes(32),
        "hidden": False,
        "received_at": 0,
        "received_from": "",
        "received_rule": "own",
    }
    rest = tuple(values.values())[3:]
    rows = ((os.urandom(32), f"{number % 3:032x}", FIRST_SECOND * 1000 + 977 * number, *rest) for number in range(count))
    statement = f"INSERT INTO federation_knowledgepacket ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"  # noqa: S608
    connection = sqlite3.connect(database)
    with connection:
        connection.executemany(statement, rows)
    connection.close()


def fetch(database: Path) -> None:
    """Read the same columns and do nothing with them."""
    connection = sqlite3.connect(database)
    cursor = connection.execute("SELECT origin, created_at, packet_id, arrival FROM federation_knowledgepacket")
    while cursor.fetchmany(500):
        pass
    connection.close()


if __name__ == "__main__":
    main()
