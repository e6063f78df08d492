"""A world of its own for whole nodes: clock, network, disks, dialling and chance, all from one seed.

    Node --Dialler--> Link == two Pipes == Link <-- Node
      |                         |
    Disk, Memory             End: the real PeerSession, its questions answered late and in any order

Real are the protocol core, admission, signatures, trust tables, reconciliation and back-off. Simulated are the
shells around them, after federation/{driver,node,ingest,committer,feed,dialer}.py: a batch is admitted, verified,
asked about once more and committed together with whatever else waits, and only then acknowledged; the feed follows
the store; of two links between two nodes the rule of section 5 leaves one.

A WebSocket loses no single frames, so neither does a Pipe: it delays them, stops for a while, or is cut, and then
any part of what was on its way is lost. Links overtake each other freely.

Whatever a node does is checked as it happens, and every event goes into `trace`, a hash over the whole run.
Source: docs/protocol.md, sections 3, 5, 6 and 11.
"""

import heapq
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

from federation.protocol import admission, codec, messages
from federation.protocol.admission import Candidate, Refused, admit
from federation.protocol.envelope import sign_packet
from federation.protocol.errors import Code, Goodbye
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    EndLink,
    EndRequested,
    EnvelopesLoaded,
    FeedAdvanced,
    FeedRead,
    FindMissing,
    FrameArrived,
    JudgeBatch,
    Judgement,
    LinkAllowed,
    LinkRefused,
    LinkUp,
    LoadEnvelopes,
    LoadManifest,
    ManifestArrived,
    ManifestLoaded,
    MissingFound,
    Opened,
    Penalise,
    PolicyChanged,
    ReadFeed,
    SendFrame,
    TimerFired,
    TransportClosed,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.handshake import ClientHandshake, Local, ServerHandshake
from federation.protocol.limits import CLOCK_SKEW_MS, Limits
from federation.protocol.packet import build_packet, packet_id_of
from federation.protocol.recent import Refusals
from federation.protocol.session import Linked, PeerSession
from keys import ed25519
from peers.backoff import Backoff, penalty_length
from peers.trust import Audience, KeyStatus, Standing, Tier, TrustedKey, TrustTable
from tests.identities import make_manifest
from tests.identities import make_pair as make_pair_anew
from tests.protocol.lab import RecordingSuite, check_bounds
from tests.simulator.disk import Disk, Memory, read_packet
from tests.simulator.oracle import Opinion, Opinions

EPOCH_MS = 1_760_000_000_000
STARTED_AT = 1_000.0
MAX_EVENTS = 400_000
# What one honest side may have on its way to another: a window of bodies, and the messages around them.
MOST_ON_THE_WAY = 4 * 1024 * 1024
INBOX_FRAMES = 4_096  # beyond it the driver ends the link
WALK_EVERY = 16  # events of a link between two walks over all its collections; the windows are checked at each
SILENT_S = 10.0  # a peer that answers nothing for so long is passed by
STEADY_S = 10.0
DUPLICATE_PAUSE_S = 1.0
BYE_PAUSE_S = 0.2
BYES_IN_A_ROW = 3
DIAL_TIMEOUT_S = 10.0

REPROACHES = (Goodbye.PROTOCOL, Goodbye.OVERRUN, Goodbye.DECRYPT, Goodbye.TOO_LARGE, Goodbye.PENALTY)
"""What no honest node ever gives another reason for."""

verify_signature = lru_cache(maxsize=200_000)(admission.verify_parsed)
"""The real verification, remembered: eight nodes that get one packet verify it once. Failures are never remembered."""


class Broken(AssertionError):
    """Something that must always hold did not."""


make_pair = lru_cache(make_pair_anew)


@lru_cache
def identity(number):
    """Return what node `number` shows and signs with; signatures are deterministic, and so are these."""
    manifest = make_manifest(number)
    pair = make_pair(number)
    return Local(manifest.node_id, manifest, lambda message: ed25519.sign(pair, message), "arklattice")


@lru_cache(maxsize=100_000)
def write_packet(author, text, created_at, audience):
    """Return the signed envelope of a packet; the same arguments give the same bytes."""
    packet = build_packet(
        origin=identity(author).node_id, kind="note.text", content=text, created_at=created_at, audience=Audience(audience)
    )
    return sign_packet(make_pair(author), packet, timestamp=created_at)


