"""One node that speaks the protocol and lies.

It holds a real key, links properly and then does, at random and from the world's seed, what a hostile peer may: forged
and altered packets, packets of others under its own key, Acks for nothing and none where they are due, Wants left
unanswered or answered with `gone`, announcements of what it never delivers, reconciliation that never ends, floods of
every message, and now and then the truth. What it holds is what honest nodes gave it.
"""

from dataclasses import replace
from hashlib import sha256

from federation.protocol import codec, messages
from federation.protocol.envelope import signing_input
from federation.protocol.errors import Code, RemoteProtocolError
from federation.protocol.events import EndLink, Opened, TransportClosed
from federation.protocol.handshake import CipherError, ClientHandshake, ServerHandshake
from federation.protocol.negentropy import INFINITY, Fingerprint, IdList, encode_ranges
from federation.protocol.packet import packet_id_of
from keys.ed25519 import sign
from tests.fakes import FakeSuite
from tests.simulator.world import identity, make_pair, write_packet

TURN_S = 1.0
PATIENCE_S = 20.0


def frame_of(*ranges):
    return b"\x61" + encode_ranges(ranges, 0)[0]


class Villain:
    """The lying node; `habits` are the lies it is fond of in this run."""

    is_villain = True
    is_running = True

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.local = identity(number)
        self.node_id = self.local.node_id
        self.neighbours = []
        self.ends = []
        self.envelopes = {}
        self.asking = {}
        self.own = 0
        self.habits = set(world.random.sample(HABITS, world.random.randint(2, len(HABITS))))
        world.at(world.random.random(), self._turn)

    def open(self, *, dials):
        end = VillainEnd(self, dials=dials)
        self.ends.append(end)
        return end

    def _turn(self):
        self.ends = [end for end in self.ends if end.ending is None]
        linked = {end.other.owner.number for end in self.ends}
        for node in self.neighbours:
            is_open = node.is_running and node.number not in linked and not self.world.is_shut(self, node)
            if is_open and self.world.random.random() < 0.3:
                self.world.connect(self, node)
        for end in list(self.ends):
            if end.is_up and self.world.random.random() < 0.6:
                end.misbehave()
        self.world.at(TURN_S * (0.5 + self.world.random.random()), self._turn)

    def genuine(self):
        """Return a packet of its own, properly signed."""
        self.own += 1
        envelope = write_packet(self.number, f"{self.world.seed}.{self.own}", self.world.now_ms, "core")
        packet_id = packet_id_of(envelope.body)
        self.world.genuine[packet_id] = envelope
        self.envelopes[packet_id] = envelope
        return envelope

    def forged(self):
        """Return an envelope nobody signed as it is: one of seven ways to lie about a packet."""
        chance = self.world.random
        known = list(self.envelopes.values())
        true = chance.choice(known) if known else self.genuine()
        honest = chance.choice(self.world.honest)
        fake = write_packet(self.number, f"forged {chance.random()}", self.world.now_ms, "core")
        as_another = fake.body.replace(self.node_id.hex().encode(), honest.node_id.hex().encode())
        by_own_key = sign(make_pair(self.number), signing_input(fake.timestamp, as_another))
        return chance.choice(
            (
                replace(true, signature=chance.randbytes(64)),
                replace(true, timestamp=true.timestamp + 1),
                replace(true, key_fingerprint=make_pair(self.number).fingerprint, signature=fake.signature),
                replace(fake, body=as_another, signature=by_own_key),
                replace(fake, body=as_another, key_fingerprint=make_pair(honest.number).fingerprint),
                replace(fake, body=fake.body + b" "),
                replace(fake, body=chance.randbytes(60)),
            )
        )


