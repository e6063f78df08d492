"""Noticing what other processes of this node committed: a hint to look into the database, never more.

SQLite tells by `PRAGMA data_version` on a connection of its own (microseconds a look). PostgreSQL tells by NOTIFY
what was stored; for everything else the watcher says "look" at each period, and the looks are a few small queries.
A missed or doubled hint is harmless, for every reader goes back to the database by its arrival number.

Source: docs/protocol.md, section 9.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable

from django.db import connections

from federation.store import NOTICE_CHANNEL

logger = logging.getLogger(__name__)

PERIOD_S = 0.1
POLL_S = 0.2  # where there is nothing cheap to watch
# Between two looks, however often others tell: a node that stores fifty times a second hears of its own commits too.
PAUSE_S = 0.02
RECONNECT_S = 1.0


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
        listening = asyncio.create_task(_listen(self.ask)) if connections["default"].vendor == "postgresql" else None
        self._asked.set()
        try:
            while True:
                try:
                    # Not wait_for, which in Python 3.11 swallows a cancellation that comes together with the event.
                    async with asyncio.timeout(period):
                        await self._asked.wait()
                except TimeoutError:
                    if probe is not None and not probe.changed():
                        continue
                self._asked.clear()
                await self._look()
                await asyncio.sleep(PAUSE_S)
        finally:
            if probe is not None:
                probe.close()
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

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


async def _listen(heard: Callable[[], None]) -> None:
    """Call `heard` whenever a process of this node stored something, until cancelled; a lost connection is made anew."""
    import psycopg  # here, so that a node on SQLite does not load it

    given = connections["default"].get_connection_params()
    address = {name: value for name, value in given.items() if name not in _DJANGOS_OWN}
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(**address, autocommit=True) as connection:
                await connection.execute(f"LISTEN {NOTICE_CHANNEL}".encode())
                heard()  # for what was stored before
                async for _ in connection.notifies():
                    heard()
        except psycopg.Error as error:
            logger.debug("PostgreSQL's notices are not heard now: %s", error)
        await asyncio.sleep(RECONNECT_S)


# What Django's parameters say beside where the database is and how to get in; an asynchronous connection takes none of it.
_DJANGOS_OWN = frozenset({"cursor_factory", "context", "prepare_threshold"})
