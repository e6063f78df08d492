"""A middle between two real nodes with the real cipher: as a wire it is harmless, anything more ends the handshake.

Each scenario is a function that sees every frame on its way and says what is delivered in its place. Three kinds of middle:
one that has only the frames, one that puts its own ephemeral keys between the two, and one that (impossibly) knows the
stream keys of both and so can change what is sealed. None of them has an identity key of the two.
"""

from dataclasses import dataclass, field

import pytest

from federation.cipher import SodiumOpener, SodiumSuite
from federation.protocol.codec import decode, encode
from federation.protocol.errors import HandshakeError
from federation.protocol.handshake import (
    CLIENT_AUTH_LABEL,
    SERVER_AUTH_LABEL,
    CipherError,
    ClientHandshake,
    ServerHandshake,
    transcript_hash,
)
from federation.protocol.messages import Auth, Bye, HelloClient, HelloServer
from tests.identities import make_local, make_manifest
from tests.protocol.build_vectors import FixedSealer

CLIENT, SERVER, MIDDLE = make_local(1), make_local(2), make_local(3)
SUITE = SodiumSuite()
MIDDLE_PUBLIC, MIDDLE_SECRET = SUITE.keypair(b"m" * 32)
LOW_ORDER = [bytes(32), b"\x01" + bytes(31), (2**255 - 20).to_bytes(32, "little"), b"\xff" * 32]


class LeakySuite(SodiumSuite):
    """The real suite, and what it derived."""

    def __init__(self):
        self.sends_with = self.receives_with = b""

    def sealer(self, key):
        self.sends_with = key
        return super().sealer(key)

    def opener(self, key):
        self.receives_with = key
        return super().opener(key)


@dataclass
class Node:
    """One end as a driver would run it: answers what it receives, closes at the first error and says nothing then."""

    name: str
    handshake: ClientHandshake | ServerHandshake
    suite: LeakySuite
    closed: bool = False
    received: list = field(default_factory=list)
    """Plaintexts delivered after the handshake."""
    _secured: object = None

    @property
    def secured(self):
        return self._secured is not None and not self.closed

    def deliver(self, frame):
        """Return the frames this end answers with."""
        if self.closed:
            return []
        try:
            if self._secured is not None:
                self.received.append(self._secured.opener.open(frame))
                return []
            if isinstance(self.handshake, ClientHandshake):
                if self.handshake.receive(frame) is None:
                    return []
                auth = self.handshake.auth()
                self._secured = self.handshake.secured()
                return [auth, self._secured.sealer.seal(b"client's welcome")]
            answers = self.handshake.receive(frame)
            if self.handshake.peer is None:
                return answers
            self._secured = self.handshake.secured()
            return [self._secured.sealer.seal(b"server's welcome")]
        except (HandshakeError, CipherError):
            self.closed = True
            return []


NAMES = {
    "server": ["hello_client", "client_auth", "client_welcome"],
    "client": ["hello_server", "server_auth", "server_welcome"],
}


@dataclass
class Link:
    """Two nodes, a middle, and everything that passed."""

    client: Node
    server: Node
    sent: dict = field(default_factory=dict)
    """Frames as the ends sent them, by name."""

    def run(self, middle=None):
        """Relay until nothing is left; `middle(link, name, to, frame)` returns what to deliver as (to, frame) pairs."""
        waiting = [("server", self.client.handshake.hello())]
        counts = {"client": 0, "server": 0}
        for _ in range(40):
            if not waiting:
                return self
            to, frame = waiting.pop(0)
            if counts[to] == len(NAMES[to]):
                raise AssertionError("an end says more than a handshake and its Welcome")
            name = NAMES[to][counts[to]]
            counts[to] += 1
            self.sent[name] = frame
            for target, delivered in middle(self, name, to, frame) if middle else [(to, frame)]:
                node = self.client if target == "client" else self.server
                other = "server" if target == "client" else "client"
                waiting += [(other, answer) for answer in node.deliver(delivered)]
        raise AssertionError("the relay never ends")


def make_link(tag=b"1", *, client=CLIENT, server=SERVER, expected=SERVER.node_id):
    suites = LeakySuite(), LeakySuite()
    return Link(
        Node("client", ClientHandshake(client, suites[0], (b"c" + tag) * 16, expected), suites[0]),
        Node("server", ServerHandshake(server, suites[1], (b"s" + tag) * 16), suites[1]),
    )


