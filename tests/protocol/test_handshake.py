"""The handshake of two nodes: what each state takes, what is signed, and that every fault ends in silence."""

import json
import random
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.cipher import SodiumOpener, SodiumSuite
from federation.protocol import handshake, messages
from federation.protocol.codec import decode, encode
from federation.protocol.errors import Goodbye, HandshakeError, LocalProtocolError
from federation.protocol.handshake import (
    CLIENT_RECEIVES,
    SERVER_RECEIVES,
    AwaitingClientAuth,
    AwaitingHelloClient,
    AwaitingHelloServer,
    AwaitingServerAuth,
    ClientHandshake,
    Done,
    Failed,
    PeerProven,
    ServerHandshake,
    ServerProven,
    Starting,
    transcript_hash,
)
from federation.protocol.messages import Auth, HelloClient, HelloServer, Message
from keys.ed25519 import InvalidSignatureError, verify
from tests.fakes import FakeSuite
from tests.identities import make_local, make_manifest, make_pair, make_rotated_local
from tests.protocol.build_vectors import (
    CLIENT_HEADER,
    CLIENT_NODE,
    CLIENT_SEED,
    SERVER_HEADER,
    SERVER_NODE,
    SERVER_SEED,
    VALID,
    FixedSuite,
    build_handshake,
    run_handshake,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/handshake.json").read_text(encoding="utf-8"))
CLIENT, SERVER, STRANGER = make_local(1), make_local(2), make_local(3)

both_suites = pytest.mark.parametrize("suite", [SodiumSuite(), FakeSuite()], ids=["sodium", "fake"])


def make_two(suite=None, *, expected=SERVER.node_id, client=CLIENT, server=SERVER):
    suite = suite or FakeSuite()
    return ClientHandshake(client, suite, CLIENT_SEED, expected), ServerHandshake(server, suite, SERVER_SEED)


def plaintext_auth(number, label, *transcript, network="arklattice"):
    local = make_local(number, network=network)
    signature = local.sign(label + transcript_hash(*transcript, local.manifest.body))
    return encode(Auth((local.manifest.body, local.manifest.signature), signature))


# The way it goes well.


@both_suites
@pytest.mark.parametrize("expected", [SERVER.node_id, None], ids=["known", "anybody"])
def test_both_sides_end_secured(suite, expected):
    """Each learns the other's proven manifest, and the streams carry messages both ways."""
    client, server = make_two(suite, expected=expected)
    hello_server, server_auth = server.receive(client.hello())
    assert server.peer is None
    assert client.receive(hello_server) is None
    proven = client.receive(server_auth)
    assert proven == PeerProven(SERVER.manifest)
    assert server.receive(client.auth()) == []
    assert server.peer == CLIENT.manifest
    ours, theirs = client.secured(), server.secured()
    assert (ours.peer, theirs.peer) == (SERVER.manifest, CLIENT.manifest)
    assert ours.peer.verify_key == SERVER.manifest.manifest.public_key
    assert ours.peer.key_fingerprint == sha256(ours.peer.verify_key).digest()
    assert theirs.opener.open(ours.sealer.seal(b"welcome")) == (b"welcome", False)
    assert ours.opener.open(theirs.sealer.seal(b"goodbye", final=True)) == (b"goodbye", True)


def test_nobody_is_named_in_the_clear():
    """Who reads along learns neither node_ids nor keys nor names."""
    frames = run_handshake(*make_two(SodiumSuite()))
    capture = b"".join(frames)
    for manifest in [CLIENT.manifest, SERVER.manifest]:
        for secret in [manifest.node_id, manifest.node_id.hex().encode(), manifest.verify_key, manifest.body[:32]]:
            assert secret not in capture


def test_secrets_stay_out_of_repr():
    """States hold ephemeral secrets; tracebacks and logs must not."""
    client, server = make_two(SodiumSuite())
    for state in [client.state, server.state]:
        assert "secret" not in repr(state)
    client.hello()
    assert "secret" not in repr(client.state)


def test_the_highest_common_version_is_chosen():
    """A dialler may offer versions not known here; repeating one changes nothing."""
    for versions in [[1], [3, 1, 2], [0, 1, 1, 2**53 - 1]]:
        _, server = make_two()
        answer, _ = server.receive(encode(HelloClient(versions, "arklattice", CLIENT_SEED)))
        assert decode(answer).version == 1


def test_the_highest_of_several_common_versions_is_chosen(monkeypatch):
    monkeypatch.setattr(handshake, "VERSIONS", (1, 2, 3))
    _, server = make_two()
    answer, _ = server.receive(encode(HelloClient([1, 2, 9], "arklattice", CLIENT_SEED)))
    assert decode(answer).version == 2


# What is signed.


def test_transcript_hash_is_of_lengths_and_messages():
    """T puts four bytes of length before each message, so that no two splits give one hash."""
    assert transcript_hash() == sha256(b"").digest()
    assert transcript_hash(b"ab", b"", b"c") == sha256(b"\0\0\0\2ab\0\0\0\0\0\0\0\1c").digest()
    assert transcript_hash(b"ab", b"c") != transcript_hash(b"a", b"bc") != transcript_hash(b"abc")


def test_signatures_cover_what_the_protocol_says():
    """Written out once more, without the code under test: labels, lengths, order, manifests without signature."""
    suite = SodiumSuite()
    client, server = make_two(suite)
    hello_client, hello_server, server_frame, client_frame = run_handshake(client, server)
    keys = suite.client_keys(*suite.keypair(CLIENT_SEED), suite.keypair(SERVER_SEED)[0])
    server_auth, _ = SodiumOpener(keys[0]).open(server_frame)
    client_auth, _ = SodiumOpener(keys[1]).open(client_frame)

    def hashed(*parts):
        return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()

    by_server = b"arklattice/auth/server/v1\n" + hashed(hello_client, hello_server, SERVER.manifest.body)
    by_client = b"arklattice/auth/client/v1\n" + hashed(hello_client, hello_server, server_auth, CLIENT.manifest.body)
    verify(SERVER.manifest.verify_key, by_server, decode(server_auth).signature)
    verify(CLIENT.manifest.verify_key, by_client, decode(client_auth).signature)
    with pytest.raises(InvalidSignatureError):
        verify(SERVER.manifest.verify_key, by_client, decode(server_auth).signature)


def test_vectors_are_those_the_code_builds():
    """The file for other implementations says what this one does: `python -m tests.protocol.build_vectors` rewrites it."""
    assert build_handshake() == VECTORS


def test_the_vectors_open_and_verify():
    """A reader of the file can check it with libsodium alone."""
    frames, plaintext = VECTORS["frames"], VECTORS["plaintext"]
    to_client, to_server = (SodiumOpener(bytes.fromhex(VECTORS[role]["rx"])) for role in ["client", "server"])
    assert to_client.open(bytes.fromhex(frames["server_auth"])) == (bytes.fromhex(plaintext["server_auth"]), False)
    assert to_server.open(bytes.fromhex(frames["client_auth"])) == (bytes.fromhex(plaintext["client_auth"]), False)
    for name, final in [("client_welcome", False), ("client_goodbye_final", True)]:
        sealed = bytes.fromhex(frames[name]["sealed"])
        assert to_server.open(sealed) == (bytes.fromhex(frames[name]["plaintext"]), final)
    for role in ["client", "server"]:
        signed = f"arklattice/auth/{role}/v1\n".encode() + bytes.fromhex(VECTORS["transcript"][role])
        verify(bytes.fromhex(VECTORS[role]["public_key"]), signed, bytes.fromhex(VECTORS["signatures"][role]))


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda case: f"{case['role']}: {case['name']}")
def test_invalid_vectors_end_in_silence(case):
    """All frames but the last are taken; at the last one nothing is answered and nothing secured."""
    if case["role"] == "client":
        side = ClientHandshake(make_local(CLIENT_NODE), FixedSuite(CLIENT_HEADER), CLIENT_SEED, SERVER.node_id)
        side.hello()
    else:
        side = ServerHandshake(make_local(SERVER_NODE), FixedSuite(SERVER_HEADER), SERVER_SEED)
    *before, last = [bytes.fromhex(frame) for frame in case["receives"]]
    for frame in before:
        side.receive(frame)
    with pytest.raises(HandshakeError) as caught:
        side.receive(last)
    assert type(caught.value).__name__ == case["error"]
    assert caught.value.goodbye.close_code == 4400
    assert side.state == Failed()
    with pytest.raises(LocalProtocolError):
        side.secured()


