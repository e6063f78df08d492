"""Say hand-made datagrams on a host's network, or watch what leaves a host: run in its namespace.

    python segment.py say      # standard input: datagrams in hex, one a line, multicast by IPv4
    python segment.py watch    # prints one JSON line for each new [what, address, port] that leaves `eth0`

`what` is `tcp` (a SYN: somebody dials), `udp`, or `arp` (who has this address?). Ends at SIGTERM.
"""

import json
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

GROUP, PORT = "239.255.0.1", 8103
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
TCP, UDP = 6, 17
SYN, ACK = 0x02, 0x10


def say() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from federation.multicast import destination, multicast_interfaces, open_socket

    interface = next(each for each in multicast_interfaces() if not each.is_ipv6)
    with open_socket(interface, group=GROUP, port=PORT) as mouth:
        for line in sys.stdin:
            mouth.sendto(bytes.fromhex(line), destination(interface, group=GROUP, port=PORT))


def watch() -> None:
    seen = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.bind(("eth0", ETH_P_ALL))
        print(json.dumps(["watching", "", 0]), flush=True)
        while True:
            frame, (_, _, direction, _, _) = tap.recvfrom(2_048)
            found = read(frame) if direction == PACKET_OUTGOING else None
            if found is not None and found not in seen:
                seen.add(found)
                print(json.dumps(found), flush=True)


def read(frame: bytes) -> tuple[str, str, int] | None:
    """Return what an Ethernet frame is on its way to do, None when it is nothing of interest."""
    kind, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == ARP:
        return ("arp", str(ip_address(body[24:28])), 0)
    if kind == IPV4:
        protocol, target, rest = body[9], ip_address(body[16:20]), body[(body[0] & 0x0F) * 4 :]
    elif kind == IPV6:
        protocol, target, rest = body[6], ip_address(body[24:40]), body[40:]
    else:
        return None
    port = int.from_bytes(rest[2:4], "big")
    if protocol == UDP:
        return ("udp", str(target), port)
    if protocol == TCP and rest[13] & (SYN | ACK) == SYN:
        return ("tcp", str(target), port)
    return None


{"say": say, "watch": watch}[sys.argv[1]]()