def change(name, edit):
    """Return a middle that delivers `edit(link, frame)` in place of the named frame."""

    def middle(link, current, to, frame):
        return [(to, edit(link, frame) if current == name else frame)]

    return middle


def hello_client(**fields):
    def edit(link, frame):
        hello = decode(frame)
        values = {"versions": hello.versions, "network": hello.network, "key": hello.key} | fields
        return encode(HelloClient(**values))

    return change("hello_client", edit)


def hello_server(**fields):
    def edit(link, frame):
        hello = decode(frame)
        values = {"version": hello.version, "network": hello.network, "key": hello.key} | fields
        return encode(HelloServer(**values))

    return change("hello_server", edit)


def flip(position, bit=1):
    def edit(link, frame):
        changed = bytearray(frame)
        changed[position] ^= bit
        return bytes(changed)

    return edit


def resealed(name, edit):
    """Return a middle that knows the stream keys: it opens the named Auth, edits it and seals it as its sender would."""

    def reseal(link, frame):
        suite = link.server.suite if name == "server_auth" else link.client.suite
        plaintext, _ = SodiumOpener(suite.sends_with).open(frame)
        edited = edit(link, plaintext)
        return FixedSealer(suite.sends_with, frame[:24]).seal(edited)

    return change(name, reseal)


def auth_with(**fields):
    def edit(link, plaintext):
        auth = decode(plaintext)
        return encode(Auth(**({"manifest": auth.manifest, "signature": auth.signature} | fields)))

    return edit