@dataclass(slots=True)
class Pipe:
    """One direction of a connection: what was sent arrives in order, later, or the connection is cut."""

    world: "World"
    source: object
    target: object
    items: deque = field(default_factory=deque)
    last: float = 0.0
    size: int = 0
    is_broken: bool = False

    def send(self, item):
        if self.is_broken:
            return
        self.last = max(self.last, self.world.now + self.world.latency())
        self.items.append(item)
        self.size += len(item) if isinstance(item, bytes) else 0
        self.world.at(self.last - self.world.now, self.deliver)

    def deliver(self):
        """Hand over the next item, unless the way is shut now; `flush` then goes on."""
        if self.items and not self.target.is_deaf and not self.world.is_shut(self.source.owner, self.target.owner):
            item = self.items.popleft()
            self.size -= len(item) if isinstance(item, bytes) else 0
            self.target.receive(item)

    def flush(self):
        for _ in range(len(self.items)):
            self.world.at(self.world.latency(), self.deliver)

    def cut(self, *, silently=False):
        """End at any frame: a part of what is on its way still arrives, then the end of the connection or nothing."""
        if self.is_broken:
            return
        keep = self.world.random.randint(0, len(self.items))
        while len(self.items) > keep:
            item = self.items.pop()
            self.size -= len(item) if isinstance(item, bytes) else 0
        if not silently:
            self.send(TransportClosed(None))
        self.is_broken = True


