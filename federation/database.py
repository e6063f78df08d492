"""The database away from the event loop: one thread reads, one writes.

Nothing on the loop waits for the database. The writer is alone, so what all links delivered meets in its
queue and is committed together (federation/committer.py). Each thread keeps one Django connection; one that
broke is closed, so that the next call opens another.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, connection

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Runs synchronous services and selectors in their threads."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "ark-read")
        self._writer = ThreadPoolExecutor(1, "ark-write")

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: _call(function, *args, **kwargs))

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, lambda: _call(function, *args, **kwargs))

    async def close(self) -> None:
        """Let queued work end, then close the connections and the threads."""
        for executor in (self._reader, self._writer):
            executor.submit(connection.close)
        # Not on the loop: a write that waits for a locked database takes its time.
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        for executor in (self._reader, self._writer):
            executor.shutdown(wait=True)


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except (OperationalError, InterfaceError):
        connection.close()
        raise
