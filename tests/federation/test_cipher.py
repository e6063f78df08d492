"""The real cipher: what it refuses, and that nothing readable is on the wire."""

import random

import pytest
from nacl import bindings

from federation.cipher import SodiumOpener, SodiumSealer, SodiumSuite
from federation.protocol.handshake import CipherError
from tests.fakes import FakeOpener, FakeSealer, FakeSuite

KEY = bytes(range(32))
P = 2**255 - 19
# The points of order 1, 2, 4 and 8 on Curve25519, as libsodium and Langley's RFC 7748 notes list them, and their second
# spellings: values of p and more, and all of them with the highest bit set.
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]
LOW_ORDER_KEYS = [value.to_bytes(32, "little") for value in LOW_ORDER]
LOW_ORDER_KEYS += [(value | 1 << 255).to_bytes(32, "little") for value in LOW_ORDER]
NON_CANONICAL_KEYS = [(P + more).to_bytes(32, "little") for more in range(2, 19)]
NON_CANONICAL_KEYS += [((9 + more) | 1 << 255).to_bytes(32, "little") for more in range(19)]

both_ciphers = pytest.mark.parametrize(
    ("sealer_of", "opener_of"),
    [pytest.param(SodiumSealer, SodiumOpener, id="sodium"), pytest.param(FakeSealer, FakeOpener, id="fake")],
)
both_suites = pytest.mark.parametrize("suite", [SodiumSuite(), FakeSuite()], ids=["sodium", "fake"])


def sealed(sealer, count=5):
    return [sealer.seal(b"message %d" % number) for number in range(count)]


@both_suites
def test_both_sides_derive_the_same_two_streams(suite):
    """What one side sends with, the other receives with, and the two directions differ."""
    client, server = suite.keypair(b"c" * 32), suite.keypair(b"s" * 32)
    client_rx, client_tx = suite.client_keys(*client, server[0])
    server_rx, server_tx = suite.server_keys(*server, client[0])
    assert (client_rx, client_tx) == (server_tx, server_rx)
    assert client_rx != client_tx
    assert suite.keypair(b"c" * 32) == client
    frame = suite.sealer(client_tx).seal(b"hello", final=True)
    assert suite.opener(server_rx).open(frame) == (b"hello", True)


@both_ciphers
def test_messages_arrive_in_order(sealer_of, opener_of):
    """The first frame carries the header of 24 bytes, each one 17 bytes beside its message."""
    sealer, opener = sealer_of(KEY), opener_of(KEY)
    for number, size in enumerate([0, 1, 70_000, 3]):
        frame = sealer.seal(bytes(size))
        assert len(frame) == size + 17 + (24 if number == 0 else 0)
        assert opener.open(frame) == (bytes(size), False)
    assert opener.open(sealer.seal(b"bye", final=True)) == (b"bye", True)


@both_ciphers
@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda f: [f[0], f[2], f[3], f[4]], id="one dropped"),
        pytest.param(lambda f: f[1:], id="first dropped"),
        pytest.param(lambda f: [f[0], f[1], f[1]], id="one doubled"),
        pytest.param(lambda f: [f[0], f[0]], id="first doubled"),
        pytest.param(lambda f: [f[0], f[2], f[1]], id="two swapped"),
        pytest.param(lambda f: [f[0], f[1], f[0][24:]], id="first again without its header"),
        pytest.param(lambda f: [f[0], f[1][:-1]], id="cut at the end"),
        pytest.param(lambda f: [f[0], f[1][1:]], id="cut at the front"),
        pytest.param(lambda f: [f[0], f[1] + b"\x00"], id="a byte more"),
        pytest.param(lambda f: [f[0], b""], id="empty frame"),
        pytest.param(lambda f: [f[0], b"\x00" * 16], id="shorter than any frame"),
        pytest.param(lambda f: [f[0], b"\x00" * 17], id="zeros"),
        pytest.param(lambda f: [f[0][:24]], id="header alone"),
        pytest.param(lambda f: [f[0][:23]], id="header cut"),
        pytest.param(lambda f: [b""], id="nothing"),
        pytest.param(lambda f: [f[0] + f[1]], id="two in one"),
    ],
)
def test_a_disturbed_stream_fails_and_stays_dead(sealer_of, opener_of, disturb):
    """At the first frame that is not the next one everything ends, also for frames that would have been right."""
    frames = sealed(sealer_of(KEY))
    disturbed = disturb(frames)
    opener = opener_of(KEY)
    for frame in disturbed[:-1]:
        try:
            opener.open(frame)
        except CipherError:
            break
    else:
        with pytest.raises(CipherError):
            opener.open(disturbed[-1])
    for frame in frames:
        with pytest.raises(CipherError, match="after the end"):
            opener.open(frame)


