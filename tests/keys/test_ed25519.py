import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from keys.ed25519 import (
    InvalidKeyError,
    InvalidSignatureError,
    KeyPair,
    KeysError,
    check_public_key,
    keypair_from_secret,
    keypair_from_seed,
    sign,
    verify,
)
from keys.encoding import fingerprint_of
from keys.selftest import FIELD_PRIME, GROUP_ORDER, KNOWN_ANSWERS, LOW_ORDER_KEYS, NON_CANONICAL_KEYS

PAIR = keypair_from_seed(bytes(range(32)))
MESSAGE = b"arklattice/test/v1\nhello"
SIGNATURE = sign(PAIR, MESSAGE)


@pytest.mark.parametrize("answer", KNOWN_ANSWERS, ids=lambda answer: answer.name)
def test_known_answers_of_rfc_8032(answer):
    """Key, signature and verification are those of RFC 8032, section 7.1."""
    pair = keypair_from_seed(bytes.fromhex(answer.seed))
    assert pair.public.hex() == answer.public
    assert pair.secret.hex() == answer.seed + answer.public
    assert sign(pair, bytes.fromhex(answer.message)).hex() == answer.signature
    verify(pair.public, bytes.fromhex(answer.message), bytes.fromhex(answer.signature))


def test_a_pair_is_its_secret():
    """A pair read back from its 64 bytes is the same pair, with the key's fingerprint."""
    assert keypair_from_secret(PAIR.secret) == PAIR
    assert PAIR.fingerprint == fingerprint_of(PAIR.public)


def test_no_words_hold_the_secret():
    """repr and str of a pair, and the messages of its errors, show no secret byte."""
    secret = PAIR.secret[:32]
    for text in (repr(PAIR), str(PAIR), f"{PAIR}", repr([PAIR]), repr({"pair": PAIR})):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    assert pickle.loads(pickle.dumps(PAIR)) == PAIR  # noqa: S301 - its own bytes


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_seeds_have_32_bytes(size):
    """A seed of any other length is refused."""
    with pytest.raises(InvalidKeyError, match="a seed has 32 bytes"):
        keypair_from_seed(bytes(size))


def test_halves_that_do_not_match_are_refused():
    """Each flipped bit of a secret key, each other length, and a foreign public half is refused, without a byte in the message."""
    for bit in range(512):
        damaged = bytearray(PAIR.secret)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidKeyError, match="halves of the secret key do not match") as caught:
            keypair_from_secret(bytes(damaged))
        assert bytes(damaged).hex()[:16] not in str(caught.value)
    for size in (0, 32, 63, 65, 128):
        with pytest.raises(InvalidKeyError, match="64 bytes"):
            keypair_from_secret((PAIR.secret * 2)[:size])
    with pytest.raises(InvalidKeyError, match="64 bytes"):
        keypair_from_secret(PAIR.secret.hex())
    other = keypair_from_seed(bytes(32))
    with pytest.raises(InvalidKeyError):
        KeyPair(secret=PAIR.secret, public=other.public)


