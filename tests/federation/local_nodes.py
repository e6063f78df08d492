"""Whole nodes inside a test: the real node, sessions, cipher and registry; memory in place of sockets.

All of them share the test's database, which links do not mind: claims and peers are filed under the other node's id.
"""

import asyncio
import random

from federation.node import FederationNode
from keys.encoding import NodeId
from keys.services import Identity
from peers.services import import_peer_key
from peers.trust import Tier
from tests.identities import make_manifest, make_pair


class InlineDatabase:
    """Runs services on the spot; `broken` is raised instead, while it is set."""

    def __init__(self) -> None:
        self.broken: Exception | None = None
        self.reads: list[str] = []
        self.writes: list[str] = []

    async def read(self, function, *args, **kwargs):
        return await self._run(self.reads, function, args, kwargs)

    async def write(self, function, *args, **kwargs):
        return await self._run(self.writes, function, args, kwargs)

    async def _run(self, log, function, args, kwargs):
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        log.append(function.__name__)
        return function(*args, **kwargs)

    async def close(self) -> None:
        pass


class MemoryTransport:
    """One end of a connection in memory; each frame arrives after a delay, in order."""

    def __init__(self, delay) -> None:
        self.driver = self.other = None
        self.closed_with: int | None = None
        self._delay = delay
        self._last = 0.0

    async def send(self, data: bytes) -> None:
        self._later(lambda driver: driver.feed(data))

    async def close(self, code: int, *, patient: bool) -> None:
        if self.closed_with is None:
            self.closed_with = self.other.closed_with = code
            self._later(lambda driver: driver.closed(code))

    def abort(self) -> None:
        if self.closed_with is None:
            self.closed_with = self.other.closed_with = 1006
            self._later(lambda driver: driver.closed(None))

    def _later(self, act) -> None:
        loop = asyncio.get_running_loop()
        self._last = max(self._last + 1e-6, loop.time() + self._delay())
        loop.call_at(self._last, lambda: self.other.driver is not None and act(self.other.driver))


def make_identity(number: int) -> Identity:
    manifest = make_manifest(number).manifest
    next_key_hash = make_pair(number + 1_000_000).fingerprint
    return Identity("node", NodeId(manifest.node_id), make_pair(number), manifest.succession, next_key_hash)


def trust(*numbers: int, tier: Tier = Tier.CORE) -> None:
    """File these nodes as peers with a confirmed key."""
    for number in numbers:
        import_peer_key(peer=f"node-{number}", key=make_pair(number).public, tier=tier, actor="test", door="command")


async def started(number: int) -> FederationNode:
    node = FederationNode(make_identity(number))
    await node.start()
    return node


def connect(dialler: FederationNode, listener: FederationNode, *, seed: int = 0, slowest_s: float = 0.0, **options):
    """Dial in memory; return the drivers of both ends."""
    chance = random.Random(seed)
    near, far = (MemoryTransport(lambda: chance.uniform(0, slowest_s)) for _ in range(2))
    near.other, far.other = far, near
    far.driver = listener.open_link(far, address="127.0.0.1", host="127.0.0.1")
    near.driver = dialler.open_link(near, address="ws://127.0.0.1:8104/sync", host="127.0.0.1", dial=True, **options)
    return near.driver, far.driver


async def until(predicate, timeout_s: float = 5.0):
    """Return once the predicate holds."""
    async with asyncio.timeout(timeout_s):
        while not predicate():
            await asyncio.sleep(0.002)
