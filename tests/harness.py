"""Real nodes for end-to-end tests: own process, own folder, own free ports, driven as a person would.

A `Node` runs the real `manage.py` for everything it does. Reading its database directly, and
read-only, is the quick way to poll (starting Python and Django costs 0.7 s a command); whatever a
test asserts about the commands goes through the commands. The database is the SQLite file in its
folder, or the one that DATABASE_URL in its settings names (tests/postgres.py).
"""

import contextlib
import json as jsonlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests import postgres

ROOT = Path(__file__).resolve().parent.parent
MANAGE = ROOT / "manage.py"

# Generous for two cores shared by several nodes; nothing takes this long when all is well.
COMMAND_TIMEOUT_S = 120
START_TIMEOUT_S = 30
# A clean end is promised within 3 s (docs/architecture.md, section 2).
STOP_TIMEOUT_S = 3

T = TypeVar("T")


class NodeFailedError(AssertionError):
    """A node or command did not do what the test needs; carries what it said."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: exit status, both streams, and the parsed document when JSON was asked for."""

    status: int
    stdout: str
    stderr: str
    document: Any = None


def free_ports(count: int) -> list[int]:
    """Return TCP ports of 127.0.0.1 that were free a moment ago, all different.

    They lie below the range the kernel gives to outgoing connections, so that no dial of a node
    that already runs takes one before its owner binds it.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            candidate = random.randrange(10_000, 32_000)
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidate))
                ports.append(candidate)
        return ports


def wait_for(predicate: Callable[[], T], timeout: float, what: str = "", *, interval: float = 0.02) -> T:
    """Return the first truthy value of `predicate`; after `timeout` seconds fail, naming `what` and the last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise NodeFailedError(f"not within {timeout} s: {what or predicate!r}; last seen: {value!r}")
        time.sleep(interval)


