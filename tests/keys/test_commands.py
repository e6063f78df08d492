"""The key commands as people type them: in this process where a database is at hand, and as real processes where none is."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from keys import selftest
from keys.encoding import ContactCard, grouped
from keys.management.commands import cryptoselftest
from keys.selftest import Check
from keys.services import load_identity
from tests.keys.identities import pairs, shows_secret, snapshot, write

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
FIELDS = ["name", "node_id", "public_key", "fingerprint", "status"]


@pytest.fixture
def folder(tmp_path, settings):
    settings.ARK_KEYS_DIR = tmp_path / "keys"
    settings.ARK_NODE_NAME = "ann"
    settings.ARK_ADVERTISE = ["ws://192.0.2.7:8104/sync"]
    return settings.ARK_KEYS_DIR


def run(*words, as_json=False):
    """Return what a command wrote to standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    call_command(*words, *(["--json"] if as_json else []), stdout=out, stderr=err)
    return (json.loads(out.getvalue()) if as_json else out.getvalue()), err.getvalue()


def fails(status, *words):
    """Return the one line with which a command ends at this exit status."""
    with pytest.raises(CommandError) as caught:
        run(*words)
    assert caught.value.returncode == status
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.django_db
def test_keygen_prints_who_this_node_is_now(folder):
    """The public identity, where the next key lies, and that it should go offline; never a secret."""
    out, err = run("keygen")
    identity = load_identity()
    for words in (
        identity.node_id.hex(),
        identity.pair.public.hex(),
        grouped(identity.pair.fingerprint),
        str(folder / "node.next.key"),
        "offline",
    ):
        assert words in out
    assert err == ""
    assert not shows_secret(out, identity.pair.secret, bytes.fromhex((folder / "node.next.key").read_text()))


@pytest.mark.django_db
def test_keygen_in_json(folder):
    """One document with exactly the fields of the architecture page."""
    document, _ = run("keygen", "--name", "mine", as_json=True)
    identity = load_identity()
    assert list(document) == FIELDS
    assert document == {
        "name": "mine",
        "node_id": identity.node_id.hex(),
        "public_key": identity.pair.public.hex(),
        "fingerprint": identity.pair.fingerprint.hex(),
        "status": "active",
    }
    assert run("listkeys", as_json=True)[0] == [document]


@pytest.mark.django_db
def test_keygen_beside_a_key_names_rotatekey(folder):
    """Exit 1, one line, nothing touched; --force makes a new identity and says so where --json does not hide it."""
    run("keygen")
    before = snapshot(folder)
    assert "rotatekey" in fails(1, "keygen")
    assert "rotatekey" in fails(1, "keygen", "--name", "other")
    assert snapshot(folder) == before
    document, err = run("keygen", "--force", as_json=True)
    assert "NEW identity" in err and "node-replaced-" in err
    rows, _ = run("listkeys", as_json=True)
    assert [row["status"] for row in rows] == ["active", "replaced"]
    assert rows[0] == document
    text, _ = run("listkeys")
    assert all(row["public_key"] in text and grouped(bytes.fromhex(row["fingerprint"])) in text for row in rows)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["../x", "A", "a/b", "", "x" * 65, "node.next"])
def test_a_wrong_name_is_wrong_usage(folder, name):
    """Exit 2 and nothing on disk."""
    assert "is no key name" in fails(2, "keygen", "--name", name)
    assert not folder.exists()


@pytest.mark.django_db
def test_without_a_key_each_command_says_what_to_do(folder):
    """No key: exit 1 naming keygen; an empty list for who lists."""
    for words in (["exportkey"], ["exportkey", "--card"], ["signtest"]):
        assert "run manage.py keygen" in fails(1, *words)
    assert run("listkeys", as_json=True)[0] == []
    assert "run manage.py keygen" in run("listkeys")[0]


@pytest.mark.django_db
def test_a_damaged_key_is_one_line_everywhere(folder):
    """Exit 1 with how to mend it, also for who only lists."""
    write(folder)
    (folder / "node.key").chmod(0o644)
    for words in (["exportkey"], ["signtest"], ["listkeys"], ["keygen"]):
        line = fails(1, *words)
        assert ("chmod 600" in line) or words == ["keygen"]
        assert not shows_secret(line, pairs(0)[0].secret)


@pytest.mark.django_db
def test_listkeys_gives_a_lost_database_its_rows_back(folder):
    """The folder alone brings the key back into the list."""
    write(folder)
    rows, _ = run("listkeys", as_json=True)
    assert [list(row) for row in rows] == [FIELDS]
    assert rows[0]["public_key"] == pairs(0)[0].public.hex() and rows[0]["status"] == "active"


def test_exportkey_prints_the_hex_alone(folder):
    """64 hex digits, a line break, nothing else; in JSON the public identity. No database is touched."""
    write(folder)
    out, err = run("exportkey")
    assert (out, err) == (pairs(0)[0].public.hex() + "\n", "")
    document, _ = run("exportkey", as_json=True)
    assert document["public_key"] == pairs(0)[0].public.hex()
    assert list(document) == ["name", "node_id", "public_key", "fingerprint"]


