"""Noticing what other processes committed."""

import asyncio
import sqlite3

import pytest
from django.db import OperationalError

from federation import wakeups
from federation.wakeups import Watcher, _DataVersion

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "watched.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (n)")
    connection.close()
    return str(path)


def commit(path):
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()


async def watching(monkeypatch, path, look):
    monkeypatch.setattr(wakeups, "PERIOD_S", 0.01)
    watcher = Watcher(look)
    monkeypatch.setattr(watcher, "_probe", lambda: _DataVersion(path))
    task = asyncio.ensure_future(watcher.run())
    await asyncio.sleep(0.03)
    return watcher, task


async def test_looks_at_the_start_and_after_each_commit(monkeypatch, path):
    """One look at the start, one for a commit elsewhere, one when asked; none while nothing happens."""
    looks = []

    async def look():
        looks.append(1)

    watcher, task = await watching(monkeypatch, path, look)
    assert len(looks) == 1
    await asyncio.sleep(0.05)
    assert len(looks) == 1
    commit(path)
    await asyncio.sleep(0.05)
    assert len(looks) == 2
    watcher.ask()
    await asyncio.sleep(0.01)
    assert len(looks) == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_look_that_failed_is_made_up_for(monkeypatch, path):
    """A look that the database did not answer is repeated when the watcher runs again, though nothing more changed."""
    looks = []

    async def look():
        looks.append(1)
        if len(looks) == 2:
            raise OperationalError("locked")

    watcher, task = await watching(monkeypatch, path, look)
    commit(path)
    with pytest.raises(OperationalError):
        await asyncio.wait_for(task, 1)
    again = asyncio.ensure_future(watcher.run())
    await asyncio.sleep(0.03)
    assert len(looks) == 3
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


async def test_probe_that_cannot_read_says_look(path):
    """When the counter cannot be read, something may have changed."""
    probe = _DataVersion(path)
    assert not probe.changed()
    probe.close()
    assert probe.changed()
