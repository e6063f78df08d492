"""The handshake of a link: two roles, no sockets, the cipher handed in.

    dialler                                   listener
    hello()  ──── HelloClient, plain ────────▶ receive()
    receive() ◀── HelloServer, plain ───────── returns it
    receive() ◀── Auth, sealed ─────────────── returns it
      PeerProven: the caller may still refuse
    auth()   ──── Auth, sealed ──────────────▶ receive()
    secured()                                  peer, secured()

Both derive a pair of stream keys from their ephemeral X25519 keys, so who reads along learns nobody's name. Each then signs a
hash of everything sent before, under a label of its role: the listener over both hellos, the dialler over the listener's
Auth as well. A middle that changes, swaps, reflects or replays a byte makes the hashes differ; one that changes nothing is a
wire. The identity key signs and is used for nothing else.

Each side is in exactly one state, and a state holds what that moment needs. `CLIENT_RECEIVES` and `SERVER_RECEIVES` say which
message each state takes; anything else, and any fault, ends in `Failed`: the caller closes 4400 and says nothing. Calling a
method out of order is a bug here and raises `LocalProtocolError`.

A proven peer is one that holds the key it shows. Whether that key is the one the operator knows, and what it may do, is asked
after this.

Source: docs/protocol.md, section 5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NoReturn, Protocol, TypeVar

from federation.protocol.codec import decode, encode
from federation.protocol.errors import HandshakeError, LocalProtocolError, RemoteProtocolError
from federation.protocol.manifest import ManifestError, SignedManifest, parse_manifest
from federation.protocol.messages import Auth, HelloClient, HelloServer, Message
from keys.ed25519 import InvalidSignatureError, verify
from keys.encoding import NodeId

__all__ = [
    "CLIENT_AUTH_LABEL",
    "CLIENT_RECEIVES",
    "SERVER_AUTH_LABEL",
    "SERVER_RECEIVES",
    "VERSIONS",
    "CipherError",
    "CipherSuite",
    "ClientHandshake",
    "Local",
    "Opener",
    "PeerProven",
    "Sealer",
    "Secured",
    "ServerHandshake",
    "transcript_hash",
]

VERSIONS = (1,)
"""Protocol versions spoken here."""
SERVER_AUTH_LABEL = b"arklattice/auth/server/v1\n"
CLIENT_AUTH_LABEL = b"arklattice/auth/client/v1\n"

_Expected = TypeVar("_Expected", HelloClient, HelloServer, Auth)


class CipherError(Exception):
    """A key or a frame that the cipher refuses; never says more than that."""


class Sealer(Protocol):
    """The sending half of a link's cipher."""

    def seal(self, plaintext: bytes, final: bool = False) -> bytes:
        """Return the frame for one message; `final` marks the last one. Frames must be sent in this order."""
        ...


class Opener(Protocol):
    """The receiving half of a link's cipher."""

    def open(self, frame: bytes) -> tuple[bytes, bool]:
        """Return the message in the next frame and whether it is the last one.

        Raises:
            CipherError: Changed, reordered, repeated, cut, or after the last one; the opener is then dead.
        """
        ...


class CipherSuite(Protocol):
    """Key agreement and streams. Keys of 32 bytes; the first frame of a stream begins with its 24-byte header.

    Raises:
        CipherError: From `client_keys` and `server_keys`, for a public key that yields no secret.
    """

    def keypair(self, seed: bytes) -> tuple[bytes, bytes]:
        """Return (public, secret) for a 32-byte seed."""
        ...

    def client_keys(self, public: bytes, secret: bytes, server_public: bytes) -> tuple[bytes, bytes]:
        """Return the dialler's (receiving, sending) keys."""
        ...

    def server_keys(self, public: bytes, secret: bytes, client_public: bytes) -> tuple[bytes, bytes]:
        """Return the listener's (receiving, sending) keys."""
        ...

    def sealer(self, key: bytes) -> Sealer: ...

    def opener(self, key: bytes) -> Opener: ...


@dataclass(frozen=True, slots=True)
class Local:
    """This node, as a handshake needs it."""

    node_id: NodeId
    manifest: SignedManifest
    sign: Callable[[bytes], bytes]
    """Signs with the manifest's current key; 64 bytes."""
    network: str


@dataclass(frozen=True, slots=True)
class PeerProven:
    """The listener holds the key it shows. The dialler has shown nothing yet and may leave."""

    manifest: SignedManifest


@dataclass(frozen=True, slots=True)
class Secured:
    """Both sides are proven; the next frame each way is Welcome or Goodbye."""

    peer: SignedManifest
    sealer: Sealer
    opener: Opener


@dataclass(frozen=True, slots=True)
class Starting:
    """Dialler: hello not sent yet."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AwaitingHelloServer:
    hello: bytes
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AwaitingServerAuth:
    hello_client: bytes
    hello_server: bytes
    sealer: Sealer
    opener: Opener


@dataclass(frozen=True, slots=True)
class ServerProven:
    """Dialler: the listener is proven, our Auth not sent yet."""

    hello_client: bytes
    hello_server: bytes
    server_auth: bytes
    secured: Secured


@dataclass(frozen=True, slots=True)
class AwaitingHelloClient:
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AwaitingClientAuth:
    hello_client: bytes
    hello_server: bytes
    server_auth: bytes
    sealer: Sealer
    opener: Opener


@dataclass(frozen=True, slots=True)
class Done:
    secured: Secured


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing follows. The ephemeral secret is gone with the state before."""


