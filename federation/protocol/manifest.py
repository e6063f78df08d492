"""What a node says of itself, signed: PeerManifest.

A manifest is exchanged in the handshake, sent on request over a link and served at `/.well-known/arklattice`. It carries the
whole succession of the node's keys, so that whoever knows any of them can tell that the current one is its rightful heir.

`parse_manifest` is the only way from bytes to a `SignedManifest`: it holds the canonical form, the bounds, the signature by
the manifest's own key and the chain behind that key. What it proves is that one node, `node_id`, says all this; whether the
chain is the one seen before is the registry's business, and nothing in a manifest is ever obeyed.

Source: docs/protocol.md, section 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from federation.protocol.canonical import canonicalize, parse_canonical
from federation.protocol.errors import PacketError
from federation.protocol.limits import MAX_MANIFEST_BYTES, MAX_SAFE_INTEGER, MAX_SUCCESSION_BYTES, MAX_SUCCESSION_STATEMENTS
from federation.protocol.messages import MAX_NETWORK_CHARS
from keys.ed25519 import KeyPair, KeysError, check_public_key, sign, verify
from keys.encoding import MAX_NAME_CHARS, EncodingError, KeyFingerprint, NodeId, fingerprint_of, parse_hex, parse_node_id, short
from keys.succession import Chain, verify_chain

__all__ = ["MANIFEST_LABEL", "ManifestError", "PeerManifest", "SignedManifest", "parse_manifest", "sign_manifest", "signing_input"]

MANIFEST_LABEL = b"arklattice/manifest/v1\n"

# What a stranger may make the registry keep and the operator read; beyond each bound the manifest is refused. Text is
# printable, so that no manifest carries control or direction characters to where it is shown.
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 255
MAX_CAPABILITIES = 32
MAX_CAPABILITY_CHARS = 64
MAX_VERSION_CHARS = 32
MAX_TIER_CHARS = 16
MAX_PORT = 65_535


class ManifestError(Exception):
    """These bytes are no manifest, or not one its node signed; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class PeerManifest:
    """A node's own account of itself. Names, addresses, ports and tier are claims, shown and tried, never believed."""

    node_id: NodeId
    name: str
    """1 to 64 printable characters; all text here is printable."""
    public_key: bytes
    """The current verify key, 32 bytes."""
    succession: tuple[Mapping[str, Any], ...]
    """Statements with their signatures as JSON values, oldest first: 1 to 20."""
    network: str
    """1 to 64 characters."""
    issued_at: int
    """Wall clock of the node, milliseconds since the Unix epoch."""
    addresses: tuple[str, ...] = ()
    http_port: int | None = None
    sync_port: int | None = None
    capabilities: tuple[str, ...] = ()
    version: str | None = None
    """Of the program."""
    trust_tier: str | None = None
    """Self-declared; informational."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys this version does not know, kept as they came."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object; what is None is absent."""
        value: dict[str, Any] = {
            **self.unknown,
            "node_id": self.node_id.hex(),
            "name": self.name,
            "public_key": self.public_key.hex(),
            "succession": [dict(entry) for entry in self.succession],
            "network": self.network,
            "issued_at": self.issued_at,
            "addresses": list(self.addresses),
            "capabilities": list(self.capabilities),
        }
        optional = {
            "http_port": self.http_port,
            "sync_port": self.sync_port,
            "version": self.version,
            "trust_tier": self.trust_tier,
        }
        return value | {name: item for name, item in optional.items() if item is not None}


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest with proof; comes only from `parse_manifest` and `sign_manifest`."""

    body: bytes
    """Canonical bytes, exactly those signed."""
    signature: bytes
    """By `manifest.public_key`, 64 bytes."""
    manifest: PeerManifest
    chain: Chain
    """The verified succession; its current key is `manifest.public_key`."""

    @property
    def node_id(self) -> NodeId:
        return self.manifest.node_id

    @property
    def verify_key(self) -> bytes:
        """The node's current key, 32 bytes."""
        return self.manifest.public_key

    @property
    def key_fingerprint(self) -> KeyFingerprint:
        return fingerprint_of(self.manifest.public_key)

    def follows(self, known_key: bytes) -> bool:
        """Return True if the current key is `known_key` or its successor by the chain.

        With the newest key known of a node, False shows a thief of an older one: its chain ends before the known key.
        """
        return known_key in self.chain.keys


