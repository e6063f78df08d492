"""What this node tells others of where and who it is: its addresses and its contact card."""

import io
import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import ifaddr
import qrcode  # type: ignore[import-untyped]

from keys.encoding import MAX_CARD_ADDRESS_CHARS, MAX_CARD_ADDRESSES, MAX_NAME_CHARS, ContactCard
from keys.services import Identity

__all__ = ["contact_card", "host_addresses", "own_addresses", "qr_code", "shown_name"]

SYNC_PATH = "/sync"
DEFAULT_SYNC_PORT = 8104
_ANY_HOSTS = frozenset({"", "0.0.0.0", "::", "[::]", "*"})  # noqa: S104 - compared with, nothing is bound


def shown_name(name: str) -> str:
    """Return what a node may call itself: printable, 1 to 64 characters."""
    cleaned = "".join(character for character in name if character.isprintable()).strip()[:MAX_NAME_CHARS].strip()
    return cleaned or "node"


def own_addresses(advertised: Sequence[str], sync_bind: str, hosts: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return the `ws://` and `wss://` URLs at which others may dial this node, most useful first, at most 8.

    Args:
        advertised: ARK_ADVERTISE: URLs, or hosts with or without a port; when not empty nothing else is told.
        sync_bind: ARK_SYNC_BIND, `host:port`; a host that is no wildcard is the only address.
        hosts: IP addresses of this machine; asked of its interfaces when None.
    """
    bound_host, port = _host_and_port(sync_bind, DEFAULT_SYNC_PORT)
    if advertised:
        urls = [_url(text.strip(), port) for text in advertised if text.strip()]
    elif bound_host not in _ANY_HOSTS:
        urls = [_url(sync_bind, port)]
    else:
        urls = [_url(f"[{host}]" if ":" in host else host, port) for host in (host_addresses() if hosts is None else hosts)]
    fitting = [url for url in dict.fromkeys(urls) if len(url) <= MAX_CARD_ADDRESS_CHARS]
    return tuple(fitting[:MAX_CARD_ADDRESSES])


def host_addresses() -> list[str]:
    """Return this machine's addresses that another one can use: IPv4 first, no loopback, no link-local ones.

    Link-local addresses mean another machine on every network, and need a zone that only the dialler knows.
    """
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
                found.append(address)
    return [str(address) for address in sorted(dict.fromkeys(found), key=lambda address: address.version)]


def contact_card(identity: Identity, *, name: str, addresses: Sequence[str]) -> ContactCard:
    """Return the card that another operator imports."""
    return ContactCard(node_id=identity.node_id, name=shown_name(name), public_key=identity.pair.public, addresses=tuple(addresses))


def qr_code(text: str) -> str:
    """Return a QR code of `text` in half-block characters, dark on light, one line for two rows of modules."""
    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_L, border=2)
    code.add_data(text)
    code.make(fit=True)
    out = io.StringIO()
    code.print_ascii(out=out, invert=True)
    # qrcode pads with no-break spaces; a plain one is the same to a camera and survives every terminal.
    return out.getvalue().replace("\xa0", " ").rstrip("\n")


def _url(text: str, port: int) -> str:
    if "://" not in text:
        host, given = _host_and_port(text, port)
        return f"ws://{host}:{given}{SYNC_PATH}"
    parts = urlsplit(text)
    return text if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{SYNC_PATH}"


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    """Split `host:port`, `[v6]:port` or a host alone; an IPv6 address comes back in brackets."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        host, _, port = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", "")
        return host, int(port) if port.isascii() and port.isdigit() else default
    return (f"[{text}]" if address.version == 6 else text), default
