"""Codes and errors of the protocol core.

    Exception
    ├── LocalProtocolError      a bug here: raised loudly, never sent
    └── RemoteProtocolError     the other side's fault: carries the close code and a reason safe to send
        ├── HandshakeError      before both Auths: close 4400, nothing said
        └── ReconcileError      a malformed frame of reconciliation (negentropy.py)
    PacketError                 a packet was not accepted: carries one Code

Source: docs/protocol.md, sections 2 and 5.
"""

from enum import StrEnum


class Code(StrEnum):
    """Outcome of one offered packet, as sent in Ack and shown to people."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    # Rejected: the sender's fault, counted against it.
    MALFORMED = "malformed"
    NOT_CANONICAL = "not-canonical"
    TOO_LARGE = "too-large"
    BAD_SIGNATURE = "bad-signature"
    # Declined: policy, time or capacity here; not counted against anyone.
    TIER = "tier"
    UNKNOWN_ORIGIN = "unknown-origin"
    UNKNOWN_KEY = "unknown-key"
    RETIRED_KEY = "retired-key"
    REVOKED_KEY = "revoked-key"
    EARLY = "early"
    EXPIRED = "expired"
    RETRACTED = "retracted"
    QUOTA = "quota"
    BUSY = "busy"
    UNSUPPORTED = "unsupported"

    @property
    def is_rejection(self) -> bool:
        return self in REJECTIONS

    @property
    def is_refusal(self) -> bool:
        """True when the packet was neither stored now nor here already."""
        return self not in (Code.ACCEPTED, Code.DUPLICATE)


REJECTIONS = frozenset({Code.MALFORMED, Code.NOT_CANONICAL, Code.TOO_LARGE, Code.BAD_SIGNATURE})


class Goodbye(StrEnum):
    """Reason a link ends, with its WebSocket close code."""

    BYE = "bye"
    RESTARTING = "restarting"
    DUPLICATE = "duplicate"
    PENDING = "pending"
    BLOCKED = "blocked"
    PENALTY = "penalty"
    PROTOCOL = "protocol"
    DECRYPT = "decrypt"
    DEAD = "dead"
    TOO_LARGE = "too-large"
    OVERRUN = "overrun"

    @property
    def close_code(self) -> int:
        return CLOSE_CODES[self]


CLOSE_CODES = {
    Goodbye.BYE: 4000,
    Goodbye.RESTARTING: 4001,
    Goodbye.DUPLICATE: 4002,
    Goodbye.PENDING: 4003,
    Goodbye.BLOCKED: 4004,
    Goodbye.PENALTY: 4005,
    Goodbye.PROTOCOL: 4400,
    Goodbye.DECRYPT: 4401,
    Goodbye.DEAD: 4408,
    Goodbye.TOO_LARGE: 4413,
    Goodbye.OVERRUN: 4429,
}


class LocalProtocolError(Exception):
    """The core was used wrongly: a bug in this program."""


class RemoteProtocolError(Exception):
    """The other side broke the protocol; `reason` holds nothing secret and may be sent."""

    def __init__(self, reason: str, goodbye: Goodbye = Goodbye.PROTOCOL) -> None:
        super().__init__(reason)
        self.reason = reason
        self.goodbye = goodbye


class HandshakeError(RemoteProtocolError):
    """Failure before both Auths: the link is closed 4400 and nothing is said to the other side."""


class PacketError(Exception):
    """One packet was not accepted; `code` says why to machines, the message to people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
