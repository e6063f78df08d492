"""`ark-lattice`: nouns and verbs for the commands of manage.py."""

import os
import subprocess
import sys
import time

import pytest
from django.core.management import get_commands

from arklattice.cli import NOUNS, UsageError, command_for, help_text, noun_help
from tests.harness import ROOT

EXECUTABLE = ROOT / "ark-lattice"


def run(*words, cwd=ROOT, executable=EXECUTABLE, env=None):
    return subprocess.run([executable, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=60, check=False)


def test_every_verb_names_a_command_that_exists():
    """Nothing is offered that manage.py does not have."""
    assert {command for verbs in NOUNS.values() for command, _ in verbs.values()} <= set(get_commands())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("federation start --no-serve", "runfederation --no-serve"),
        ("federation status --json", "federationstatus --json"),
        ("federation add-peer ws://127.0.0.1:8104 --name Ada", "addpeer ws://127.0.0.1:8104 --name Ada"),
        ("federation sync-now Ada", "syncnow Ada"),
        ("federation auto-sync --start", "autosync start"),
        ("federation auto-sync --stop", "autosync stop"),
        ("federation auto-sync --status --json", "autosync status --json"),
        ("peers list", "peers"),
        ("peers trust-tier Ada core --reason met", "trusttier Ada core --reason met"),
        ("peers block Ada --undo", "blockpeer Ada --undo"),
        ("peers remove Ada", "removepeer Ada"),
        ("crypto keygen", "keygen"),
        ("crypto list-keys", "listkeys"),
        ("crypto export-key --card", "exportkey --card"),
        ("crypto import-key Ada - --tier core", "importkey Ada - --tier core"),
        ("crypto sign-test", "signtest"),
        ("crypto self-test", "cryptoselftest"),
        ("packets publish --text x", "publish --text x"),
        ("packets list --kind note", "packets --kind note"),
        ("packets show 00", "showpacket 00"),
        ("packets why 00", "why 00"),
        ("packets verify -", "verifyenvelope -"),
    ],
)
def test_noun_and_verb_become_the_command(words, expected):
    """Each pair stands for one command; what follows is passed on as it is."""
    assert command_for(words.split()) == expected.split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nodes"], "no such noun: 'nodes'; choose from federation, peers, crypto, packets"),
        (["peers"], "peers needs a verb; choose from list, trust-tier, block, remove"),
        (["peers", "bloc"], "no such verb of peers: 'bloc'; choose from list, trust-tier, block, remove"),
        (["peers", "--json"], "no such verb of peers: '--json'; choose from list, trust-tier, block, remove"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(words, said):
    """A wrong word ends with status 2, one line on standard error, nothing on standard output."""
    with pytest.raises(UsageError, match=said[:20]):
        command_for(words)
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ark-lattice: {said}\n")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_nouns_and_verbs(words):
    """Help of the whole names every noun and verb."""
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, help_text() + "\n", "")
    for noun, verbs in NOUNS.items():
        assert f"\n{noun}\n" in done.stdout
        assert all(f"\n  {verb} " in done.stdout for verb in verbs)


def test_help_of_a_noun_lists_its_verbs():
    """Help of one noun names its verbs alone."""
    done = run("crypto", "--help")
    assert (done.returncode, done.stdout) == (0, noun_help("crypto") + "\n")


def test_help_loads_no_django():
    """Help answers at once, with a Python that has nothing installed."""
    code = "import sys; sys.path.insert(0, '.'); import arklattice.cli; print(sorted(m for m in sys.modules if 'django' in m))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout == "[]\n"
    began = time.monotonic()
    run("--help")
    assert time.monotonic() - began < 1


def test_runs_from_anywhere_and_by_a_link(tmp_path):
    """A link on the PATH works in any folder, with the project's own Python, and status and output pass through."""
    link = tmp_path / "ark-lattice"
    link.symlink_to(EXECUTABLE)
    env = {"PATH": os.environ["PATH"], "ARK_HOME": str(tmp_path / "home"), "ARK_ENV_FILE": os.devnull}
    done = run("crypto", "self-test", executable=link, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("crypto", "list-keys", "--no-such-option", executable=link, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