def flip_in_auth(part):
    def edit(link, plaintext):
        auth = decode(plaintext)
        (body, signature), proof = auth.manifest, auth.signature
        match part:
            case "manifest":
                body = flip(len(body) // 2)(link, body)
            case "manifest signature":
                signature = flip(5)(link, signature)
            case "signature":
                proof = flip(5)(link, proof)
        return encode(Auth((body, signature), proof))

    return edit


def sign_as(local, label, *names, network="arklattice"):
    """Return an edit that puts another identity's true Auth, over the named plaintexts as the ends sent them."""

    def edit(link, plaintext):
        parts = []
        for name in names:
            part = link.sent[name]
            parts.append(SodiumOpener(link.server.suite.sends_with).open(part)[0] if name == "server_auth" else part)
        signature = local.sign(label + transcript_hash(*parts, local.manifest.body))
        return encode(Auth((local.manifest.body, local.manifest.signature), signature))

    return edit


def drop(name):
    return lambda link, current, to, frame: [] if current == name else [(to, frame)]


def double(name):
    return lambda link, current, to, frame: [(to, frame)] * (2 if current == name else 1)


def reflect(name):
    """Return a middle that throws a frame back to its sender and lets nothing through."""
    back = {"client": "server", "server": "client"}
    return lambda link, current, to, frame: [(back[to], frame)] if current == name else [(to, frame)]


def swap(first, second):
    """Return a middle that delivers two frames of one direction in the other order."""

    def middle(link, current, to, frame):
        if current == first:
            return []
        return [(to, frame), (to, link.sent[first])] if current == second else [(to, frame)]

    return middle


def both_keys():
    """Return the classical middle: its own ephemeral keys towards both, everything opened, sealed again and passed on."""
    known = {}

    def middle(link, current, to, frame):
        if current == "hello_client":
            known["client"] = decode(frame).key
            return hello_client(key=MIDDLE_PUBLIC)(link, current, to, frame)
        if current == "hello_server":
            rx, tx = SUITE.client_keys(MIDDLE_PUBLIC, MIDDLE_SECRET, decode(frame).key)
            known["from server"], known["to server"] = SUITE.opener(rx), SUITE.sealer(tx)
            rx, tx = SUITE.server_keys(MIDDLE_PUBLIC, MIDDLE_SECRET, known["client"])
            known["from client"], known["to client"] = SUITE.opener(rx), SUITE.sealer(tx)
            return hello_server(key=MIDDLE_PUBLIC)(link, current, to, frame)
        sender = "server" if to == "client" else "client"
        plaintext, _ = known[f"from {sender}"].open(frame)
        return [(to, known[f"to {to}"].seal(plaintext))]

    return middle


def own_identity_to_client(link, current, to, frame):
    """A middle with an identity of its own answers in place of the server that was dialled."""
    if current != "hello_client":
        return []
    listener = ServerHandshake(MIDDLE, SUITE, b"m" * 32)
    return [("client", answer) for answer in listener.receive(frame)]


def goodbye_in_the_clear(link, current, to, frame):
    return [(to, encode(Bye("blocked", "go away")))] if current == "hello_server" else [(to, frame)]


RENAMED = make_manifest(2, name="another name")

# Frames only: name, attacked side, middle.
PASSIVE = [
    ("hello client: a version added", "client", hello_client(versions=[1, 0])),
    ("hello client: versions reordered to a lower one", "client", hello_client(versions=[0, 1])),
    ("hello client: no version left in common", "both", hello_client(versions=[0])),
    ("hello client: another network", "both", hello_client(network="other")),
    ("hello client: the middle's key", "client", hello_client(key=MIDDLE_PUBLIC)),
    *((f"hello client: low-order key {key.hex()[:4]}", "both", hello_client(key=key)) for key in LOW_ORDER),
    ("hello client: a bit of the key", "client", change("hello_client", flip(-2))),
    ("hello client: a longer encoding", "both", change("hello_client", lambda link, frame: b"\xdc\x00\x04" + frame[1:])),
    ("hello client: cut", "both", change("hello_client", lambda link, frame: frame[:-1])),
    ("hello server: a lower version", "client", hello_server(version=0)),
    ("hello server: a higher version", "client", hello_server(version=2)),
    ("hello server: another network", "client", hello_server(network="other")),
    ("hello server: the middle's key", "client", hello_server(key=MIDDLE_PUBLIC)),
    *((f"hello server: low-order key {key.hex()[:4]}", "client", hello_server(key=key)) for key in LOW_ORDER),
    ("hello server: a bit of the key", "client", change("hello_server", flip(-2))),
    ("server auth: a bit of the stream header", "client", change("server_auth", flip(3))),
    ("server auth: a bit of the ciphertext", "client", change("server_auth", flip(100))),
    ("server auth: a bit of the last byte", "client", change("server_auth", flip(-1, 128))),
    ("server auth: cut", "client", change("server_auth", lambda link, frame: frame[:-1])),
    ("server auth: without its header", "client", change("server_auth", lambda link, frame: frame[24:])),
    ("client auth: a bit of the stream header", "server", change("client_auth", flip(3))),
    ("client auth: a bit of the ciphertext", "server", change("client_auth", flip(100))),
    ("client auth: a bit of the last byte", "server", change("client_auth", flip(-1, 128))),
    ("client auth: cut", "server", change("client_auth", lambda link, frame: frame[:-1])),
    ("client auth: without its header", "server", change("client_auth", lambda link, frame: frame[24:])),
    *((f"{name}: dropped", "both", drop(name)) for name in ["hello_client", "hello_server", "server_auth"]),
    ("client_auth: dropped", "server", drop("client_auth")),
    ("hello client: doubled", "server", double("hello_client")),
    ("hello server: doubled", "client", double("hello_server")),
    ("hello client: thrown back", "client", reflect("hello_client")),
    ("hello server: thrown back", "server", reflect("hello_server")),
    ("server auth: thrown back", "server", reflect("server_auth")),
    ("hello server and server auth: swapped", "client", swap("hello_server", "server_auth")),
    ("client auth and welcome: swapped", "server", swap("client_auth", "client_welcome")),
    ("client auth: the server's in its place", "server", change("client_auth", lambda link, frame: link.sent["server_auth"])),
    ("goodbye in the clear", "client", goodbye_in_the_clear),
    ("the middle's keys between both", "client", both_keys()),
    ("the middle's identity in place of the server", "client", own_identity_to_client),
]

# With the stream keys of both ends, which no middle has: the signatures alone must hold.
SERVER_PARTS = ("hello_client", "hello_server")
CLIENT_PARTS = (*SERVER_PARTS, "server_auth")
AUTH_PARTS = ["manifest", "manifest signature", "signature"]
AS_SERVER = {
    "another true manifest of the server": auth_with(manifest=(RENAMED.body, RENAMED.signature)),
    "the middle's manifest": auth_with(manifest=(MIDDLE.manifest.body, MIDDLE.manifest.signature)),
    "the middle's whole Auth": sign_as(MIDDLE, SERVER_AUTH_LABEL, *SERVER_PARTS),
    "the client's own identity": sign_as(CLIENT, SERVER_AUTH_LABEL, *SERVER_PARTS),
    "signed under the client's label": sign_as(SERVER, CLIENT_AUTH_LABEL, *SERVER_PARTS),
    **{f"a bit of the {part}": flip_in_auth(part) for part in AUTH_PARTS},
}
AS_CLIENT = {
    "the middle's manifest": auth_with(manifest=(MIDDLE.manifest.body, MIDDLE.manifest.signature)),
    "the server's own identity": sign_as(SERVER, CLIENT_AUTH_LABEL, *CLIENT_PARTS),
    "signed under the server's label": sign_as(CLIENT, SERVER_AUTH_LABEL, *CLIENT_PARTS),
    "signed without the server's": sign_as(CLIENT, CLIENT_AUTH_LABEL, *SERVER_PARTS),
    "the server's Auth itself": lambda link, _: SodiumOpener(link.server.suite.sends_with).open(link.sent["server_auth"])[0],
    **{f"a bit of the {part}": flip_in_auth(part) for part in AUTH_PARTS},
}
ALL_KNOWING = [(f"server auth: {name}", "client", resealed("server_auth", edit)) for name, edit in AS_SERVER.items()]
ALL_KNOWING += [(f"client auth: {name}", "server", resealed("client_auth", edit)) for name, edit in AS_CLIENT.items()]

SCENARIOS = PASSIVE + ALL_KNOWING


def assert_in_vain(link, attacked):
    """Nobody attacked is secured, nothing was delivered to anyone, and no closed side said anything of use."""
    for node in [link.client, link.server]:
        if attacked in (node.name, "both"):
            assert node._secured is None
        assert node.received == []
    # The server proves a dialler or nobody: no manipulation ever leaves it secured.
    assert link.server._secured is None
    assert "server_welcome" not in link.sent
    if attacked in ("client", "both"):
        # The dialler fell silent before it showed who it is.
        assert "client_auth" not in link.sent


def test_a_middle_that_relays_is_a_wire():
    """Bytes passed on unchanged give a link, and the middle cannot read it."""
    link = make_link().run(lambda link, name, to, frame: [(to, frame)])
    assert link.client.secured and link.server.secured
    assert link.client.received == [(b"server's welcome", False)]
    assert link.server.received == [(b"client's welcome", False)]
    assert set(link.sent) == {name for names in NAMES.values() for name in names}
    assert not any(b"welcome" in frame for frame in link.sent.values())


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        pytest.param("server_auth", lambda link, plaintext: plaintext, id="server auth, unchanged"),
        pytest.param("client_auth", lambda link, plaintext: plaintext, id="client auth, unchanged"),
        pytest.param("server_auth", sign_as(SERVER, SERVER_AUTH_LABEL, *SERVER_PARTS), id="server auth, by the server"),
        pytest.param("client_auth", sign_as(CLIENT, CLIENT_AUTH_LABEL, *CLIENT_PARTS), id="client auth, by the client"),
    ],
)
def test_the_all_knowing_middle_fails_only_for_what_it_changes(name, edit):
    """Sealing the right Auth again works, so the scenarios below fail by their one wrong thing and not by the sealing."""
    link = make_link().run(resealed(name, edit))
    assert link.client.secured and link.server.secured
    assert link.client.received and link.server.received