ClientState = Starting | AwaitingHelloServer | AwaitingServerAuth | ServerProven | Done | Failed
ServerState = AwaitingHelloClient | AwaitingClientAuth | Done | Failed

CLIENT_RECEIVES: Mapping[type[ClientState], type[Message] | None] = {
    Starting: None,
    AwaitingHelloServer: HelloServer,
    AwaitingServerAuth: Auth,
    # The listener waits for our Auth; whatever comes instead is not from it.
    ServerProven: None,
    Done: None,
    Failed: None,
}
SERVER_RECEIVES: Mapping[type[ServerState], type[Message] | None] = {
    AwaitingHelloClient: HelloClient,
    AwaitingClientAuth: Auth,
    Done: None,
    Failed: None,
}


def transcript_hash(*messages: bytes) -> bytes:
    """Return T(m…), 32 bytes: SHA-256 over each message with its length, 4 bytes big-endian, before it.

    The messages are plaintexts exactly as sent; the last one is the signer's manifest, canonical bytes without signature.

    Source: docs/protocol.md, section 5.
    """
    digest = sha256()
    for message in messages:
        digest.update(len(message).to_bytes(4))
        digest.update(message)
    return digest.digest()


class ClientHandshake:
    """The dialler's side."""

    def __init__(
        self, local: Local, suite: CipherSuite, seed: bytes, expected: NodeId | None, known_key: bytes | None = None
    ) -> None:
        """Prepare to dial.

        Args:
            seed: 32 fresh random bytes; never used again.
            expected: The node meant to answer, or None for whoever does.
            known_key: The newest key known of that node, 32 bytes: it or a successor of it must sign. None accepts any key
                whose succession names the node.
        """
        self._local = local
        self._suite = suite
        self._expected = expected
        self._known_key = known_key
        self._state: ClientState = Starting(*suite.keypair(seed))

    @property
    def state(self) -> ClientState:
        return self._state

    def hello(self) -> bytes:
        """Return the first frame, HelloClient."""
        match self._state:
            case Starting(public=public, secret=secret):
                hello = encode(HelloClient(VERSIONS, self._local.network, public))
                self._state = AwaitingHelloServer(hello, public, secret)
                return hello
            case _:
                _out_of_order("hello", self._state)

    def receive(self, frame: bytes) -> PeerProven | None:
        """Take the listener's next frame; PeerProven once its Auth holds.

        After PeerProven ask policy, then call `auth`, or close.

        Raises:
            HandshakeError: Anything is wrong with it; close 4400 and say nothing.
        """
        state, self._state = self._state, Failed()
        match state:
            case AwaitingHelloServer():
                self._state = self._read_hello(state, frame)
                return None
            case AwaitingServerAuth():
                proven = self._read_auth(state, frame)
                self._state = proven
                return PeerProven(proven.secured.peer)
            case _:
                raise HandshakeError(f"nothing is due in {type(state).__name__}")

    def auth(self) -> bytes:
        """Return our Auth frame, which shows who dials. Welcome or Goodbye follows through `secured`."""
        match self._state:
            case ServerProven(hello_client, hello_server, server_auth, secured):
                body = self._local.manifest.body
                signed = CLIENT_AUTH_LABEL + transcript_hash(hello_client, hello_server, server_auth, body)
                frame = secured.sealer.seal(_auth(self._local, signed))
                self._state = Done(secured)
                return frame
            case _:
                _out_of_order("auth", self._state)

    def secured(self) -> Secured:
        """Return the ciphers and the peer, once `auth` was called."""
        match self._state:
            case Done(secured):
                return secured
            case _:
                _out_of_order("secured", self._state)

    def _read_hello(self, state: AwaitingHelloServer, frame: bytes) -> AwaitingServerAuth:
        hello = _decode(frame, HelloServer)
        if hello.version not in VERSIONS:
            raise HandshakeError(f"version {hello.version} was not offered")
        _check_network(hello.network, self._local)
        receiving, sending = _agree(self._suite.client_keys, state.public, state.secret, hello.key)
        return AwaitingServerAuth(state.hello, frame, self._suite.sealer(sending), self._suite.opener(receiving))

    def _read_auth(self, state: AwaitingServerAuth, frame: bytes) -> ServerProven:
        plaintext = _open(state.opener, frame)
        peer = _read_peer(
            plaintext,
            self._local,
            lambda body: SERVER_AUTH_LABEL + transcript_hash(state.hello_client, state.hello_server, body),
        )
        if self._expected is not None and peer.node_id != self._expected:
            raise HandshakeError(f"node {peer.node_id.hex()} answered, {self._expected.hex()} was dialled")
        if self._known_key is not None and not peer.follows(self._known_key):
            raise HandshakeError("the key shown is neither the known one nor its successor")
        return ServerProven(state.hello_client, state.hello_server, plaintext, Secured(peer, state.sealer, state.opener))