# Every state against every message.


def client_in(state):
    """Return a dialler in the given state with the sealer of whoever talks to it."""
    suite = FakeSuite()
    client, server = make_two(suite)
    _, sending = suite.server_keys(*suite.keypair(SERVER_SEED), suite.keypair(CLIENT_SEED)[0])
    talker = suite.sealer(sending)
    if state is Starting:
        return client, talker
    answers = server.receive(client.hello())
    if state is Failed:
        with pytest.raises(HandshakeError):
            client.receive(b"")
        return client, talker
    if state is AwaitingHelloServer:
        return client, talker
    client.receive(answers[0])
    if state is AwaitingServerAuth:
        return client, talker
    client.receive(answers[1])
    talker.seal(b"")
    if state is Done:
        client.auth()
    return client, talker


def server_in(state):
    suite = FakeSuite()
    client, server = make_two(suite)
    _, sending = suite.client_keys(*suite.keypair(CLIENT_SEED), suite.keypair(SERVER_SEED)[0])
    talker = suite.sealer(sending)
    if state is AwaitingHelloClient:
        return server, talker
    if state is Failed:
        with pytest.raises(HandshakeError):
            server.receive(b"")
        return server, talker
    answers = server.receive(client.hello())
    if state is AwaitingClientAuth:
        return server, talker
    for frame in answers:
        client.receive(frame)
    server.receive(client.auth())
    talker.seal(b"")
    return server, talker