def stays(predicate: Callable[[], object], seconds: float, what: str = "", *, interval: float = 0.05) -> None:
    """Fail when `predicate` stops being truthy within `seconds`: the way to say that nothing happens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not predicate():
            raise NodeFailedError(f"did not last {seconds} s: {what or predicate!r}")
        time.sleep(interval)


def together(*steps: Callable[[], Any]) -> list[Any]:
    """Run independent steps at once (each is mostly a subprocess starting) and return their results in order."""
    with ThreadPoolExecutor(len(steps)) as pool:
        return [future.result() for future in [pool.submit(step) for step in steps]]


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and awaits its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def processes_of(home: Path) -> list[int]:
    """Return the pids of every live process whose environment names `home` as its ARK_HOME."""
    wanted = f"ARK_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    found.append(int(entry.name))
    return found


class Node:
    """One installation: a folder, two ports, an environment, and at most one running `runfederation`.

    `template` is a migrated SQLite database to copy, which saves a second a node; None leaves the folder
    as a new user finds it. `ports` are free ones when not given.
    """

    def __init__(
        self,
        home: Path,
        name: str,
        *,
        template: Path | None = None,
        ports: tuple[int, int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.name = name
        self.settings = dict(settings or {})
        # Put before every command: `ip netns exec NAME` runs the node on a host of its own (tests/e2e/namespaces.py).
        self.prefix: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = home / "node.log"
        self.database = home / "ark.sqlite3"
        self.http_port, self.sync_port = ports or free_ports(2)
        self._public: dict[str, str] = {}
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if template is not None:
            shutil.copyfile(template, self.database)

    # What it is.

    def copy(self, home: Path) -> "Node":
        """Return this node again in another folder, on the same ports: the two cannot run at once."""
        shutil.copytree(self.home, home)
        again = Node(home, self.name, ports=(self.http_port, self.sync_port), settings=self.settings)
        again._public = self._public
        return again

    @property
    def env(self) -> dict[str, str]:
        """The environment of everything this node runs: the caller's PATH and nothing of its settings."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "ARK_HOME": str(self.home),
            "ARK_ENV_FILE": os.devnull,
            "ARK_NODE_NAME": self.name,
            "ARK_HTTP_BIND": f"127.0.0.1:{self.http_port}",
            "ARK_SYNC_BIND": f"127.0.0.1:{self.sync_port}",
            "ARK_DISCOVERY": "false",
            **self.settings,
        }

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.sync_port}"

    @property
    def public_key(self) -> str:
        """Its public key, 64 hex digits, as `exportkey` prints it."""
        return self._identity()["public_key"]

    @property
    def node_id(self) -> str:
        return self._identity()["node_id"]

    def keygen(self) -> None:
        """Give the node its key and identity."""
        self._public = self.ask("keygen")

    def _identity(self) -> dict[str, str]:
        if not self._public:
            rows = self.ask("listkeys")
            self._public = next(row for row in rows if row["status"] == "active")
        return self._public

    # What people type.

    def manage(
        self,
        *words: str,
        json: bool = False,
        stdin: str | bytes | None = None,
        status: int | None = 0,
        settings: Mapping[str, str] | None = None,
        timeout: float = COMMAND_TIMEOUT_S,
    ) -> Outcome:
        """Run `manage.py <words>` and return what it did.

        Fails unless the exit status is `status` (None: any), when there is a traceback on either
        stream, and, with `json`, unless standard output is exactly one JSON document.
        """
        arguments = [*words, "--json"] if json else list(words)
        done = subprocess.run(
            [*self.prefix, sys.executable, str(MANAGE), *arguments],
            env=self.env | dict(settings or {}),
            cwd=self.home,
            input=stdin.encode() if isinstance(stdin, str) else (stdin or b""),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        stdout, stderr = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        typed = f"{self.name}: manage.py {' '.join(words)}"
        said = f"{typed} exited {done.returncode}\n--- stdout\n{stdout[-4000:]}\n--- stderr\n{stderr[-4000:]}"
        if "Traceback (most recent call last)" in stdout + stderr:
            raise NodeFailedError(f"a traceback: {said}")
        if status is not None and done.returncode != status:
            raise NodeFailedError(f"expected exit status {status}: {said}")
        document = None
        if json and done.returncode == 0:
            try:
                document = jsonlib.loads(stdout)
            except ValueError as error:
                raise NodeFailedError(f"not one JSON document ({error}): {said}") from None
        return Outcome(done.returncode, stdout, stderr, document)

    def ask(self, *words: str, stdin: str | bytes | None = None, settings: Mapping[str, str] | None = None) -> Any:
        """Run a command that must succeed with `--json` and return its document."""
        return self.manage(*words, json=True, stdin=stdin, settings=settings).document

    def publish(self, text: str, *options: str) -> str:
        """Publish `text` and return the packet id, 64 hex digits."""
        return self.ask("publish", "--text", text, *options)["id"]

    def publish_lines(self, lines: str, *options: str) -> list[str]:
        """Publish NDJSON and return the packet ids in order."""
        return self.ask("publish", "-", "--ndjson", *options, stdin=lines)["ids"]

    # Its process.

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        """Start `runfederation` and return at once; `start` also waits until it serves."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, str(MANAGE), "runfederation", *options],
                env=self.env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def start(self, *options: str) -> None:
        """Start the node and wait until both its ports answer."""
        process = self.launch(*options)
        ports = [] if "--no-serve" in options else [self.http_port, self.sync_port]

        def serving() -> bool:
            if process.poll() is not None:
                raise NodeFailedError(f"{self.name} ended with {process.returncode} while starting\n{self.log_tail()}")
            return all(listening(port, of=process.pid) for port in ports) and self.running_pid() == process.pid

        wait_for(serving, START_TIMEOUT_S, f"{self.name} serves", interval=0.05)

    def running_pid(self) -> int | None:
        """Return the pid the node states in its database, if any."""
        rows = self.rows("SELECT pid FROM federation_nodestate")
        return rows[0][0] if rows else None

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> float:
        """End the node as an operator does; fails unless it exits 0 within 3 s. Returns the seconds it took."""
        assert self.process is not None, f"{self.name} was never started"
        began = time.monotonic()
        self.process.send_signal(with_signal)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeFailedError(
                f"{self.name} did not end in {STOP_TIMEOUT_S} s ({with_signal.name})\n{self.log_tail()}"
            ) from None
        self.process = None
        if status != 0:
            raise NodeFailedError(f"{self.name} exited {status} on {with_signal.name}\n{self.log_tail()}")
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log_text(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def log_tail(self, characters: int = 6000) -> str:
        return self.log_text()[-characters:]

    # What it holds, read directly.

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, `?` standing for parameters, on the node's database, opened read-only for this call."""
        if "DATABASE_URL" in self.settings:
            return postgres.rows(self.settings["DATABASE_URL"], sql, parameters)
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def count(self, origin: str | None = None) -> int:
        """Return how many packets it holds, of one origin or of all."""
        if origin is None:
            return self.rows("SELECT count(*) FROM federation_knowledgepacket")[0][0]
        return self.rows("SELECT count(*) FROM federation_knowledgepacket WHERE origin = ?", origin)[0][0]

    def holds(self, *packet_ids: str) -> bool:
        """Return whether every one of these packets (ids in hex) is stored here."""
        return all(self.body(packet_id) is not None for packet_id in packet_ids)

    def body(self, packet_id: str) -> bytes | None:
        """Return the stored canonical bytes of a packet, or None."""
        rows = self.rows("SELECT body FROM federation_knowledgepacket WHERE packet_id = ?", bytes.fromhex(packet_id))
        return bytes(rows[0][0]) if rows else None

    def received_ms(self, packet_id: str) -> int:
        """Return when a packet was stored here, ms since the Unix epoch; all nodes of a test share one clock."""
        return self.rows("SELECT received_at FROM federation_knowledgepacket WHERE packet_id = ?", bytes.fromhex(packet_id))[0][0]

    def receipt(self, packet_id: str) -> tuple[str, str]:
        """Return (received_from, received_rule) of a stored packet."""
        return self.rows(
            "SELECT received_from, received_rule FROM federation_knowledgepacket WHERE packet_id = ?", bytes.fromhex(packet_id)
        )[0]

    def refusal(self, packet_id: str) -> str | None:
        """Return the code with which a packet was last declined or rejected here, or None."""
        rows = self.rows("SELECT code FROM federation_refusal WHERE packet_id = ? ORDER BY at DESC", bytes.fromhex(packet_id))
        return rows[0][0] if rows else None

    def counter(self, name: str) -> int:
        """Return how often something happened with peers here, over all peers."""
        return self.rows("SELECT coalesce(sum(count), 0) FROM federation_peercounter WHERE name = ?", name)[0][0]

    def linked_with(self) -> set[str]:
        """Return the node_ids of the peers this node holds a link with: one that is up, not one the peer may still refuse."""
        return {row[0] for row in self.rows("SELECT peer FROM federation_linkclaim WHERE CAST(state AS TEXT) <> '{}'")}


def delay_ms(packet_id: str, publisher: Node, receiver: Node) -> int:
    """Return how long after its publication a packet was stored at `receiver`, ms."""
    return receiver.received_ms(packet_id) - publisher.received_ms(packet_id)


def listening(port: int, *, of: int | None = None) -> bool:
    """Return whether something listens on this TCP port, without connecting to it: a connection is an event for a node.

    `of` is the pid of a process whose network is meant; this process's own otherwise.
    """
    wanted = f"{port:04X}"
    for line in Path(f"/proc/{of or 'self'}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
            return True
    return False


def introduce(
    a: Node, b: Node, tier_ab: str = "core", tier_ba: str = "core", *, url_of_b: bool = True, url_of_a: bool = True
) -> None:
    """Exchange keys as two operators would: `a` files `b` under `tier_ab`, `b` files `a` under `tier_ba`."""

    def file(one: Node, other: Node, tier: str, with_url: bool) -> None:
        address = ["--url", other.url] if with_url else []
        one.manage("importkey", other.name, other.public_key, "--tier", tier, *address)

    together(lambda: a.public_key, lambda: b.public_key)
    together(lambda: file(a, b, tier_ab, url_of_b), lambda: file(b, a, tier_ba, url_of_a))


def linked(a: Node, b: Node) -> bool:
    """Return whether both sides hold a link with each other."""
    return b.node_id in a.linked_with() and a.node_id in b.linked_with()