def test_there_are_enough_scenarios():
    assert len(SCENARIOS) >= 30
    assert {attacked for _, attacked, _ in SCENARIOS} == {"client", "server", "both"}


@pytest.mark.parametrize(("attacked", "middle"), [pytest.param(*rest, id=name) for name, *rest in SCENARIOS])
def test_every_manipulation_is_in_vain(attacked, middle):
    assert_in_vain(make_link().run(middle), attacked)


def test_a_dialler_of_anybody_never_takes_itself_or_half_a_proof():
    """Without an expected node the middle may answer as itself, and is then known as itself, never as the server."""
    link = make_link(expected=None).run(own_identity_to_client)
    assert link.client._secured.peer == MIDDLE.manifest
    assert link.server._secured is None


def test_every_bit_of_both_hellos_counts():
    """Whatever single bit of the plain frames is changed, the dialler shows itself to nobody."""
    for name, size in [("hello_client", 48), ("hello_server", 48)]:
        for position in range(size):
            link = make_link().run(change(name, flip(position, 1 << position % 8)))
            # The highest bit of an X25519 key changes nothing but the transcript: that is why the bytes are signed.
            assert link.client._secured is None and link.server._secured is None
            assert "client_auth" not in link.sent


def recorded():
    return make_link(b"0").run().sent