GOOD_CLIENT, GOOD_SERVER = make_two()
HELLO_CLIENT, HELLO_SERVER, _, _ = run_handshake(GOOD_CLIENT, GOOD_SERVER)
SERVER_AUTH = plaintext_auth(SERVER_NODE, handshake.SERVER_AUTH_LABEL, HELLO_CLIENT, HELLO_SERVER)
CLIENT_AUTH = plaintext_auth(CLIENT_NODE, handshake.CLIENT_AUTH_LABEL, HELLO_CLIENT, HELLO_SERVER, SERVER_AUTH)


def right_frames(role):
    """Return, for each message type, an encoding of it that is right where the role awaits that type."""
    frames = {type(message): encode(message) for _, message in VALID}
    frames |= {HelloClient: HELLO_CLIENT, HelloServer: HELLO_SERVER}
    return frames | {Auth: SERVER_AUTH if role == "client" else CLIENT_AUTH}


WALK = [("client", state, due) for state, due in CLIENT_RECEIVES.items()]
WALK += [("server", state, due) for state, due in SERVER_RECEIVES.items()]


@pytest.mark.parametrize("message", Message.__args__, ids=lambda message: message.__name__)
@pytest.mark.parametrize(("role", "state", "due"), WALK, ids=lambda item: getattr(item, "__name__", item))
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_every_state_against_every_message(role, state, due, message, sealed):
    """A state takes the one message of the table, plain or sealed as it must be; all others fail and leave nothing."""
    side, talker = (client_in if role == "client" else server_in)(state)
    assert type(side.state) is state
    frame = right_frames(role)[message]
    if sealed:
        frame = talker.seal(frame)
    right = message is due and sealed == (message is Auth)
    if right:
        side.receive(frame)
        assert type(side.state) not in (state, Failed)
    else:
        with pytest.raises(HandshakeError):
            side.receive(frame)
        assert side.state == Failed()


def test_the_tables_name_every_state():
    assert set(CLIENT_RECEIVES) == set(handshake.ClientState.__args__)
    assert set(SERVER_RECEIVES) == set(handshake.ServerState.__args__)


def test_calls_out_of_order_are_local_faults():
    """Whoever forgets a step here hears of it at once."""
    legal = {"hello": Starting, "auth": ServerProven, "secured": Done}
    for state in CLIENT_RECEIVES:
        for method, wanted in legal.items():
            client, _ = client_in(state)
            if state is wanted:
                getattr(client, method)()
            else:
                with pytest.raises(LocalProtocolError, match=f"{method} called in {state.__name__}"):
                    getattr(client, method)()
    for state in SERVER_RECEIVES:
        server, _ = server_in(state)
        assert (server.peer is None) == (state is not Done)
        if state is Done:
            server.secured()
        else:
            with pytest.raises(LocalProtocolError, match=f"secured called in {state.__name__}"):
                server.secured()