def test_exportkey_card_is_a_card_and_its_qr_code(folder):
    """The first line is the card that importkey takes; below it the same as a QR code that fits a terminal."""
    write(folder)
    out, _ = run("exportkey", "--card")
    text, _, code = out.partition("\n\n")
    card = ContactCard.decode(text)
    assert (card.name, card.public_key, card.addresses) == ("ann", pairs(0)[0].public, ("ws://192.0.2.7:8104/sync",))
    assert card.node_id == load_identity().node_id
    lines = code.rstrip("\n").split("\n")
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert set(code) <= set("█▀▄ \n")
    document, _ = run("exportkey", "--card", as_json=True)
    assert document["card"] == text


@pytest.mark.parametrize("name", ["a\x1b[31mb", "", "\u202e", "x" * 300, "ann’s 机"])
def test_a_strange_node_name_still_makes_a_card(folder, settings, name):
    """A name that no card may carry is cleaned, not refused."""
    settings.ARK_NODE_NAME = name
    write(folder)
    out, _ = run("exportkey", "--card")
    assert ContactCard.decode(out.partition("\n")[0]).name.isprintable()
    assert "\x1b" not in out


def test_too_long_addresses_end_in_one_line(folder, settings):
    """Addresses that do not fit a card: exit 1, saying to leave some out."""
    settings.ARK_ADVERTISE = [f"ws://{letter * 240}:8104/sync" for letter in "abcdefgh"]
    write(folder)
    assert "leave out addresses" in fails(1, "exportkey", "--card")


def test_signtest_signs_and_verifies(folder):
    """One line for people, the identity for programs; no database is touched."""
    write(folder)
    assert pairs(0)[0].fingerprint.hex() == run("signtest", as_json=True)[0]["fingerprint"]
    assert run("signtest", as_json=True)[0]["ok"] is True
    out, _ = run("signtest")
    assert out.startswith("signed and verified with the key 'node'") and out.count("\n") == 1


def test_cryptoselftest_passes_here():
    """Known answers and must-fail checks all hold, without key and database."""
    out, _ = run("cryptoselftest")
    assert out == f"{len(selftest.run_checks())} checks passed\n"
    document, _ = run("cryptoselftest", as_json=True)
    assert document["ok"] is True and len(document["checks"]) >= 26


def test_cryptoselftest_fails_when_a_check_does_not_hold(monkeypatch):
    """A check that does not hold is named, exit 1."""
    monkeypatch.setattr(cryptoselftest, "run_checks", lambda: [Check("keys of low order", False), Check("other", True)])
    assert fails(1, "cryptoselftest") == "the cryptography on this machine cannot be trusted: keys of low order"


class Node:
    """A folder of its own, and manage.py run in it as a process."""

    def __init__(self, home):
        self.home = home

    def run(self, *words):
        environment = {"PATH": os.environ["PATH"], "ARK_HOME": str(self.home), "ARK_ENV_FILE": os.devnull, "HOME": str(self.home)}
        return subprocess.run(
            [sys.executable, str(MANAGE), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
        )


def test_without_a_database_files_still_work(tmp_path):
    """Unmigrated: keygen and listkeys exit 1 in one line and write no key; with files, export, signtest and selftest work."""
    node = Node(tmp_path)
    for words in (["keygen"], ["keygen", "--json"], ["listkeys", "--json"]):
        done = node.run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert "the database is not migrated: run manage.py migrate" in done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
        assert not (tmp_path / "keys").exists()
    write(tmp_path / "keys")
    assert node.run("exportkey").stdout == pairs(0)[0].public.hex() + "\n"
    assert node.run("signtest").returncode == 0
    assert json.loads(node.run("cryptoselftest", "--json").stdout)["ok"] is True


def typed(*words, folder, encoding):
    """Run a command as a real process, in a terminal of this encoding."""
    env = {"PATH": os.environ["PATH"], "ARK_HOME": str(folder), "ARK_ENV_FILE": os.devnull, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, str(MANAGE), *words], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["exportkey", "--bogus"], "unrecognized arguments: --bogus (see exportkey --help)"),
        (["keygen", "--name"], "argument --name: expected one argument (see keygen --help)"),
        (["keygen", "two\nlines"], "unrecognized arguments: two lines (see keygen --help)"),
    ],
)
def test_wrong_usage_is_one_line_with_its_reason(folder, words, reason):
    """Exit 2 and the reason, in the process and from the command line, without a list of every option."""
    assert fails(2, *words) == reason
    assert typed(*words, folder=folder.parent / "home", encoding="utf-8") == (2, "", reason + "\n")


def test_terminal_without_the_characters_gets_escapes(tmp_path):
    """Output for people shows escapes where the encoding ends; JSON stays JSON that means the same."""
    assert typed("keygen", "--name", "node", folder=tmp_path, encoding="utf-8")[0] == 1  # there is no database yet
    assert typed("migrate", "-v0", folder=tmp_path, encoding="utf-8")[0] == 0
    assert typed("keygen", folder=tmp_path, encoding="ascii")[0] == 0
    assert typed("publish", "--text", "x", "--title", "Tidé ✓ 😀", folder=tmp_path, encoding="utf-8")[0] == 0
    status, out, err = typed("packets", folder=tmp_path, encoding="ascii")
    assert (status, err) == (0, "")
    assert "Tid\\xe9 \\u2713 \\U0001f600" in out
    status, out, err = typed("packets", "--json", folder=tmp_path, encoding="latin-1")
    assert (status, err) == (0, "")
    assert json.loads(out)[0]["title"] == "Tidé ✓ 😀"
