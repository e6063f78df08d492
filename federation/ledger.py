"""What the links of a process did and are like, written down where other processes read it.

Counters grow in rows that survive restarts; a link's claim carries what federationstatus shows of it. An idle
node writes nothing but a sign of life of its claims.

Source: docs/protocol.md, sections 6 and 9.
"""

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError, transaction

from federation import claims, services
from federation.conf import CLOCK_WARNING_MS
from federation.database import Database
from federation.driver import LinkDriver
from federation.protocol.errors import Code
from federation.protocol.session import Linked
from keys.encoding import NodeId
from peers.encounters import note_clock_offset, note_link

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
REFRESH_S = 10.0  # between signs of life of the claims; a third of what they live
STATE_S = 2.0  # between looks at whether what a link says of itself has changed enough to be written


class Ledger:
    """Counts and shows links.

    Args:
        process: Token of this process, as in its claims.
        drivers: Token to driver, of all links of this process, up or not.
        links: The one link with each peer.
    """

    def __init__(
        self,
        database: Database,
        *,
        process: str,
        drivers: Callable[[], Mapping[str, LinkDriver]],
        links: Callable[[], Mapping[NodeId, LinkDriver]],
    ) -> None:
        self._database = database
        self._process = process
        self._drivers = drivers
        self._links = links
        self._counted: dict[LinkDriver, Counter[str]] = {}
        self._pending: Counter[tuple[str, str]] = Counter()
        self._shown: dict[str, Mapping[str, Any]] = {}
        self._refreshed_at = self._looked_at = 0.0
        self._clocks_off: set[NodeId] = set()

    async def run(self) -> None:
        """Write what there is to write, until cancelled.

        Raises:
            DatabaseError: nothing is lost; the next call writes it.
        """
        while True:
            await asyncio.sleep(PERIOD_S)
            for driver in list(self._drivers().values()):
                self._count(driver)
            await self.flush()
            await self._refresh()

    async def show(self, token: str, driver: LinkDriver) -> None:
        """Write at once that a link is up."""
        self._shown[token] = shown = describe(driver)
        await self._database.write(claims.show_link, process=self._process, link=token, state=shown, now=_now())

    def ended(self, token: str, driver: LinkDriver) -> None:
        """Count what a link that ended did last."""
        self._count(driver)
        self._counted.pop(driver, None)
        self._shown.pop(token, None)

    async def flush(self) -> None:
        """Write the counters that grew."""
        if not self._pending:
            return
        counts, self._pending = self._pending, Counter()
        try:
            await self._database.write(services.add_counters, counts)
        except DatabaseError:
            self._pending.update(counts)
            raise

    def _count(self, driver: LinkDriver) -> None:
        if driver.session.peer is None:
            return
        totals = _totals(driver)
        seen = self._counted.get(driver, Counter())
        peer = driver.session.peer_id.hex()
        for name, count in (totals - seen).items():
            self._pending[peer, name] += count
        self._counted[driver] = totals

    async def _refresh(self) -> None:
        """Keep the claims alive, and what they show of the links true; nothing is written where nothing happens."""
        now = asyncio.get_running_loop().time()
        up = {driver for driver in self._links().values() if driver.settled.is_set()}
        states = {token: describe(driver) for token, driver in self._drivers().items() if driver in up}
        due = now - self._refreshed_at >= REFRESH_S
        if not due:
            if now - self._looked_at < STATE_S:
                return
            self._looked_at = now
            states = {token: shown for token, shown in states.items() if _differs(shown, self._shown.get(token))}
        if not states:
            return
        offsets = {peer: driver.session.stats.clock_offset_ms for peer, driver in self._links().items()} if due else {}
        if due:
            self.warn_of_clocks(offsets)
        await self._database.write(self._write_down, states, offsets)
        self._shown.update({token: shown for token, shown in states.items() if token in self._drivers()})
        if due:
            self._refreshed_at = now

    def _write_down(self, states: Mapping[str, Mapping[str, Any]], offsets: Mapping[NodeId, int | None]) -> None:
        """In the writer's thread, in one transaction: what the links are like now, and whose clock is how far off."""
        with transaction.atomic():
            claims.refresh_claims(process=self._process, states=states, now=_now())
            if offsets:
                note_link(node_ids=list(offsets), now=_now())
            for peer, offset_ms in offsets.items():
                if offset_ms is not None:
                    note_clock_offset(node_id=peer, offset_ms=offset_ms)

    def warn_of_clocks(self, offsets: Mapping[NodeId, int | None]) -> None:
        """Say once a link's time that the two clocks differ; beyond ten minutes packets are declined `early`."""
        self._clocks_off &= set(offsets)
        for peer, offset_ms in offsets.items():
            if offset_ms is not None and abs(offset_ms) >= CLOCK_WARNING_MS and peer not in self._clocks_off:
                self._clocks_off.add(peer)
                logger.warning("the clock of %s is %+.0f s off ours; one of the two is wrong", peer.hex()[:8], offset_ms / 1000)


def describe(driver: LinkDriver) -> Mapping[str, Any]:
    """Return what federationstatus shows of a link."""
    session = driver.session
    state: dict[str, Any] = {"direction": "out" if session.is_dialler else "in", **dataclasses.asdict(session.stats)}
    if isinstance(session.state, Linked):
        sender, receiver = session.state.sender, session.state.receiver
        state |= {
            "window_out": sender.in_flight,
            "window_in": receiver.in_flight,
            "behind": sender.backlog,
            "missing": receiver.missing,
            "announcing": sender.is_announcing,
        }
    return state


def _differs(shown: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Return whether a link has something new to say; times that always move a little are none."""
    if before is None:
        return True
    return any(value != before.get(name) for name, value in shown.items() if name not in ("rtt_ms", "clock_offset_ms"))


def _totals(driver: LinkDriver) -> Counter[str]:
    stats = driver.session.stats
    totals: Counter[str] = Counter()
    totals["sent"] = stats.packets_out
    for code, count in stats.outcomes_in.items():
        totals[_counter_name(Code(code))] += count
    for code, count in stats.outcomes_out.items():
        if code not in ("accepted", "duplicate"):
            totals[f"refused.{code}"] += count
    return totals


def _counter_name(code: Code) -> str:
    if code is Code.ACCEPTED:
        return "received"
    if code is Code.DUPLICATE:
        return "duplicate"
    return f"{'rejected' if code.is_rejection else 'declined'}.{code}"


def _now() -> datetime:
    return datetime.now(UTC)
