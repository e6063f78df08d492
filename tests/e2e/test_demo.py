"""`make demo`: the story, its end, and nothing left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT, wait_for

DEMO = ROOT / "scripts" / "demo.py"


@pytest.fixture
def env(tmp_path):
    """The demo's environment: its throwaway folders are made in `tmp_path`."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}


def left_in(folder):
    """Return the processes and folders of a demo that still exist."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "environ").read_bytes():
                    processes.append(entry.name)
    return processes, list(folder.glob("arklattice-demo-*"))


def test_once_shows_the_story_and_ends(env, tmp_path):
    """With `--once`: keys exchanged, packets arriving at all, one node away and caught up, exit 0, nothing left."""
    done = subprocess.run([sys.executable, DEMO, "--once"], env=env, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    for sign in [
        r"ada\$ manage.py importkey bob [0-9a-f]{16}… --tier core --url ws://127\.0\.0\.1:\d+",
        r"bob has it: 'Water boils.*\n +signed by ada, handed over by ada, \d\.\d\d s after its publication",
        r"cyd has it: 'Water boils.*\n +signed by ada, handed over by bob, \d\.\d\d s after its publication",
        r"ada has it: 'Lichens.*\n +signed by cyd, handed over by bob",
        r"cyd has it: 'The Danube.*\n +signed by ada, handed over by bob\n",
        r"cyd has it: 'Honey.*\n +signed by bob, handed over by bob\n",
        r"let in by accept-core-core",
    ]:
        assert re.search(sign, done.stdout), f"{sign}\n{done.stdout}"
    assert "Traceback" not in done.stdout
    wait_for(lambda: left_in(tmp_path) == ([], []), 3, "nothing is left")


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_runs_on_until_it_is_ended(env, tmp_path, with_signal):
    """Without `--once` the nodes stay open with their addresses printed; Ctrl-C or SIGTERM ends all of it."""
    with subprocess.Popen([sys.executable, DEMO], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "run on until Ctrl-C" in line:
                break
        addresses = [demo.stdout.readline() for _ in range(3)]
        assert all(re.fullmatch(r"  (ada|bob|cyd)  http://127\.0\.0\.1:\d+/admin/  \w{20}\n", line) for line in addresses), lines
        began = time.monotonic()
        demo.send_signal(with_signal)
        rest = demo.stdout.read()
        assert demo.wait(10) == 0, rest
    assert time.monotonic() - began < 5
    assert "nothing was left behind" in rest
    wait_for(lambda: left_in(tmp_path) == ([], []), 3, "nothing is left")
