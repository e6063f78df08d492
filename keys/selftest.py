"""Known answers and things that must fail: does the cryptography on this machine do what the protocol relies on?

Needs no key and no database. A check is a name and whether it held; one that does not hold means that this
libsodium must not be trusted with an identity.

Sources: RFC 8032, section 7.1; the points of small order as libsodium lists them (ref10, `ge25519_has_small_order`);
docs/protocol.md, section 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from keys.ed25519 import (
    PUBLIC_KEY_BYTES,
    InvalidKeyError,
    InvalidSignatureError,
    KeysError,
    check_public_key,
    keypair_from_secret,
    keypair_from_seed,
    sign,
    verify,
)
from keys.encoding import EncodingError, parse_hex

__all__ = ["GROUP_ORDER", "KNOWN_ANSWERS", "LOW_ORDER_KEYS", "NON_CANONICAL_KEYS", "Check", "KnownAnswer", "run_checks"]

FIELD_PRIME = 2**255 - 19
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point, L in RFC 8032."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One test of RFC 8032, section 7.1; all in hex."""

    name: str
    seed: str
    public: str
    message: str
    signature: str


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    held: bool


KNOWN_ANSWERS = (
    KnownAnswer(
        "TEST 1",
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    KnownAnswer(
        "TEST 2",
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    KnownAnswer(
        "TEST 3",
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    KnownAnswer(
        "TEST SHA(abc)",
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
)

# The eight points of small order. Whoever "owns" one has signed everything and nothing.
LOW_ORDER_KEYS = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)

# Every encoding of a y that is not reduced (p to 2^255 - 1, both signs), and of x = 0 with the sign set.
NON_CANONICAL_KEYS = (
    *((y | sign_bit).to_bytes(32, "little").hex() for y in range(FIELD_PRIME, 2**255) for sign_bit in (0, 1 << 255)),
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
)

# R = B and S = 1: satisfies the bare equation S·B = R + h·A for every message when A is the neutral element.
FORGED_FOR_NEUTRAL_KEY = "58" + 31 * "66" + "01" + 31 * "00"


def run_checks() -> list[Check]:
    """Run every check; takes some 50 ms."""
    return [*_known_answers(), *_refusals()]


def _known_answers() -> Iterator[Check]:
    for answer in KNOWN_ANSWERS:
        public, message, signature = (bytes.fromhex(text) for text in (answer.public, answer.message, answer.signature))
        pair = keypair_from_seed(bytes.fromhex(answer.seed))
        yield Check(f"RFC 8032 {answer.name}: key from seed", pair.public == public)
        yield Check(f"RFC 8032 {answer.name}: signature", sign(pair, message) == signature)
        yield Check(f"RFC 8032 {answer.name}: verifies", not _refuses(InvalidSignatureError, verify, public, message, signature))


def _refusals() -> Iterator[Check]:
    pair = keypair_from_seed(bytes.fromhex(KNOWN_ANSWERS[2].seed))
    message = bytes.fromhex(KNOWN_ANSWERS[2].message)
    signature = sign(pair, message)

    def rejected(public: bytes, message: bytes, signature: bytes) -> bool:
        return _refuses(InvalidSignatureError, verify, public, message, signature)

    yield Check("every flipped bit of a signature", all(rejected(pair.public, message, bad) for bad in _flipped(signature)))
    yield Check("every flipped bit of a message", all(rejected(pair.public, bad, signature) for bad in _flipped(message)))
    yield Check("every flipped bit of a key", all(rejected(bad, message, signature) for bad in _flipped(pair.public)))
    yield Check(
        "signatures of every other length", all(rejected(pair.public, message, (signature * 2)[:n]) for n in range(129) if n != 64)
    )
    yield Check(
        "keys of every other length", all(rejected((pair.public * 2)[:n], message, signature) for n in range(65) if n != 32)
    )
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    yield Check(
        "a second spelling of a signature (S + L)", rejected(pair.public, message, signature[:32] + scalar.to_bytes(32, "little"))
    )
    forged = bytes.fromhex(FORGED_FOR_NEUTRAL_KEY)
    for kind, keys in (("low order", LOW_ORDER_KEYS), ("second spelling", NON_CANONICAL_KEYS)):
        points = [bytes.fromhex(key) for key in keys]
        yield Check(f"keys of {kind}", all(_refuses(InvalidKeyError, check_public_key, key) for key in points))
        yield Check(f"signatures under keys of {kind}", all(rejected(point, message, forged) for point in points))
        yield Check(f"signatures with R of {kind}", all(rejected(pair.public, message, point + bytes(32)) for point in points))
    yield Check(
        "secret keys whose halves do not match",
        _refuses(InvalidKeyError, keypair_from_secret, pair.secret[:32] + bytes(32)),
    )
    loose = (" " + pair.public.hex()[1:], pair.public.hex().upper(), pair.public.hex() + "\n", "0x" + pair.public.hex()[2:])
    yield Check("hex that is not strict", all(_refuses(EncodingError, _parse_key, text) for text in loose))


def _refuses(expected: type[KeysError] | type[EncodingError], attempt: Callable[..., object], *arguments: object) -> bool:
    try:
        attempt(*arguments)
    except expected:
        return True
    return False


def _parse_key(text: str) -> bytes:
    return parse_hex(text, size=PUBLIC_KEY_BYTES)


def _flipped(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
