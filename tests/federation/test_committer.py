"""Group commit: what shares a transaction, and what a failing one means for those who wait."""

import asyncio

import pytest
from django.db import OperationalError

from federation.committer import GROUP, Committer
from federation.protocol.errors import Code
from tests.federation.makers import make_received

pytestmark = pytest.mark.asyncio

ITEM = make_received(1)


class SlowDatabase:
    """Takes a moment for each commit and remembers how many packets shared it; raises what `outcomes` holds first."""

    def __init__(self, *outcomes):
        self.groups, self.outcomes = [], list(outcomes)

    async def write(self, function, *, received, quotas):
        self.groups.append(len(received))
        await asyncio.sleep(0.005)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        return [Code.ACCEPTED] * len(received)


def make(*outcomes):
    database, stored, stopped = SlowDatabase(*outcomes), [], []
    committer = Committer(
        database, quotas=dict, stored=lambda: stored.append(1), stopped_changed=lambda: stopped.append(committer.stopped)
    )
    return committer, database, stored, stopped


async def test_what_gathers_during_a_commit_shares_the_next():
    """The first batch goes at once, those that come meanwhile together, each answered in its place."""
    committer, database, stored, _ = make()
    codes = await asyncio.gather(*(committer.store([ITEM] * size) for size in (1, 2, 3, 4)))
    assert [len(each) for each in codes] == [1, 2, 3, 4]
    assert sum(database.groups) == 10
    assert len(database.groups) <= 2
    assert stored
    assert await committer.store([]) == []


@pytest.mark.parametrize(("sizes", "groups"), [((1, GROUP - 100, 100), [1, GROUP]), ((1, GROUP - 100, 101), [1, GROUP - 100, 101])])
async def test_group_at_its_limit_and_one_beyond(sizes, groups):
    """A group holds as many packets as it may; one more, and the batch waits for the next."""
    committer, database, *_ = make()
    first = asyncio.ensure_future(committer.store([ITEM] * sizes[0]))
    await asyncio.sleep(0.001)
    await asyncio.gather(first, *(committer.store([ITEM] * size) for size in sizes[1:]))
    assert database.groups == groups


async def test_database_that_cannot_be_written():
    """A failed commit declines its group as busy, is told once, and the next that works takes it back."""
    locked = OperationalError("database is locked")
    committer, _, stored, stopped = make(locked, locked, None)
    for expected in (Code.BUSY, Code.BUSY, Code.ACCEPTED):
        assert await committer.store([ITEM] * 2) == [expected] * 2
    assert stopped == ["database is locked", None]
    assert len(stored) == 1


async def test_bug_in_the_store_reaches_who_waits_and_nobody_else():
    """An unexpected error is raised to those of its group; nobody waits for ever, and the next group is committed."""
    committer, *_ = make(ValueError("a bug"))
    first = asyncio.ensure_future(committer.store([ITEM]))
    await asyncio.sleep(0.001)
    later = asyncio.ensure_future(committer.store([ITEM] * 3))
    with pytest.raises(ValueError, match="a bug"):
        await first
    assert await asyncio.wait_for(later, 1) == [Code.ACCEPTED] * 3
    await committer.drain()
    assert committer.stopped is None


async def test_who_left_does_not_hold_up_the_others():
    """A waiter that was cancelled is passed over; the rest of its group gets its codes."""
    committer, *_ = make()
    first, second = (asyncio.ensure_future(committer.store([ITEM])) for _ in range(2))
    await asyncio.sleep(0.001)
    second.cancel()
    third = asyncio.ensure_future(committer.store([ITEM] * 2))
    assert await first == [Code.ACCEPTED]
    assert await third == [Code.ACCEPTED] * 2
    await committer.drain()
