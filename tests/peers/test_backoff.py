"""How long a node waits before it dials again, and how long a penalty lasts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.backoff import Backoff, backoff_bound, penalty_length


def test_first_dial_needs_no_wait():
    """A peer never dialled, or reset, may be dialled at once."""
    assert Backoff().is_ready(0.0)


@pytest.mark.parametrize(("failures", "bound"), [(0, 5), (1, 10), (2, 20), (6, 320), (7, 640), (8, 900), (9, 900), (2_000, 900)])
def test_bound_doubles_from_5_s_to_15_min(failures, bound):
    """The longest wait doubles with every failure in a row, up to a quarter of an hour."""
    assert backoff_bound(failures) == bound


@pytest.mark.parametrize(("jitter", "ready_at"), [(0.0, 100.0), (0.5, 102.5), (1.0, 105.0)])
def test_full_jitter(jitter, ready_at):
    """The wait is the whole range from nothing to the bound, drawn by the caller."""
    state = Backoff().after_failure(now=100.0, jitter=jitter)
    assert state == Backoff(failures=1, ready_at=ready_at)
    assert state.is_ready(ready_at)
    assert jitter == 0.0 or not state.is_ready(ready_at - 0.01)


def test_after_pending_at_most_a_minute():
    """However often the peer said `pending`, the next try is within 60 s."""
    state = Backoff()
    for _ in range(30):
        state = state.after_pending(now=0.0, jitter=1.0)
        assert state.ready_at <= 60.0
    assert state.ready_at == 60.0
    assert state.after_failure(now=0.0, jitter=1.0).ready_at == 900.0


@given(st.integers(0, 10_000), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e9))
def test_wait_is_bounded_whatever_is_drawn(failures, jitter, now):
    """No count of failures and no draw, even outside 0 to 1, makes a wait negative or longer than 15 min."""
    state = Backoff(failures).after_failure(now=now, jitter=jitter)
    assert now <= state.ready_at <= now + 900.0 + 1e-6


@pytest.mark.parametrize(("earlier", "length"), [(0, 60), (1, 120), (5, 1_920), (6, 3_600), (7, 3_600), (5_000, 3_600)])
def test_penalty_doubles_from_a_minute_to_an_hour(earlier, length):
    """A peer that comes back to misbehave is kept away twice as long, at most an hour."""
    assert penalty_length(earlier) == length
