"""Sockets for discovery: which interfaces there are, and one multicast socket for each address of them.

Each socket is bound to the *group* address, joined on one interface and sends by that interface only. So the
kernel drops unicast datagrams (no stranger from afar can reach discovery), a socket hears its own interface
alone, and the socket that a datagram came by tells the interface. SO_REUSEADDR lets several nodes of one
machine, and the `discover` command, share the port; each of them gets every datagram.

The interface is selected by index *and* own address: by index alone the loopback would send from another
interface's address.

Source: docs/protocol.md, section 4.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import ifaddr

__all__ = ["Interface", "destination", "multicast_interfaces", "open_socket"]

# linux/sockios.h and linux/if.h
SIOCGIFFLAGS = 0x8913
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40
IFF_MULTICAST = 0x1000
# linux/in.h and linux/in6.h; Python 3.11 has no names for them. Off: this socket gets what it joined itself,
# not what any other socket of the machine joined.
IP_MULTICAST_ALL = 49
IPV6_MULTICAST_ALL = 29

# Interfaces used at once. A host with a hundred virtual ones would otherwise send a hundred beacons a round;
# ARK_DISCOVERY_INTERFACES chooses which.
MAX_INTERFACES = 32


@dataclass(frozen=True, slots=True)
class Interface:
    """One address to send from and listen at: a network interface and a family."""

    name: str
    index: int
    address: str
    """Own address there, without zone; of IPv6 the link-local one where there is one."""

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    def __str__(self) -> str:
        return f"{self.address} on {self.name}"


def multicast_interfaces(wanted: Sequence[str] = ()) -> list[Interface]:
    """Return the interfaces to use, at most 32, in the order of the system.

    Args:
        wanted: Names (both families) or addresses (that one alone). Empty: every interface that is up, has
            carrier and can multicast, one address a family; ports of a bridge are left out, the bridge is not.
            The loopback is used only when it is wanted, best by its address.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        addresses = [str(ip.ip) if ip.is_IPv4 else str(ip.ip[0]) for ip in adapter.ips]
        if adapter.index is None:
            continue
        flags = _flags(adapter.name)
        if not flags & IFF_UP or not flags & IFF_RUNNING:
            continue
        if wanted:
            chosen = [address for address in addresses if address in _addresses(wanted)]
            if not chosen and adapter.name in wanted:
                chosen = _one_a_family(addresses)
        elif flags & IFF_MULTICAST and not flags & IFF_LOOPBACK and not _is_bridge_port(adapter.name):
            chosen = _one_a_family(addresses)
        else:
            chosen = []
        found += [Interface(name=adapter.name, index=adapter.index, address=address) for address in chosen]
    return found[:MAX_INTERFACES]


def open_socket(interface: Interface, *, group: str, port: int) -> socket.socket:
    """Return a non-blocking socket that hears and sends `group` by this interface alone, with TTL 1.

    Args:
        group: Multicast address of the interface's family.

    Raises:
        OSError: It cannot be opened, bound or joined; `errno` says why.
    """
    opened = socket.socket(socket.AF_INET6 if interface.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if interface.is_ipv6:
            _join_ipv6(opened, interface, group, port)
        else:
            _join_ipv4(opened, interface, group, port)
    except OSError:
        opened.close()
        raise
    return opened


def destination(interface: Interface, *, group: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return the address that `sendto` takes for the group on this interface."""
    return (group, port, 0, interface.index) if interface.is_ipv6 else (group, port)


def _join_ipv4(opened: socket.socket, interface: Interface, group: str, port: int) -> None:
    opened.bind((group, port))
    # struct ip_mreqn: group, own address, interface index.
    request = socket.inet_aton(group) + socket.inet_aton(interface.address) + struct.pack("@i", interface.index)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    # On, so that nodes of one machine hear each other.
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    _set_if_known(opened, socket.IPPROTO_IP, IP_MULTICAST_ALL)


def _join_ipv6(opened: socket.socket, interface: Interface, group: str, port: int) -> None:
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    opened.bind((group, port, 0, interface.index))
    request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", interface.index)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    _set_if_known(opened, socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL)


def _set_if_known(opened: socket.socket, level: int, option: int) -> None:
    try:
        opened.setsockopt(level, option, 0)
    except OSError as error:
        # An old kernel lacks it. Binding to the group already keeps most of what it would keep out.
        if error.errno != errno.ENOPROTOOPT:
            raise


def _one_a_family(addresses: Sequence[str]) -> list[str]:
    ipv4 = [address for address in addresses if ":" not in address]
    # Link-local: every IPv6 interface has such an address, and hosts without a common prefix still meet.
    ipv6 = sorted(
        (address for address in addresses if ":" in address and not ip_address(address).is_loopback),
        key=lambda address: not ip_address(address).is_link_local,
    )
    return ipv4[:1] + ipv6[:1]


def _addresses(wanted: Sequence[str]) -> set[str]:
    """Return those entries that are addresses, spelt as the system spells them."""
    found = set()
    for entry in wanted:
        try:
            found.add(str(ip_address(entry.partition("%")[0])))
        except ValueError:
            continue
    return found


def _flags(name: str) -> int:
    """Return the interface's flags, 0 when it has gone meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()[:15]))
        except OSError:
            return 0
    return int(struct.unpack_from("16xH", answer)[0])


def _is_bridge_port(name: str) -> bool:
    return Path(f"/sys/class/net/{name}/master").exists()
