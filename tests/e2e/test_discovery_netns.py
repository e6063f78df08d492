"""True multicast between hosts: network namespaces on a bridge (see namespaces.py)."""

import time
from contextlib import ExitStack
from itertools import permutations

import pytest

from tests.e2e.lone_nodes import lone_nodes
from tests.e2e.namespaces import network

pytestmark = pytest.mark.netns


def test_three_hosts_find_each_other_lose_one_and_find_it_again():
    """Within a second of the last start all know each other, by IPv4 and IPv6; unplugged nothing passes; plugged it returns."""
    with network(3) as hosts, ExitStack() as stack:
        early = {number: hosts[number].command for number in (1, 2)}
        nodes = stack.enter_context(lone_nodes(early, "--interval", "1"))
        nodes[1].wait_for("heard", 2)
        nodes[2].wait_for("heard", 1)
        # A probe within a second of another one is answered when that second is over (docs/protocol.md, section 4).
        time.sleep(1.0)
        nodes |= stack.enter_context(lone_nodes({3: hosts[3].command}, "--interval", "1"))
        started = nodes[3].wait_for("started")["at"]
        for number, other in [(1, 3), (2, 3), (3, 1), (3, 2)]:
            assert nodes[number].wait_for("heard", other)["at"] - started < 1.0
        for number, other in permutations(nodes, 2):
            nodes[number].wait_for("heard", other, url=f"ws://10.77.0.{other}:{8104 + other}/sync")
            assert "%eth0]" in nodes[number].wait_for("heard", other, url="ws://[fe80:")["url"]
        hosts[3].unplug()
        unplugged = time.time() + 0.2
        time.sleep(2.5)
        assert nodes[3].since(unplugged) == []
        assert {line["node_id"] for line in nodes[1].since(unplugged)} == {nodes[1].wait_for("heard", 2)["node_id"]}
        hosts[3].plug()
        plugged = time.time()
        for number, other in [(1, 3), (2, 3), (3, 1), (3, 2)]:
            assert nodes[number].wait_for("heard", other, after=plugged)["at"] - plugged < 3.0
        nodes[2].end()
        nodes[1].wait_for("departed", 2)
        nodes[3].wait_for("departed", 2)


def test_a_cable_plugged_in_again_is_noticed_at_once():
    """With rounds of a minute, a host whose link came back is heard, and hears, within seconds."""
    with network(2) as hosts, lone_nodes({number: host.command for number, host in hosts.items()}) as nodes:
        nodes[1].wait_for("heard", 2)
        nodes[2].wait_for("heard", 1)
        hosts[2].unplug(carrier=True)
        # Longer than two looks at the interfaces.
        time.sleep(7)
        hosts[2].plug()
        plugged = time.time()
        assert nodes[1].wait_for("heard", 2, after=plugged)["at"] - plugged < 8
        assert nodes[2].wait_for("heard", 1, after=plugged)["at"] - plugged < 8


def test_a_host_without_a_network_starts_and_waits_for_one():
    """A node started without any interface says so, and is found once a link comes up."""
    with network(2) as hosts:
        hosts[2].run("ip", "link", "set", "eth0", "down")
        with lone_nodes({number: host.command for number, host in hosts.items()}) as nodes:
            status = nodes[2].wait_for("started")["status"]
            assert status["problem"] == "no multicast-capable interface is up"
            nodes[1].wait_for("started")
            hosts[2].run("ip", "link", "set", "eth0", "up")
            up = time.time()
            assert nodes[1].wait_for("heard", 2)["at"] - up < 4
            nodes[2].wait_for("heard", 1)
