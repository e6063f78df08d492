"""What strangers and misfortune do to the sync port of a real node, and what it costs."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from tests.harness import MANAGE, introduce, linked, listening, processes_of, stays, together, wait_for

SUBPROTOCOL = "arklattice.sync.v1"


def dial(node, *, source="127.0.0.1", **more):
    """Return an open WebSocket to the node's sync port, dialled from an address of this machine."""
    raw = socket.create_connection(("127.0.0.1", node.sync_port), timeout=5, source_address=(source, 0))
    return connect(
        f"{node.url}/sync", sock=raw, subprotocols=[SUBPROTOCOL], compression=None, max_size=None, open_timeout=5, **more
    )


def says(node, request, *, wait_s=3.0):
    """Return what the sync port answers to these bytes until it closes or `wait_s` has passed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", node.sync_port), timeout=wait_s) as connection, contextlib.suppress(OSError):
        connection.sendall(request)
        while b"\r\n\r\n" not in answer and (part := connection.recv(65_536)):
            answer += part
    return answer


def request(node, *headers, path="/sync", protocol=SUBPROTOCOL):
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{node.sync_port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def memory_mib(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def is_quiet(node):
    """Fail if strangers made the node write tracebacks or end."""
    assert "Traceback" not in node.log_text(), node.log_tail()
    assert node.process.poll() is None


def close_code(connection):
    with contextlib.suppress(ConnectionClosed):
        while True:
            connection.recv(timeout=15)
    return connection.close_code


def test_refused_before_it_costs_anything(nodes):
    """Browsers, other protocols, other paths, odd bytes and bodies get no link and no traceback; a node's dial does."""
    ada = nodes("ada")
    ada.start()
    for headers in (["Origin: null"], ["Origin: https://evil.example"], ["origin:"], [f"Origin: http://127.0.0.1:{ada.http_port}"]):
        assert says(ada, request(ada, *headers)).startswith(b"HTTP/1.1 4"), headers
    for protocol in (None, "", "arklattice.sync.v2", "chat", "\xff\xfe", "%ff%00"):
        assert b"101" not in says(ada, request(ada, protocol=protocol))[:16], protocol
    for path in ("/", "/admin/", "/sync/", "/sync?x=%ff", "//sync", "/%2e%2e/sync", "/\xff"):
        answer = says(ada, request(ada, path=path))
        assert b"101" not in answer[:16] or path.startswith("/sync?"), path
    for odd in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET /sync HTTP/9.9\r\n\r\n",
        request(ada, "Host: second.example"),
        request(ada, "Content-Length: 5") + b"hello",
        b"POST /sync HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 40_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000,
    ):
        says(ada, odd, wait_s=6)
    assert says(ada, request(ada, "Daphne-Root-Path: /elsewhere"), wait_s=0.5).startswith(b"HTTP/1.1 101")
    is_quiet(ada)
    assert ada.rows("SELECT count(*) FROM peers_peer") == [(0,)]


def test_frames_that_are_none(nodes):
    """Text, nothing, junk and a frame one byte beyond the limit end a connection at once; one at the limit is read."""
    ada = nodes("ada")
    ada.start()
    limit = 256 * 1024
    for frame, code in [("hello", 4400), (b"junk", 4400), (bytes(limit), 4400), (bytes(limit + 1), 1009)]:
        with dial(ada) as connection:
            began = time.monotonic()
            with contextlib.suppress(ConnectionClosed):
                connection.send(frame)
            assert close_code(connection) in {code, 1006} if code == 1009 else close_code(connection) == code
            assert time.monotonic() - began < 3
    is_quiet(ada)


