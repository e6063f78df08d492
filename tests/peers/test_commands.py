"""The commands about peers: what they say, the JSON they print, their exit statuses."""

import io
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from federation.management.commands import trusttier
from federation.management.peer_command import operator
from federation.models import LinkClaim
from keys.encoding import ContactCard, fingerprint_of, grouped
from keys.services import generate_keypair
from peers.models import Peer, TierChange
from tests.peers.conftest import CountingHolder, contact, key, node_id

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("keys_dir")]

ROW = ["node_id", "name", "declared_name", "tier", "blocked", "fingerprint", "key_status", "state", "last_seen", "addresses"]


def run(*words):
    """Run a command and return what it printed."""
    out = io.StringIO()
    call_command(*words, stdout=out)
    return out.getvalue()


def ask(*words):
    """Run a command with `--json` and return the document."""
    return json.loads(run(*words, "--json"))


def refusal(*words):
    """Run a command that must fail; return its exit status and message."""
    with pytest.raises(CommandError) as failed:
        run(*words)
    assert "\n" not in str(failed.value)
    return failed.value.returncode, str(failed.value)


@pytest.fixture
def bob():
    run("importkey", "bob", key(1).hex())
    return Peer.objects.get()


def test_import_shows_the_fingerprint_to_compare():
    """One line: name, node_id, tier, and the fingerprint in groups of four."""
    said = run("importkey", "bob", key(1).hex(), "--tier", "CORE", "--url", "ws://192.0.2.7")
    assert said.count("\n") == 1
    assert grouped(fingerprint_of(key(1))) in said
    assert f"bob ({node_id(1).hex()}): core" in said


def test_import_prints_the_peer_row():
    """`--json` prints the peer row and nothing else."""
    row = ask("importkey", "bob", key(1).hex(), "--tier", "sandbox", "--url", "ws://192.0.2.7")
    assert list(row) == ROW
    assert (row["node_id"], row["name"], row["tier"], row["key_status"]) == (node_id(1).hex(), "bob", "sandbox", "trusted")
    assert (row["state"], row["last_seen"], row["addresses"]) == ("never", None, ["ws://192.0.2.7:8104/sync"])


@pytest.mark.parametrize("text", [key(1).hex() + "\n", f"  {ContactCard(node_id(1), 'Bob', key(1)).encode()}  \n"])
def test_key_from_standard_input(monkeypatch, text):
    """`-` reads hex digits or a card, with the blanks that copying leaves."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert ask("importkey", "bob", "-")["node_id"] == node_id(1).hex()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bob", "ab" * 31], "64 hex digits"),
        (["bob", key(1).hex().upper()], "lower-case"),
        (["bob", key(1).hex() + "\n0"], "64 hex digits"),
        (["bob", "00" * 32], "key"),
        (["bob", "ark1nonsense"], "card"),
        (["bob", ""], "64 hex digits"),
        (["bob", key(1).hex(), "--tier", "friend"], "no tier: choose core, sandbox, external, unknown"),
        (["bob", key(1).hex(), "--tier", ""], "no tier"),
        (["bob", key(1).hex(), "--url", "http://192.0.2.7"], "ws://"),
        (["b" * 65, key(1).hex()], "1 to 64 characters"),
    ],
)
def test_wrong_usage_of_import(words, message):
    """A key, tier, URL or name that cannot be meant: exit 2, one line, nothing written."""
    status, said = refusal("importkey", *words)
    assert status == 2
    assert message in said
    assert not Peer.objects.exists()


@pytest.mark.parametrize("sent", ["x" * 5_000, "\udcff"])
def test_junk_on_standard_input(monkeypatch, sent):
    """More than a card, or what is no key, is refused after a bounded read."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(sent))
    assert refusal("importkey", "bob", "-")[0] == 2


