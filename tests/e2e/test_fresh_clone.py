"""The newcomer's path, from a fresh clone with an empty environment and home: `make run`, `make demo`, `make test`."""

import re
import signal
import subprocess

import pytest

from tests.harness import ROOT, free_ports, listening, wait_for

pytestmark = pytest.mark.fresh

# Installing the dependencies takes most of it.
MAKE_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the last commit beside an empty home, whose `.env` names free ports and turns discovery off."""
    folder = tmp_path_factory.mktemp("newcomer")
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "arklattice"], check=True, timeout=120)
    (folder / "home").mkdir()
    http_port, sync_port = free_ports(2)
    settings = f"ARK_HTTP_BIND=127.0.0.1:{http_port}\nARK_SYNC_BIND=127.0.0.1:{sync_port}\nARK_DISCOVERY=false\n"
    (folder / "arklattice" / ".env").write_text(settings)
    return folder / "arklattice", http_port, sync_port


def make(clone, *words):
    """Return the process of `make <words>` under `env -i` with an empty HOME and the system's own Python."""
    folder = clone[0]
    command = ["env", "-i", f"HOME={folder.parent / 'home'}", "PYTHON=/usr/bin/python3", "make", *words]
    return subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_make_run_ends_with_a_running_node(clone):
    """`make run` installs, prepares, prints password, addresses and fingerprint, and runs until SIGTERM; again it only runs."""
    folder, http_port, sync_port = clone
    with make(clone, "run") as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if f":{sync_port}/sync" in line:
                break
        text = "".join(said)
        wait_for(lambda: listening(http_port) and listening(sync_port), 10, text)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        process.wait(10)
    assert re.search(r"one-time password +\w{20}\n", text), text
    assert re.search(r"fingerprint +([0-9a-f]{4} ){15}[0-9a-f]{4}\n", text), text
    assert f"http://127.0.0.1:{http_port}/admin/" in text
    assert "Traceback" not in text + rest
    assert not listening(sync_port)
    assert (folder / "var" / "keys" / "node.key").exists()

    with make(clone, "run") as process:
        again = []
        for line in process.stdout:
            again.append(line)
            if f":{sync_port}/sync" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.wait(10)
    assert "password" not in "".join(again)
    assert "Installing" not in "".join(again)


def test_make_demo_shows_its_story(clone):
    """`make demo ARGS=--once` exits 0 after its story."""
    with make(clone, "demo", "ARGS=--once") as process:
        text, _ = process.communicate(timeout=MAKE_TIMEOUT_S)
    assert process.returncode == 0, text
    assert "Cyd comes back and catches up by itself" in text


def test_make_test_checks_everything(clone):
    """`make test` installs what it needs, lints, and ends with pytest's summary. (This very suite is the rest of it.)"""
    with make(clone, "test", "ARGS=tests/keys tests/arklattice -q") as process:
        text, _ = process.communicate(timeout=MAKE_TIMEOUT_S)
    assert process.returncode == 0, text
    assert re.search(r"\d+ passed", text.splitlines()[-1]), text
    assert "Contracts: 2 kept, 0 broken." in text