def test_half_open_connections_are_bounded(nodes):
    """Hundreds of connections that say nothing cost little, hold nobody up, and are gone when their time is over."""
    ada = nodes("ada", ARK_LIMIT_HANDSHAKE_S="3")
    ada.start()
    before = memory_mib(ada.process.pid)
    with contextlib.ExitStack() as held:
        began = time.monotonic()
        for number in range(300):
            with contextlib.suppress(OSError):
                raw = socket.create_connection(
                    ("127.0.0.1", ada.sync_port), timeout=1, source_address=(f"127.0.1.{number % 100 + 1}", 0)
                )
                held.enter_context(raw)
                if number % 2:
                    raw.sendall(request(ada))
        with dial(ada, source="127.0.2.1") as honest:
            assert time.monotonic() - began < 30
            assert honest.subprotocol == SUBPROTOCOL
        for _ in range(20):
            # Beyond its share the address is refused, or its own oldest gives way.
            with contextlib.suppress(OSError, WebSocketException):
                held.enter_context(dial(ada, source="127.0.3.1"))
        assert established(ada.sync_port, "127.0.3.1") <= 8
        # 64 before the upgrade, 64 after it; what the kernel still holds back is accepted within a moment.
        wait_for(lambda: established(ada.sync_port) <= 2 * 64, 1, "bounded places")
        assert memory_mib(ada.process.pid) - before < 32
        wait_for(lambda: established(ada.sync_port) == 0, 12, "all gone")
    is_quiet(ada)