class End:
    """One end of a link: the real session, and a driver around it."""

    def __init__(self, node, *, dials, expected=None, number=0):
        self.owner = node
        self.world = node.world
        self.life = node.life
        self.number = number
        self.dials = dials
        self.expected = expected
        self.is_deaf = False
        self.is_up = False
        self.up_at = None
        self.ending = None
        self.out = None
        self.other = None
        self.sent_batches = {}
        self.interest = {}
        self._sealed = []
        self._rounds = {}
        self._events = 0
        self._timer = None
        suite = RecordingSuite(self._sealed)
        seed = self.world.random.randbytes(32)
        handshake = ClientHandshake(node.local, suite, seed, expected) if dials else ServerHandshake(node.local, suite, seed)
        self.session = PeerSession(
            handshake=handshake,
            table=node.table,
            limits=node.limits,
            catalogue=node.memory,
            fetches=node.fetches,
            refusals=lambda peer: node.refusals.setdefault(peer, Refusals(node.limits.refusals_per_peer)),
            chance=self.world.random.random,
            now=self.world.now,
        )
        node.ends.append(self)

    @property
    def peer(self):
        return self.session.peer_id

    def receive(self, item):
        if self.ending is None:
            self.handle(item if isinstance(item, TransportClosed) else FrameArrived(item))

    def handle(self, event):
        if self.ending is not None:
            return
        world = self.world
        world.note(self.number, type(event).__name__)
        effects = self.session.handle(event, now=world.now, now_ms=self.owner.now_ms)
        self._check_said()
        for effect in effects:
            if self.ending is None:
                self._execute(effect)
        self._check_bounds()
        self._arm()

    def _arm(self):
        deadline = self.session.deadline if self.ending is None else None
        if deadline is not None and (self._timer is None or deadline < self._timer):
            self._timer = deadline
            self.world.at(max(0.0, deadline - self.world.now), self._ring)

    def _ring(self):
        self._timer = None
        if self.ending is not None or self.life != self.owner.life:
            return
        deadline = self.session.deadline
        if deadline is not None and deadline <= self.world.now:
            self.handle(TimerFired())
        self._arm()

    def _execute(self, effect):
        match effect:
            case SendFrame(data):
                self.world.note(self.number, data)
                self.out.send(data)
                if self.out.size > MOST_ON_THE_WAY:
                    self._give_up("the peer does not read")
                elif len(self.out.items) > INBOX_FRAMES:
                    raise Broken(f"{len(self.out.items)} frames are on their way, and no window stopped them")
            case EndLink():
                self._finish(effect)
            case LinkUp():
                self.is_up, self.up_at = True, self.world.now
                self.owner.dialler.link_up(self.peer)
            case Penalise():
                self.owner.penalise(self.peer)
            case ManifestArrived():
                pass  # every key is held from the start, or not to be trusted
            case _:
                self.owner.ask(self, effect)

    def _give_up(self, reason):
        """The driver ends a link whose peer does not read; it is no fault of honest nodes."""
        self._finish(EndLink(close_code=Goodbye.DEAD.close_code, goodbye=Goodbye.DEAD, reason=reason))
        self.session.handle(TransportClosed(None), now=self.world.now, now_ms=self.owner.now_ms)

    def _finish(self, ending):
        self.ending = ending
        self.world.count_ending(self, ending)
        self.out.send(TransportClosed(ending.close_code))
        self.owner.link_ended(self, ending)

    # --- what must hold ---

    def _check_bounds(self):
        self._events += 1
        state = self.session.state
        if self._events % WALK_EVERY == 0:
            check_bounds(self.session)
        elif isinstance(state, Linked):
            for packets, size in (state.sender.in_flight, state.receiver.in_flight):
                if packets > self.owner.limits.window_packets or size > self.owner.limits.window_bytes:
                    raise Broken(f"{packets} packets of {size} bytes are unacknowledged")
            if state.receiver._wants.unanswered > self.owner.limits.wants:
                raise Broken(f"{state.receiver._wants.unanswered} Wants are unanswered")

    def _check_said(self):
        """Nothing leaves against the policy of this moment, and nothing is acknowledged that is not on the disk."""
        said, self._sealed[:] = list(self._sealed), []
        node = self.owner
        for plaintext in said:
            number = plaintext[1]
            for packet_id in node.private:
                if packet_id in plaintext:
                    raise Broken("a private packet's id left its node")
            if number == 12:
                self._check_packets(codec.decode(plaintext))
            elif number == 13:
                self._check_ack(codec.decode(plaintext))
            elif number == 14:
                for origin, packet_id in codec.decode(plaintext).rows:
                    self._check_may_leave(packet_id, origin)
            elif number == 6:
                self.interest = dict(codec.decode(plaintext).rows)
            elif number == 7:
                self._check_scope(codec.decode(plaintext))
            elif number == 10:
                self._check_reconcile(codec.decode(plaintext))
            elif number == 11:
                self._check_want(codec.decode(plaintext))

    def _check_scope(self, message):
        self._rounds = {}
        for origin, count, *_ in message.rows:
            if not self.owner.opinions.sends(self.peer, origin, "core"):
                raise Broken("an origin is offered against the policy")
            # The number that docs/protocol.md gives, section 6, item 2.
            self._rounds[origin] = 64 + min(max(count, self.other.interest.get(origin, 0)), 2**22) // 250

    def _check_want(self, message):
        """One peer at a time is asked for a packet, until it has been silent for ten seconds."""
        asking = self.owner.asking
        for packet_id in message.ids:
            end, since = asking.get(packet_id, (None, 0.0))
            if end is not None and end is not self and end.ending is None and self.world.now - since < SILENT_S:
                raise Broken("two peers are asked for one packet at once")
            asking[packet_id] = self, self.world.now

    def _check_reconcile(self, message):
        if message.role is messages.Role.ANSWER and message.frame != b"\x61":
            if not self.owner.opinions.sends(self.peer, message.origin, "core"):
                raise Broken("reconciliation is answered against the policy")
            self._rounds[message.origin] -= 1
            if self._rounds[message.origin] < 0:
                raise Broken("reconciliation goes on beyond its rounds")
            for packet_id in self.owner.disk.hidden:
                if packet_id in message.frame:
                    raise Broken("reconciliation names a hidden packet")

    def _check_packets(self, message):
        ids = []
        for row in message.rows:
            envelope = codec.decode_row(row)
            packet_id = packet_id_of(envelope.body)
            ids.append(packet_id)
            stored = self.owner.disk.envelopes.get(packet_id)
            if stored is None or stored.envelope != envelope:
                raise Broken("a packet leaves that is not, or not so, in the store")
            self._check_may_leave(packet_id, stored.origin)
        self.sent_batches[message.batch] = ids
        for packet_id in message.gone:
            self.other.owner.asking.pop(packet_id, None)

    def _check_may_leave(self, packet_id, origin):
        stored = self.owner.disk.envelopes.get(packet_id)
        audience = None if stored is None else stored.audience.value
        if stored is None or packet_id in self.owner.disk.hidden:
            raise Broken("something hidden or erased leaves")
        if stored.origin != origin or not self.owner.opinions.sends(self.peer, origin, audience):
            raise Broken(f"something leaves against the policy: audience {audience}")

    def _check_ack(self, message):
        ids = self.other.sent_batches.pop(message.batch, ())
        for packet_id, code in zip(ids, message.codes, strict=True):
            if code not in (Code.ACCEPTED, Code.DUPLICATE):
                continue
            if packet_id not in self.owner.disk.envelopes:
                raise Broken("an Ack left before its packet was committed")
            self.owner.acknowledged.add(packet_id)


