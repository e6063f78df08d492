"""Nodes on PostgreSQL: live, after one was away, beside a node on SQLite, and when the server goes down under them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count

import pytest

from tests.harness import MANAGE, Node, delay_ms, introduce, linked, together, wait_for
from tests.postgres import PostgresServer

pytestmark = pytest.mark.postgres

LIVE_MS = 1_000
CATCH_UP_S = 3
LINES = 15_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of these tests alone, with a migrated database to copy."""
    with PostgresServer() as server:
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "ARK_HOME": str(tmp_path_factory.mktemp("template")),
            "ARK_ENV_FILE": os.devnull,
            "DATABASE_URL": server.create("migrated"),
        }
        subprocess.run([sys.executable, str(MANAGE), "migrate", "--verbosity", "0"], env=env, check=True, timeout=120)
        yield server


@pytest.fixture
def on_postgres(nodes, server: PostgresServer, _numbers=count()):  # noqa: B008 -- databases differ over all tests
    """A maker of nodes with a database of their own on the server."""

    def make(name: str) -> Node:
        return nodes(name, DATABASE_URL=server.create(f"{name}{next(_numbers)}", template="migrated"))

    return make


@pytest.fixture
def pair(on_postgres) -> tuple[Node, Node]:
    """Ada and Bob on PostgreSQL, introduced as CORE both ways, not running."""
    ada, bob = together(lambda: on_postgres("ada"), lambda: on_postgres("bob"))
    introduce(ada, bob)
    return ada, bob


def start_linked(*pair: Node) -> None:
    together(*(node.start for node in pair))
    wait_for(lambda: linked(*pair), 15, "both sides hold the link")


def assert_live(publisher: Node, receiver: Node) -> None:
    """A packet published by another process of the publisher's is on the receiver within a second, byte for byte."""
    packet_id = publisher.publish(f"from {publisher.name} at {time.time_ns()}", "--title", "Ünïcödé ✓", "--tag", "live")
    wait_for(lambda: receiver.holds(packet_id), 5, "it arrives")
    assert receiver.body(packet_id) == publisher.body(packet_id)
    assert delay_ms(packet_id, publisher, receiver) <= LIVE_MS
    assert receiver.receipt(packet_id) == (publisher.node_id, "accept-core-own")


def contents(node: Node) -> list[tuple[bytes, bytes, bytes, int]]:
    """Every packet it holds with its proof, in an order of the database's own making no difference."""
    return sorted(node.rows("SELECT packet_id, body, signature, timestamp FROM federation_knowledgepacket"))


def test_live_within_a_second_and_caught_up_after_being_down(pair):
    """What a command publishes is on the peer within 1 s, both ways; what one missed is there within 3 s of its start."""
    ada, bob = pair
    start_linked(ada, bob)
    for publisher, receiver in [(ada, bob), (bob, ada), (ada, bob)]:
        assert_live(publisher, receiver)

    bob.stop()
    missed = [ada.publish(f"missed {number}") for number in range(3)]
    began = time.monotonic()
    bob.launch()
    wait_for(lambda: bob.holds(*missed), 20, "the missed packets arrive")
    assert time.monotonic() - began <= CATCH_UP_S
    assert contents(ada) == contents(bob)


def test_what_commands_change_reaches_the_running_node(pair):
    """Blocking, in a process of its own, ends the link; undone, it comes back; the status counts what came."""
    ada, bob = pair
    start_linked(ada, bob)
    packet_id = ada.publish("counted")
    wait_for(lambda: bob.counter("received") == 1, 5, "it is counted")
    status = bob.ask("federationstatus")
    assert (status["running"], status["packets"]) == (True, 1)
    assert [link["peer"] for link in status["links"]] == [ada.node_id]
    assert [row["id"] for row in bob.ask("packets")] == [packet_id]
    bob.manage("blockpeer", "ada")
    wait_for(lambda: not bob.linked_with(), 3, "the link ends")
    bob.manage("blockpeer", "ada", "--undo")
    wait_for(lambda: linked(ada, bob), 15, "the link comes back")


def test_a_node_on_sqlite_and_one_on_postgresql(nodes, on_postgres):
    """The two databases make no difference to a peer: live both ways, in bulk, and equal in the end."""
    light, heavy = together(lambda: nodes("light"), lambda: on_postgres("heavy"))
    introduce(light, heavy)
    before = light.publish_lines("\n".join(json.dumps({"earlier": number}) for number in range(700)))
    start_linked(light, heavy)
    wait_for(lambda: heavy.count() == len(before), 15, "the older packets arrive")
    assert_live(light, heavy)
    assert_live(heavy, light)
    heavy.publish_lines("\n".join(json.dumps({"later": number, "nul": "\0"}) for number in range(700)))
    wait_for(lambda: light.count() == heavy.count() == 1_402, 15, "the newer ones arrive")
    assert contents(light) == contents(heavy)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
def test_the_server_goes_down_in_the_middle_of_a_sync(pair, server, ending):
    """Both nodes lose their database half way and get it back: they go on by themselves, and nothing is lost or doubled."""
    ada, bob = pair
    lines = "\n".join(json.dumps({"number": number, "text": f"line {number}"}) for number in range(LINES))
    ada.manage("publish", "-", "--ndjson", stdin=lines)
    together(ada.start, bob.start)
    pids = ada.process.pid, bob.process.pid
    wait_for(lambda: bob.count() >= LINES // 10, 60, "some arrive")
    held = bob.count()
    server.stop(ending)
    time.sleep(0.5)
    server.start()
    assert LINES // 10 <= held <= bob.count() < LINES * 9 // 10
    wait_for(lambda: bob.count() == LINES, 90, "all arrive", interval=0.1)
    assert contents(ada) == contents(bob)

    # In working order again: both, and without having been started anew.
    wait_for(lambda: linked(ada, bob), 40, "the link is shown")
    assert_live(ada, bob)
    assert_live(bob, ada)
    status = bob.ask("federationstatus")
    assert status["running"] and not status["acceptance_stopped"]
    assert pids == (ada.process.pid, bob.process.pid)
    assert ada.process.poll() is None and bob.process.poll() is None
    assert "Traceback" not in ada.log_text() + bob.log_text()
    together(ada.stop, bob.stop)
