"""Every bound of the protocol in one frozen value.

Source: docs/protocol.md, section 8. Sizes are bytes, times seconds unless the name says otherwise.
What lies beyond a bound is refused; each comment says what the bound protects and what happens beyond it.
"""

from dataclasses import dataclass, replace
from typing import Final

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Fixed by the format itself: every node must agree on them, so no setting changes them.
MAX_PACKET_BYTES = 65_536
MAX_NESTING = 32
MAX_SAFE_INTEGER = 2**53 - 1
MAX_TITLE_CHARS = 200
MAX_TAGS = 32
MAX_TAG_CHARS = 64
MAX_KIND_CHARS = 64
MAX_SOURCE_CHARS = 512
MAX_DEPENDS_ON = 32
MAX_MANIFEST_BYTES = 32 * KIB
MAX_SUCCESSION_BYTES = 16 * KIB
MAX_SUCCESSION_STATEMENTS = 20
MAX_BEACON_BYTES = 1_200
CLOCK_SKEW_MS = 600_000  # a packet may be stamped this far ahead of our clock; beyond it: `early`
MIN_RECONCILE_FRAME_BYTES = 4_096  # below it a frame could not hold one split, and reconciliation would not advance
MAX_RECONCILE_COUNT = 2**22  # a count claimed in Interest or Scope buys no more rounds than this many packets


def reconcile_rounds(count: int) -> int:
    """Return how many requests of reconciliation one Scope allows for an origin of `count` packets; beyond: `overrun`."""
    return 64 + min(count, MAX_RECONCILE_COUNT) // 250


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds an operator may change (`ARK_LIMIT_<NAME>`)."""

    frame_bytes: int = 256 * KIB  # ciphertext of one WebSocket message; beyond: 1009 or Goodbye too-large
    handshake_s: float = 10.0  # from connection to both Auths; beyond: closed without a word
    links: int = 64  # authenticated links at once; beyond: Goodbye bye
    half_open: int = 64  # connections before both Auths; beyond: the oldest of the fullest address gives way
    half_open_per_address: int = 8  # the same for one address
    window_packets: int = 512  # unacknowledged packets a direction; beyond: Goodbye overrun
    window_bytes: int = 1 * MIB  # canonical bytes of them; beyond: Goodbye overrun
    batch_packets: int = 256  # envelopes in one Packets message; beyond: Goodbye protocol
    batch_bytes: int = 192 * KIB  # canonical bytes of them
    wants: int = 1_024  # unanswered Want ids; beyond: Goodbye overrun
    have_rows: int = 1_024  # rows of one Have
    scope_rows: int = 2_048  # rows of Interest and Scope
    reconcile_frame_bytes: int = 60_000
    reconcile_origins: int = 8  # reconciled at once
    learned_ids: int = 8_192  # needed ids waiting before another Reconcile frame is sent
    want_timeout_s: float = 30.0  # unanswered Want: ask another peer
    interest_interval_s: float = 600.0
    ping_after_s: float = 10.0
    dead_after_s: float = 30.0
    refusals_per_peer: int = 65_536  # remembered, so that they are not fetched again
    refusal_memory_s: float = 86_400.0
    sandbox_packets_per_s: float = 2_000.0
    sandbox_packets: int = 5_000  # stored of one SANDBOX origin; beyond: declined quota
    sandbox_bytes: int = 256 * MIB
    core_bytes: int = 1 * GIB  # stored of one CORE origin
    queries_per_minute: int = 60  # of one EXTERNAL peer
    rejections: int = 20  # budget of rejected packets before a non-CORE peer gets a penalty
    unknown_peers: int = 256
    unknown_peers_per_address: int = 8
    addresses_per_peer: int = 4

    def within_protocol(self) -> "Limits":
        """Return these limits with everything lowered that the other side would hold against this one.

        An operator may send and ask for less than the protocol allows, but not for more: peers know its numbers, not ours.
        """
        return replace(
            self,
            batch_packets=min(self.batch_packets, PROTOCOL.batch_packets),
            batch_bytes=min(self.batch_bytes, PROTOCOL.batch_bytes),
            wants=min(self.wants, PROTOCOL.wants),
            have_rows=min(self.have_rows, PROTOCOL.have_rows),
            reconcile_frame_bytes=min(max(self.reconcile_frame_bytes, MIN_RECONCILE_FRAME_BYTES), PROTOCOL.reconcile_frame_bytes),
            reconcile_origins=min(self.reconcile_origins, PROTOCOL.reconcile_origins),
        )


PROTOCOL: Final = Limits()
"""The numbers of docs/protocol.md, which every peer goes by."""
