"""The cipher of links: X25519 key exchange and XChaCha20-Poly1305 streams, both libsodium's own.

It stands in a shell and not in the core because libsodium draws each stream's header from the system's randomness. A frame is
one secretstream message; only the tags MESSAGE and FINAL occur.

Source: docs/protocol.md, section 5; libsodium, crypto_kx and crypto_secretstream.
"""

from nacl import bindings
from nacl.exceptions import CryptoError

from federation.protocol.handshake import CipherError

__all__ = ["SodiumOpener", "SodiumSealer", "SodiumSuite"]

_HEADER_BYTES: int = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_MESSAGE: int = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL: int = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_KEY_BYTES = 32
_FIELD_PRIME = 2**255 - 19


class SodiumSealer:
    """Seals one direction of a link; the stream's header precedes its first frame."""

    def __init__(self, key: bytes) -> None:
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        self._header = bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        self._ended = False

    def seal(self, plaintext: bytes, final: bool = False) -> bytes:
        """Return the frame for one message, 17 bytes longer (the first one 41).

        Raises:
            CipherError: A final message was sealed before.
        """
        if self._ended:
            raise CipherError("sealing after the final message")
        self._ended = final
        tag = _FINAL if final else _MESSAGE
        frame = self._header + bindings.crypto_secretstream_xchacha20poly1305_push(self._state, plaintext, None, tag)
        self._header = b""
        return frame


class SodiumOpener:
    """Opens one direction of a link. After a failure or the final message it opens nothing more."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._state: bindings.crypto_secretstream_xchacha20poly1305_state | None = None
        self._ended = False

    def open(self, frame: bytes) -> tuple[bytes, bool]:
        """Return the message of the next frame and whether it was the final one.

        Raises:
            CipherError: Changed, reordered, repeated, cut, after the final one, or of a tag that does not occur.
        """
        if self._ended:
            raise CipherError("nothing is read after the end of the stream")
        self._ended = True
        try:
            if self._state is None:
                self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
                bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, frame[:_HEADER_BYTES], self._key)
                frame = frame[_HEADER_BYTES:]
            plaintext, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(self._state, frame)
        except CryptoError:
            raise CipherError("a frame does not decrypt") from None
        if tag not in (_MESSAGE, _FINAL):
            raise CipherError("a frame with a tag that does not occur")
        self._ended = tag == _FINAL
        return plaintext, self._ended


class SodiumSuite:
    """crypto_kx and secretstream, as the handshake wants them."""

    def keypair(self, seed: bytes) -> tuple[bytes, bytes]:
        """Return (public, secret) for a 32-byte seed."""
        return bindings.crypto_kx_seed_keypair(seed)

    def client_keys(self, public: bytes, secret: bytes, server_public: bytes) -> tuple[bytes, bytes]:
        """Return the dialler's (receiving, sending) keys.

        Raises:
            CipherError: `server_public` is of low order or not canonical.
        """
        _check_point(server_public)
        try:
            return bindings.crypto_kx_client_session_keys(public, secret, server_public)
        except CryptoError:
            raise CipherError("an ephemeral key of low order") from None

    def server_keys(self, public: bytes, secret: bytes, client_public: bytes) -> tuple[bytes, bytes]:
        """Return the listener's (receiving, sending) keys.

        Raises:
            CipherError: `client_public` is of low order or not canonical.
        """
        _check_point(client_public)
        try:
            return bindings.crypto_kx_server_session_keys(public, secret, client_public)
        except CryptoError:
            raise CipherError("an ephemeral key of low order") from None

    def sealer(self, key: bytes) -> SodiumSealer:
        return SodiumSealer(key)

    def opener(self, key: bytes) -> SodiumOpener:
        return SodiumOpener(key)


def _check_point(public: bytes) -> None:
    """Refuse second spellings of a point, which libsodium would take: no honest key generation yields one."""
    if len(public) != _KEY_BYTES or int.from_bytes(public, "little") >= _FIELD_PRIME:
        raise CipherError("an ephemeral key that is not canonical")
