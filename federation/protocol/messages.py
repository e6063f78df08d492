"""The nineteen messages of a link, as frozen values.

Each is one MessagePack array that begins with the number in `tag`; field order is the order on the wire. Sizes of byte
strings, ranges of integers and lengths of text are part of the types here, and the codec refuses what breaks them. Bounds on
the number of rows an operator may change are in `Limits`; the codec applies those too.

Building a message checks nothing: what is built here comes from our own code. Everything that `codec.decode` returns has been
checked.

Source: docs/protocol.md, section 5 (table of messages).
"""

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Annotated

from msgspec import Meta, Raw, Struct

from federation.protocol.errors import Code, Goodbye
from federation.protocol.limits import KIB, MAX_KIND_CHARS, MAX_MANIFEST_BYTES, MAX_SAFE_INTEGER, MAX_TAG_CHARS
from federation.protocol.packet import PacketId
from keys.encoding import KeyFingerprint, NodeId

# What a stranger can make us read is bounded field by field; beyond each bound the link ends `protocol`.
MAX_VERSIONS = 16  # entries of HelloClient
MAX_NETWORK_CHARS = 64
MAX_REASON_CHARS = 256  # Goodbye: logged and shown to the operator
MAX_EXTENSIONS = 64  # entries of Welcome
MAX_EXTENSION_CHARS = 64
MAX_QUERY_TEXT_CHARS = 1_024
MAX_QUERY_TERMS = 32  # kinds, and tags, of one Query
MAX_QUERY_LIMIT = 100
MAX_CURSOR_CHARS = 256

# Welcome may lower the window to one full batch and no further: below it a full batch could never be sent.
MIN_WINDOW_PACKETS = 256
MIN_WINDOW_BYTES = 192 * KIB

FIRST_EXTENSION = 64
"""Messages with this number or a higher one are extensions: ignored by a node that does not know them."""

Natural = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)]
"""A count, or a time in milliseconds since the Unix epoch: 0 to 2^53-1, which every language reads exactly."""
Origin = Annotated[NodeId, Meta(min_length=16, max_length=16)]
Id = Annotated[PacketId, Meta(min_length=32, max_length=32)]
Fingerprint = Annotated[KeyFingerprint, Meta(min_length=32, max_length=32)]
SetFingerprint = Annotated[bytes, Meta(min_length=16, max_length=16)]
EphemeralKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
SignedBytes = tuple[Annotated[bytes, Meta(max_length=MAX_MANIFEST_BYTES)], Signature]
"""Canonical manifest bytes and the signature over them, both untrusted."""
Window = tuple[
    Annotated[int, Meta(ge=MIN_WINDOW_PACKETS, le=MAX_SAFE_INTEGER)],
    Annotated[int, Meta(ge=MIN_WINDOW_BYTES, le=MAX_SAFE_INTEGER)],
]
"""Unacknowledged packets, and canonical bytes of them, that the sender of Welcome will take."""
Cursor = Annotated[str, Meta(max_length=MAX_CURSOR_CHARS)]
"""Where a Query goes on; means something only to the node that gave it."""


class Preference(StrEnum):
    """How a peer wants to hear of live packets."""

    PUSH = "push"  # whole, at once
    ANNOUNCE = "announce"  # as a Have


class Role(IntEnum):
    """Which half of a reconciliation a frame belongs to."""

    REQUEST = 0  # from the data receiver
    ANSWER = 1


OK = "ok"
"""Code of a Result that answers; anything else is the refusal, a `Code`."""


