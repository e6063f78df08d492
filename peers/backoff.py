"""How long to wait: before the next dial of a peer, and for a penalty to end.

Two separate things. *Back-off* is this node's own patience after a dial failed: exponential with full
jitter, so that nodes which lost the same peer at the same moment do not come back in step. It is
forgotten on any sign of life (a beacon, a contact, the operator). A *penalty* is the answer to a
misbehaving peer: while it lasts both directions are refused, and nothing but time or the operator ends it.

Values in, values out: the clock (monotonic seconds, `now`) and the randomness (`jitter`, 0 to 1) are handed in.

Source: docs/protocol.md, section 6; Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
"""

from dataclasses import dataclass

# The first failed dial waits up to this long; each further one doubles the bound.
FIRST_BACKOFF_S = 5.0
# No wait is longer: a peer that returns unannounced is found again within a quarter of an hour.
MAX_BACKOFF_S = 900.0
# After `pending` the other operator is probably about to decide, so the wait stays short.
MAX_PENDING_BACKOFF_S = 60.0

FIRST_PENALTY_S = 60.0
MAX_PENALTY_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Where one peer stands; `Backoff()` is a peer that may be dialled at once.

    `failures` counts dials in a row that led to no link; `ready_at` is monotonic seconds.
    """

    failures: int = 0
    ready_at: float = 0.0

    def is_ready(self, now: float) -> bool:
        return now >= self.ready_at

    def after_failure(self, *, now: float, jitter: float) -> "Backoff":
        """Return the state after a dial failed: wait a `jitter` share of 5 s, 10 s, 20 s … 15 min."""
        return self._wait(now, jitter, MAX_BACKOFF_S)

    def after_pending(self, *, now: float, jitter: float) -> "Backoff":
        """Return the state after the peer said `pending`: the same, but never beyond 60 s."""
        return self._wait(now, jitter, MAX_PENDING_BACKOFF_S)

    def _wait(self, now: float, jitter: float, longest: float) -> "Backoff":
        return Backoff(self.failures + 1, now + backoff_bound(self.failures, longest=longest) * min(max(jitter, 0.0), 1.0))


def backoff_bound(failures: int, *, longest: float = MAX_BACKOFF_S) -> float:
    """Return the longest wait, in seconds, after this many earlier failures in a row."""
    return _doubled(FIRST_BACKOFF_S, failures, longest)


def penalty_length(earlier: int) -> float:
    """Return how long, in seconds, a penalty lasts for a peer that had `earlier` ones before: 1 min, doubling, at most 1 h."""
    return _doubled(FIRST_PENALTY_S, earlier, MAX_PENALTY_S)


def _doubled(first: float, times: int, longest: float) -> float:
    # 2.0 ** 1024 overflows, and every bound here is reached long before 32 doublings.
    return min(first * 2.0 ** min(max(times, 0), 32), longest)