def established(port, remote=None):
    """Return how many connections to a port of 127.0.0.1 its own side holds, from one address or from all."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row[2] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]
    if remote is None:
        return len(ours)
    wanted = socket.inet_aton(remote)[::-1].hex().upper()
    return sum(end.startswith(wanted) for end in ours)


@pytest.fixture
def pair(nodes):
    ada, bob = together(lambda: nodes("ada"), lambda: nodes("bob"))
    introduce(ada, bob)
    together(ada.start, bob.start)
    wait_for(lambda: linked(ada, bob), 15, "linked")
    return ada, bob


@contextlib.contextmanager
def write_lock(node):
    """Hold the write lock of a node's database, as another process may."""
    with contextlib.closing(sqlite3.connect(node.database, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_locked_database_loses_nothing(pair):
    """While another process holds the write lock nothing arrives; after it everything does, and the link stood."""
    ada, bob = pair
    with write_lock(bob):
        ids = ada.publish_lines("\n".join(f'{{"n": {number}}}' for number in range(300)))
        stays(lambda: bob.count() == 0, 1)
        assert linked(ada, bob)
    wait_for(lambda: bob.holds(*ids[:1], *ids[-1:]) and bob.count() == 300, 5, "all arrive")
    is_quiet(bob)


def test_stops_in_time_with_a_locked_database(pair):
    """SIGTERM while another process holds the write lock: the peer is told at once, exit 0 in under 3 s."""
    ada, bob = pair
    ada.publish_lines("\n".join(f'{{"n": {number}}}' for number in range(200)))
    with write_lock(bob):
        assert bob.stop() < 3
        wait_for(lambda: not ada.linked_with(), 1, "its peer knows")
    assert "restarting" in ada.log_text()
    assert not processes_of(bob.home)


def test_stops_in_time_under_load_with_a_peer_that_does_not_read(pair):
    """SIGTERM in the middle of a burst, to a peer that stands still: exit 0 in under 3 s, nothing left behind."""
    ada, bob = pair
    os.kill(bob.process.pid, signal.SIGSTOP)
    try:
        ada.publish_lines("\n".join(f'{{"text": "{"x" * 2_000}", "n": {number}}}' for number in range(1_500)))
        assert ada.stop() < 3
    finally:
        os.kill(bob.process.pid, signal.SIGCONT)
    assert not processes_of(ada.home)
    assert "Traceback" not in ada.log_text()


def test_stops_in_time_while_packets_pour_in(pair):
    """SIGTERM to both ends in the middle of a burst: both exit 0 in under 3 s; started again, everything arrives."""
    ada, bob = pair
    publishing = threading.Thread(target=ada.publish_lines, args=("\n".join(f'{{"n": {number}}}' for number in range(2_000)),))
    publishing.start()
    wait_for(lambda: bob.count() > 50, 30, "it pours", interval=0.005)
    together(ada.stop, bob.stop)
    publishing.join()
    together(ada.start, bob.start)
    wait_for(lambda: bob.count() == 2_000, 30, "all arrive")
    for node in pair:
        is_quiet(node)


def test_killed_helpers_cost_nothing_but_time(pair):
    """Verifier processes killed again and again while packets arrive: each is replaced, every packet arrives."""
    ada, bob = pair
    stop = threading.Event()
    killed = set()

    def kill_helpers():
        while not stop.is_set():
            for pid in processes_of(bob.home):
                if pid != bob.process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_helpers)
    killer.start()
    try:
        ada.publish_lines("\n".join(f'{{"n": {number}}}' for number in range(1_500)))
        wait_for(lambda: bob.count() == 1_500, 30, "all arrive")
    finally:
        stop.set()
        killer.join()
    assert killed
    is_quiet(bob)


def test_sigterm_under_plain_daphne_says_goodbye(nodes):
    """The `daphne` command beside `--no-serve`: when it ends, the peer is told, and its claims are given back."""
    ada, bob = together(lambda: nodes("ada"), lambda: nodes("bob"))
    introduce(ada, bob, url_of_b=False)
    endpoints = [f"tcp:{port}:interface=127.0.0.1" for port in (ada.http_port, ada.sync_port)]
    command = [sys.executable, "-m", "daphne", "-e", endpoints[0], "-e", endpoints[1], "arklattice.asgi:application"]
    with (ada.home / "daphne.log").open("wb") as log:
        daphne = subprocess.Popen(
            command, env=ada.env, cwd=MANAGE.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: listening(ada.sync_port), 30, "daphne listens")
        bob.start()
        wait_for(lambda: linked(ada, bob), 15, "linked")
        (held,) = ada.rows("SELECT pid FROM federation_linkclaim")
        assert held == (daphne.pid,)
        began = time.monotonic()
        daphne.send_signal(signal.SIGTERM)
        assert daphne.wait(10) == 0
        assert time.monotonic() - began < 3
        wait_for(lambda: not bob.linked_with(), 1, "the peer knows")
    finally:
        daphne.kill()
        daphne.wait()
    assert "restarting" in bob.log_text()
    assert ada.rows("SELECT count(*) FROM federation_linkclaim") == [(0,)]
    assert "Traceback" not in (ada.home / "daphne.log").read_text()


def test_static_peers_by_name_and_family(nodes):
    """ARK_STATIC_PEERS reaches peers by name and over IPv6, bears its own address, and a bad one ends the start with 2."""
    ada = nodes("ada")
    bob = nodes("bob")
    ada.settings["ARK_SYNC_BIND"] = f"[::1]:{ada.sync_port}"
    bob.settings["ARK_STATIC_PEERS"] = f"ws://[::1]:{ada.sync_port},ws://localhost:{bob.sync_port}"
    together(lambda: ada.manage("importkey", "bob", bob.public_key), lambda: bob.manage("importkey", "ada", ada.public_key))
    ada.launch()
    bob.start()
    # To each other they are UNKNOWN still: told `pending`, dialled again within a minute, and at once when decided.
    wait_for(lambda: bob.rows("SELECT 1 FROM peers_peeraddress WHERE url LIKE '%::1%' AND proven_at IS NOT NULL"), 15, "they met")
    assert not bob.linked_with()
    together(lambda: ada.manage("trusttier", "bob", "core"), lambda: bob.manage("trusttier", "ada", "core"))
    wait_for(lambda: linked(ada, bob), 15, "linked over IPv6")
    assert {row[0] for row in bob.rows("SELECT node_id FROM peers_peer")} == {ada.node_id}, "it does not meet itself"
    done = bob.manage("runfederation", status=2, settings={"ARK_STATIC_PEERS": "http://nowhere"})
    assert "ARK_STATIC_PEERS" in done.stderr


@pytest.mark.long
def test_database_locked_for_longer_than_anybody_waits(pair):
    """A write lock held beyond SQLite's patience: packets are declined busy, memory stays, all arrive within 5 s after."""
    ada, bob = pair
    before = memory_mib(bob.process.pid)
    with write_lock(bob):
        ada.publish_lines("\n".join(f'{{"n": {number}}}' for number in range(2_000)))
        time.sleep(30)
        assert bob.ask("federationstatus")["acceptance_stopped"]
        assert memory_mib(bob.process.pid) - before < 32
    wait_for(lambda: bob.count() == 2_000, 60, "all arrive")
    assert bob.ask("federationstatus")["acceptance_stopped"] is None
    is_quiet(bob)