def test_a_recorded_session_replayed_to_the_server_is_refused():
    """Each of a dialler's frames again, byte for byte, to a fresh listener: it gets an answer it cannot use, and no more."""
    old = recorded()
    server = make_link(b"9").server
    answers = server.deliver(old["hello_client"])
    assert len(answers) == 2
    assert server.deliver(old["client_auth"]) == []
    assert server.deliver(old["client_welcome"]) == []
    assert server._secured is None and server.received == []


def test_a_recorded_session_replayed_to_the_client_is_refused():
    old = recorded()
    client = make_link(b"9").client
    client.handshake.hello()
    for name in ["hello_server", "server_auth", "server_welcome"]:
        assert client.deliver(old[name]) == []
    assert client._secured is None and client.received == []


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_one_frame_of_an_old_session_spoils_a_new_one(name):
    """Two sessions of the same nodes, one frame taken from the other: dead at once, wherever it stands."""
    old = recorded()
    link = make_link(b"9").run(change(name, lambda link, frame: old[name]))
    if name.endswith("welcome"):
        assert getattr(link, "server" if name == "client_welcome" else "client").received == []
    else:
        assert_in_vain(link, "server" if name == "client_auth" else "client")


def test_two_sessions_spliced_crosswise_fail_both():
    """The middle connects dialler A to listener B and B's dialler to A's listener from the Auths on."""
    first, second = make_link(b"1"), make_link(b"2")
    hellos = [link.client.handshake.hello() for link in (first, second)]
    answers = [link.server.deliver(hello) for link, hello in zip((first, second), hellos, strict=True)]
    for link, own, other in [(first, answers[0], answers[1]), (second, answers[1], answers[0])]:
        assert link.client.deliver(own[0]) == []
        assert link.client.deliver(other[1]) == []
        assert link.client._secured is None


def test_a_dialler_cannot_be_passed_on_to_a_third_node():
    """A dishonest CORE node that is dialled relays to another one: neither takes the proof meant for the other."""
    dialled = make_link(server=MIDDLE, expected=MIDDLE.node_id)
    victim = make_link(b"2")
    hello = dialled.client.handshake.hello()
    hello_server, server_auth = victim.server.deliver(hello)
    dialled.client.deliver(hello_server)
    assert dialled.client.deliver(server_auth) == []
    assert dialled.client._secured is None and victim.server._secured is None


@pytest.mark.parametrize("name", ["client_welcome", "server_welcome"])
@pytest.mark.parametrize(
    "manipulate",
    [
        pytest.param(lambda name: change(name, flip(10)), id="a bit"),
        pytest.param(lambda name: change(name, lambda link, frame: frame[:-1]), id="cut"),
        pytest.param(lambda name: change(name, lambda link, frame: b""), id="empty"),
        pytest.param(reflect, id="thrown back"),
        pytest.param(drop, id="dropped"),
    ],
)
def test_the_first_sealed_message_is_protected_too(name, manipulate):
    """After both Auths a change costs the link on the side that receives it, and nothing false is delivered."""
    link = make_link().run(manipulate(name))
    receiver = link.server if name == "client_welcome" else link.client
    assert receiver.received == []
    for node in [link.client, link.server]:
        assert all(delivered in [(b"client's welcome", False), (b"server's welcome", False)] for delivered in node.received)


@pytest.mark.parametrize("name", ["client_welcome", "server_welcome"])
def test_a_message_sent_twice_arrives_once(name):
    link = make_link().run(double(name))
    receiver = link.server if name == "client_welcome" else link.client
    assert len(receiver.received) == 1
    assert receiver.closed


def test_nodes_of_two_networks_never_link_through_a_helpful_middle():
    """A middle that rewrites the network on both hellos gains nothing: the transcripts differ, and so do the manifests."""
    link = make_link(server=make_local(2, network="other"))

    def middle(link, name, to, frame):
        if name == "hello_client":
            return hello_client(network="other")(link, name, to, frame)
        return hello_server(network="arklattice")(link, name, to, frame)

    link.run(middle)
    assert_in_vain(link, "client")


def test_a_dialled_impostor_learns_nothing():
    """An honest third node at the address that was dialled: the dialler leaves without its Auth."""
    link = make_link(server=MIDDLE).run()
    assert_in_vain(link, "client")
