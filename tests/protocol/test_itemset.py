"""The item set against a plain sorted list, with blocks small enough that every example crosses them."""

import hashlib
import tracemalloc
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from federation.protocol import itemset
from federation.protocol.itemset import MAX_SECONDS, ItemSet
from federation.protocol.negentropy import INFINITY, ZERO, Bound, encode_varint

# Seconds close together, at the edges of each offset width, and at the edges of time.
SECONDS = st.one_of(
    st.integers(0, 3),
    st.sampled_from([2**16 - 1, 2**16, 2**16 + 1, 2**32 - 1, 2**32, 2**32 + 1, MAX_SECONDS]),
    st.integers(1_700_000_000, 1_700_100_000),
    st.integers(0, MAX_SECONDS),
)
# Ids that share beginnings and differ in their first, eighth, ninth or last byte.
IDS = st.tuples(st.sampled_from([0, 1, 127, 128, 255]), st.sampled_from([0, 7, 8, 31]), st.sampled_from([0, 0, 255])).map(
    lambda parts: bytes(parts[2] if place != parts[1] else parts[0] for place in range(32))
)
ITEMS = st.tuples(SECONDS, IDS)
BOUNDS = st.one_of(
    st.builds(lambda item, size: Bound(item[0], item[1][:size]), ITEMS, st.integers(0, 32)),
    st.just(ZERO),
    st.just(INFINITY),
    st.just(Bound(2**64 - 2, b"\xff" * 32)),
)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(itemset, "BLOCK_ITEMS", 8)
    monkeypatch.setattr(itemset, "BUILT_ITEMS", 4)
    monkeypatch.setattr(itemset, "SPARSE_ITEMS", 2)


def plain_fingerprint(items) -> bytes:
    """The specification, word for word."""
    total = sum(int.from_bytes(packet_id, "little") for _, packet_id in items) % 2**256
    return hashlib.sha256(total.to_bytes(32, "little") + encode_varint(len(items))).digest()[:16]


def arrays(items):
    ids = np.frombuffer(b"".join(packet_id for _, packet_id in items), dtype=np.uint8).reshape(-1, 32)
    return np.array([seconds for seconds, _ in items], dtype=np.int64), ids


