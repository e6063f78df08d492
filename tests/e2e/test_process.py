"""How the node starts, refuses to start, and ends."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.harness import MANAGE, introduce, linked, listening, processes_of, together, wait_for


def http_status(port, path):
    """Return the HTTP status a port answers a plain GET with."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def refuses_to_run(node, status, *said):
    """Start the node and expect it to end by itself with one clear line on standard error."""
    done = node.manage("runfederation", status=status, timeout=30)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for text in said:
        assert text in lines[0]


def test_start_says_where_and_who(nodes):
    """A started node prints its addresses and its fingerprint in groups of four."""
    ada = nodes("ada")
    ada.start()
    fingerprint = ada.ask("listkeys")[0]["fingerprint"]
    grouped = " ".join(fingerprint[place : place + 4] for place in range(0, 64, 4))
    log = wait_for(lambda: grouped in ada.log_text() and ada.log_text(), 3, "the fingerprint is printed")
    assert f"127.0.0.1:{ada.http_port}" in log
    assert f"127.0.0.1:{ada.sync_port}" in log


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_ends_cleanly_with_a_true_goodbye(linked_pair, with_signal):
    """SIGTERM and Ctrl-C end a linked node in under 3 s with exit 0; its peer knows at once that it left."""
    ada, bob = linked_pair
    assert ada.stop(with_signal) < 3
    wait_for(lambda: not bob.linked_with(), 1, "the peer sees it leave")
    assert not ada.linked_with()
    assert ada.running_pid() is None
    assert not processes_of(ada.home)


def test_killed_node_takes_its_helpers_with_it_and_starts_again(nodes):
    """After SIGKILL no helper process stays, and the next start needs no repair."""
    ada = nodes("ada")
    ada.start()
    ada.kill()
    wait_for(lambda: not processes_of(ada.home), 3, "the helpers are gone")
    ada.start()
    ada.stop()


@pytest.mark.parametrize(("port_of", "setting"), [("http_port", "ARK_HTTP_BIND"), ("sync_port", "ARK_SYNC_BIND")])
def test_taken_port_names_the_setting(nodes, port_of, setting):
    """A taken port ends the start with status 3 and names the setting to change."""
    ada = nodes("ada")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", getattr(ada, port_of)))
        holder.listen()
        refuses_to_run(ada, 3, setting, str(getattr(ada, port_of)))
    assert not processes_of(ada.home)


def test_missing_key_is_said(nodes):
    """Without a key nothing starts and nothing is made: status 1, and the command to type."""
    ada = nodes("ada", key=False)
    refuses_to_run(ada, 1, "keygen")
    assert not list(ada.home.glob("keys/*.key"))


def test_unmigrated_database_is_said(nodes):
    """Without tables nothing starts: status 1, and the command to type."""
    ada = nodes("ada")
    for path in ada.home.glob("ark.sqlite3*"):
        path.unlink()
    refuses_to_run(ada, 1, "migrate")


def test_second_start_names_the_first(nodes):
    """A second start of the same node exits 1 naming the pid of the first, which runs on."""
    ada = nodes("ada")
    ada.start()
    refuses_to_run(ada, 1, str(ada.process.pid))
    assert ada.process.poll() is None
    assert listening(ada.sync_port)
    ada.stop()


def test_each_port_has_its_role(nodes):
    """8102 serves the admin and no sync; 8104 serves no page at all."""
    ada = nodes("ada")
    ada.start()
    assert http_status(ada.http_port, "/admin/login/") == 200
    assert http_status(ada.http_port, "/static/admin/css/base.css") == 200
    for path in ["/", "/admin/", "/admin/login/", "/static/admin/css/base.css", "/sync"]:
        assert http_status(ada.sync_port, path) in {400, 404, 426}, path
    assert upgrade(ada.http_port, "/sync").startswith(b"HTTP/1.1 4")
    assert upgrade(ada.sync_port, "/sync").startswith(b"HTTP/1.1 101")
    assert upgrade(ada.sync_port, "/admin/").startswith(b"HTTP/1.1 4")


def test_browsers_are_refused_on_the_sync_port(nodes):
    """A request with an Origin header is refused, whatever the origin."""
    ada = nodes("ada")
    ada.start()
    for origin in ["null", "http://127.0.0.1", f"http://127.0.0.1:{ada.sync_port}", "https://evil.example"]:
        assert upgrade(ada.sync_port, "/sync", f"Origin: {origin}").startswith(b"HTTP/1.1 4"), origin


def upgrade(port, path, *headers):
    """Return the first bytes a port answers a WebSocket upgrade with."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: arklattice.sync.v1",
        *headers,
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(200)


def test_plain_daphne_beside_the_runner(nodes):
    """The ASGI application under the `daphne` command beside `runfederation --no-serve` links and syncs both ways."""
    ada, bob = together(lambda: nodes("ada"), lambda: nodes("bob"))
    introduce(ada, bob, url_of_b=False)  # Bob dials, Daphne answers.
    endpoints = [f"tcp:{port}:interface=127.0.0.1" for port in (ada.http_port, ada.sync_port)]
    command = [sys.executable, "-m", "daphne", "-e", endpoints[0], "-e", endpoints[1], "arklattice.asgi:application"]
    with (ada.home / "daphne.log").open("wb") as log:
        daphne = subprocess.Popen(
            command, env=ada.env, cwd=MANAGE.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        ada.start("--no-serve")
        wait_for(lambda: listening(ada.http_port) and listening(ada.sync_port), 20, "daphne listens")
        bob.start()
        wait_for(lambda: linked(ada, bob), 15, "linked")
        assert http_status(ada.http_port, "/admin/login/") == 200
        assert http_status(ada.sync_port, "/admin/login/") in {400, 404, 426}
        of_ada, of_bob = ada.publish("through daphne"), bob.publish("to daphne")
        wait_for(lambda: bob.holds(of_ada) and ada.holds(of_bob), 5, "both arrive")
        ada.stop()
    finally:
        os.killpg(daphne.pid, signal.SIGTERM)
        daphne.wait(10)
    said = (ada.home / "daphne.log").read_text()
    assert "Traceback" not in said, said[-3000:]


def test_unknown_port_under_plain_daphne_serves_pages_only(nodes):
    """Under the `daphne` command a port that is neither configured one serves HTTP, and no sync."""
    ada, other = nodes("ada"), nodes("other", key=False)
    port = other.http_port
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), "arklattice.asgi:application"]
    with (ada.home / "daphne.log").open("wb") as log:
        daphne = subprocess.Popen(
            command, env=ada.env, cwd=MANAGE.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: listening(port), 20, "daphne listens")
        assert http_status(port, "/admin/login/") == 200
        assert upgrade(port, "/sync").startswith(b"HTTP/1.1 4")
    finally:
        os.killpg(daphne.pid, signal.SIGTERM)
        daphne.wait(10)
