"""Memories of ids are bounded and forget the oldest first."""

from federation.protocol.recent import RecentIds, Refusals


def test_recent_ids_hold_their_capacity_and_one_more_pushes_the_oldest_out():
    recent = RecentIds(3)
    for packet_id in (b"a", b"b", b"c"):
        recent.add(packet_id)
    assert len(recent) == 3 and b"a" in recent
    recent.add(b"d")
    assert len(recent) == 3 and b"a" not in recent and b"d" in recent


def test_adding_an_id_again_makes_it_the_newest():
    recent = RecentIds(2)
    for packet_id in (b"a", b"b", b"a", b"c"):
        recent.add(packet_id)
    assert b"a" in recent and b"b" not in recent
    recent.clear()
    assert len(recent) == 0


def test_a_refusal_is_held_until_its_moment():
    refusals = Refusals(10)
    refusals.add(b"a", 5.0)
    assert refusals.holds(b"a", 4.999)
    assert not refusals.holds(b"a", 5.0)
    assert len(refusals) == 0, "what is over is forgotten when it is asked for"
    assert not refusals.holds(b"never", 0.0)


def test_refusals_hold_their_capacity_and_one_more_pushes_the_oldest_out():
    refusals = Refusals(65_536)
    for number in range(65_537):
        refusals.add(number.to_bytes(4), 100.0)
    assert len(refusals) == 65_536
    assert not refusals.holds((0).to_bytes(4), 0.0)
    assert refusals.holds((1).to_bytes(4), 0.0)


def test_clearing_forgets_ids_and_keeps_the_count_of_rejections():
    """What changed is what the operator wants, not what the peer did."""
    refusals = Refusals(10)
    refusals.add(b"a", 100.0)
    refusals.rejections = 3
    refusals.clear()
    assert not refusals.holds(b"a", 0.0)
    assert refusals.rejections == 3