def test_every_flipped_bit_fails():
    """One bit changed in key, message or signature is no signature."""
    for bit in range(8 * 64):
        damaged = bytearray(SIGNATURE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidSignatureError, match="does not match"):
            verify(PAIR.public, MESSAGE, bytes(damaged))
    for bit in range(8 * len(MESSAGE)):
        damaged = bytearray(MESSAGE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidSignatureError, match="does not match"):
            verify(PAIR.public, bytes(damaged), SIGNATURE)
    for bit in range(8 * 32):
        damaged = bytearray(PAIR.public)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidSignatureError, match="does not match"):
            verify(bytes(damaged), MESSAGE, SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((PAIR.public[:-1], MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((PAIR.public + b"\0", MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((b"", MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((PAIR.public.hex(), MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((bytearray(PAIR.public), MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((None, MESSAGE, SIGNATURE), "key is not 32 bytes"),
        ((PAIR.public, MESSAGE, SIGNATURE[:-1]), "signature is not 64 bytes"),
        ((PAIR.public, MESSAGE, SIGNATURE + b"\0"), "signature is not 64 bytes"),
        ((PAIR.public, MESSAGE, b""), "signature is not 64 bytes"),
        ((PAIR.public, MESSAGE, None), "signature is not 64 bytes"),
        ((PAIR.public, "hello", SIGNATURE), "message is not bytes"),
        ((PAIR.public, None, SIGNATURE), "message is not bytes"),
        # The bytes that crypto_sign_open would see are the same: a signature borrowed from the message.
        ((PAIR.public, MESSAGE[1:], SIGNATURE + MESSAGE[:1]), "signature is not 64 bytes"),
    ],
)
def test_wrong_lengths_and_types_are_wrong_signatures(arguments, said):
    """Whatever is wrong, verify raises one kind of error."""
    with pytest.raises(InvalidSignatureError, match=said):
        verify(*arguments)


def test_no_second_signature_can_be_made_from_a_first():
    """S + k·L satisfies the equation and is refused: one signature, one spelling (RFC 8032, section 5.1.7)."""
    scalar = int.from_bytes(SIGNATURE[32:], "little")
    tried = 0
    while (scalar := scalar + GROUP_ORDER) < 2**256:
        tried += 1
        with pytest.raises(InvalidSignatureError):
            verify(PAIR.public, MESSAGE, SIGNATURE[:32] + scalar.to_bytes(32, "little"))
    assert tried >= 14


def test_low_order_keys_sign_nothing():
    """The eight points of small order are refused as keys, and so is every signature that they would make valid."""
    assert len(set(LOW_ORDER_KEYS)) == 8
    base = (1).to_bytes(32, "little")
    for key in map(bytes.fromhex, LOW_ORDER_KEYS):
        with pytest.raises(InvalidKeyError, match="not a usable"):
            check_public_key(key)
        # R = S·B with S = 1, and R of small order with S = 0: both hold for a small-order key and some or all messages.
        for r, s in [
            (bindings.crypto_scalarmult_ed25519_base_noclamp(base), base),
            *((bytes.fromhex(r), bytes(32)) for r in LOW_ORDER_KEYS),
        ]:
            for message in (MESSAGE, *(bytes([number]) for number in range(16))):
                with pytest.raises(InvalidSignatureError):
                    verify(key, message, r + s)


def test_a_key_has_one_spelling():
    """Every y at or above p, with both signs, and a signed zero are refused: else one key had two fingerprints."""
    assert len(set(NON_CANONICAL_KEYS)) == 2 * 19 + 2
    assert all(int.from_bytes(bytes.fromhex(key), "little") % 2**255 >= FIELD_PRIME for key in NON_CANONICAL_KEYS[:-2])
    for key in map(bytes.fromhex, NON_CANONICAL_KEYS):
        with pytest.raises(InvalidKeyError):
            check_public_key(key)
        with pytest.raises(InvalidSignatureError):
            verify(key, MESSAGE, SIGNATURE)


def test_mixed_order_and_off_curve_keys_are_refused():
    """A good key plus a point of small order, and bytes that are no point, are no keys."""
    check_public_key(PAIR.public)
    for low in LOW_ORDER_KEYS[1:]:
        with pytest.raises(InvalidKeyError):
            check_public_key(bindings.crypto_core_ed25519_add(PAIR.public, bytes.fromhex(low)))
    with pytest.raises(InvalidKeyError, match="0200000000000000"):
        check_public_key((2).to_bytes(32, "little"))


@pytest.mark.parametrize("key", [b"", PAIR.public[:-1], PAIR.public + b"\0", PAIR.public.hex(), bytearray(PAIR.public), None])
def test_public_keys_have_32_bytes(key):
    """Another length or type is an InvalidKeyError, not libsodium's own."""
    with pytest.raises(InvalidKeyError):
        check_public_key(key)


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=80))
def test_junk_raises_nothing_but_its_own_errors(key, message, signature):
    """No bytes bring out another exception."""
    with pytest.raises(InvalidSignatureError):
        verify(key, message, signature)
    for attempt in (check_public_key, keypair_from_secret, keypair_from_seed):
        try:
            attempt(key)
        except KeysError:
            pass
