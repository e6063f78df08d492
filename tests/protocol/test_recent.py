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


def test_a_wall_clock_set_forward_forgets_what_was_early_and_nothing_else():
    refusals = Refusals(10)
    assert not refusals.wall_clock(100.0), "the first word on it is no change"
    refusals.add(b"early", 3_000.0, is_early=True)
    refusals.add(b"bad", 3_000.0)
    assert not refusals.wall_clock(104.9), "clocks drift"
    assert not refusals.wall_clock(50.0), "set back: what was early still is"
    assert refusals.holds(b"early", 0.0)
    assert refusals.wall_clock(55.0)
    assert not refusals.holds(b"early", 0.0) and refusals.holds(b"bad", 0.0)
    assert not refusals.wall_clock(60.0), "nothing is early any more"


def test_what_is_early_leaves_no_trace_when_it_is_pushed_out_or_refused_otherwise():
    refusals = Refusals(2)
    refusals.wall_clock(0.0)
    refusals.add(b"a", 9.0, is_early=True)
    refusals.add(b"b", 9.0, is_early=True)
    refusals.add(b"b", 9.0)
    refusals.add(b"c", 9.0)
    assert len(refusals) == 2
    assert not refusals.wall_clock(10.0), "`a` was pushed out, `b` is refused for another reason"
    refusals.add(b"d", 9.0, is_early=True)
    refusals.clear()
    assert not refusals.wall_clock(20.0)
