"""Group commit: what all links delivered goes into one transaction, and acks leave after it.

While the writer thread commits one group, the next gathers; nothing waits for a clock. A group holds at most
`GROUP` packets. A database that cannot be written declines the group `busy`: nothing is lost, for nothing was
acknowledged, and `stopped` tells the operator until a commit succeeds again.

Source: docs/protocol.md, section 6 ("Ack means durable"); docs/architecture.md, section 1.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from django.db import DatabaseError

from federation.database import Database
from federation.protocol.errors import Code
from federation.services import Quota, Received, store_packets
from keys.encoding import NodeId

logger = logging.getLogger(__name__)

GROUP = 500


class Committer:
    """The one writer of received packets in this process.

    Args:
        quotas: Returns the quotas of origins at this moment.
        stored: Called on the loop after each commit that stored something.
        stopped_changed: Called when `stopped` did.
    """

    def __init__(
        self,
        database: Database,
        *,
        quotas: Callable[[], Mapping[NodeId, Quota]],
        stored: Callable[[], None],
        stopped_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._quotas = quotas
        self._stored = stored
        self._stopped_changed = stopped_changed
        self._waiting: deque[tuple[Sequence[Received], asyncio.Future[list[Code]]]] = deque()
        self._running = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped: str | None = None

    async def store(self, received: Sequence[Received]) -> list[Code]:
        """Return one code a packet once the group they were in is committed."""
        if not received:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Code]] = loop.create_future()
        self._waiting.append((received, future))
        if not self._running:
            self._running = True
            task = loop.create_task(self._commit_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def drain(self) -> None:
        """Return when nothing is waiting any more."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft()]
                size = len(group[0][0])
                while self._waiting and size + len(self._waiting[0][0]) <= GROUP:
                    group.append(self._waiting.popleft())
                    size += len(group[-1][0])
                await self._commit(group)
        finally:
            self._running = False

    async def _commit(self, group: list[tuple[Sequence[Received], asyncio.Future[list[Code]]]]) -> None:
        received = [item for items, _ in group for item in items]
        try:
            codes = await self._database.write(store_packets, received=received, quotas=self._quotas())
        except DatabaseError as error:
            if self.stopped is None:
                logger.error("the database cannot be written, packets are declined: %s", error)
            self._set_stopped(str(error))
            codes = [Code.BUSY] * len(received)
        except Exception as error:
            # A bug: whoever waits for this group is told, and the next group has its own chance.
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        else:
            if self.stopped is not None:
                logger.warning("the database can be written again")
            self._set_stopped(None)
        at = 0
        for items, future in group:
            if not future.done():
                future.set_result(codes[at : at + len(items)])
            at += len(items)
        if Code.ACCEPTED in codes:
            self._stored()

    def _set_stopped(self, reason: str | None) -> None:
        changed, self.stopped = (reason is None) != (self.stopped is None), reason
        if changed:
            self._stopped_changed()
