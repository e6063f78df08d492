"""What goes into a PeerSession (events) and what comes out of it (effects).

The shell hands over one event at a time with the clocks and executes the effects in order. Effects that ask
something name the event that answers them; each is answered once, whenever the answer is there, whatever frames
come in between. Events and effects carry batches, never single packets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from federation.protocol.envelope import Envelope
from federation.protocol.errors import Code, Goodbye
from federation.protocol.manifest import SignedManifest
from federation.protocol.packet import PacketId
from keys.encoding import NodeId
from peers.trust import Audience, TrustTable

if TYPE_CHECKING:
    # numpy takes a third of a command's start; whoever only reads rows and values here does without.
    from federation.protocol.itemset import ItemSet

# --- values carried ---


@dataclass(frozen=True, slots=True)
class FeedRow:
    """One stored packet as the live feed knows it, in arrival order; no body."""

    arrival: int
    packet_id: PacketId
    origin: NodeId
    audience: Audience
    created_at: int
    size: int
    received_from: NodeId | None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class StoredEnvelope:
    """A stored packet ready to be sent, with what policy asks about it."""

    envelope: Envelope
    origin: NodeId
    audience: Audience


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one offered envelope. `packet_id` is None when the row could not be read."""

    code: Code
    packet_id: PacketId | None
    reason: str = ""
    due_in_s: float = 0.0
    """When a refused packet may be offered again, if that is known: EARLY, or a rate that was exceeded."""


# --- events ---


@dataclass(frozen=True, slots=True)
class Opened:
    """The WebSocket is open."""


@dataclass(frozen=True, slots=True)
class FrameArrived:
    data: bytes


@dataclass(frozen=True, slots=True)
class LinkAllowed:
    """Answers Authenticated: the shell registered the peer and claimed the link."""

    table: TrustTable


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """Answers Authenticated: the peer is told `goodbye` and the link closed."""

    goodbye: Goodbye
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """The operator changed trust or visibility; the catalogue shows it already."""

    table: TrustTable


@dataclass(frozen=True, slots=True)
class FeedAdvanced:
    """Packets up to arrival number `head` are stored and in the catalogue."""

    head: int


@dataclass(frozen=True, slots=True)
class FeedRead:
    """Answers ReadFeed: rows after `after` in order; everything up to `upto` is covered by them."""

    rows: Sequence[FeedRow]
    upto: int


@dataclass(frozen=True, slots=True)
class EnvelopesLoaded:
    """Answers LoadEnvelopes: a prefix of the ids asked for; None: not here (any more)."""

    loaded: Sequence[tuple[PacketId, StoredEnvelope | None]]


@dataclass(frozen=True, slots=True)
class BatchJudged:
    """Answers JudgeBatch: one judgement per envelope, in order; ACCEPTED means durable."""

    batch: int
    judgements: Sequence[Judgement]


@dataclass(frozen=True, slots=True)
class MissingFound:
    """Answers FindMissing: those of the ids `asked` that are neither stored nor remembered as purged."""

    asked: Sequence[PacketId]
    missing: Sequence[PacketId]


@dataclass(frozen=True, slots=True)
class ManifestLoaded:
    """Answers LoadManifest."""

    origin: NodeId
    signed: SignedManifest | None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The moment named by PeerSession.deadline has come."""


@dataclass(frozen=True, slots=True)
class ReconcileNow:
    """The operator asks for reconciliation at once (syncnow)."""


@dataclass(frozen=True, slots=True)
class EndRequested:
    """This side ends the link."""

    goodbye: Goodbye
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TransportClosed:
    """The WebSocket is gone."""

    close_code: int | None = None


Event = (
    Opened
    | FrameArrived
    | LinkAllowed
    | LinkRefused
    | PolicyChanged
    | FeedAdvanced
    | FeedRead
    | EnvelopesLoaded
    | BatchJudged
    | MissingFound
    | ManifestLoaded
    | TimerFired
    | ReconcileNow
    | EndRequested
    | TransportClosed
)

# --- effects ---


@dataclass(frozen=True, slots=True)
class SendFrame:
    data: bytes


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The peer proved its key. Answer with LinkAllowed or LinkRefused."""

    manifest: SignedManifest


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Both Welcomes are exchanged."""


@dataclass(frozen=True, slots=True)
class JudgeBatch:
    """Check, store durably, then answer with BatchJudged. None: a row that could not be read."""

    batch: int
    envelopes: Sequence[Envelope | None]


@dataclass(frozen=True, slots=True)
class ReadFeed:
    """Answer with FeedRead."""

    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class LoadEnvelopes:
    """Answer with EnvelopesLoaded: the longest prefix of `ids` within `max_bytes` of bodies, at least one."""

    ids: Sequence[PacketId]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class FindMissing:
    """Answer with MissingFound."""

    ids: Sequence[PacketId]


@dataclass(frozen=True, slots=True)
class LoadManifest:
    """Answer with ManifestLoaded."""

    origin: NodeId


@dataclass(frozen=True, slots=True)
class ManifestArrived:
    """A verified manifest of some origin; the registry may learn from it."""

    signed: SignedManifest


@dataclass(frozen=True, slots=True)
class Penalise:
    """The peer used up its budget of rejected packets."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndLink:
    """Send what was queued before, then close the WebSocket with this code.

    `goodbye` is the reason the link ended, None when the other side went without a word;
    `by_peer` tells whose decision it was.
    """

    close_code: int
    goodbye: Goodbye | None = None
    reason: str = ""
    by_peer: bool = False


Effect = (
    SendFrame
    | Authenticated
    | LinkUp
    | JudgeBatch
    | ReadFeed
    | LoadEnvelopes
    | FindMissing
    | LoadManifest
    | ManifestArrived
    | Penalise
    | EndLink
)

# --- what a session is lent ---


class Catalogue(Protocol):
    """The shared sets this node offers, consistent up to arrival number `head`."""

    @property
    def head(self) -> int: ...

    def summary(self, origin: NodeId) -> tuple[int, bytes]:
        """Return count and 16-byte Negentropy fingerprint of the origin's set."""

    def items(self, origin: NodeId) -> "ItemSet":
        """Return the origin's ItemSet."""


@dataclass(slots=True)
class LinkStats:
    """Counters of one link; the shell reads and stores the growth."""

    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    outcomes_in: dict[str, int] = field(default_factory=dict)
    outcomes_out: dict[str, int] = field(default_factory=dict)
    reconcile_rounds: int = 0
    withheld: int = 0
    rtt_ms: float | None = None
    clock_offset_ms: int | None = None
