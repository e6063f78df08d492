"""Succession: how one node's keys follow each other, provable to anyone who holds the chain.

Statement 0 is signed by the first key and commits to the fingerprint of the next one, which is kept offline.
Statement N is signed by the key so committed to and commits to another; a `routine` one carries the previous
key's signature too. So whoever steals the current key alone cannot name a successor of it.

A chain proves what it says of itself; that it is the *same* chain as the one seen before (pinning) is the
registry's business.

    KeysError
    └── SuccessionError         this chain proves nothing

Source: docs/protocol.md, section 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import rfc8785

from keys.ed25519 import SIGNATURE_BYTES, InvalidKeyError, InvalidSignatureError, KeyPair, KeysError, check_public_key, sign, verify
from keys.encoding import (
    PUBLIC_KEY_BYTES,
    EncodingError,
    KeyFingerprint,
    NodeId,
    fingerprint_of,
    node_id_of,
    parse_fingerprint,
    parse_hex,
    parse_node_id,
    short,
)

__all__ = [
    "MAX_SUCCESSION_BYTES",
    "MAX_SUCCESSION_STATEMENTS",
    "Chain",
    "Reason",
    "Statement",
    "SuccessionEntry",
    "SuccessionError",
    "first_statement",
    "next_statement",
    "verify_chain",
]

SUCCESSION_LABEL = b"arklattice/succession/v1\n"

# Bounds what a stranger's manifest may cost to verify: two signatures and a key check a statement, some 45 µs each.
# A node that would pass it needs a new identity.
MAX_SUCCESSION_STATEMENTS = 20
# Canonical bytes of a whole chain. Every field has a fixed form, so 20 statements cannot reach it; readers cap files by it.
MAX_SUCCESSION_BYTES = 16 * 1024
MAX_TIME_MS = 2**53 - 1

_FIRST_FIELDS = frozenset({"node_id", "sequence", "next_key", "next_key_hash", "issued_at"})
_LATER_FIELDS = _FIRST_FIELDS | {"reason"}


class SuccessionError(KeysError):
    """The chain is malformed, badly signed or does not hang together; the message names the statement."""


class Reason(StrEnum):
    """Why a key gave way to the next."""

    ROUTINE = "routine"
    """The old key is retired: envelopes stamped before `issued_at` still verify."""
    COMPROMISE = "compromise"
    """The old key is revoked."""
    LOST = "lost"
    """The old key is revoked: nobody can tell who holds it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One step of a chain: this key is the node's from now on, and that one will follow it."""

    node_id: NodeId
    sequence: int
    next_key: bytes
    """The key this statement brings in, 32 bytes; in statement 0 the first key."""
    next_key_hash: KeyFingerprint
    """Commitment to the key after it."""
    issued_at: int
    """Wall clock, milliseconds since the Unix epoch."""
    reason: Reason | None = None
    """None in statement 0 only."""

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "node_id": self.node_id.hex(),
            "sequence": self.sequence,
            "next_key": self.next_key.hex(),
            "next_key_hash": self.next_key_hash.hex(),
            "issued_at": self.issued_at,
        }
        if self.reason is not None:
            value["reason"] = self.reason.value
        return value

    def signing_input(self) -> bytes:
        """Return the bytes that each signature of this statement covers."""
        return SUCCESSION_LABEL + rfc8785.dumps(self.as_json())