def signing_input(body: bytes) -> bytes:
    """Return the bytes that a manifest's signature covers."""
    return MANIFEST_LABEL + body


def sign_manifest(pair: KeyPair, manifest: PeerManifest) -> SignedManifest:
    """Return the manifest signed with the node's current key, after the same checks as on receipt.

    Raises:
        ManifestError: `pair` is not the manifest's key, or the manifest breaks a rule.
    """
    try:
        body = canonicalize(manifest.as_json())
    except PacketError as error:
        raise ManifestError(f"manifest: {error}") from None
    return parse_manifest(body, sign(pair, signing_input(body)))


def parse_manifest(body: bytes, signature: bytes) -> SignedManifest:
    """Return the manifest that its node signed.

    Args:
        body: Untrusted bytes, canonical JSON of at most 32 KiB.
        signature: Untrusted.

    Raises:
        ManifestError: Anything is wrong with form, bounds, signature or succession.

    Source: docs/protocol.md, section 1.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest: {len(body)} bytes, at most {MAX_MANIFEST_BYTES}")
    try:
        value = parse_canonical(body, max_bytes=MAX_MANIFEST_BYTES)
        if not isinstance(value, dict):
            raise ManifestError("manifest: not a JSON object")
        manifest = _from_json(value)
        # One signature before the twenty of a chain: who does not hold the key pays more than this node does.
        check_public_key(manifest.public_key)
        verify(manifest.public_key, signing_input(body), signature)
        chain = verify_chain(manifest.succession)
    except (PacketError, KeysError, EncodingError) as error:
        raise ManifestError(f"manifest: {error}") from None
    if chain.node_id != manifest.node_id:
        raise ManifestError(f"manifest: its succession is of another node, {chain.node_id.hex()}")
    if chain.current != manifest.public_key:
        raise ManifestError("manifest: its succession does not end with its public key")
    return SignedManifest(body, signature, manifest, chain)


def _from_json(value: Mapping[str, Any]) -> PeerManifest:
    missing = _REQUIRED - value.keys()
    if missing:
        raise ManifestError(f"manifest: without {', '.join(sorted(missing))}")
    return PeerManifest(
        unknown={name: item for name, item in value.items() if name not in _READERS},
        **{name: read(name, value[name]) for name, read in _READERS.items() if name in value},
    )


def _text(most: int, least: int = 0) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
            raise ManifestError(f"manifest: {name} {short(value)} is not {least} to {most} printable characters")
        return value

    return read


def _texts(most: int, most_chars: int) -> Callable[[str, Any], tuple[str, ...]]:
    read_one = _text(most_chars, 1)

    def read(name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise ManifestError(f"manifest: {name} is not a list of at most {most}")
        return tuple(read_one(name, item) for item in value)

    return read


def _integer(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        # A bool is an int to Python, never to JSON.
        if type(value) is not int or not least <= value <= most:
            raise ManifestError(f"manifest: {name} {short(value)} is not an integer from {least} to {most}")
        return value

    return read


def _node_id(name: str, value: Any) -> NodeId:
    return parse_node_id(value)


def _public_key(name: str, value: Any) -> bytes:
    return parse_hex(value, size=32)


def _succession(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUCCESSION_STATEMENTS:
        raise ManifestError(f"manifest: {name} is not a list of 1 to {MAX_SUCCESSION_STATEMENTS} statements")
    size = len(canonicalize(value))
    if size > MAX_SUCCESSION_BYTES:
        raise ManifestError(f"manifest: {name} of {size} bytes, at most {MAX_SUCCESSION_BYTES}")
    return tuple(value)


_REQUIRED = frozenset({"node_id", "name", "public_key", "succession", "network", "issued_at"})
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "node_id": _node_id,
    "name": _text(MAX_NAME_CHARS, 1),
    "public_key": _public_key,
    "succession": _succession,
    "network": _text(MAX_NETWORK_CHARS, 1),
    "issued_at": _integer(0, MAX_SAFE_INTEGER),
    "addresses": _texts(MAX_ADDRESSES, MAX_ADDRESS_CHARS),
    "http_port": _integer(1, MAX_PORT),
    "sync_port": _integer(1, MAX_PORT),
    "capabilities": _texts(MAX_CAPABILITIES, MAX_CAPABILITY_CHARS),
    "version": _text(MAX_VERSION_CHARS),
    "trust_tier": _text(MAX_TIER_CHARS),
}
