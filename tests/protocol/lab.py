"""A laboratory for links: nodes without sockets, databases or clocks, joined in memory.

Each `Node` holds a trust table, a store and the real PeerSessions of its links. `Lab` owns time and order: frames,
questions to the store and their answers wait in queues, and each step picks one queue at random (from the lab's
seed), so that answers come late and links overtake each other, while each queue keeps its order. Nothing runs on its
own: `run` goes on until all queues are empty, `pass_time` moves the clock from one deadline to the next. Both give up
after a number of steps, so a pair that never falls silent is a failure and no endless test.

After each event the lab checks what must always hold: windows, bounds of every collection, and that nothing leaves a
node against its trust table. `Probe` is a peer written by hand: it says what a test tells it to and keeps what it hears.
"""

import random
from collections import deque
from dataclasses import replace
from functools import lru_cache

from federation.protocol import codec, messages
from federation.protocol.admission import Candidate, Refused, admit, verify_candidates
from federation.protocol.envelope import sign_packet
from federation.protocol.errors import Code, Goodbye
from federation.protocol.events import (
    Authenticated,
    BatchJudged,
    EndLink,
    EnvelopesLoaded,
    FeedAdvanced,
    FeedRead,
    FeedRow,
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
    StoredEnvelope,
    TimerFired,
    TransportClosed,
)
from federation.protocol.fetches import FetchBoard
from federation.protocol.handshake import ClientHandshake, ServerHandshake
from federation.protocol.itemset import ItemSet
from federation.protocol.limits import CLOCK_SKEW_MS, Limits
from federation.protocol.packet import build_packet, packet_id_of, parse_packet
from federation.protocol.recent import Refusals
from federation.protocol.session import Linked, PeerSession
from peers.trust import Audience, KeyStatus, Standing, Tier, TrustedKey, TrustTable
from tests.fakes import FakeSuite
from tests.identities import make_local, make_pair

EPOCH_MS = 1_760_000_000_000
MAX_STEPS = 200_000


@lru_cache(maxsize=200_000)
def make_envelope(author, number, *, audience=None, size=0, signer=None, ahead_ms=0):
    """Return the envelope of packet `number` of node `author`; the same arguments give the same bytes."""
    local = make_local_cached(author)
    packet = build_packet(
        origin=local.node_id,
        kind="note.text",
        content=f"{number}" + "x" * size,
        created_at=EPOCH_MS - 10_000_000 + number * 700 + ahead_ms,
        audience=audience,
    )
    return sign_packet(make_pair(signer or author), packet, timestamp=EPOCH_MS + ahead_ms)


@lru_cache(maxsize=200_000)
def read_packet(body):
    return parse_packet(body)


@lru_cache
def make_local_cached(number):
    return make_local(number)


class RecordingSealer:
    def __init__(self, sealer, record):
        self._sealer = sealer
        self._record = record

    def seal(self, plaintext, final=False):
        self._record.append(plaintext)
        return self._sealer.seal(plaintext, final)


class RecordingSuite(FakeSuite):
    """Keeps the plaintext of everything sealed."""

    def __init__(self, record):
        self.record = record

    def sealer(self, key):
        return RecordingSealer(super().sealer(key), self.record)