@both_ciphers
def test_every_flipped_bit_is_found(sealer_of, opener_of):
    """No bit of a frame may change, header included."""
    first, second = sealed(sealer_of(KEY), 2)
    for bit in range(8 * len(first)):
        with pytest.raises(CipherError):
            opener_of(KEY).open(flip(first, bit))
    for bit in range(8 * len(second)):
        opener = opener_of(KEY)
        opener.open(first)
        with pytest.raises(CipherError):
            opener.open(flip(second, bit))


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_ten_thousand_flipped_bits_deliver_nothing():
    """One random bit in one random frame of a stream: that frame and all after it are not delivered."""
    rng = random.Random(20)
    frames = sealed(SodiumSealer(KEY), 10)
    for _ in range(10_000):
        at = rng.randrange(len(frames))
        opener = SodiumOpener(KEY)
        for frame in frames[:at]:
            opener.open(frame)
        with pytest.raises(CipherError):
            opener.open(flip(frames[at], rng.randrange(8 * len(frames[at]))))


@both_ciphers
def test_another_key_opens_nothing(sealer_of, opener_of):
    with pytest.raises(CipherError, match="does not decrypt"):
        opener_of(bytes(32)).open(sealer_of(KEY).seal(b"secret"))


@both_ciphers
def test_nothing_follows_the_final_message(sealer_of, opener_of):
    """Neither side goes on after FINAL, even with a frame the cipher itself would take."""
    sealer, opener = sealer_of(KEY), opener_of(KEY)
    assert opener.open(sealer.seal(b"bye", final=True)) == (b"bye", True)
    with pytest.raises(CipherError, match="after the final"):
        sealer.seal(b"more")
    sealer._ended = False  # what a peer that breaks the rule would do
    with pytest.raises(CipherError, match="after the end"):
        opener.open(sealer.seal(b"more"))


@pytest.mark.parametrize(
    "tag",
    [
        bindings.crypto_secretstream_xchacha20poly1305_TAG_PUSH,
        bindings.crypto_secretstream_xchacha20poly1305_TAG_REKEY,
        0x40,
        0xFF,
    ],
)
def test_other_tags_are_refused(tag):
    """PUSH, REKEY and unknown tags decrypt but do not occur; the stream ends."""
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    header = bindings.crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
    frame = header + bindings.crypto_secretstream_xchacha20poly1305_push(state, b"x", None, tag)
    after = bindings.crypto_secretstream_xchacha20poly1305_push(state, b"y", None, 0)
    opener = SodiumOpener(KEY)
    with pytest.raises(CipherError, match="tag"):
        opener.open(frame)
    with pytest.raises(CipherError, match="after the end"):
        opener.open(after)


def test_associated_data_is_not_used():
    """A frame bound to other data than none does not open."""
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    header = bindings.crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
    frame = header + bindings.crypto_secretstream_xchacha20poly1305_push(state, b"x", b"context", 0)
    with pytest.raises(CipherError, match="does not decrypt"):
        SodiumOpener(KEY).open(frame)


@pytest.mark.parametrize("key", LOW_ORDER_KEYS, ids=lambda key: key.hex()[:8] + "-" + key.hex()[-2:])
def test_low_order_keys_are_refused(key):
    """A key of low order would make the secret known to everybody; all published ones are refused, in both roles."""
    suite = SodiumSuite()
    own = suite.keypair(b"o" * 32)
    for derive in [suite.client_keys, suite.server_keys]:
        with pytest.raises(CipherError, match="ephemeral key"):
            derive(*own, key)


@pytest.mark.parametrize("key", LOW_ORDER_KEYS[:5], ids=lambda key: key.hex()[:8])
def test_libsodium_itself_refuses_low_order_keys(key):
    """The canonical ones do not even need our own check of the form."""
    with pytest.raises(CipherError, match="low order"):
        SodiumSuite().client_keys(*SodiumSuite().keypair(bytes(32)), key)


@pytest.mark.parametrize("key", NON_CANONICAL_KEYS, ids=lambda key: key.hex()[:4] + "-" + key.hex()[-2:])
def test_keys_that_are_not_canonical_are_refused(key):
    """Second spellings of a point are refused, although X25519 would take them."""
    suite = SodiumSuite()
    own = suite.keypair(b"o" * 32)
    for derive in [suite.client_keys, suite.server_keys]:
        with pytest.raises(CipherError, match="not canonical"):
            derive(*own, key)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused(size):
    suite = SodiumSuite()
    own = suite.keypair(b"o" * 32)
    for derive in [suite.client_keys, suite.server_keys]:
        with pytest.raises(CipherError, match="ephemeral key"):
            derive(*own, b"\x09" * size)


def test_a_thousand_frames_show_nothing_of_what_they_carry():
    """No sixteen bytes of any plaintext occur in the capture, and equal messages give different frames."""
    sealer = SodiumSealer(KEY)
    plaintext = b'{"content":"the same knowledge again and again","v":1}'
    frames = [sealer.seal(plaintext) for _ in range(1_000)]
    capture = b"".join(frames)
    assert len(set(frames)) == 1_000
    for start in range(len(plaintext) - 15):
        assert plaintext[start : start + 16] not in capture


def test_streams_never_share_a_header():
    """Each sealer draws its own header, so that one key never starts two equal streams."""
    assert len({SodiumSealer(KEY).seal(b"")[:24] for _ in range(100)}) == 100


def test_the_fake_is_deterministic():
    """A simulation replays from its seed: equal keys and messages give equal frames."""
    assert sealed(FakeSealer(KEY)) == sealed(FakeSealer(KEY))
    with pytest.raises(CipherError, match="low order"):
        FakeSuite().client_keys(*FakeSuite().keypair(KEY), bytes(32))