class Dialler:
    """Keeps a node's links: one dial a peer at a time, the real back-off after failures (federation/dialer.py)."""

    def __init__(self, node):
        self.node = node
        self.backoffs = {}
        self.under_way = set()
        self.up_at = {}

    def round(self):
        world = self.node.world
        for peer in self.node.neighbours:
            node_id = peer.local.node_id
            if node_id in self.under_way or node_id in self.node.links or not self.node.opinions.dials(node_id):
                continue
            if self.backoffs.get(node_id, Backoff()).is_ready(world.now):
                self._dial(peer)

    def _dial(self, peer):
        world, node = self.node.world, self.node
        node_id = peer.local.node_id
        self.under_way.add(node_id)
        if world.is_shut(node, peer) or not peer.is_running:
            delay = world.random.choice((0.01, DIAL_TIMEOUT_S))
            node.at(delay, lambda: self._failed(node_id))
        else:
            node.at(world.latency(), lambda: self._connect(peer))

    def _connect(self, peer):
        world, node = self.node.world, self.node
        if world.is_shut(node, peer) or not peer.is_running:
            self._failed(peer.local.node_id)
        else:
            world.connect(node, peer)

    def _failed(self, node_id):
        self.under_way.discard(node_id)
        self.backoffs[node_id] = self.backoffs.get(node_id, Backoff()).after_failure(
            now=self.node.world.now, jitter=self.node.world.random.random()
        )

    def sign_of_life(self, node_id):
        self.backoffs.pop(node_id, None)

    def operator_decided(self):
        self.backoffs.clear()

    def link_up(self, node_id):
        self.under_way.discard(node_id)
        self.up_at[node_id] = self.node.world.now

    def ended(self, end, ending):
        world = self.node.world
        node_id = end.expected if end.dials else (end.peer if end.session.peer is not None else None)
        if end.dials:
            self.under_way.discard(node_id)
        if node_id is None or node_id in self.node.links:
            return
        backoff = self.backoffs.get(node_id, Backoff())
        up_at = self.up_at.pop(node_id, None)
        if up_at is None and not end.dials:
            return
        if up_at is not None and world.now - up_at >= STEADY_S:
            backoff = Backoff()
        match ending.goodbye:
            case Goodbye.DUPLICATE:
                backoff = Backoff(backoff.failures, world.now + DUPLICATE_PAUSE_S)
            case Goodbye.BYE if up_at is not None and backoff.failures < BYES_IN_A_ROW:
                backoff = Backoff(backoff.failures + 1, world.now + BYE_PAUSE_S * world.random.random())
            case Goodbye.PENDING:
                backoff = backoff.after_pending(now=world.now, jitter=world.random.random())
            case _:
                backoff = backoff.after_failure(now=world.now, jitter=world.random.random())
        self.backoffs[node_id] = backoff


@dataclass(frozen=True, slots=True)
class Settled:
    """A packet that passed every check and waits for the commit."""

    envelope: object
    packet: object
    peer: bytes


