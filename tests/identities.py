"""Nodes made from a number: the same keys, manifest and ids in every run."""

from dataclasses import replace

from federation.protocol.handshake import Local
from federation.protocol.manifest import PeerManifest, SignedManifest, sign_manifest
from keys.ed25519 import KeyPair, keypair_from_seed, sign
from keys.encoding import node_id_of
from keys.succession import Reason, first_statement, next_statement, verify_chain

ISSUED_AT = 1_760_000_000_000


def make_pair(number: int) -> KeyPair:
    return keypair_from_seed(number.to_bytes(32))


def make_manifest(number: int, **changes: object) -> SignedManifest:
    """Return the signed manifest of node `number`; `changes` replace fields of the PeerManifest."""
    pair = make_pair(number)
    next_key_hash = make_pair(number + 1_000_000).fingerprint
    fields = {
        "node_id": node_id_of(pair.public),
        "name": f"node-{number}",
        "public_key": pair.public,
        "succession": (first_statement(pair, next_key_hash, ISSUED_AT).as_json(),),
        "network": "arklattice",
        "issued_at": ISSUED_AT,
    }
    return sign_manifest(pair, PeerManifest(**fields | changes))


def rotated(count: int, *, first: int = 1, reason: Reason = Reason.ROUTINE) -> tuple[list[KeyPair], tuple[dict, ...]]:
    """Return the keys and the succession, as JSON values, of a node with `count` keys so far.

    The first key is that of node `first`; one more pair than keys is returned, the last one only committed to.
    """
    pairs = [make_pair(first + 100 * number) for number in range(count + 1)]
    entries = [first_statement(pairs[0], pairs[1].fingerprint, ISSUED_AT)]
    for number in range(1, count):
        previous = pairs[number - 1] if reason is Reason.ROUTINE else None
        chain = verify_chain([entry.as_json() for entry in entries])
        after = pairs[number + 1].fingerprint
        entries.append(next_statement(chain, pairs[number], after, ISSUED_AT + number, reason, previous=previous))
    return pairs, tuple(entry.as_json() for entry in entries)


def make_rotated_local(count: int, *, first: int = 1) -> Local:
    """Return node `first` with the last of `count` keys."""
    pairs, succession = rotated(count, first=first)
    pair = pairs[count - 1]
    fields = make_manifest(first).manifest
    manifest = sign_manifest(pair, replace(fields, public_key=pair.public, succession=succession))
    return Local(manifest.node_id, manifest, lambda message: sign(pair, message), fields.network)


def make_local(number: int, *, network: str = "arklattice") -> Local:
    manifest = make_manifest(number, network=network)
    return Local(manifest.node_id, manifest, lambda message: sign(make_pair(number), message), network)