# Refusals, each with its reason for the operator's log.


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode(HelloClient([0, 2], "arklattice", CLIENT_SEED)), "no common protocol version"),
        (encode(HelloClient([1], "other", CLIENT_SEED)), "network 'other', here it is 'arklattice'"),
        (encode(HelloClient([1], "arklattice", bytes(32))), "low order"),
        (encode(HelloClient([1], "arklattice", FakeSuite().keypair(SERVER_SEED)[0])), "our own ephemeral key"),
        (encode(messages.Ping(1)), "Ping where HelloClient is due"),
        (b"", "no message"),
        (b"\x91\x40", "an extension where HelloClient is due"),
    ],
)
def test_a_listener_says_why_to_its_operator_only(frame, reason):
    _, server = make_two()
    with pytest.raises(HandshakeError, match=reason) as caught:
        server.receive(frame)
    assert caught.value.goodbye is Goodbye.PROTOCOL


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode(HelloServer(2, "arklattice", SERVER_SEED)), "version 2 was not offered"),
        (encode(HelloServer(0, "arklattice", SERVER_SEED)), "version 0 was not offered"),
        (encode(HelloServer(1, "arklattice2", SERVER_SEED)), "network 'arklattice2'"),
        (encode(HelloServer(1, "arklattice", bytes(32))), "low order"),
        (encode(HelloServer(1, "arklattice", FakeSuite().keypair(CLIENT_SEED)[0])), "our own ephemeral key"),
        (encode(messages.Bye(Goodbye.BLOCKED, "")), "Bye where HelloServer is due"),
    ],
)
def test_a_dialler_says_why_to_its_operator_only(frame, reason):
    client, _ = make_two()
    client.hello()
    with pytest.raises(HandshakeError, match=reason):
        client.receive(frame)


def test_a_dialler_shows_itself_to_nobody_else():
    """Another node answers: the dialler leaves before its Auth, so that nobody learns who looked for whom."""
    client, server = make_two(expected=STRANGER.node_id)
    hello_server, server_auth = server.receive(client.hello())
    client.receive(hello_server)
    with pytest.raises(HandshakeError, match="was dialled"):
        client.receive(server_auth)
    with pytest.raises(LocalProtocolError):
        client.auth()


@pytest.mark.parametrize(
    ("shown", "known", "taken"),
    [(1, 1, True), (2, 1, True), (3, 1, True), (3, 3, True), (1, 2, False), (2, 3, False)],
)
def test_a_rotated_node_is_met_by_its_current_key_or_a_successor(shown, known, taken):
    """Who was known by key N is taken with N or a later key; a thief of an older one with a shortened chain is not."""
    listener = make_rotated_local(shown, first=SERVER_NODE)
    known_key = make_rotated_local(known, first=SERVER_NODE).manifest.verify_key
    client = ClientHandshake(CLIENT, FakeSuite(), CLIENT_SEED, SERVER.node_id, known_key)
    hello_server, server_auth = ServerHandshake(listener, FakeSuite(), SERVER_SEED).receive(client.hello())
    client.receive(hello_server)
    if taken:
        assert client.receive(server_auth) == PeerProven(listener.manifest)
        return
    with pytest.raises(HandshakeError, match="neither the known one nor its successor"):
        client.receive(server_auth)
    with pytest.raises(LocalProtocolError):
        client.auth()


def test_a_key_of_another_chain_is_no_successor():
    client = ClientHandshake(CLIENT, FakeSuite(), CLIENT_SEED, None, make_pair(77).public)
    hello_server, server_auth = ServerHandshake(SERVER, FakeSuite(), SERVER_SEED).receive(client.hello())
    client.receive(hello_server)
    with pytest.raises(HandshakeError, match="neither the known one nor its successor"):
        client.receive(server_auth)


@both_suites
def test_our_own_node_is_refused_on_both_sides(suite):
    """A node that dials itself notices, whoever of the two looks first."""
    client, server = make_two(suite, expected=None, server=CLIENT)
    hello_server, server_auth = server.receive(client.hello())
    client.receive(hello_server)
    with pytest.raises(HandshakeError, match="our own node"):
        client.receive(server_auth)
    server, talker = server_in(AwaitingClientAuth)
    frame = plaintext_auth(SERVER_NODE, handshake.CLIENT_AUTH_LABEL, HELLO_CLIENT, HELLO_SERVER, SERVER_AUTH)
    with pytest.raises(HandshakeError, match="our own node"):
        server.receive(talker.seal(frame))


def test_nodes_of_two_networks_do_not_link():
    client, server = make_two(client=make_local(1, network="one"), server=make_local(2, network="two"))
    with pytest.raises(HandshakeError, match="network 'one', here it is 'two'"):
        server.receive(client.hello())


def test_a_manifest_of_another_network_is_refused():
    """What is signed in the manifest counts, not only what the hello says."""
    server, talker = server_in(AwaitingClientAuth)
    frame = plaintext_auth(CLIENT_NODE, handshake.CLIENT_AUTH_LABEL, HELLO_CLIENT, HELLO_SERVER, SERVER_AUTH, network="elsewhere")
    with pytest.raises(HandshakeError, match="network 'elsewhere'"):
        server.receive(talker.seal(frame))


