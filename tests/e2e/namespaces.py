"""Networks in a machine: network namespaces joined by a bridge, so that multicast is the true one.

    with network(3) as hosts:              # hub namespace with a bridge, three hosts on it
        subprocess.run([*hosts[1].command, "ip", "addr"])
        hosts[1].unplug()                  # out of the bridge: nothing passes, the host notices nothing
        hosts[1].plug()

Host N has 10.77.0.N/24 and a link-local IPv6 address on `eth0`. Names are unique to the run, and everything
is deleted at the end, whatever happened; what an earlier run left behind (it was killed) is deleted first.
Needs root and iproute2: mark tests that use it with `netns`.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "ark"
# IPv6 addresses are tentative for about two seconds after the link comes up (duplicate address detection).
DAD_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace with an interface `eth0` on the bridge."""

    number: int
    namespace: str
    hub: str
    address: str

    @property
    def command(self) -> list[str]:
        """What to put before a command so that it runs on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def run(self, *command: str) -> str:
        """Run a command on this host and return its standard output."""
        return _run(*self.command, *command)

    def unplug(self, *, carrier: bool = False) -> None:
        """Take the host's cable out of the bridge. With `carrier` the host sees its link go down, else nothing."""
        if carrier:
            _run("ip", "-n", self.hub, "link", "set", f"v{self.number}", "down")
        else:
            _run("ip", "-n", self.hub, "link", "set", f"v{self.number}", "nomaster")

    def plug(self) -> None:
        """Put the cable back."""
        _run("ip", "-n", self.hub, "link", "set", f"v{self.number}", "master", "br0", "up")


@contextmanager
def network(count: int) -> Iterator[dict[int, Host]]:
    """Yield `count` hosts, numbered from 1, that hear each other's multicast over IPv4 and IPv6."""
    _delete_leftovers()
    run = f"{PREFIX}{os.getpid()}-{time.monotonic_ns() % 1_000_000:06d}"
    hub = f"{run}-hub"
    made: list[str] = []
    try:
        _run("ip", "netns", "add", hub)
        made.append(hub)
        # Snooping off: without a querier on the bridge it would forget who joined.
        _run("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _run("ip", "-n", hub, "link", "set", "br0", "up")
        hosts = {}
        for number in range(1, count + 1):
            namespace = f"{run}-{number}"
            _run("ip", "netns", "add", namespace)
            made.append(namespace)
            hosts[number] = _join(Host(number=number, namespace=namespace, hub=hub, address=f"10.77.0.{number}"))
        for host in hosts.values():
            _await_addresses(host)
        yield hosts
    finally:
        for namespace in reversed(made):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def _join(host: Host) -> Host:
    inside = ["ip", "-n", host.namespace]
    _run("ip", "link", "add", f"v{host.number}", "netns", host.hub, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _run("ip", "-n", host.hub, "link", "set", f"v{host.number}", "master", "br0", "up")
    _run(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _run(*inside, "link", "set", "eth0", "up")
    _run(*inside, "link", "set", "lo", "up")
    return host


def _await_addresses(host: Host) -> None:
    deadline = time.monotonic() + DAD_PATIENCE_S
    while "tentative" in (shown := host.run("ip", "-6", "addr", "show", "dev", "eth0")) or "inet6" not in shown:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{host.namespace}: no usable IPv6 address: {shown}")
        time.sleep(0.1)


def _delete_leftovers() -> None:
    """Delete namespaces of runs whose process is gone."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.split() else ""
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
