"""Noticing what other processes of this node committed: a hint to look into the database, never more.

SQLite tells by `PRAGMA data_version` on a connection of its own (microseconds a look); elsewhere the watcher
simply says "look" at each period, and the looks are three small queries. A missed or doubled hint is harmless,
for every reader goes back to the database by its arrival number.

Source: docs/protocol.md, section 9.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

from django.db import connections

PERIOD_S = 0.1
POLL_S = 0.2  # where there is nothing cheap to watch


class Watcher:
    """Calls `look` when the database may have changed."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Look at once: this process itself changed something."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled. Looks once at the start: what changed while nobody watched is seen then."""
        probe = self._probe()
        period = POLL_S if probe is None else PERIOD_S
        self._asked.set()
        try:
            while True:
                try:
                    await asyncio.wait_for(self._asked.wait(), period)
                except TimeoutError:
                    if probe is not None and not probe.changed():
                        continue
                self._asked.clear()
                await self._look()
        finally:
            if probe is not None:
                probe.close()

    def _probe(self) -> "_DataVersion | None":
        if connections["default"].vendor != "sqlite":
            return None
        return _DataVersion(str(connections["default"].get_connection_params()["database"]))


class _DataVersion:
    """SQLite's own counter of commits by other connections."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0, uri=path.startswith("file:"))
        self._seen = self._read()

    def changed(self) -> bool:
        now = self._read()
        changed, self._seen = now is None or now != self._seen, now
        return changed

    def close(self) -> None:
        self._connection.close()

    def _read(self) -> int | None:
        """Return the counter, or None when it cannot be read now."""
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return None
        return int(version)