@pytest.mark.parametrize(
    ("manifest", "signature", "reason"),
    [
        (CLIENT.manifest.body, bytes(64), "manifest: the signature does not match"),
        (CLIENT.manifest.body + b" ", CLIENT.manifest.signature, "manifest: "),
        (b"", CLIENT.manifest.signature, "manifest: "),
        (b"null", CLIENT.manifest.signature, "manifest: not a JSON object"),
        (STRANGER.manifest.body, STRANGER.manifest.signature, "does not cover this handshake"),
    ],
)
def test_a_manifest_that_does_not_hold_proves_nobody(manifest, signature, reason):
    server, talker = server_in(AwaitingClientAuth)
    signed = handshake.CLIENT_AUTH_LABEL + transcript_hash(HELLO_CLIENT, HELLO_SERVER, SERVER_AUTH, manifest)
    frame = encode(Auth((manifest, signature), CLIENT.sign(signed)))
    with pytest.raises(HandshakeError, match=reason):
        server.receive(talker.seal(frame))


@pytest.mark.parametrize("left_out", range(4))
def test_each_part_of_the_transcript_counts(left_out):
    """A signature over a transcript that lacks any one part proves nothing."""
    parts = [HELLO_CLIENT, HELLO_SERVER, SERVER_AUTH, CLIENT.manifest.body]
    del parts[left_out]
    signature = CLIENT.sign(handshake.CLIENT_AUTH_LABEL + transcript_hash(*parts))
    server, talker = server_in(AwaitingClientAuth)
    with pytest.raises(HandshakeError, match="does not cover"):
        server.receive(talker.seal(encode(Auth((CLIENT.manifest.body, CLIENT.manifest.signature), signature))))


def test_a_manifest_of_later_still_proves_the_same_node():
    """Names and addresses may change between two links; identity is the succession."""
    renamed = make_manifest(SERVER_NODE, name="renamed", addresses=("ws://10.0.0.2:8104/sync",))
    server = handshake.Local(SERVER.node_id, renamed, SERVER.sign, SERVER.network)
    client, listener = make_two(server=server)
    run_handshake(client, listener)
    assert client.secured().peer.manifest.name == "renamed"


def test_the_keys_seed_decides_everything_but_the_stream_header():
    """Equal seeds give equal hellos and, with the fake cipher, equal frames: simulations replay."""
    assert run_handshake(*make_two()) == run_handshake(*make_two())
    first, second = run_handshake(*make_two(SodiumSuite())), run_handshake(*make_two(SodiumSuite()))
    assert first[:2] == second[:2]
    assert first[2:] != second[2:]


# Junk.


def mutated(rng, frame):
    """Return the frame with one to three random edits, never unchanged."""
    changed = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.randint(1, 20)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 20))
            case _:
                changed[at:] = rng.randbytes(rng.randint(0, 60))
    return bytes(changed) if changed != frame else mutated(rng, frame)


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("sealed", [False, True], ids=["as a stranger", "inside the cipher"])
def test_mutations_prove_nobody(role, sealed):
    """A mutated Auth, also one sealed rightly, raises HandshakeError and nothing else; nobody gets secured."""
    seed = 20_261_123
    rng = random.Random(seed)
    state, make = (AwaitingServerAuth, client_in) if role == "client" else (AwaitingClientAuth, server_in)
    right = right_frames(role)[Auth]
    for _ in range(500):
        side, talker = make(state)
        frame = talker.seal(mutated(rng, right)) if sealed else mutated(rng, talker.seal(right))
        with pytest.raises(HandshakeError) as caught:
            side.receive(frame)
        assert caught.value.reason.isprintable(), f"seed {seed}"
        assert side.state == Failed()


def test_mutated_hellos_never_lead_to_a_proof():
    """A mutated hello is refused, or answered in a way that the other side refuses."""
    seed = 20_261_123
    rng = random.Random(seed)
    answered = 0
    for _ in range(1_000):
        client, server = make_two(SodiumSuite())
        try:
            hello_server, server_auth = server.receive(mutated(rng, client.hello()))
        except HandshakeError:
            continue
        answered += 1
        with pytest.raises(HandshakeError):
            client.receive(hello_server)
            client.receive(server_auth)
    assert answered > 20, f"seed {seed}: the mutations test nothing"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WALK), st.binary(max_size=300))
def test_junk_raises_nothing_else(where, data):
    role, state, _ = where
    side, _ = (client_in if role == "client" else server_in)(state)
    with pytest.raises(HandshakeError):
        side.receive(data)
    assert side.state == Failed()
