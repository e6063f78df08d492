"""Stand-ins for what the core is handed from outside: deterministic, so that a seed replays a whole simulation.

`FakeSuite` keeps no secrets at all (whoever sees the hellos can compute its keys), but it fails exactly where the real cipher
fails: on any change, reordering, repetition or cut, on a key of low order, and after the final message. Frames have the
same lengths as the real ones.
"""

from hashlib import blake2b, sha256

from federation.protocol.handshake import CipherError

HEADER = bytes(24)
MAC_BYTES = 16
MESSAGE = b"\x00"
FINAL = b"\x03"
LOW_ORDER = bytes(32)
"""The one public key that `FakeSuite` refuses."""


class FakeSealer:
    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0
        self._ended = False

    def seal(self, plaintext: bytes, final: bool = False) -> bytes:
        if self._ended:
            raise CipherError("sealing after the final message")
        self._ended = final
        tagged = (FINAL if final else MESSAGE) + plaintext
        frame = tagged + _mac(self._key, self._count, tagged)
        self._count += 1
        return HEADER + frame if self._count == 1 else frame


class FakeOpener:
    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0
        self._ended = False

    def open(self, frame: bytes) -> tuple[bytes, bool]:
        if self._ended:
            raise CipherError("nothing is read after the end of the stream")
        self._ended = True
        if self._count == 0:
            if frame[: len(HEADER)] != HEADER:
                raise CipherError("a frame does not decrypt")
            frame = frame[len(HEADER) :]
        tagged, mac = frame[:-MAC_BYTES], frame[-MAC_BYTES:]
        if not tagged or mac != _mac(self._key, self._count, tagged):
            raise CipherError("a frame does not decrypt")
        if tagged[:1] not in (MESSAGE, FINAL):
            raise CipherError("a frame with a tag that does not occur")
        self._count += 1
        self._ended = tagged[:1] == FINAL
        return tagged[1:], self._ended


class FakeSuite:
    """A `CipherSuite` without randomness or secrecy."""

    def keypair(self, seed: bytes) -> tuple[bytes, bytes]:
        return sha256(b"fake ephemeral key" + seed).digest(), seed

    def client_keys(self, public: bytes, secret: bytes, server_public: bytes) -> tuple[bytes, bytes]:
        self._check(public, secret, server_public)
        return _stream_keys(public, server_public)

    def server_keys(self, public: bytes, secret: bytes, client_public: bytes) -> tuple[bytes, bytes]:
        self._check(public, secret, client_public)
        to_client, to_server = _stream_keys(client_public, public)
        return to_server, to_client

    def sealer(self, key: bytes) -> FakeSealer:
        return FakeSealer(key)

    def opener(self, key: bytes) -> FakeOpener:
        return FakeOpener(key)

    def _check(self, public: bytes, secret: bytes, theirs: bytes) -> None:
        assert public == self.keypair(secret)[0]
        if theirs == LOW_ORDER or len(theirs) != 32:
            raise CipherError("an ephemeral key of low order")


def _stream_keys(client_public: bytes, server_public: bytes) -> tuple[bytes, bytes]:
    """Return the keys of the streams (to the client, to the server)."""
    both = client_public + server_public
    return sha256(b"to client" + both).digest(), sha256(b"to server" + both).digest()


def _mac(key: bytes, count: int, tagged: bytes) -> bytes:
    return blake2b(count.to_bytes(8) + tagged, key=key, digest_size=MAC_BYTES).digest()
