"""Nodes made from a number: the same keys, manifest and ids in every run."""

from federation.protocol.handshake import Local
from federation.protocol.manifest import PeerManifest, SignedManifest, sign_manifest
from keys.ed25519 import KeyPair, keypair_from_seed, sign
from keys.encoding import node_id_of
from keys.succession import first_statement

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


def make_local(number: int, *, network: str = "arklattice") -> Local:
    manifest = make_manifest(number, network=network)
    return Local(manifest.node_id, manifest, lambda message: sign(make_pair(number), message), network)
