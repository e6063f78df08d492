"""Is the simulator awake? Bugs planted in a copy of the core, one at a time, each to be found within 200 seeds.

python -m tests.simulator.mutations             all of them, two at once
python -m tests.simulator.mutations 3 14        these two
"""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = 200
TIMEOUT_S = 600
CORE = "federation/protocol"
COPIED = ("federation", "keys", "peers", "tests")
PLAY = f"""
from tests.simulator.scenario import SeedFailed, run_seed
for seed in range({SEEDS}):
    try:
        run_seed(seed)
    except SeedFailed as error:
        print(f"found {{seed}}: {{str(error).splitlines()[0]}}")
        break
"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted bug: in `path`, each old text (found exactly once) is replaced."""

    name: str
    path: str
    changes: tuple[tuple[str, str], ...]


def one(name, path, old, new):
    return Mutation(name, path, ((old, new),))


MUTATIONS = (
    Mutation(
        "the Ack leaves before the commit",
        f"{CORE}/receiver.py",
        (
            (
                "        self._go_on(now)  # what arrived",
                "        self._send(messages.Ack(batch=message.batch, codes=[Code.ACCEPTED] * len(envelopes)))\n"
                "        self._go_on(now)  # what arrived",
            ),
            ("        self._send(messages.Ack(batch=event.batch, codes=[judgement.code for judgement in event.judgements]))\n", ""),
        ),
    ),
    one("known ids are not looked at", f"{CORE}/admission.py", "if packet_id in self._known:", "if False:"),
    one("erased ids come again", f"{CORE}/admission.py", "if packet_id in self._erased:", "if False:"),
    one("signatures are not verified", f"{CORE}/envelope.py", "verify(verify_key, signing_input", "(verify_key, signing_input"),
    one(
        "any known key signs for any origin",
        f"{CORE}/admission.py",
        "if key is None or key.node_id != packet.origin:",
        "if key is None:",
    ),
    one("the time window is not kept", f"{CORE}/admission.py", "if time_ms > self._latest_ms:", "if False:"),
    one(
        "SANDBOX packets are passed on",
        "peers/trust.py",
        'Relation.SANDBOX: _rule("tier", "send-core-sandbox"',
        'Relation.SANDBOX: _rule(OK, "send-core-sandbox"',
    ),
    one(
        "a SANDBOX peer may relay",
        "peers/trust.py",
        '_ACCEPT_SANDBOX_OWN_ONLY = _rule("tier"',
        "_ACCEPT_SANDBOX_OWN_ONLY = _rule(OK",
    ),
    one(
        "private packets leave",
        "peers/trust.py",
        "            return PRIVATE\n        return SEND[",
        "            pass\n        return SEND[",
    ),
    one(
        "the sender misses a change of policy",
        f"{CORE}/session.py",
        "            self._effects += self.state.sender.policy_changed(table)\n",
        "",
    ),
    one("refusals are never forgotten", f"{CORE}/recent.py", "        self._until.clear()\n", ""),
    one(
        "no cap on rounds of reconciliation",
        f"{CORE}/sender.py",
        "if rounds > reconcile_rounds(self._scope[origin]):",
        "if False:",
    ),
    one(
        "the receiver does not hold the peer to its window",
        f"{CORE}/receiver.py",
        "if self._open_packets + len(message.rows) > self._window_packets or self._open_bytes + size > self._window_bytes:",
        "if False:",
    ),
    Mutation(
        "the sender ignores the window",
        f"{CORE}/sender.py",
        (
            ("min(self._window_packets - len(self._unacked_ids), self._limits.batch_packets)", "self._limits.batch_packets"),
            ("or size > window_bytes or", "or"),
        ),
    ),
    one("`gone` is not answered", f"{CORE}/sender.py", "self._gone.append(packet_id)", "pass"),
    one(
        "batches of nothing but `gone` get no Ack",
        f"{CORE}/receiver.py",
        "            self._send(messages.Ack(batch=message.batch, codes=[]))\n",
        "",
    ),
    one("the feed is read one row too far", f"{CORE}/sender.py", "self._cursor = upto\n", "self._cursor = upto + 1\n"),
    one(
        "an id is asked of every peer at once",
        f"{CORE}/fetches.py",
        "if held is not None and held[0] != link and held[1] > now:",
        "if False:",
    ),
    one("claims outlive their link", f"{CORE}/wants.py", "        self._fetches.release_all(self._link)\n", "        pass\n"),
    one(
        "more Wants than may be unanswered",
        f"{CORE}/wants.py",
        "while self._needed and self.unanswered < self._limits.wants:",
        "while self._needed:",
    ),
    one(
        "codes of an Ack in the wrong order",
        f"{CORE}/receiver.py",
        "codes=[judgement.code for judgement in event.judgements]",
        "codes=[judgement.code for judgement in reversed(event.judgements)]",
    ),
    one(
        "what was declined busy is not looked for again",
        f"{CORE}/receiver.py",
        "declined is looked for again soon.\n                self._retry(now)\n",
        "declined is looked for again soon.\n                pass\n",
    ),
    one(
        "the last id of a range is left out",
        f"{CORE}/reconcile.py",
        "        if upper - lower <= fitting:\n",
        "        upper = max(lower, upper - 1)\n        if upper - lower <= fitting:\n",
    ),
    one(
        "a dead link is never noticed",
        f"{CORE}/session.py",
        "if self._now >= self._last_heard + self._limits.dead_after_s:",
        "if False:",
    ),
    one(
        "a load that a change of policy overtook is used", f"{CORE}/sender.py", "        self._load_is_stale = self._loading\n", ""
    ),
    one(
        "a Scope is sent to who takes nothing",
        f"{CORE}/sender.py",
        "if self._interest is None or not self._may_push:\n            return []  # who",
        "if self._interest is None:\n            return []  # who",
    ),
    one(
        "a new link forgets when early packets are due",
        f"{CORE}/receiver.py",
        "            if moment < latest - RETRY_S:\n",
        "            if False:\n",
    ),
    one("early packets wait though the clock was set", f"{CORE}/receiver.py", "if self._refused.wall_clock(ahead_s):", "if False:"),
)


def plant(mutation, folder):
    """Copy what the simulator needs into `folder`, with the bug in it."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "e2e"))
    path = folder / mutation.path
    text = path.read_text()
    for old, new in mutation.changes:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name}: the text to replace occurs {text.count(old)} times in {mutation.path}")
        text = text.replace(old, new)
    path.write_text(text)


def hunt(mutation):
    """Return the mutation, and the seed and reason that gave it away, or None."""
    with tempfile.TemporaryDirectory() as name:
        plant(mutation, Path(name))
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", PLAY],
                cwd=name,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return mutation, None
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = re.search(r"found (\d+): seed \d+: (.*)", done.stdout)
    return mutation, found and (int(found[1]), found[2])


def main(arguments):
    chosen = [MUTATIONS[int(argument) - 1] for argument in arguments] or MUTATIONS
    missed = 0
    with multiprocessing.Pool(2) as pool:
        for mutation, found in pool.imap(hunt, chosen):
            missed += found is None
            number = MUTATIONS.index(mutation) + 1
            words = f"seed {found[0]}: {found[1]}" if found else f"NOT FOUND in {SEEDS} seeds"
            print(f"{number:2} {mutation.name}\n   {words}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
