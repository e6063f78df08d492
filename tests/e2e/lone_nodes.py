"""Processes that run nothing but Discovery (lone_discovery.py), and what they say."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from keys.ed25519 import keypair_from_seed
from keys.encoding import node_id_of

SCRIPT = Path(__file__).with_name("lone_discovery.py")
# A process imports Django and starts within seconds, also on a busy machine; a lost event is noticed after as long.
PATIENCE_S = 30.0


def node_id(number: int) -> str:
    return node_id_of(keypair_from_seed(number.to_bytes(32, "big")).public).hex()


class LoneNode:
    """One such process; its lines are kept in order with the wall-clock time each event had there."""

    def __init__(self, number: int, prefix: Sequence[str], options: Sequence[str]) -> None:
        self.number = number
        self.lines: list[dict] = []
        self._arriving: queue.Queue[dict] = queue.Queue()
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(SCRIPT), str(number), *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(
        self, event: str, number: int | None = None, *, after: float = 0.0, within: float = PATIENCE_S, url: str = ""
    ) -> dict:
        """Return the first line that fits, of events later than `after`, waiting for it if need be."""

        def fits(line: dict) -> bool:
            about = number is None or line.get("node_id") == node_id(number)
            return line["event"] == event and about and line["at"] > after and url in line.get("url", "")

        deadline = time.monotonic() + within
        while True:
            found = next((line for line in self.lines if fits(line)), None)
            if found is not None:
                return found
            left = deadline - time.monotonic()
            try:
                self.lines.append(self._arriving.get(timeout=max(0.0, left)))
            except queue.Empty:
                raise AssertionError(f"node {self.number}: no {event!r} about {number} {url} in {self.lines}") from None

    def since(self, moment: float) -> list[dict]:
        """Return everything said of events later than `moment`, so far."""
        while not self._arriving.empty():
            self.lines.append(self._arriving.get())
        return [line for line in self.lines if line["at"] > moment]

    def end(self) -> None:
        """End the process with SIGTERM, so that it says goodbye."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._arriving.put(json.loads(line))


@contextmanager
def lone_nodes(prefixes: Mapping[int, Sequence[str]], *options: str) -> Iterator[dict[int, LoneNode]]:
    """Start one node for each number, each command behind its prefix (such as `ip netns exec NAME`)."""
    nodes: dict[int, LoneNode] = {}
    try:
        for number, prefix in prefixes.items():
            nodes[number] = LoneNode(number, prefix, options)
        yield nodes
    finally:
        for node in nodes.values():
            node.end()
