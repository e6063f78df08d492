"""Three nodes on this machine: keys exchanged, knowledge shared, one node away and caught up.

Everything goes through the commands a person types; each is printed. The nodes live in a throwaway
folder on free ports and leave nothing behind. `--once` ends after the story; otherwise the nodes run on,
with their admin pages open, until Ctrl-C.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANAGE = Path(__file__).resolve().parent.parent / "manage.py"
START_S = 30
ARRIVE_S = 10


class DemoError(Exception):
    """Something the story needs did not happen; says what, with the node's own words."""


class DemoNode:
    """One of the three: a name, a folder, two ports, and the process when it runs."""

    def __init__(self, name: str, home: Path, http_port: int, sync_port: int) -> None:
        self.name = name
        self.home = home
        self.http_port = http_port
        self.url = f"ws://127.0.0.1:{sync_port}"
        self.password = ""
        self.process: subprocess.Popen[bytes] | None = None
        # Only what this node needs: settings of the caller's own node stay out of it.
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("ARK_") and key != "DATABASE_URL"} | {
            "ARK_HOME": str(home),
            "ARK_ENV_FILE": os.devnull,
            "ARK_NODE_NAME": name,
            "ARK_HTTP_BIND": f"127.0.0.1:{http_port}",
            "ARK_SYNC_BIND": f"127.0.0.1:{sync_port}",
            "ARK_DISCOVERY": "false",
        }

    def manage(self, *words: str, show: bool = True) -> str:
        """Run a command of this node, print it when `show`, and return what it says."""
        if show:
            typed = shlex.join(words)
            # A key in full would hide the rest.
            for word in words:
                typed = typed.replace(word, word[:16] + "…") if len(word) == 64 else typed
            print(f"  {self.name}$ manage.py {typed}", flush=True)
        done = subprocess.run([sys.executable, str(MANAGE), *words], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{self.name}: manage.py {words[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self) -> None:
        with (self.home / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(MANAGE), "runfederation"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the demo, which then stops its nodes one by one.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not answers(self.http_port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"{self.name} did not start:\n{(self.home / 'node.log').read_text()}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def publish(self, text: str) -> str:
        return json.loads(self.manage("publish", "--text", text, "--json"))["id"]

    def packets(self) -> dict[str, dict]:
        return {row["id"]: row for row in json.loads(self.manage("packets", "--json", show=False))}


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free, below those the kernel gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 32_000)
        if port not in ports:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            ports.append(port)
    return ports


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def show_arrival(packet_id: str, publisher: DemoNode, receivers: list[DemoNode], *, live: bool = True) -> None:
    """Wait until each receiver has the packet and print from whom, and when `live` how long after publication."""
    since = time.monotonic()
    published_ms = publisher.packets()[packet_id]["received_at"]
    names = {}
    for node in receivers:
        for row in json.loads(node.manage("peers", "--json", show=False)):
            names[row["node_id"]] = row["name"]
    waiting = list(receivers)
    while waiting:
        for node in list(waiting):
            row = node.packets().get(packet_id)
            if row is not None:
                waiting.remove(node)
                giver = names.get(row["received_from"], row["received_from"])
                after = f", {(row['received_at'] - published_ms) / 1000:.2f} s after its publication" if live else ""
                print(f"  {node.name} has it: {row['content']!r}", flush=True)
                print(f"    signed by {publisher.name}, handed over by {giver}{after}", flush=True)
        if waiting and time.monotonic() - since > ARRIVE_S:
            raise DemoError(f"it did not reach {', '.join(node.name for node in waiting)} within {ARRIVE_S} s")


def together(*steps) -> None:
    with ThreadPoolExecutor(len(steps)) as pool:
        for future in [pool.submit(step) for step in steps]:
            future.result()


def story(ada: DemoNode, bob: DemoNode, cyd: DemoNode) -> None:
    say("Three new nodes, each with its own folder, database and key")

    def prepare(node: DemoNode) -> None:
        node.password = json.loads(node.manage("bootstrap", "--json"))["password"]

    together(*(lambda node=node: prepare(node) for node in (ada, bob, cyd)))

    say("Keys exchanged, as two operators do: Ada and Bob, Bob and Cyd; Ada and Cyd hold each other's keys but no address")
    cards = {node.name: node.manage("exportkey") for node in (ada, bob, cyd)}
    for one, other, address in [
        (ada, bob, ["--url", bob.url]),
        (bob, ada, ["--url", ada.url]),
        (bob, cyd, ["--url", cyd.url]),
        (cyd, bob, ["--url", bob.url]),
        (ada, cyd, []),
        (cyd, ada, []),
    ]:
        one.manage("importkey", other.name, cards[other.name], "--tier", "core", *address)

    say("All three start")
    together(ada.start, bob.start, cyd.start)
    for node in (ada, bob, cyd):
        print(f"  {node.name} runs: http://127.0.0.1:{node.http_port}/admin/ and {node.url}", flush=True)

    say("Ada publishes; Bob gets it from her, Cyd through Bob")
    show_arrival(ada.publish("Water boils at 93 °C in La Paz."), ada, [bob, cyd])
    say("Cyd publishes; it travels the other way")
    show_arrival(cyd.publish("Lichens are two organisms, often three."), cyd, [bob, ada])

    say("Cyd goes away; Ada and Bob go on publishing")
    cyd.stop()
    missed = [ada.publish("The Danube flows through ten countries."), bob.publish("Honey keeps for centuries.")]

    say("Cyd comes back and catches up by itself")
    cyd.start()
    for packet_id, publisher in zip(missed, (ada, bob), strict=True):
        show_arrival(packet_id, publisher, [cyd], live=False)

    say("Why does Cyd have Ada's packet? The rule that let it in:")
    for line in cyd.manage("why", missed[0]).splitlines():
        print(f"  {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the story instead of waiting for Ctrl-C")
    options = parser.parse_args()

    # SIGTERM ends the demo as Ctrl-C does, so that no node outlives it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="arklattice-demo-"))
    ports = free_ports(6)
    nodes = [DemoNode(name, folder / name, *ports[2 * place : 2 * place + 2]) for place, name in enumerate(("ada", "bob", "cyd"))]
    try:
        for node in nodes:
            node.home.mkdir(mode=0o700)
        story(*nodes)
        if not options.once:
            say("The nodes run on until Ctrl-C. Their admin pages (user admin, password for the first login):")
            for node in nodes:
                print(f"  {node.name}  http://127.0.0.1:{node.http_port}/admin/  {node.password}", flush=True)
            while True:
                signal.pause()
    except DemoError as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Stopping the three nodes")
    finally:
        together(*(node.stop for node in nodes))
        shutil.rmtree(folder, ignore_errors=True)
    say("Done; nothing was left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