class Node:
    """One whole node. `disk` and `opinions` outlive a crash, nothing else does."""

    is_villain = False

    def __init__(self, world, number, limits):
        self.world = world
        self.number = number
        self.local = identity(number)
        self.node_id = self.local.node_id
        self.limits = limits
        self.disk = Disk()
        self.backup = None
        self.opinions = Opinions(self.node_id, {})
        self.neighbours = []
        self.private = set()
        self.acknowledged = set()
        self.penalties = Counter()
        self.penalised_until = {}
        self.offset_ms = 0
        self.is_full = False
        self.is_running = False
        self.is_deaf = False
        self.life = 0
        self.numbers = 0
        self.bodies_in = Counter()
        self.ends = []
        self.table = self._make_table(0)

    @property
    def now_ms(self):
        return self.world.now_ms + self.offset_ms

    def at(self, delay, action):
        """Do something later in this life; a crash forgets it."""
        life = self.life
        self.world.at(delay, lambda: action() if self.life == life and self.is_running else None)

    # --- life ---

    def start(self):
        self.is_running = True
        self.memory = Memory(self.disk)
        self.fetches = FetchBoard()
        self.refusals = {}
        self.links = {}
        self.ends = []
        self.asking = {}
        self.pending = []
        self.dialler = Dialler(self)
        self.table = self._make_table(self.table.revision + 1)
        self.at(self.world.random.random(), self._dial_round)

    def crash(self, *, silently):
        """Stop at this instant: what was not committed is gone, and the peers hear of it or do not."""
        self.life += 1
        self.is_running = False
        for end in self.ends:
            end.ending = end.ending or EndLink(close_code=1006)
            end.out.cut(silently=silently)
        self.ends = []
        lost = self.acknowledged - self.disk.envelopes.keys()
        if lost:
            raise Broken(f"{len(lost)} acknowledged packets did not survive a crash")

    def restore(self):
        """Put an older backup in place of the disk, while the node is down."""
        if self.backup is not None:
            # What the operator hid or purged since comes back with it, as it would in life.
            self.disk = self.backup.copy()
            self.acknowledged &= self.disk.envelopes.keys()

    def _dial_round(self):
        self.dialler.round()
        self.at(0.5, self._dial_round)

    # --- the operator ---

    def decide(self, other, tier, *, blocked=False, keyed=True):
        """Trust changed; every link hears of it at once."""
        self.opinions.of[other.local.node_id] = Opinion(tier, blocked, keyed)
        self.policy_changed()

    def policy_changed(self):
        self.table = self._make_table(self.table.revision + 1)
        if not self.is_running:
            return
        for refusals in self.refusals.values():
            refusals.clear()
        for end in list(self.ends):
            end.handle(PolicyChanged(self.table))
        self.dialler.operator_decided()

    def _make_table(self, revision):
        pair = make_pair(self.number)
        keys = {pair.fingerprint: TrustedKey(self.node_id, pair.public, KeyStatus.TRUSTED)}
        standings = {}
        for node_id, opinion in self.opinions.of.items():
            other = make_pair(self.world.number_of[node_id])
            status = KeyStatus.TRUSTED if opinion.keyed else KeyStatus.UNCONFIRMED
            keys[other.fingerprint] = TrustedKey(node_id, other.public, status)
            standings[node_id] = Standing(node_id, Tier(opinion.tier), blocked=opinion.blocked, keyed=opinion.keyed)
        return TrustTable(self.node_id, standings, keys, revision)

    def publish(self, *, audience="core", size=0, ahead_ms=0):
        """Sign a packet and commit it; return its id."""
        self.numbers += 1
        created_at = self.now_ms + ahead_ms
        envelope = write_packet(self.number, f"{self.world.seed}.{self.numbers}" + "x" * size, created_at, audience)
        return self.keep(envelope)

    def keep(self, envelope):
        """Commit an own packet."""
        packet = read_packet(envelope.body)
        self.world.genuine[packet.packet_id] = envelope
        if self.disk.commit(envelope, None):
            if packet.audience is Audience.PRIVATE:
                self.private.add(packet.packet_id)
            if self.is_running:
                self.at(self.world.pause(), self._advance)
        return packet.packet_id

    def withdraw(self, packet_id, *, purge):
        """Hide or purge a packet, which changes what is offered."""
        if purge:
            self.disk.purge(packet_id)
            self.acknowledged.discard(packet_id)
        else:
            self.disk.hide(packet_id)
        if self.is_running:
            self.memory.forget(packet_id)
        self.policy_changed()

    def penalise(self, peer):
        self.penalised_until[peer] = self.world.now + penalty_length(self.penalties[peer])
        self.penalties[peer] += 1

    # --- links ---

    def link_ended(self, end, ending):
        if end in self.ends:
            self.ends.remove(end)
        if end.session.peer is not None and self.links.get(end.peer) is end:
            del self.links[end.peer]
        self.dialler.ended(end, ending)

    def _decide_link(self, end, peer):
        decision = self.table.may_link(peer)
        if not decision.allowed:
            return LinkRefused(Goodbye(decision.code), decision.reason)
        if self.penalised_until.get(peer, 0.0) > self.world.now:
            return LinkRefused(Goodbye.PENALTY, "refused for a while")
        earlier = self.links.get(peer)
        if earlier is not None and earlier is not end:
            theirs, ours = (self.node_id if one.dials else peer for one in (earlier, end))
            if theirs < ours:
                return LinkRefused(Goodbye.DUPLICATE, "another link between us stays")
        self.links[peer] = end
        if earlier is not None and earlier is not end:
            earlier.handle(EndRequested(Goodbye.DUPLICATE, "another link between us stays"))
        return LinkAllowed(self.table)

    # --- what the shell answers ---

    def ask(self, end, question):
        """Answer later, and in any order; what a batch brought is stored even if its link has ended by then."""
        if isinstance(question, JudgeBatch):
            self.at(self.world.pause(), lambda: self._admit(end, end.peer, question))
        else:
            self.at(self.world.pause(), lambda: self._answer(end, question))

    def _answer(self, end, question):
        if end.ending is not None:
            return
        match question:
            case Authenticated(manifest):
                answer = self._decide_link(end, manifest.node_id)
            case ReadFeed(after, limit):
                answer = FeedRead(*self.memory.read(after, limit))
            case LoadEnvelopes(ids, max_bytes):
                answer = EnvelopesLoaded(self._load(ids, max_bytes))
            case FindMissing(ids):
                known = self.disk.envelopes.keys() | self.disk.purged
                answer = MissingFound(ids, [packet_id for packet_id in ids if packet_id not in known])
            case LoadManifest(origin):
                number = self.world.number_of.get(origin)
                answer = ManifestLoaded(origin, None if number is None else identity(number).manifest)
            case _:
                raise TypeError(f"no question: {question!r}")
        # What was read a moment ago reaches the session a moment later, when it may be out of date.
        if isinstance(answer, LinkAllowed | LinkRefused):
            end.handle(answer)
        else:
            self.at(self.world.pause(), lambda: end.handle(answer))

    def _load(self, ids, max_bytes):
        loaded, size = [], 0
        for packet_id in ids:
            stored = self.disk.offered(packet_id)
            size += 0 if stored is None else len(stored.envelope.body)
            if loaded and size > max_bytes:
                break
            loaded.append((packet_id, stored))
        return loaded

    def _admit(self, end, peer, question):
        envelopes = question.envelopes
        for envelope in envelopes:
            if envelope is not None:
                packet_id = packet_id_of(envelope.body)
                self.bodies_in[packet_id] += 1
                self.asking.pop(packet_id, None)
        now_ms = self.now_ms
        outcomes = admit(
            envelopes,
            table=self.table,
            link_peer=peer,
            now_ms=now_ms,
            known=self.disk.envelopes,
            erased=dict.fromkeys(self.disk.purged, Code.RETRACTED),
            quota=lambda origin, packets, size: None,
        )
        for outcome in outcomes:
            if isinstance(outcome, Candidate) and outcome.packet.packet_id in self.disk.envelopes.keys() | self.disk.purged:
                raise Broken("a packet that is known here was to be verified again")
        self.at(self.world.pause(), lambda: self._settle(end, peer, question, outcomes, now_ms))

    def _settle(self, end, peer, question, outcomes, now_ms):
        results = []
        for envelope, outcome in zip(question.envelopes, outcomes, strict=True):
            if isinstance(outcome, Candidate):
                outcome = self._verify(outcome, peer, now_ms)
            if isinstance(outcome, Refused):
                due_in_s = max(envelope.timestamp - CLOCK_SKEW_MS - now_ms, 1_000) / 1000 if outcome.code is Code.EARLY else 0.0
                outcome = Judgement(outcome.code, outcome.packet_id, outcome.reason, due_in_s)
            results.append(outcome)
        if not self.pending:
            self.at(self.world.pause(), self._commit)
        self.pending.append((end, question, results))

    def _verify(self, candidate, peer, now_ms):
        try:
            verify_signature(candidate.packet, candidate.envelope, candidate.verify_key)
        except admission.PacketError as error:
            return Refused(candidate.packet.packet_id, candidate.packet.origin, error.code, str(error))
        packet = candidate.packet
        decision = self.table.may_accept(peer, packet.origin, packet.audience)
        if not decision.allowed:
            return Refused(packet.packet_id, packet.origin, Code(decision.code), decision.reason)
        if not self.opinions.accepts(peer, packet.origin, packet.audience.value):
            raise Broken("a packet is about to be stored against the policy")
        if max(packet.created_at, candidate.envelope.timestamp) > now_ms + 600_000:
            raise Broken("a packet is about to be stored more than ten minutes before its time")
        return Settled(candidate.envelope, packet, peer)

    def _commit(self):
        """All that waits becomes durable together, or is declined while the disk is full; only then Acks leave."""
        pending, self.pending = self.pending, []
        for end, question, results in pending:
            judgements = [self._store(result) if isinstance(result, Settled) else result for result in results]
            answer = BatchJudged(question.batch, judgements)
            self.at(self.world.pause(), lambda end=end, answer=answer: end.handle(answer))
        self.at(self.world.pause(), self._advance)

    def _store(self, settled):
        packet_id = settled.packet.packet_id
        if self.is_full:
            return Judgement(Code.BUSY, packet_id)
        genuine = self.world.genuine.get(packet_id)
        if genuine is None or genuine != settled.envelope:
            raise Broken("something nobody signed is about to be stored")
        if packet_id in self.disk.purged:
            return Judgement(Code.RETRACTED, packet_id)
        before = len(self.disk.rows)
        fresh = self.disk.commit(settled.envelope, settled.peer)
        if fresh != (len(self.disk.rows) == before + 1):
            raise Broken("a packet is stored twice")
        if fresh:
            self.world.arrived_at.setdefault(packet_id, {})[self.node_id] = self.world.now
        return Judgement(Code.ACCEPTED if fresh else Code.DUPLICATE, packet_id)

    def _advance(self):
        if self.memory.advance():
            for end in list(self.links.values()):
                end.handle(FeedAdvanced(self.memory.head))