class _Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common shape: an array of exactly the tag and the fields."""


class HelloClient(_Message, frozen=True, tag=1):
    versions: Annotated[Sequence[Natural], Meta(min_length=1, max_length=MAX_VERSIONS)]
    network: Annotated[str, Meta(min_length=1, max_length=MAX_NETWORK_CHARS)]
    key: EphemeralKey


class HelloServer(_Message, frozen=True, tag=2):
    version: Natural
    network: Annotated[str, Meta(min_length=1, max_length=MAX_NETWORK_CHARS)]
    key: EphemeralKey


class Auth(_Message, frozen=True, tag=3):
    manifest: SignedBytes
    signature: Signature
    """Over the label of the role and the transcript hash."""


class Welcome(_Message, frozen=True, tag=4):
    """What the receiver of this may do here. The only message that may be longer than its fields."""

    push: bool
    pull: bool
    query: bool
    window: Window
    clock: Natural
    extensions: Annotated[
        Sequence[Natural | Annotated[str, Meta(max_length=MAX_EXTENSION_CHARS)]], Meta(max_length=MAX_EXTENSIONS)
    ] = ()


class Bye(_Message, frozen=True, tag=5):
    """Goodbye, called Bye because `Goodbye` is the enum of its codes."""

    code: Goodbye
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


class Interest(_Message, frozen=True, tag=6):
    rows: Sequence[tuple[Origin, Natural]]
    """Origin accepted from this peer, number of its packets held."""


class Scope(_Message, frozen=True, tag=7):
    rows: Sequence[tuple[Origin, Natural, SetFingerprint, Fingerprint]]
    """Origin offered, number of its packets, Negentropy fingerprint of them all, fingerprint of its current key."""


class GetManifest(_Message, frozen=True, tag=8):
    origin: Origin


class Manifest(_Message, frozen=True, tag=9):
    origin: Origin
    signed: SignedBytes | None


class Reconcile(_Message, frozen=True, tag=10):
    origin: Origin
    role: Role
    frame: bytes
    """Negentropy; read by `reconcile`."""


class Want(_Message, frozen=True, tag=11):
    ids: Sequence[Id]


class Packets(_Message, frozen=True, tag=12):
    batch: Natural
    rows: Sequence[Raw]
    """Still encoded: each is read by `codec.decode_row`, so that a malformed one costs nothing but itself."""
    gone: Sequence[Id]


class Ack(_Message, frozen=True, tag=13):
    batch: Natural
    codes: Sequence[Code]
    """One for each row of the batch, in order."""


class Have(_Message, frozen=True, tag=14):
    rows: Sequence[tuple[Origin, Id]]


class Prefer(_Message, frozen=True, tag=15):
    mode: Preference


class Query(_Message, frozen=True, tag=16):
    number: Natural
    text: Annotated[str, Meta(max_length=MAX_QUERY_TEXT_CHARS)] | None
    kinds: (
        Annotated[Sequence[Annotated[str, Meta(min_length=1, max_length=MAX_KIND_CHARS)]], Meta(max_length=MAX_QUERY_TERMS)] | None
    )
    tags: Annotated[Sequence[Annotated[str, Meta(max_length=MAX_TAG_CHARS)]], Meta(max_length=MAX_QUERY_TERMS)] | None
    origin: Origin | None
    since: Natural | None
    until: Natural | None
    limit: Annotated[int, Meta(ge=1, le=MAX_QUERY_LIMIT)] | None
    cursor: Cursor | None


class Result(_Message, frozen=True, tag=17):
    number: Natural
    code: str
    """`OK`, or the `Code` of the refusal."""
    rows: Annotated[Sequence[Raw], Meta(max_length=MAX_QUERY_LIMIT)]
    """Envelopes as in Packets, but each has the right shape: `codec.decode_row` never gives None for one of these."""
    cursor: Cursor | None


class Ping(_Message, frozen=True, tag=18):
    clock: Natural


class Pong(_Message, frozen=True, tag=19):
    echo: Natural
    clock: Natural


Message = (
    HelloClient
    | HelloServer
    | Auth
    | Welcome
    | Bye
    | Interest
    | Scope
    | GetManifest
    | Manifest
    | Reconcile
    | Want
    | Packets
    | Ack
    | Have
    | Prefer
    | Query
    | Result
    | Ping
    | Pong
)
