"""Ed25519: the only place in the core that calls libsodium.

    KeysError
    ├── InvalidKeyError         not a key that may be used
    └── InvalidSignatureError   not this key's signature of these bytes, whatever the cause

Seeds are handed in (randomness belongs to keys/services.py). Every key that comes from outside passes
`check_public_key` once, where it becomes a row or a chain; `verify` runs for every packet and stays thin.

Source: RFC 8032; docs/protocol.md, section 1.
"""

from dataclasses import dataclass, field

from nacl import bindings
from nacl.exceptions import CryptoError

from keys.encoding import KeyFingerprint, fingerprint_of

__all__ = [
    "PUBLIC_KEY_BYTES",
    "SECRET_KEY_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "InvalidKeyError",
    "InvalidSignatureError",
    "KeyPair",
    "KeysError",
    "check_public_key",
    "keypair_from_secret",
    "keypair_from_seed",
    "sign",
    "verify",
]

SEED_BYTES = 32
SECRET_KEY_BYTES = 64
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_open = bindings.crypto_sign_open


class KeysError(Exception):
    """Something is wrong with a key or a signature; the message never holds secret bytes."""


class InvalidKeyError(KeysError):
    """Bytes that are no key this program uses."""


class InvalidSignatureError(KeysError):
    """The signature is not the key's over these bytes."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A signing key and its public half, proven to belong together.

    Raises:
        InvalidKeyError: Wrong length or type, or halves that do not match. A pair with a foreign
            public half would let two signatures of one message reveal the secret.
    """

    secret: bytes = field(repr=False, compare=False)
    """libsodium's form, 64 bytes: the seed, then the public key."""
    public: bytes
    """32 bytes."""

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_KEY_BYTES:
            raise InvalidKeyError(f"a secret key has {SECRET_KEY_BYTES} bytes, this one has not")
        derived, _ = bindings.crypto_sign_seed_keypair(self.secret[:SEED_BYTES])
        if not bindings.sodium_memcmp(derived, self.secret[SEED_BYTES:]) or derived != self.public:
            raise InvalidKeyError("the halves of the secret key do not match: it is damaged")

    @property
    def fingerprint(self) -> KeyFingerprint:
        return fingerprint_of(self.public)


def keypair_from_seed(seed: bytes) -> KeyPair:
    """Return the pair that RFC 8032 derives from a 32-byte seed.

    Raises:
        InvalidKeyError: The seed is not 32 bytes.
    """
    if not isinstance(seed, bytes) or len(seed) != SEED_BYTES:
        raise InvalidKeyError(f"a seed has {SEED_BYTES} bytes, this one has not")
    public, secret = bindings.crypto_sign_seed_keypair(seed)
    return KeyPair(secret=secret, public=public)


def keypair_from_secret(secret: bytes) -> KeyPair:
    """Return the pair of a 64-byte libsodium secret key.

    Raises:
        InvalidKeyError: It is not 64 bytes, or its public half is not the one its seed derives.
    """
    if not isinstance(secret, bytes) or len(secret) != SECRET_KEY_BYTES:
        raise InvalidKeyError(f"a secret key has {SECRET_KEY_BYTES} bytes, this one has not")
    return KeyPair(secret=secret, public=secret[SEED_BYTES:])


def sign(pair: KeyPair, message: bytes) -> bytes:
    """Return the 64-byte signature of exactly these bytes, which begin with a context label."""
    return bindings.crypto_sign(message, pair.secret)[:SIGNATURE_BYTES]


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Return if `signature` is the key's signature of exactly these bytes.

    libsodium refuses low-order and non-canonical keys, a scalar that is not reduced (so no second
    signature can be made from a first) and every encoding of R but one.

    Raises:
        InvalidSignatureError: Anything is wrong, be it a bit, a length or a type.
    """
    # The binding takes the key as a bare pointer: a short one would be read beyond its end.
    if type(public_key) is not bytes or len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidSignatureError(f"the verify key is not {PUBLIC_KEY_BYTES} bytes")
    if type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise InvalidSignatureError(f"the signature is not {SIGNATURE_BYTES} bytes")
    if type(message) is not bytes:
        raise InvalidSignatureError("the signed message is not bytes")
    try:
        _open(signature + message, public_key)
    except CryptoError:
        raise InvalidSignatureError("the signature does not match key and bytes") from None


def check_public_key(public_key: bytes) -> None:
    """Return if these bytes are a key some node can own.

    Refused are what no honest key generation yields: points of low order (they "verify" what nobody signed),
    of mixed order, off the curve, and second spellings of a point (one key, two fingerprints).

    Raises:
        InvalidKeyError: Any of these, or not 32 bytes.
    """
    if not isinstance(public_key, bytes) or len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidKeyError(f"a public key has {PUBLIC_KEY_BYTES} bytes, this one has not")
    if not bindings.crypto_core_ed25519_is_valid_point(public_key):
        raise InvalidKeyError(
            f"{public_key.hex()[:16]}… is not a usable Ed25519 public key (low order, not canonical, or no point)"
        )