class ServerHandshake:
    """The listener's side."""

    def __init__(self, local: Local, suite: CipherSuite, seed: bytes) -> None:
        """Prepare to answer; `seed` is 32 fresh random bytes, never used again."""
        self._local = local
        self._suite = suite
        self._state: ServerState = AwaitingHelloClient(*suite.keypair(seed))

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def peer(self) -> SignedManifest | None:
        """Who dialled, once its Auth holds; None before."""
        return self._state.secured.peer if isinstance(self._state, Done) else None

    def receive(self, frame: bytes) -> list[bytes]:
        """Take the dialler's next frame and return what to send, in order; `peer` is set after its Auth.

        Raises:
            HandshakeError: Anything is wrong with it; close 4400 and say nothing.
        """
        state, self._state = self._state, Failed()
        match state:
            case AwaitingHelloClient():
                self._state, frames = self._answer_hello(state, frame)
                return frames
            case AwaitingClientAuth():
                self._state = self._read_auth(state, frame)
                return []
            case _:
                raise HandshakeError(f"nothing is due in {type(state).__name__}")

    def secured(self) -> Secured:
        """Return the ciphers and the peer, once `peer` is set."""
        match self._state:
            case Done(secured):
                return secured
            case _:
                _out_of_order("secured", self._state)

    def _answer_hello(self, state: AwaitingHelloClient, frame: bytes) -> tuple[AwaitingClientAuth, list[bytes]]:
        hello = _decode(frame, HelloClient)
        common = set(hello.versions) & set(VERSIONS)
        if not common:
            raise HandshakeError("no common protocol version")
        _check_network(hello.network, self._local)
        receiving, sending = _agree(self._suite.server_keys, state.public, state.secret, hello.key)
        sealer, opener = self._suite.sealer(sending), self._suite.opener(receiving)
        answer = encode(HelloServer(max(common), self._local.network, state.public))
        auth = _auth(self._local, SERVER_AUTH_LABEL + transcript_hash(frame, answer, self._local.manifest.body))
        return AwaitingClientAuth(frame, answer, auth, sealer, opener), [answer, sealer.seal(auth)]

    def _read_auth(self, state: AwaitingClientAuth, frame: bytes) -> Done:
        peer = _read_peer(
            _open(state.opener, frame),
            self._local,
            lambda body: CLIENT_AUTH_LABEL + transcript_hash(state.hello_client, state.hello_server, state.server_auth, body),
        )
        return Done(Secured(peer, state.sealer, state.opener))


def _decode(frame: bytes, expected: type[_Expected]) -> _Expected:
    try:
        message = decode(frame)
    except RemoteProtocolError as error:
        raise HandshakeError(error.reason) from None
    # Extensions are announced in Welcome, so none is due before it.
    if not isinstance(message, expected):
        name = "an extension" if message is None else type(message).__name__
        raise HandshakeError(f"{name} where {expected.__name__} is due")
    return message


def _check_network(network: str, local: Local) -> None:
    if network != local.network:
        raise HandshakeError(f"network {network[:64]!r}, here it is {local.network!r}")


def _agree(
    derive: Callable[[bytes, bytes, bytes], tuple[bytes, bytes]], public: bytes, secret: bytes, theirs: bytes
) -> tuple[bytes, bytes]:
    # Nobody else has our key by chance: this is our own hello, thrown back.
    if theirs == public:
        raise HandshakeError("our own ephemeral key came back")
    try:
        return derive(public, secret, theirs)
    except CipherError as error:
        raise HandshakeError(str(error)) from None


def _open(opener: Opener, frame: bytes) -> bytes:
    try:
        plaintext, final = opener.open(frame)
    except CipherError as error:
        raise HandshakeError(str(error)) from None
    if final:
        raise HandshakeError("the stream ends before it begins")
    return plaintext


def _auth(local: Local, signed: bytes) -> bytes:
    return encode(Auth((local.manifest.body, local.manifest.signature), local.sign(signed)))


def _read_peer(plaintext: bytes, local: Local, signed: Callable[[bytes], bytes]) -> SignedManifest:
    """Return the manifest of the peer whose Auth this is; `signed` gives, for its manifest bytes, what it must have signed."""
    auth = _decode(plaintext, Auth)
    body, signature = auth.manifest
    try:
        peer = parse_manifest(body, signature)
        verify(peer.verify_key, signed(body), auth.signature)
    except ManifestError as error:
        raise HandshakeError(str(error)) from None
    except InvalidSignatureError:
        raise HandshakeError("the signature does not cover this handshake") from None
    _check_network(peer.manifest.network, local)
    if peer.node_id == local.node_id:
        raise HandshakeError("this is our own node")
    return peer


def _out_of_order(method: str, state: ClientState | ServerState) -> NoReturn:
    raise LocalProtocolError(f"{method} called in {type(state).__name__}")
