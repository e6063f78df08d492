"""Wake-ups: a look soon after another connection committed, on either database, and a look at the start in any case."""

import asyncio
import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from federation import services, wakeups
from federation.wakeups import PERIOD_S, Watcher, _DataVersion
from tests.federation.makers import make_received

pytestmark = pytest.mark.django_db(transaction=True)


def store(number):
    """Store a packet on a connection of its own."""
    try:
        services.store_packets(received=[make_received(number)], quotas={})
        return time.monotonic()
    finally:
        connection.close()


async def looks_after(commits):
    """Run a watcher while packets are stored one by one; return how long each took to be looked for, in seconds."""
    looked = asyncio.Event()

    async def look():
        looked.set()

    task = asyncio.create_task(Watcher(look).run())
    delays = []
    try:
        await asyncio.wait_for(looked.wait(), 2)
        await asyncio.sleep(0.5)
        with ThreadPoolExecutor(1) as pool:
            for number in range(commits):
                looked.clear()
                committed = await asyncio.get_running_loop().run_in_executor(pool, store, number)
                await asyncio.wait_for(looked.wait(), 2)
                delays.append(time.monotonic() - committed)
                await asyncio.sleep(0.05)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return delays


def test_sqlite_tells_of_other_connections_only(tmp_path):
    """The probe sees what another connection committed, once."""
    path = str(tmp_path / "probe.sqlite3")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (n)")
        probe = _DataVersion(path)
        assert not probe.changed()
        other.execute("INSERT INTO t VALUES (1)")
        assert not probe.changed()
        other.commit()
        assert probe.changed()
        assert not probe.changed()
        probe.close()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="the tests' SQLite database is in memory, where nobody else writes")
def test_postgresql_tells_at_once(monkeypatch):
    """A commit is looked for long before the next poll."""
    monkeypatch.setattr(wakeups, "POLL_S", 30)
    delays = asyncio.run(looks_after(5))
    assert sorted(delays)[2] < PERIOD_S / 2


@pytest.mark.skipif(connection.vendor == "sqlite", reason="as above")
def test_a_lost_connection_is_made_anew(monkeypatch):
    """When the server drops the listener, the next one looks for what was missed meanwhile."""
    monkeypatch.setattr(wakeups, "POLL_S", 30)
    monkeypatch.setattr(wakeups, "RECONNECT_S", 0.05)
    looks = 0

    async def look():
        nonlocal looks
        looks += 1

    def drop():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
            )
            dropped = cursor.fetchone()[0]
        connection.close()
        return dropped

    async def scenario():
        task = asyncio.create_task(Watcher(look).run())
        await asyncio.sleep(0.5)
        before = looks
        assert await asyncio.to_thread(drop) == 1
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert looks == before + 1

    asyncio.run(scenario())