@dataclass(frozen=True, slots=True)
class SuccessionEntry:
    """A statement and its signatures, the key's that it brings in first."""

    statement: Statement
    signatures: tuple[bytes, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the entry as manifests and `<name>.succession.json` carry it."""
        return {"statement": self.statement.as_json(), "signatures": [signature.hex() for signature in self.signatures]}


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified chain; comes only from `verify_chain`."""

    entries: tuple[SuccessionEntry, ...]
    """Oldest first, never empty."""

    @property
    def node_id(self) -> NodeId:
        return self.entries[0].statement.node_id

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Every key the node ever had, 32 bytes each, oldest first."""
        return tuple(entry.statement.next_key for entry in self.entries)

    @property
    def current(self) -> bytes:
        return self.entries[-1].statement.next_key

    @property
    def next_key_hash(self) -> KeyFingerprint:
        return self.entries[-1].statement.next_key_hash


def first_statement(pair: KeyPair, next_key_hash: KeyFingerprint, issued_at_ms: int) -> SuccessionEntry:
    """Return statement 0 of a new identity whose first key is `pair`."""
    statement = Statement(node_id_of(pair.public), 0, pair.public, next_key_hash, issued_at_ms)
    return SuccessionEntry(statement, (sign(pair, statement.signing_input()),))


def next_statement(
    chain: Chain,
    pair: KeyPair,
    next_key_hash: KeyFingerprint,
    issued_at_ms: int,
    reason: Reason,
    *,
    previous: KeyPair | None = None,
) -> SuccessionEntry:
    """Return the statement that brings in `pair`, the key that `chain` committed to.

    Args:
        previous: The pair it follows, which signs too; for `routine`, and only then.

    Raises:
        SuccessionError: `pair` or `previous` is not the key the chain expects, or `previous` and reason do not fit.
    """
    if pair.fingerprint != chain.next_key_hash:
        raise SuccessionError("this is not the next key that the chain committed to")
    if (previous is not None) != (reason is Reason.ROUTINE):
        raise SuccessionError("the previous key signs a routine statement, and no other")
    if previous is not None and previous.public != chain.current:
        raise SuccessionError("this is not the chain's current key")
    statement = Statement(chain.node_id, len(chain.entries), pair.public, next_key_hash, issued_at_ms, reason)
    signers = (pair,) if previous is None else (pair, previous)
    return SuccessionEntry(statement, tuple(sign(signer, statement.signing_input()) for signer in signers))


def verify_chain(entries: Sequence[Mapping[str, object]]) -> Chain:
    """Return the chain if every statement follows from the one before and is signed as it must be.

    Args:
        entries: Parsed JSON, `[{"statement": {...}, "signatures": [hex, ...]}, ...]`; anything may be in it.

    Raises:
        SuccessionError: Whatever is wrong: a shape, a field, an order, a commitment, a key used twice, a signature,
            more than 20 statements.
    """
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
        raise SuccessionError(f"a succession is a list of statements, not {short(entries)}")
    if not 1 <= len(entries) <= MAX_SUCCESSION_STATEMENTS:
        raise SuccessionError(f"a succession has 1 to {MAX_SUCCESSION_STATEMENTS} statements, this one {len(entries)}")
    chain = Chain(tuple(_parse_entry(entry, sequence) for sequence, entry in enumerate(entries)))
    previous: Statement | None = None
    seen: set[bytes] = set()
    for entry in chain.entries:
        _check_link(entry, previous, seen)
        _check_signatures(entry, previous)
        previous = entry.statement
    return chain


def _parse_entry(value: object, sequence: int) -> SuccessionEntry:
    where = f"statement {sequence}"
    if not isinstance(value, Mapping) or value.keys() != {"statement", "signatures"}:
        raise SuccessionError(f"{where}: expected exactly a statement and its signatures")
    fields, signatures = value["statement"], value["signatures"]
    expected = _LATER_FIELDS if sequence else _FIRST_FIELDS
    if not isinstance(fields, Mapping) or fields.keys() != expected:
        raise SuccessionError(f"{where}: expected exactly the fields {', '.join(sorted(expected))}")
    # One signature more than any statement may have is enough to know that there are too many.
    if isinstance(signatures, str | bytes) or not isinstance(signatures, Sequence) or len(signatures) > 2:
        raise SuccessionError(f"{where}: signatures is not a list of one or two")
    if type(fields["sequence"]) is not int or fields["sequence"] != sequence:
        raise SuccessionError(f"{where}: sequence is {short(fields['sequence'])}")
    issued_at = fields["issued_at"]
    if type(issued_at) is not int or not 0 <= issued_at <= MAX_TIME_MS:
        raise SuccessionError(f"{where}: issued_at {short(issued_at)} is not milliseconds since 1970")
    try:
        statement = Statement(
            node_id=parse_node_id(fields["node_id"]),
            sequence=sequence,
            next_key=parse_hex(fields["next_key"], size=PUBLIC_KEY_BYTES),
            next_key_hash=parse_fingerprint(fields["next_key_hash"]),
            issued_at=issued_at,
            reason=_parse_reason(fields["reason"], where) if sequence else None,
        )
        return SuccessionEntry(statement, tuple(parse_hex(signature, size=SIGNATURE_BYTES) for signature in signatures))
    except EncodingError as error:
        raise SuccessionError(f"{where}: {error}") from None


def _parse_reason(value: object, where: str) -> Reason:
    if not isinstance(value, str) or value not in set(Reason):
        raise SuccessionError(f"{where}: reason {short(value)} is none of {', '.join(Reason)}")
    return Reason(value)


def _check_link(entry: SuccessionEntry, previous: Statement | None, seen: set[bytes]) -> None:
    """Check that the statement belongs where it stands; `seen` gathers the fingerprints used so far."""
    statement = entry.statement
    where = f"statement {statement.sequence}"
    try:
        check_public_key(statement.next_key)
    except InvalidKeyError as error:
        raise SuccessionError(f"{where}: {error}") from None
    if previous is None:
        if node_id_of(statement.next_key) != statement.node_id:
            raise SuccessionError(f"{where}: the first key does not give node_id {statement.node_id.hex()}")
    elif statement.node_id != previous.node_id:
        raise SuccessionError(f"{where}: node_id {statement.node_id.hex()} is not the chain's")
    elif fingerprint_of(statement.next_key) != previous.next_key_hash:
        raise SuccessionError(f"{where}: its key is not the one committed to before")
    seen.add(fingerprint_of(statement.next_key))
    # A key that returns would be retired or revoked and current at once.
    if statement.next_key_hash in seen:
        raise SuccessionError(f"{where}: it commits to a key that was used already")


def _check_signatures(entry: SuccessionEntry, previous: Statement | None) -> None:
    statement = entry.statement
    where = f"statement {statement.sequence}"
    signers = [statement.next_key]
    if previous is not None and statement.reason is Reason.ROUTINE:
        signers.append(previous.next_key)
    if len(entry.signatures) != len(signers):
        raise SuccessionError(f"{where}: {len(entry.signatures)} signatures, expected {len(signers)}")
    signed = statement.signing_input()
    for signer, signature in zip(signers, entry.signatures, strict=True):
        try:
            verify(signer, signed, signature)
        except InvalidSignatureError:
            whose = "the key it brings in" if signer == statement.next_key else "the key it retires"
            raise SuccessionError(f"{where}: not signed by {whose}") from None
