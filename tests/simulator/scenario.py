"""One seed, one story: eight nodes, their trust and their neighbours, a minute of faults, the heal, and what must hold then.

Everything is drawn from the seed: who trusts whom how far, who knows whose address, how much is stored before the
start, when something is published, and each fault. After the heal all nodes run, all ways are open, all disks have
room and all clocks are right; the villain goes on. Then each link that should stand has to stand, and no node may
owe another a packet, within `PATIENCE_S`.
"""

import time
from dataclasses import dataclass
from unittest.mock import patch

from federation.protocol import admission
from federation.protocol.limits import Limits
from tests.simulator.disk import read_packet
from tests.simulator.villain import Villain
from tests.simulator.world import EPOCH_MS, Broken, World, write_packet

NODES = 8
FAULTS_S = 60.0
# Less than the ten minutes after which Interest is sent anew: what is lost must not be found by that alone.
PATIENCE_S = 300.0
LOOK_EVERY_S = 5.0
# The clock of a node that publishes is never further ahead than this, so that its packets are due soon after.
AHEAD_MS = 660_000
SMALL = Limits(batch_packets=4, wants=16, learned_ids=64, reconcile_frame_bytes=4_096, have_rows=8)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a story ended; `trace` is the hash of all that happened in it."""

    seed: int
    trace: str
    events: int
    healed_after_s: float
    cpu_s: float


class SeedFailed(AssertionError):
    """A seed under which something that must hold did not; says how to see it again."""

    def __init__(self, seed, reason):
        super().__init__(f"seed {seed}: {reason}\nto repeat: python -m tests.simulator {seed}")


def run_seed(seed):
    """Play one seed to its end.

    Raises:
        SeedFailed: something that must always hold did not; the message has the command that repeats it.
    """
    started = time.process_time()
    # Parsing is a pure function of the bytes: eight nodes that get one packet parse it once. Errors are not remembered.
    with patch.object(admission, "parse_packet", read_packet):
        return _played(seed, started)


def _played(seed, started):
    story = Story(seed)
    try:
        healed_after_s = story.play()
    except Exception as error:
        raise SeedFailed(seed, f"{type(error).__name__}: {error} ({story.world.now - 1_000:.1f} s into the story)") from error
    return Outcome(seed, story.world.trace, story.world.events, healed_after_s, time.process_time() - started)


class Story:
    """The plan of one seed, and the world it happens in."""

    def __init__(self, seed):
        self.world = World(seed)
        self.random = self.world.random
        self.world.limits = SMALL if self.random.random() < 0.4 else Limits()
        for _ in range(NODES - 1):
            self.world.node()
        self.has_villain = self.random.random() < 0.6
        if self.has_villain:
            self.villain = self.world.add(Villain(self.world, NODES))
        else:
            self.world.node()
        self._settle_trust()
        self._know_addresses()
        self._fill_stores()

    # --- the start ---

    def _settle_trust(self):
        mixed = self.random.random() < 0.6
        for node in self.world.honest:
            for other in self.world.nodes:
                if other is not node:
                    opinion = self._opinion() if mixed or other.is_villain else ("core", False, True)
                    node.decide(other, opinion[0], blocked=opinion[1], keyed=opinion[2])

    def _opinion(self):
        tier = self.random.choices(("core", "sandbox", "external", "unknown"), (70, 15, 7, 8))[0]
        return tier, self.random.random() < 0.03, tier in ("core", "sandbox") or self.random.random() < 0.5

    def _know_addresses(self):
        nodes = self.world.nodes
        for place, node in enumerate(nodes[1:], start=1):
            self.world.introduce(node, self.random.choice(nodes[:place]))
        for _ in range(self.random.choice((0, 3, 6, 20))):
            self.world.introduce(*self.random.sample(nodes, 2))

    def _fill_stores(self):
        honest = self.world.honest
        for node in honest:
            count = self.random.choice((0, 0, 5, 5, 30)) if self.random.random() < 0.98 else 700
            for number in range(count):
                created_at = EPOCH_MS - 10_000_000 + number * 700
                node.keep(write_packet(node.number, f"before {number}", created_at, "core"))
            if self.random.random() < 0.5:
                node.publish(audience="private")
        for node in honest:
            node.start()

    # --- what happens ---

    def play(self):
        """Tell the story; return how long after the heal everything was where it belongs."""
        for node in self.world.honest:
            for _ in range(self.random.randint(0, 10)):
                self._plan(self._publish, node)
        for fault, most in FAULTS:
            for _ in range(self.random.randint(0, most)):
                self._plan(fault, self)
        self.world.run_for(FAULTS_S)
        self._heal()
        return self._wait()

    def _plan(self, action, *args):
        self.world.at(self.random.random() * FAULTS_S, lambda: action(*args))

    def _publish(self, node):
        if not node.is_running or node.is_full or node.offset_ms > AHEAD_MS:
            return
        audience = self.random.choices(("core", "public", "private"), (8, 3, 1))[0]
        size = self.random.choice((0, 0, 0, 0, 2_000, 60_000))
        for _ in range(self.random.choice((1, 1, 1, 3, 12)) if size < 10_000 else 1):
            node.publish(audience=audience, size=size)

    def _one(self, *, running=True):
        nodes = [node for node in self.world.honest if node.is_running is running]
        return self.random.choice(nodes) if nodes else None

    def cut_link(self):
        links = self.world.live_links()
        if links:
            self.world.cut(self.random.choice(links))

    def part(self):
        """Divide the nodes, or shut a single way, for a while shorter or longer than a link lives in silence."""
        nodes = list(self.world.nodes)
        self.random.shuffle(nodes)
        cut = self.random.choice((1, 1, 3, 4))
        for one in nodes[:cut]:
            for other in nodes[cut:] if cut > 1 else nodes[1:3]:
                self.world.part(one, other)
        self.world.at(self.random.choice((1.0, 10.0, 45.0)), self.world.heal)

    def crash(self):
        node = self._one()
        if node is None:
            return
        node.crash(silently=self.random.random() < 0.5)
        if self.random.random() < 0.3:
            node.restore()
        self.world.at(self.random.choice((0.1, 3.0, 40.0)), lambda: None if node.is_running else node.start())

    def back_up(self):
        node = self._one()
        if node is not None:
            node.backup = node.disk.copy()

    def jump_clock(self):
        node = self._one()
        if node is not None:
            node.offset_ms = self.random.choice((0, 0, 5_000, -5_000, AHEAD_MS, 3_600_000, -300_000, -3_600_000))

    def fill_disk(self):
        node = self._one()
        if node is not None:
            node.is_full = True
            self.world.at(self.random.choice((0.5, 8.0)), lambda: setattr(node, "is_full", False))

    def read_slowly(self):
        pipes = [pipe for pipe in self.world.pipes if pipe.target.ending is None]
        if pipes:
            pipe = self.random.choice(pipes)
            pipe.target.is_deaf = True
            self.world.at(self.random.choice((0.3, 5.0, 40.0)), lambda: self._hear_again(pipe))

    def _hear_again(self, pipe):
        pipe.target.is_deaf = False
        pipe.flush()

    def dial_across(self):
        """Two nodes dial each other at the same moment."""
        node = self._one()
        near = [peer for peer in node.neighbours if peer.is_running and not peer.is_villain] if node else []
        if near:
            peer = self.random.choice(near)
            for one, other in ((node, peer), (peer, node)):
                if one.opinions.dials(other.node_id) and not self.world.is_shut(one, other):
                    self.world.connect(one, other)

    def change_mind(self):
        node = self._one()
        if node is not None:
            other = self.random.choice([other for other in self.world.nodes if other is not node])
            tier, blocked, keyed = self._opinion()
            node.decide(other, tier, blocked=blocked, keyed=keyed)

    def withdraw(self):
        node = self._one()
        shown = [packet_id for packet_id in node.disk.envelopes if packet_id not in node.disk.hidden] if node else []
        if shown:
            node.withdraw(self.random.choice(shown), purge=self.random.random() < 0.5)

    # --- the end ---

    def _heal(self):
        world = self.world
        world.heal()
        for node in world.honest:
            node.is_full = False
            node.offset_ms = 0
            if not node.is_running:
                node.start()
        for pipe in world.pipes:
            if pipe.target.is_deaf:
                self._hear_again(pipe)
        if self.random.random() < 0.5:
            for node in world.honest:
                for peer in node.neighbours:
                    node.dialler.sign_of_life(peer.local.node_id)

    def _wait(self):
        healed_at = self.world.now
        while self.world.now < healed_at + PATIENCE_S:
            self.world.run_for(LOOK_EVERY_S)
            if not self.world.shortfall() and not self.world.unrest():
                return self.world.now - healed_at
        problems = [*self.world.shortfall(), *self.world.unrest()]
        raise Broken(f"{PATIENCE_S:.0f} s after the heal: {'; '.join(problems[:5])}")


FAULTS = (
    (Story.cut_link, 8),
    (Story.part, 2),
    (Story.back_up, 3),
    (Story.crash, 3),
    (Story.jump_clock, 2),
    (Story.fill_disk, 2),
    (Story.read_slowly, 3),
    (Story.dial_across, 3),
    (Story.change_mind, 3),
    (Story.withdraw, 4),
)