def numbered(count, *, per_second=1, first=1_700_000_000):
    """Items made from numbers, in order of seconds."""
    return [(first + number // per_second, hashlib.sha256(b"%d" % number).digest()) for number in range(count)]


class AgainstPlainList(RuleBasedStateMachine):
    """Whatever is done to it, an item set answers as a sorted list of distinct items would."""

    def __init__(self) -> None:
        super().__init__()
        self.items = ItemSet()
        self.plain: set[tuple[int, bytes]] = set()

    @rule(item=ITEMS)
    def add(self, item):
        assert self.items.add(*item) is (item not in self.plain)
        self.plain.add(item)

    @rule(item=ITEMS)
    def discard_any(self, item):
        assert self.items.discard(*item) is (item in self.plain)
        self.plain.discard(item)

    @rule(data=st.data())
    def discard_several(self, data):
        for _ in range(min(5, len(self.plain))):
            item = data.draw(st.sampled_from(sorted(self.plain)))
            assert self.items.discard(*item)
            self.plain.discard(item)

    @rule(items=st.lists(ITEMS, max_size=30))
    def add_many(self, items):
        assert self.items.add_many(*arrays(items)) == len(set(items) - self.plain)
        self.plain.update(items)

    @rule(items=st.lists(ITEMS, max_size=30))
    def build_anew(self, items):
        self.items = ItemSet.from_arrays(*arrays(items))
        self.plain = set(items)

    @rule(bounds=st.lists(BOUNDS, min_size=2, max_size=2).map(sorted))
    def ask_for_a_range(self, bounds):
        ordered = sorted(self.plain)
        lower, upper = (self.items.rank(bound) for bound in bounds)
        assert [lower, upper] == [bisect_left(ordered, tuple(bound)) for bound in bounds]
        assert b"".join(self.items.ids(lower, upper)) == b"".join(packet_id for _, packet_id in ordered[lower:upper])
        assert self.items.range_fingerprint(lower, upper) == plain_fingerprint(ordered[lower:upper])

    @rule(data=st.data())
    def ask_for_parts(self, data):
        ordered = sorted(self.plain)
        if len(ordered) > 1:
            ranks = sorted(data.draw(st.sets(st.integers(0, len(ordered)), min_size=2)))
            expected = [plain_fingerprint(ordered[ranks[n] : ranks[n + 1]]) for n in range(len(ranks) - 1)]
            assert self.items.part_fingerprints(ranks) == expected

    @rule(item=ITEMS)
    def ask_for_an_item(self, item):
        assert (item in self.items) is (item in self.plain)

    @invariant()
    def same_content(self):
        ordered = sorted(self.plain)
        assert len(self.items) == len(ordered)
        assert list(self.items) == ordered
        assert [self.items.item(rank) for rank in range(len(ordered))] == ordered
        assert self.items.fingerprint() == plain_fingerprint(ordered)


@pytest.mark.usefixtures("small_blocks")
class TestSmallBlocks(AgainstPlainList.TestCase):
    settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(ITEMS, max_size=100))
@settings(deadline=None)
def test_arrays_in_any_order_make_the_same_set_as_adding_one_by_one(items):
    """Order and repetition of what a set is built from make no difference."""
    built = ItemSet.from_arrays(*arrays(items))
    added = ItemSet()
    for item in items:
        added.add(*item)
    assert list(built) == list(added) == sorted(set(items))
    assert built.fingerprint() == added.fingerprint()


def test_ids_are_ordered_by_their_first_differing_byte():
    """Not as little-endian numbers, nor as the machine's words."""
    starts = [b"\x00\x00", b"\x00\x01", b"\x01\x00", b"\x7f\xff", b"\x80\x00", b"\xff\x00"]
    ids = [start + bytes(29) + b"\xfe" for start in starts] + [b"\xff" * 32]
    items = [(5, packet_id) for packet_id in reversed(ids)]
    assert [packet_id for _, packet_id in ItemSet.from_arrays(*arrays(items))] == ids


def test_fingerprint_of_ids_that_add_up_past_256_bits():
    """The sum is taken modulo 2^256, over the whole set and over every part of it."""
    items = [(second, b"\xff" * 32) for second in range(3_000)]
    built = ItemSet.from_arrays(*arrays(items))
    assert built.fingerprint() == plain_fingerprint(items)
    for lower, upper in [(0, 1), (511, 513), (100, 900), (0, 3_000), (2_999, 3_000), (3_000, 3_000)]:
        assert built.range_fingerprint(lower, upper) == plain_fingerprint(items[lower:upper])


def test_blocks_of_real_size_are_halved_joined_and_widened():
    """Ten thousand items come in descending order, spread out, and go again; the set answers rightly all along."""
    items = numbered(10_000, per_second=3)
    held = ItemSet()
    for item in reversed(items):
        assert held.add(*item)
    ordered = sorted(items)
    assert list(held) == ordered
    late = [(seconds * 1_000, packet_id) for seconds, packet_id in items[:2_000]]
    for item in late:
        assert held.add(*item)
    ordered = sorted(items + late)
    assert held.fingerprint() == plain_fingerprint(ordered)
    assert held.range_fingerprint(1_234, 11_000) == plain_fingerprint(ordered[1_234:11_000])
    for item in ordered[:11_990]:
        assert held.discard(*item)
    assert list(held) == ordered[11_990:]
    assert len(held._blocks) == 1


def test_add_many_few_or_many():
    """A few new items and a lot of them end in the same set, and only new ones are counted."""
    items = numbered(4_000)
    whole = ItemSet.from_arrays(*arrays(items))
    few = ItemSet.from_arrays(*arrays(items[:3_900]))
    assert few.add_many(*arrays(items[3_800:])) == 100
    many = ItemSet.from_arrays(*arrays(items[:100]))
    assert many.add_many(*arrays(items[50:])) == 3_900
    assert list(few) == list(many) == list(whole)
    assert whole.add_many(*arrays([])) == 0


def test_replaced_content_shows_to_whoever_holds_the_set():
    """A link keeps its set when the index is read anew."""
    held = ItemSet.from_arrays(*arrays(numbered(10)))
    other = ItemSet.from_arrays(*arrays(numbered(2_000)))
    held.replace_with(other)
    assert len(held) == 2_000
    assert held.fingerprint() == plain_fingerprint(numbered(2_000))


@pytest.mark.parametrize("seconds", [0, MAX_SECONDS])
def test_seconds_at_the_limit(seconds):
    held = ItemSet.from_arrays(np.array([seconds]), np.zeros((1, 32), dtype=np.uint8))
    assert held.add(seconds, b"\x01" * 32)
    assert list(held) == [(seconds, bytes(32)), (seconds, b"\x01" * 32)]


@pytest.mark.parametrize("seconds", [-1, MAX_SECONDS + 1])
def test_seconds_one_beyond_the_limit(seconds):
    held = ItemSet()
    with pytest.raises(ValueError, match="seconds"):
        held.add(seconds, bytes(32))
    with pytest.raises(ValueError, match="seconds"):
        ItemSet.from_arrays(np.array([seconds]), np.zeros((1, 32), dtype=np.uint8))
    assert len(held) == 0


@pytest.mark.parametrize("size", [0, 31, 33])
def test_ids_of_another_size(size):
    with pytest.raises(ValueError, match=f"{size}"):
        ItemSet().add(1, bytes(size))
    with pytest.raises(ValueError, match=f"{size}"):
        ItemSet.from_arrays(np.array([1]), np.zeros((1, size), dtype=np.uint8))


def test_arrays_of_other_shapes_or_types():
    """Columns of different lengths, of two dimensions or of wider numbers are a mistake here, said loudly."""
    ids = np.zeros((2, 32), dtype=np.uint8)
    with pytest.raises(ValueError, match="ids of shape"):
        ItemSet.from_arrays(np.array([1]), ids)
    with pytest.raises(ValueError, match="seconds of shape"):
        ItemSet.from_arrays(np.array([[1, 2]]), ids)
    with pytest.raises(ValueError, match="int64"):
        ItemSet.from_arrays(np.array([1, 2]), ids.astype(np.int64))


def test_item_beyond_the_last():
    held = ItemSet.from_arrays(*arrays(numbered(3)))
    assert held.item(2) == numbered(3)[2]
    for rank in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            held.item(rank)


def test_memory_of_a_hundred_thousand_items():
    """At most 38 bytes an item as built over a year, and 45 after random inserts."""
    generator = np.random.default_rng(1)
    seconds = generator.integers(1_700_000_000, 1_731_000_000, 100_000)
    ids = generator.integers(0, 256, (100_000, 32), dtype=np.uint8)
    more = generator.integers(1_700_000_000, 1_731_000_000, 5_000).tolist()
    tracemalloc.start()
    try:
        held = ItemSet.from_arrays(seconds, ids)
        built = tracemalloc.get_traced_memory()[0]
        for number, second in enumerate(more):
            held.add(second, hashlib.sha256(b"%d" % number).digest())
        moved = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert built <= 38 * 100_000
    assert moved <= 45 * 105_000
