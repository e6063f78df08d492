"""Where peers are dialled: reading and writing `ws://` and `wss://` URLs of sync ports.

Addresses that came from the network are always built here from the source address of a datagram or
connection (`sync_url`), never taken from what a stranger wrote (docs/protocol.md, section 4).
"""

import ipaddress
from urllib.parse import urlsplit

from peers.errors import AddressError

DEFAULT_SYNC_PORT = 8104
SYNC_PATH = "/sync"
# Longest URL a row holds.
MAX_URL_CHARS = 255

_SHOWN_CHARS = 80


def parse_url(text: str) -> str:
    """Return the normalised sync URL of a peer: scheme and host in lower case, port and path always there.

    A host name, an IPv4 address, or an IPv6 address in brackets, with a zone (`[fe80::1%eth0]`) where it needs one.
    Without a port 8104 is meant, without a path `/sync`.

    Raises:
        AddressError: Anything else, also one with a user, query or fragment.
    """
    shown = repr(text[:_SHOWN_CHARS])
    if not text.isprintable() or any(character.isspace() for character in text) or len(text) > MAX_URL_CHARS:
        raise AddressError(f"{shown} is not a ws:// or wss:// URL")
    try:
        parts = urlsplit(text)
        port = DEFAULT_SYNC_PORT if parts.port is None else parts.port
        host = parts.hostname
    except ValueError as error:
        raise AddressError(f"{shown} is not a ws:// or wss:// URL: {error}") from None
    if parts.scheme not in ("ws", "wss"):
        raise AddressError(f"{shown} does not begin with ws:// or wss://")
    if not host or not port:
        raise AddressError(f"{shown} names no host and port to dial")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise AddressError(f"{shown} may hold a host, a port and a path only")
    # `hostname` lower-cases the zone as well, and interface names are case-sensitive.
    zone = parts.netloc.partition("]")[0].partition("%")[2]
    host = f"[{host.partition('%')[0]}{'%' + zone if zone else ''}]" if ":" in host else host
    url = f"{parts.scheme}://{host}:{port}{parts.path if parts.path not in ('', '/') else SYNC_PATH}"
    if len(url) > MAX_URL_CHARS:
        raise AddressError(f"{shown} is longer than {MAX_URL_CHARS} characters")
    return url


def sync_url(host: str, port: int) -> str:
    """Return the sync URL at the source address of a datagram or connection.

    Args:
        host: An IP address as the socket gave it, with its zone where it has one.
        port: TCP port, 1 to 65,535.

    Raises:
        AddressError: The host is not an IP address, or the port out of range.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise AddressError(f"{host[:_SHOWN_CHARS]!r} is not an IP address") from None
    if not 1 <= port <= 65_535:
        raise AddressError(f"{port} is not a TCP port")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        # A dual-stack socket shows IPv4 peers so; one address has one spelling here.
        address = address.ipv4_mapped
    return f"ws://{address}:{port}{SYNC_PATH}" if address.version == 4 else f"ws://[{address}]:{port}{SYNC_PATH}"


def host_of(url: str) -> str:
    """Return the host of a URL made by `sync_url` or `parse_url`, without brackets or zone."""
    return (urlsplit(url).hostname or "").partition("%")[0]