class Store:
    """Packets of one node in arrival order, and the catalogue its sessions reconcile with."""

    def __init__(self):
        self.rows = []
        self.envelopes = {}
        self.purged = set()
        self.sets = {}
        self.head = 0

    def summary(self, origin):
        items = self.items(origin)
        return len(items), items.fingerprint()

    def items(self, origin):
        return self.sets.setdefault(origin, ItemSet())

    def add(self, envelope, received_from):
        packet = read_packet(envelope.body)
        assert packet.packet_id not in self.envelopes, "a packet is stored once"
        self.head += 1
        self.envelopes[packet.packet_id] = StoredEnvelope(envelope, packet.origin, packet.audience)
        self.rows.append(
            FeedRow(
                arrival=self.head,
                packet_id=packet.packet_id,
                origin=packet.origin,
                audience=packet.audience,
                created_at=packet.created_at,
                size=len(envelope.body),
                received_from=received_from,
            )
        )
        if packet.audience is not Audience.PRIVATE:
            self.items(packet.origin).add(packet.created_at // 1000, packet.packet_id)
        return packet.packet_id

    def hide(self, packet_id):
        for place, row in enumerate(self.rows):
            if row.packet_id == packet_id:
                self.rows[place] = replace(row, hidden=True)
                self.items(row.origin).discard(row.created_at // 1000, packet_id)

    @property
    def hidden(self):
        return {row.packet_id for row in self.rows if row.hidden}


class Node:
    """One node: its identity, trust, store and links."""

    def __init__(self, lab, number, limits):
        self.lab = lab
        self.number = number
        self.local = make_local_cached(number)
        self.node_id = self.local.node_id
        self.limits = limits
        self.store = Store()
        self.fetches = FetchBoard()
        self.refusals = {}
        self.ends = []
        self.busy = False
        self.offset_ms = 0
        pair = make_pair(number)
        own = TrustedKey(self.node_id, pair.public, KeyStatus.TRUSTED)
        self.table = TrustTable(self.node_id, {}, {pair.fingerprint: own})

    # --- what the operator does ---

    def trust(self, other, tier, *, blocked=False, key_status=KeyStatus.TRUSTED):
        """Decide about another node; every link hears of it at once."""
        pair = make_pair(other.number)
        standing = Standing(other.node_id, tier, blocked=blocked, keyed=key_status is KeyStatus.TRUSTED)
        key = TrustedKey(other.node_id, pair.public, key_status)
        self.set_table(
            replace(
                self.table,
                standings={**self.table.standings, other.node_id: standing},
                keys={**self.table.keys, pair.fingerprint: key},
            )
        )

    def set_table(self, table):
        self.table = replace(table, revision=self.table.revision + 1)
        for end in list(self.ends):
            end.handle(PolicyChanged(self.table))

    def publish(self, number, **kwargs):
        """Store an own packet and let the links know; return its id."""
        return self.take(make_envelope(self.number, number, **kwargs))

    def take(self, envelope, received_from=None):
        packet_id = self.store.add(envelope, received_from)
        for end in self.ends:
            end.answers.append(FeedAdvanced(self.store.head))
        return packet_id

    def hide(self, packet_id):
        self.store.hide(packet_id)
        self.set_table(self.table)

    # --- what a shell answers ---

    def answer(self, end, question):
        match question:
            case Authenticated(manifest):
                decision = self.table.may_link(manifest.node_id)
                if decision.allowed:
                    return LinkAllowed(self.table)
                return LinkRefused(Goodbye(decision.code), decision.reason)
            case JudgeBatch(batch, envelopes):
                return BatchJudged(batch, self.judge(end.session.peer_id, envelopes))
            case ReadFeed(after, limit):
                rows = list(self.store.rows[after : after + limit])
                return FeedRead(rows, rows[-1].arrival if rows else self.store.head)
            case LoadEnvelopes(ids, max_bytes):
                return EnvelopesLoaded(self.load(ids, max_bytes))
            case FindMissing(ids):
                return MissingFound(ids, [i for i in ids if i not in self.store.envelopes and i not in self.store.purged])
            case LoadManifest(origin):
                others = [node.local for node in self.lab.nodes if node.node_id == origin]
                return ManifestLoaded(origin, others[0].manifest if others else None)
        raise AssertionError(question)

    def load(self, ids, max_bytes):
        loaded, size, hidden = [], 0, self.store.hidden
        for packet_id in ids:
            stored = None if packet_id in hidden else self.store.envelopes.get(packet_id)
            size += 0 if stored is None else len(stored.envelope.body)
            if loaded and size > max_bytes:
                break
            loaded.append((packet_id, stored))
        return loaded

    def judge(self, peer, envelopes):
        if self.busy:
            return [Judgement(Code.BUSY, packet_id_of(e.body) if e else None) for e in envelopes]
        now_ms = self.lab.now_ms + self.offset_ms
        outcomes = admit(
            envelopes,
            table=self.table,
            link_peer=peer,
            now_ms=now_ms,
            known=self.store.envelopes,
            quota=lambda origin, packets, size: None,
        )
        verified = iter(verify_candidates([outcome for outcome in outcomes if isinstance(outcome, Candidate)]))
        judgements = []
        for envelope, outcome in zip(envelopes, outcomes, strict=True):
            outcome = next(verified) if isinstance(outcome, Candidate) else outcome
            if isinstance(outcome, Refused):
                due_in_s = 0.0
                if outcome.code is Code.EARLY:
                    due_in_s = (envelope.timestamp - CLOCK_SKEW_MS - now_ms) / 1000
                judgements.append(Judgement(outcome.code, outcome.packet_id, outcome.reason, due_in_s))
            elif outcome.packet.packet_id in self.store.envelopes:
                judgements.append(Judgement(Code.DUPLICATE, outcome.packet.packet_id))
            else:
                self.take(outcome.envelope, received_from=peer)
                judgements.append(Judgement(Code.ACCEPTED, outcome.packet.packet_id))
        return judgements

    def learn(self, signed):
        """Take over the key of an arrived manifest, as the registry does for a node it knows."""
        if signed.node_id in self.table.standings:
            key = TrustedKey(signed.node_id, signed.verify_key, KeyStatus.TRUSTED)
            self.set_table(replace(self.table, keys={**self.table.keys, signed.key_fingerprint: key}))

    @property
    def ids(self):
        return set(self.store.envelopes)


class End:
    """One end of a link: a PeerSession, what waits for it, and what it said."""

    def __init__(self, lab, node, *, dials, other=None):
        self.lab = lab
        self.node = node
        self.other = other
        self.inbox = deque()
        self.questions = deque()
        self.answers = deque()
        self.ending = None
        self.penalties = []
        self.manifests = []
        self.is_up = False
        self._sealed = []
        self._read = 0
        suite = RecordingSuite(self._sealed)
        seed = lab.random.randbytes(32)
        handshake = ClientHandshake(node.local, suite, seed, None) if dials else ServerHandshake(node.local, suite, seed)
        self.session = PeerSession(
            handshake=handshake,
            table=node.table,
            limits=node.limits,
            catalogue=node.store,
            fetches=node.fetches,
            refusals=lambda peer: node.refusals.setdefault(peer, Refusals(node.limits.refusals_per_peer)),
            chance=lab.random.random,
            now=lab.now,
        )
        node.ends.append(self)

    def handle(self, event):
        effects = self.session.handle(event, now=self.lab.now, now_ms=self.lab.now_ms + self.node.offset_ms)
        self._check_said()
        for effect in effects:
            self._execute(effect)
        check_bounds(self.session)
        return effects

    def _execute(self, effect):
        match effect:
            case SendFrame(data):
                self.other.inbox.append(data)
            case EndLink():
                self.ending = effect
                self.node.ends.remove(self)
                self.questions.clear()
                self.answers.clear()
                if self.other is not None:
                    self.other.inbox.append(TransportClosed(effect.close_code))
            case LinkUp():
                self.is_up = True
            case Penalise(reason):
                self.penalties.append(reason)
            case ManifestArrived(signed):
                self.manifests.append(signed)
                self.node.learn(signed)
            case _:
                self.questions.append(effect)

    @property
    def said(self):
        """Every message this end sealed, decoded."""
        return [codec.decode(plaintext) for plaintext in self._sealed]

    def said_of(self, kind):
        return [message for message in self.said if isinstance(message, kind)]

    @property
    def linked(self):
        assert isinstance(self.session.state, Linked), self.session.state
        return self.session.state

    def _check_said(self):
        """Nothing leaves against this node's trust table, and nothing hidden."""
        fresh, self._read = self._sealed[self._read :], len(self._sealed)
        for plaintext in fresh:
            if plaintext[1:2] not in (b"\x0c", b"\x0e"):
                continue
            message = codec.decode(plaintext)
            if isinstance(message, messages.Packets):
                ids = [packet_id_of(codec.decode_row(row).body) for row in message.rows]
            else:
                ids = [packet_id for _, packet_id in message.rows]
            hidden = self.node.store.hidden
            for packet_id in ids:
                stored = self.node.store.envelopes[packet_id]
                decision = self.node.table.may_send(self.session.peer_id, stored.origin, stored.audience)
                assert decision.allowed, f"{type(message).__name__} against the policy: {decision}"
                assert packet_id not in hidden, f"{type(message).__name__} of a hidden packet"

    # --- the lab's choices ---

    def steps(self):
        if self.ending is not None:
            return []
        queues = (self.inbox, self._take_frame), (self.questions, self._ask), (self.answers, self._answer)
        return [step for queue, step in queues if queue]

    def _take_frame(self):
        item = self.inbox.popleft()
        self.handle(item if isinstance(item, TransportClosed) else FrameArrived(item))

    def _ask(self):
        self.answers.append(self.node.answer(self, self.questions.popleft()))

    def _answer(self):
        self.handle(self.answers.popleft())


class Lab:
    """Nodes, links, time and chance."""

    def __init__(self, seed=0, limits=None):
        self.seed = seed
        self.random = random.Random(seed)
        self.limits = limits or Limits()
        self.now = 1_000.0
        self.nodes = []
        self.ends = []

    @property
    def now_ms(self):
        return EPOCH_MS + round((self.now - 1_000) * 1000)

    def node(self, *, limits=None):
        node = Node(self, len(self.nodes) + 1, limits or self.limits)
        self.nodes.append(node)
        return node

    def nodes_trusting(self, count, tier=Tier.CORE):
        """Return nodes that put each other in one tier."""
        nodes = [self.node() for _ in range(count)]
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.trust(other, tier)
        return nodes

    def connect(self, dialler, listener):
        """Open a link; nothing is said on it until the lab runs."""
        near, far = End(self, dialler, dials=True), End(self, listener, dials=False)
        near.other, far.other = far, near
        self.ends += [near, far]
        near.handle(Opened())
        return near, far

    def join(self, dialler, listener):
        """Open a link and run until nothing more happens."""
        ends = self.connect(dialler, listener)
        self.run()
        return ends

    def cut(self, end):
        """Lose the connection, and what was on its way."""
        for one in (end, end.other):
            one.inbox.clear()
            if one.ending is None:
                one.handle(TransportClosed(1006))
            one.inbox.clear()

    def step(self):
        """Do one of the things that can happen now; return False when there is none."""
        steps = [step for end in self.ends for step in end.steps()]
        if not steps:
            return False
        self.random.choice(steps)()
        return True

    def run(self, most=MAX_STEPS):
        """Go on until nothing more happens at this moment."""
        for _ in range(most):
            if not self.step():
                self.ends = [end for end in self.ends if end.ending is None]
                return
        raise AssertionError(f"no rest after {most} steps (seed {self.seed})")

    def pass_time(self, seconds, most=20_000):
        """Let time pass, timers firing when they are due."""
        until = self.now + seconds
        for _ in range(most):
            self.run()
            moments = [end.session.deadline for end in self.ends]
            moment = min((moment for moment in moments if moment is not None), default=until)
            if moment > until:
                break
            self.now = max(self.now, moment)
            due = [end for end in self.ends if end.session.deadline is not None and end.session.deadline <= self.now]
            if not due:
                break
            for end in due:
                if end.ending is None:
                    end.handle(TimerFired())
        else:
            raise AssertionError(f"timers never rest (seed {self.seed})")
        self.now = until
        self.run()


class Probe:
    """A peer under the test's control: handshake and cipher are real, everything after is what the test sends.

    Frames of the session under test come into `inbox`, which the lab never empties; `heard` decodes them.
    """

    def __init__(self, lab, node, number=77, *, dials=True, welcome=True, push=True, pull=True, window=None):
        self.lab = lab
        self.node_id = make_local_cached(number).node_id
        self.number = number
        self.inbox = deque()
        self.closed = None
        self._messages = []
        local = make_local_cached(number)
        suite = FakeSuite()
        seed = bytes([number]) * 32
        self.end = End(lab, node, dials=not dials, other=self)
        lab.ends.append(self.end)
        if dials:
            handshake = ClientHandshake(local, suite, seed, None)
            self.end.inbox.append(handshake.hello())
            lab.run()
            handshake.receive(self.inbox.popleft())
            handshake.receive(self.inbox.popleft())
            self.end.inbox.append(handshake.auth())
        else:
            self.end.handle(Opened())
            handshake = ServerHandshake(local, suite, seed)
            self.end.inbox.extend(handshake.receive(self.inbox.popleft()))
            lab.run()
            handshake.receive(self.inbox.popleft())
        secured = handshake.secured()
        self.sealer, self.opener = secured.sealer, secured.opener
        self.send()
        if welcome:
            self.send(messages.Welcome(push, pull, True, window or (512, 1024 * 1024), EPOCH_MS))

    def seal(self, message, final=None):
        final = isinstance(message, messages.Bye) if final is None else final
        data = message if isinstance(message, bytes) else codec.encode(message)
        return self.sealer.seal(data, final)

    def send(self, *sent, final=None):
        """Send messages (or raw plaintext) and run until all is answered."""
        for message in sent:
            self.end.inbox.append(self.seal(message, final))
        self.lab.run()

    def packets(self, batch, envelopes, gone=()):
        self.send(codec.encode_packets(batch, envelopes, list(gone)))

    @property
    def heard(self):
        """Everything the session said after the handshake, in order."""
        while self.inbox:
            item = self.inbox.popleft()
            if isinstance(item, TransportClosed):
                self.closed = item.close_code
            else:
                self._messages.append(codec.decode(self.opener.open(item)[0]))
        return self._messages

    def heard_of(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]

    def last(self, kind):
        return self.heard_of(kind)[-1]

    @property
    def goodbye(self):
        """The Goodbye heard, and the close code; (None, None) while the link stands."""
        byes = self.heard_of(messages.Bye)
        return (byes[-1].code if byes else None), self.closed


# Every collection of the two halves, by name; one that is missing here fails the walk below.
BOUNDS = {
    "Sender": {
        "_interest": 2_048,
        "_scope": 2_048,
        "_ever_in_scope": 10_000,
        "_rounds": 2_048,
        "_manifests_wanted": 2_048,
        "_live": 256 + 512,
        "_wanted": 1_024,
        "_loaded": 256,
        "_gone": 256,
        "_unacked": 1_024,
        "_unacked_ids": 512,
        "_have": 1_024,
        "_announced": 8_192,
        "_announced_origins": 2_048,
        "_in_vain": 2_048,
        "_unsure": 256 + 512,
        "_peer_has": 8_192,
    },
    "Receiver": {"_interest": 2_048, "_manifests_awaited": 256, "_again": 64, "_keys_asked": 2_048, "_open": 512},
    "Wants": {
        "_announced": 8_192,
        "_needed": 8_192 + 8 * 1_875,
        "_deferred": 8_192 + 8 * 1_875,
        "_waiting": 1_024,
        "_late": 1_024,
        "_judging": 512,
    },
    "CatchUp": {"_queued": 2_048, "_running": 8, "_held": 8, "_open": 8, "_overtaken": 8, "_rounds": 2_048, "_most_rounds": 2_048},
}
SHARED = {"_table", "_limits", "_catalogue", "_stats", "_fetches", "_refused", "_wants", "_catch_up"}


def check_bounds(session):
    """Windows and every collection of a linked session are within their bounds."""
    state = session.state
    assert len(session._pings) <= 8
    if not isinstance(state, Linked):
        return
    sender, receiver = state.sender, state.receiver
    for packets, size in (sender.in_flight, receiver.in_flight):
        assert packets <= session._limits.window_packets
        assert size <= session._limits.window_bytes
    assert receiver._wants.unanswered <= 1_024
    for half in (sender, receiver, receiver._wants, receiver._catch_up):
        bounds = BOUNDS[type(half).__name__]
        for name, value in vars(half).items():
            if name not in SHARED and hasattr(value, "__len__") and not isinstance(value, str | bytes):
                assert len(value) <= bounds[name], f"{type(half).__name__}.{name} holds {len(value)}"
