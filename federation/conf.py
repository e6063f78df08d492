"""Settings of the federation, read lazily and turned into values the core takes.

Source: docs/architecture.md (table of settings), docs/protocol.md, section 8.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from federation.protocol.limits import Limits
from federation.protocol.manifest import PeerManifest, SignedManifest, sign_manifest
from federation.protocol.messages import MIN_WINDOW_BYTES, MIN_WINDOW_PACKETS
from keys.services import Identity
from peers.addresses import parse_url
from peers.errors import AddressError

VERSION = "0.1.0"
# Clocks that differ by this much are worth a word to the operator (docs/protocol.md, section 6).
CLOCK_WARNING_MS = 30_000


@dataclass(frozen=True, slots=True)
class Bind:
    """A host and TCP port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@cache
def limits() -> Limits:
    """Return the limits, with `ARK_LIMIT_<NAME>` applied.

    Raises:
        ImproperlyConfigured: an unknown name, or a value that is not a positive number.
    """
    fields = {field.name: field for field in dataclasses.fields(Limits)}
    changes: dict[str, Any] = {}
    for name, text in settings.ARK_LIMITS.items():
        if name not in fields:
            raise ImproperlyConfigured(f"ARK_LIMIT_{name.upper()} names no limit; known: {', '.join(sorted(fields)).upper()}")
        kind = int if isinstance(fields[name].default, int) else float
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < math.inf:
            raise ImproperlyConfigured(f"ARK_LIMIT_{name.upper()} must be a positive {kind.__name__}, not {text!r}")
        changes[name] = value
    chosen = dataclasses.replace(Limits(), **changes)
    if chosen.window_packets < MIN_WINDOW_PACKETS or chosen.window_bytes < MIN_WINDOW_BYTES:
        # Peers refuse a Welcome below this: one full batch has to fit.
        raise ImproperlyConfigured(f"ARK_LIMIT_WINDOW_… must be at least {MIN_WINDOW_PACKETS} packets and {MIN_WINDOW_BYTES} bytes")
    return chosen


def http_bind() -> Bind:
    return parse_bind("ARK_HTTP_BIND", settings.ARK_HTTP_BIND)


def sync_bind() -> Bind:
    return parse_bind("ARK_SYNC_BIND", settings.ARK_SYNC_BIND)


def static_peers() -> tuple[str, ...]:
    """Return the URLs of ARK_STATIC_PEERS, normalised, each once.

    Raises:
        ImproperlyConfigured: one of them is no ws:// or wss:// URL.
    """
    try:
        return tuple(dict.fromkeys(parse_url(text.strip()) for text in settings.ARK_STATIC_PEERS if text.strip()))
    except AddressError as error:
        raise ImproperlyConfigured(f"ARK_STATIC_PEERS: {error}") from None


def parse_bind(name: str, text: str) -> Bind:
    """Return host and port of `host:port` or `[v6]:port`.

    Raises:
        ImproperlyConfigured: naming the setting.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ImproperlyConfigured(f"{name} must be host:port, not {text!r}")
    return Bind(host, int(port))


def declared_name(identity: Identity) -> str:
    """Return what this node calls itself: ARK_NODE_NAME as far as a manifest can carry it."""
    name = "".join(character for character in settings.ARK_NODE_NAME if character.isprintable()).strip()
    return name[:64] or identity.node_id.hex()[:8]


def own_manifest(identity: Identity, *, issued_at: int) -> SignedManifest:
    """Return what this node says of itself, signed."""
    return sign_manifest(
        identity.pair,
        PeerManifest(
            node_id=identity.node_id,
            name=declared_name(identity),
            public_key=identity.pair.public,
            succession=identity.succession,
            network=settings.ARK_NETWORK,
            issued_at=issued_at,
            addresses=tuple(settings.ARK_ADVERTISE),
            http_port=http_bind().port,
            sync_port=sync_bind().port,
            capabilities=tuple(settings.ARK_CAPABILITIES),
            version=VERSION,
            trust_tier=settings.ARK_DECLARED_TIER,
        ),
    )