def test_bytes_on_standard_input_that_are_no_text(monkeypatch):
    """Binary input is refused as such."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), encoding="utf-8"))
    status, said = refusal("importkey", "bob", "-")
    assert (status, "not text" in said) == (2, True)


def test_conflicts_are_refused(bob):
    """A name or key bound otherwise, and our own key: exit 5."""
    own = generate_keypair().identity.pair.public
    for words in (["bob", key(2).hex()], ["robert", key(1).hex()], ["me", own.hex()]):
        assert refusal("importkey", *words)[0] == 5
    assert Peer.objects.get() == bob


def test_list_of_peers(bob):
    """An array of peer rows; a link that is up says `connected`, one not up yet or left by a dead process does not."""
    contact(2, name="calls itself Eve")
    claim = LinkClaim.objects.create(peer=bob.node_id, process="a", pid=1, link="b", dialler=bob.node_id)
    assert "connected" not in {row["state"] for row in ask("peers")}
    claim.state = {"direction": "in"}
    claim.save()
    stranger = node_id(2).hex()
    long_ago = timezone.now() - timedelta(seconds=31)
    LinkClaim.objects.create(peer=stranger, process="a", pid=1, link="c", dialler=stranger, refreshed=long_ago, state={"x": 1})
    rows = ask("peers")
    assert [list(row) for row in rows] == [ROW, ROW]
    assert [(row["name"], row["declared_name"], row["tier"]) for row in rows] == [
        (None, "calls itself Eve", "unknown"),
        ("bob", "", "unknown"),
    ]
    assert {row["node_id"]: row["state"] for row in rows} == {bob.node_id: "connected", stranger: "stale"}


def test_list_for_people(bob):
    """What a peer calls itself is marked as such and cannot rewrite the terminal; an empty list says what to do."""
    contact(2, name="Eve\x1b[2J")
    said = run("peers")
    assert 'calls itself "Eve�[2J"' in said
    assert "\x1b" not in said
    assert grouped(fingerprint_of(key(1))) in said
    Peer.objects.all().delete()
    assert "importkey" in run("peers")
    assert ask("peers") == []


def test_tier_is_changed_on_record(bob):
    """`trusttier` prints the peer row and records the reason and the account."""
    row = ask("trusttier", "bob", "core", "--reason", "met in person")
    assert (row["tier"], list(row)) == ("core", ROW)
    change = TierChange.objects.get()
    assert (change.tier_from, change.tier_to, change.reason, change.door) == ("unknown", "core", "met in person", "command")
    assert change.actor == operator()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["bob", "friend"], 2, "no tier"),
        (["bob", "core", "--packets", "burn"], 2, "keep, hide, purge"),
        (["bob", "core", "--packets", "purge"], 2, "choice for a demotion"),
        (["eve", "core"], 4, "no peer is named 'eve'"),
        ([node_id(2).hex(), "core"], 5, "importkey"),
        ([node_id(2).hex(), "sandbox"], 5, "importkey"),
    ],
)
def test_refused_changes_of_tier(bob, words, status, message):
    """Bad tier or choice: 2; nobody: 4; no trusted key: 5 with the reason. Nothing changes."""
    contact(2)
    got, said = refusal("trusttier", *words)
    assert got == status
    assert message in said
    assert not TierChange.objects.exists()


def test_ambiguous_prefix_is_wrong_usage():
    """A prefix that fits several peers: exit 2, for every command that takes PEER."""
    for number in range(2):
        Peer.objects.create(node_id=f"ab{number}".ljust(32, "0"))
    for words in (["trusttier", "ab", "external"], ["blockpeer", "ab"], ["removepeer", "ab"]):
        status, said = refusal(*words)
        assert (status, "give more digits" in said) == (2, True)


class TalkingHolder(CountingHolder):
    """Says how many packets there are, before it is asked to do something with them."""

    def count_packets_from(self, node_id, *, own):
        class Count:
            packets = self.packets
            hidden = 1
            bytes = 2048

        return Count


@pytest.mark.parametrize(("answer", "choice"), [("", "keep"), ("hide", "hide"), ("PURGE ", "purge")])
def test_demotion_asks_at_a_terminal(bob, monkeypatch, settings, answer, choice):
    """The counts are shown, then keep, hide or purge is asked; plain return keeps."""
    run("trusttier", "bob", "core")
    holder = TalkingHolder()
    monkeypatch.setattr(trusttier, "packet_holder", lambda: holder)
    monkeypatch.setattr("peers.services.packet_holder", lambda: holder)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    said = run("trusttier", "bob", "external")
    assert "3 packets came from bob (2,048 bytes, 1 hidden)" in said
    assert TierChange.objects.first().packets == choice
    assert [entry[0] for entry in holder.asked] == ([] if choice == "keep" else [choice])


def test_wrong_answer_changes_nothing(bob, monkeypatch):
    """An answer that is no choice: exit 2, the tier stays."""
    run("trusttier", "bob", "core")
    monkeypatch.setattr(trusttier, "packet_holder", TalkingHolder)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda prompt: "perhaps")
    assert refusal("trusttier", "bob", "unknown")[0] == 2
    assert Peer.objects.get().tier == "core"


def test_demotion_elsewhere_keeps_and_says_so(bob, monkeypatch):
    """Without a terminal nobody can be asked: the packets stay, and a line says how to decide otherwise."""
    run("trusttier", "bob", "core")
    monkeypatch.setattr(trusttier, "packet_holder", TalkingHolder)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "--packets hide or --packets purge" in run("trusttier", "bob", "sandbox")
    assert TierChange.objects.first().packets == "keep"


def test_block_and_undo(bob):
    """The flag goes on and off; the tier stays; a promotion of a blocked peer says that it stays blocked."""
    run("trusttier", "bob", "core")
    row = ask("blockpeer", "bob", "--reason", "spam")
    assert (row["blocked"], row["tier"]) == (True, "core")
    assert "stays blocked" in run("trusttier", "bob", "sandbox")
    assert ask("blockpeer", "bob", "--undo")["blocked"] is False
    assert refusal("blockpeer", "eve")[0] == 4


def test_remove(bob):
    """The row as it was is printed; the peer is gone; a second time there is no such peer."""
    assert ask("removepeer", "bob")["node_id"] == bob.node_id
    assert not Peer.objects.exists()
    assert refusal("removepeer", "bob")[0] == 4
    assert "removed" in run("importkey", "bob", key(1).hex()) + run("removepeer", "bob")


def test_hostile_arguments_are_one_clear_line(bob):
    """NUL, escapes and lengths in arguments give a refusal, never a traceback, and never raw control characters."""
    for text in ("\0", "\x1b[2J", "x" * 10_000, "ﷺ" * 500, "'; DROP TABLE peers_peer; --"):
        for words in (["blockpeer", text], ["trusttier", text, "core"], ["trusttier", "bob", text], ["importkey", "n", text]):
            status, said = refusal(*words)
            assert status in (2, 4)
            assert len(said) < 300
            assert said.isprintable()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["peers", "--json"], 0),
        (["trusttier", "nobody", "core"], 4),
        (["trusttier", "nobody", "friend"], 2),
        (["trusttier", "nobody"], 2),
        (["importkey", "bob", "nonsense"], 2),
        (["removepeer", "nobody"], 4),
    ],
)
def test_exit_statuses_of_the_real_process(tmp_path, words, status):
    """As a person types it: the status, one line on standard error, nothing but JSON on standard output, no traceback."""
    manage = Path(__file__).parents[2] / "manage.py"
    env = {"PATH": os.environ["PATH"], "ARK_HOME": str(tmp_path), "ARK_ENV_FILE": os.devnull}
    subprocess.run([sys.executable, manage, "migrate", "--verbosity", "0"], env=env, check=True, timeout=120)
    done = subprocess.run([sys.executable, manage, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ("[]\n" if status == 0 else "")
    assert bool(done.stderr) == (status != 0)


def test_unmigrated_database_is_one_clear_line(tmp_path):
    """Before `migrate` each command says what to do, exit 1."""
    manage = Path(__file__).parents[2] / "manage.py"
    env = {"PATH": os.environ["PATH"], "ARK_HOME": str(tmp_path), "ARK_ENV_FILE": os.devnull}
    done = subprocess.run([sys.executable, manage, "peers"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "migrate" in done.stderr
    assert "Traceback" not in done.stderr