class VillainEnd:
    """One end of a link in the villain's hands."""

    is_deaf = False
    dials = False
    life = 0

    def __init__(self, villain, *, dials):
        self.owner = villain
        self.world = villain.world
        self.random = villain.world.random
        self.ending = None
        self.is_up = False
        self.out = None
        self.other = None
        self.sent_batches = {}
        self.interest = {}
        self._sent_at = {}
        self._wanted_at = {}
        self._dials = dials
        self._batch = 0
        self._unacked = 0
        self._open = []
        self._welcomed = False
        seed = self.random.randbytes(32)
        suite = FakeSuite()
        self._handshake = (
            ClientHandshake(villain.local, suite, seed, None) if dials else ServerHandshake(villain.local, suite, seed)
        )
        self._secured = None

    def handle(self, event):
        if isinstance(event, Opened) and self._dials:
            self.out.send(self._handshake.hello())

    def receive(self, item):
        if self.ending is not None:
            return
        if isinstance(item, TransportClosed):
            self.ending = EndLink(close_code=1006)
            return
        try:
            self._frame(item)
        except (RemoteProtocolError, CipherError):
            self.hang_up()

    def hang_up(self):
        if self.ending is None:
            self.ending = EndLink(close_code=1006)
            self.out.send(TransportClosed(None))

    def _frame(self, data):
        if self._secured is not None:
            plaintext, _ = self._secured.opener.open(data)
            self._message(codec.decode(plaintext))
        elif self._dials:
            if self._handshake.receive(data) is not None:
                self.out.send(self._handshake.auth())
                self._secured = self._handshake.secured()
                self._welcome()
        else:
            for frame in self._handshake.receive(data):
                self.out.send(frame)
            if self._handshake.peer is not None:
                self._secured = self._handshake.secured()
                self._welcome()

    def _welcome(self):
        window = self.random.choice(((512, 1024 * 1024), (256, 192 * 1024), (2**31, 2**31)))
        self.say(messages.Welcome(True, True, True, window, self.world.now_ms))

    def say(self, message):
        if self.ending is None and self._secured is not None:
            if isinstance(message, messages.Interest):
                self.interest = dict(message.rows)
            if isinstance(message, messages.Want):
                fresh = [packet_id for packet_id in message.ids if packet_id not in self.owner.envelopes]
                self._wanted_at.update(dict.fromkeys(fresh, self.world.now))
            data = message if isinstance(message, bytes) else codec.encode(message)
            self.out.send(self._secured.sealer.seal(data))

    def does(self, habit, share=0.5):
        return habit in self.owner.habits and self.random.random() < share

    # --- what it hears ---

    def _message(self, message):
        match message:
            case messages.Welcome():
                self.is_up = True
                self.say(messages.Interest([(node.local.node_id, 0) for node in self.world.nodes]))
            case messages.Bye():
                self.hang_up()
            case messages.Ping(clock):
                self.say(messages.Pong(clock + self.does("wrong acks", 0.05), self.world.now_ms))
            case messages.Interest():
                self._offer([origin for origin, _ in message.rows])
            case messages.Scope():
                for origin, count, *_ in message.rows[:8]:
                    if count and self.random.random() < 0.7:
                        self.say(messages.Reconcile(origin, messages.Role.REQUEST, frame_of(IdList(INFINITY, b""))))
            case messages.Reconcile(origin, messages.Role.REQUEST, _):
                self.say(messages.Reconcile(origin, messages.Role.ANSWER, self._answer_frame()))
            case messages.Reconcile(_, messages.Role.ANSWER, frame):
                self._want_from(frame)
            case messages.Want(ids):
                self._answer_wants(ids)
            case messages.Packets(batch, rows, gone):
                for packet_id in gone:
                    self._wanted_at.pop(packet_id, None)
                self._take(batch, rows)
            case messages.Ack():
                self._unacked = max(0, self._unacked - len(message.codes))
            case _:
                pass

    def _offer(self, origins):
        fingerprint = make_pair(self.owner.number).fingerprint
        rows = []
        for origin in origins:
            number = self.world.number_of.get(origin)
            key = fingerprint if number is None or self.does("forge", 0.2) else make_pair(number).fingerprint
            count = self.random.choice((0, 1, 40, 2**22, 2**53 - 1)) if self.does("endless") else 3
            rows.append((origin, count, self.random.randbytes(16), key))
        if not self.does("withhold", 0.1):
            self.say(messages.Scope(rows))

    def _answer_frame(self):
        if self.does("endless", 0.8):
            return frame_of(Fingerprint(INFINITY, self.random.randbytes(16)))
        ids = [sha256(self.random.randbytes(8)).digest() for _ in range(self.random.choice((0, 3, 300)))]
        return frame_of(IdList(INFINITY, b"".join(sorted([*ids, *list(self.owner.envelopes)[:200]]))))

    def _want_from(self, frame):
        ids = [frame[start : start + 32] for start in range(len(frame) % 32, len(frame), 32)][:64]
        if ids:
            self.say(messages.Want(ids))

    def _answer_wants(self, ids):
        if self.does("withhold", 0.8):
            return
        known = [self.owner.envelopes[packet_id] for packet_id in ids if packet_id in self.owner.envelopes]
        envelopes = [self.owner.forged() if self.does("forge", 0.3) else envelope for envelope in known][:200]
        self.packets(envelopes, [packet_id for packet_id in ids if packet_id not in self.owner.envelopes])

    def packets(self, envelopes, gone=()):
        if self._unacked + len(envelopes) > 400 and not self.does("flood"):
            return
        self.say(codec.encode_packets(self._batch, envelopes, list(gone)))
        self.sent_batches[self._batch] = [packet_id_of(envelope.body) for envelope in envelopes]
        for packet_id in gone:
            self.other.owner.asking.pop(packet_id, None)
        self._sent_at[self._batch] = self.world.now
        self._batch += 1
        self._unacked += len(envelopes)

    def _take(self, batch, rows):
        for row in rows:
            envelope = codec.decode_row(row)
            packet_id = packet_id_of(envelope.body)
            self.owner.envelopes[packet_id] = envelope
            self._wanted_at.pop(packet_id, None)
        if self.does("no acks", 0.5):
            return
        codes = [Code.ACCEPTED] * len(rows)
        if self.does("wrong acks", 0.4):
            codes = [self.random.choice(list(Code)) for _ in rows]
        if self.does("wrong acks", 0.02):
            batch, codes = batch + 7, [*codes, Code.ACCEPTED]
        self.say(messages.Ack(batch, codes))

    # --- what it does of itself ---

    def misbehave(self):
        chance = self.random
        if self.does("genuine", 0.3):
            self.packets([self.owner.genuine()])
        if self.does("announce"):
            origin = chance.choice(self.world.nodes).local.node_id
            self.say(messages.Have([(origin, chance.randbytes(32)) for _ in range(chance.choice((1, 50, 400)))]))
        if self.does("forge", 0.3):
            self.packets([self.owner.forged() for _ in range(chance.randint(1, 4))])
        if self.does("endless", 0.15):
            origin = chance.choice((self.other.owner, *self.world.nodes)).local.node_id
            for _ in range(chance.choice((1, 80))):
                frame = frame_of(Fingerprint(INFINITY, chance.randbytes(16)))
                self.say(messages.Reconcile(origin, messages.Role.REQUEST, frame))
        if self.does("flood", 0.2):
            self._flood()
        if self.does("replay", 0.3) and self.owner.envelopes:
            self.packets(chance.choices(list(self.owner.envelopes.values()), k=chance.randint(1, 20)))
        if chance.random() < 0.02:
            self.hang_up()

    def unanswered(self):
        """Return what this end has waited for too long: liars are owed answers too."""
        owed = []
        before = self.world.now - PATIENCE_S
        if any(self._sent_at[batch] < before for batch in self.sent_batches):
            owed.append("a batch of the villain has no Ack")
        acknowledges = self.owner.habits.isdisjoint({"no acks", "wrong acks"})
        if acknowledges and any(moment < before for moment in self._wanted_at.values()):
            owed.append("a Want of the villain has no answer")
        return owed

    def _flood(self):
        chance = self.random
        nodes = [node.local.node_id for node in self.world.nodes]
        match chance.randrange(9):
            case 0:
                for _ in range(3):
                    self.say(messages.Want([chance.randbytes(32) for _ in range(400)]))
            case 1:
                for _ in range(40):
                    self.say(messages.Interest([(origin, 2**40) for origin in nodes]))
            case 2:
                for _ in range(40):
                    self.say(messages.GetManifest(chance.choice([*nodes, chance.randbytes(16)])))
            case 3:
                for _ in range(40):
                    self.say(messages.Ping(chance.getrandbits(40)))
            case 4:
                for _ in range(40):
                    self._offer(nodes)
            case 5:
                for _ in range(20):
                    self.packets([], [chance.randbytes(32) for _ in range(20)])
            case 6:
                self.say(chance.choice((b"", b"\x91\x63", chance.randbytes(40), b"\x92\xcc\x80\x00", b"\xc1" * 500)))
            case 7:
                for _ in range(60):
                    self.say(messages.Prefer(chance.choice(list(messages.Preference))))
            case 8:
                for _ in range(3):
                    self.packets([self.owner.genuine()] * 200)


HABITS = ("genuine", "forge", "withhold", "announce", "endless", "flood", "no acks", "wrong acks", "replay")