class World:
    """Nodes, links, time and chance. The same seed and the same calls give the same run."""

    def __init__(self, seed, *, limits=None):
        self.seed = seed
        self.random = random.Random(seed)
        self.limits = limits or Limits()
        self.now = STARTED_AT
        self.nodes = []
        self.number_of = {}
        self.shut = set()
        self.pipes = []
        self.genuine = {}
        self.arrived_at = {}
        self.endings = Counter()
        self.events = 0
        self.fixed_latency = None
        self._trace = blake2b(digest_size=16)
        self._queue = []
        self._order = 0
        self._ends = 0

    @property
    def now_ms(self):
        return EPOCH_MS + round((self.now - STARTED_AT) * 1000)

    @property
    def trace(self):
        return self._trace.hexdigest()

    @property
    def honest(self):
        return [node for node in self.nodes if not node.is_villain]

    def note(self, number, what):
        """Take one thing that happened into the trace."""
        self._trace.update(f"{self.now:.6f} {number} ".encode())
        self._trace.update(what if isinstance(what, bytes) else what.encode())

    def latency(self):
        """One frame's way: mostly short, sometimes long."""
        if self.fixed_latency is not None:
            return self.fixed_latency
        return self.random.random() * (0.02 if self.random.random() < 0.95 else 0.8)

    def pause(self):
        """One answer of the store."""
        if self.fixed_latency is not None:
            return self.random.random() * 0.001
        return self.random.random() * (0.004 if self.random.random() < 0.97 else 0.4)

    def at(self, delay, action):
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, action))

    def add(self, node):
        self.nodes.append(node)
        self.number_of[node.local.node_id] = node.number
        return node

    def node(self, *, limits=None):
        return self.add(Node(self, len(self.nodes) + 1, limits or self.limits))

    def introduce(self, one, other):
        """Both know the other's address; whether they dial is each one's own decision."""
        for near, far in ((one, other), (other, one)):
            if far not in near.neighbours:
                near.neighbours.append(far)

    def connect(self, dialler, listener):
        near = dialler.open(dials=True) if dialler.is_villain else self._end(dialler, True, listener)
        far = listener.open(dials=False) if listener.is_villain else self._end(listener, False, dialler)
        near.out, far.out = Pipe(self, near, far), Pipe(self, far, near)
        near.other, far.other = far, near
        self.pipes = [pipe for pipe in self.pipes if not (pipe.is_broken and not pipe.items)]
        self.pipes += [near.out, far.out]
        for end in (near, far):
            end.handle(Opened())

    def _end(self, node, dials, other):
        self._ends += 1
        return End(node, dials=dials, expected=other.local.node_id if dials else None, number=self._ends)

    def count_ending(self, end, ending):
        self.endings[str(ending.goodbye or ending.close_code)] += 1
        is_known = end.session.peer is not None and not end.other.owner.is_villain
        if is_known and ending.goodbye in REPROACHES:
            raise Broken(f"one honest node reproaches another: {ending.goodbye} {ending.reason}")

    # --- the network's faults ---

    def is_shut(self, one, other):
        return (one.number, other.number) in self.shut

    def part(self, one, other):
        self.shut |= {(one.number, other.number), (other.number, one.number)}

    def heal(self):
        """Every way is open again; what was on its way goes on."""
        self.shut.clear()
        for pipe in self.pipes:
            pipe.flush()

    def live_links(self):
        """Return one pipe of each connection that stands on both sides."""
        return [pipe for pipe in self.pipes[::2] if not pipe.is_broken and pipe.source.ending is None]

    def cut(self, pipe):
        for one in (pipe, pipe.target.out):
            one.cut()

    # --- time ---

    def run_until(self, moment):
        while self._queue and self._queue[0][0] <= moment:
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Broken(f"no rest after {MAX_EVENTS} events")
            action()
        self.now = moment

    def run_for(self, seconds):
        self.run_until(self.now + seconds)

    # --- after the heal ---

    def shortfall(self):
        """Return what is still missing: links that should stand, and packets that one side owes another."""
        problems = []
        for node in self.honest:
            for peer in node.neighbours:
                if peer.is_villain:
                    continue
                near, far = node.opinions, peer.opinions
                links = near.about(peer.node_id).may_link and far.about(node.node_id).may_link
                if links and (near.dials(peer.node_id) or far.dials(node.node_id)):
                    link = node.links.get(peer.node_id)
                    if link is None or not link.is_up:
                        problems.append(f"{node.number} has no link with {peer.number}")
                    missing = sum(self._owes(node, peer, packet_id) for packet_id in node.disk.envelopes)
                    if missing:
                        problems.append(f"{node.number} owes {missing} packets to {peer.number}")
        return problems

    def unrest(self):
        """Return what is still under way, or left over, between honest nodes once nothing is missing."""
        problems = []
        for node in self.honest:
            problems += [
                f"{node.number} keeps a claim of an ended link"
                for link, _ in node.fetches._claims.values()
                if link not in {end.session for end in node.ends}
            ]
            for end in node.links.values():
                if end.other.owner.is_villain:
                    problems += end.other.unanswered()
                    continue
                if not end.is_up:
                    continue
                receiver, sender = end.session.state.receiver, end.session.state.sender
                if receiver._wants.unanswered or sender._wanted:
                    problems.append(f"a Want of {node.number} and {end.other.owner.number} has no answer")
                if receiver._open or sender._unacked:
                    problems.append(f"a batch of {node.number} and {end.other.owner.number} has no Ack")
                if receiver.awaits_scope:
                    problems.append(f"an Interest of {node.number} has no Scope")
        return problems

    def _owes(self, node, peer, packet_id):
        stored = node.disk.offered(packet_id)
        if stored is None or packet_id in peer.disk.envelopes or packet_id in peer.disk.purged:
            return False
        audience = stored.audience.value
        return node.opinions.sends(peer.node_id, stored.origin, audience) and peer.opinions.accepts(
            node.node_id, stored.origin, audience
        )
