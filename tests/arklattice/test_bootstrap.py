"""The first start: database, key and administrator, each made once and only when missing."""

import json

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from keys.models import SigningKey
from keys.services import load_identity

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bootstrap(keys_dir, capsys):
    """Run the command and return what it prints."""

    def run(*options):
        capsys.readouterr()
        call_command("bootstrap", *options)
        return capsys.readouterr().out

    return run


def test_first_start_makes_key_and_administrator(bootstrap, keys_dir):
    """A new node gets a key and an administrator, whose password stands in the output exactly once."""
    document = json.loads(bootstrap("--json"))
    assert (document["key_made"], document["admin"]) == (True, "admin")
    assert document["node_id"] == load_identity().node_id.hex()
    assert get_user_model().objects.get(username="admin").check_password(document["password"])
    assert (keys_dir / "node.key").stat().st_mode & 0o777 == 0o600


def test_second_start_changes_and_says_nothing(bootstrap):
    """Where everything is there, nothing is made, changed or printed."""
    first = bootstrap()
    assert "one-time password" in first
    before = load_identity()
    assert bootstrap() == ""
    assert json.loads(bootstrap("--json"))["password"] is None
    assert load_identity() == before


def test_lost_database_keeps_the_identity(bootstrap):
    """With the keys folder alone the node is the same node."""
    bootstrap()
    before = load_identity()
    SigningKey.objects.all().delete()
    assert json.loads(bootstrap("--json"))["key_made"] is False
    assert load_identity() == before
    assert SigningKey.objects.get().node_id == before.node_id.hex()


def test_lost_key_is_never_replaced_in_silence(bootstrap, keys_dir):
    """A key that was here and is gone stops the start and names the folder; no new identity appears."""
    bootstrap()
    for path in keys_dir.iterdir():
        path.unlink()
    with pytest.raises(CommandError, match="put it back from a backup") as caught:
        bootstrap()
    assert caught.value.returncode == 1
    assert str(keys_dir) in str(caught.value)
    assert not list(keys_dir.glob("*.key"))


def test_damaged_key_stops_the_start(bootstrap, keys_dir):
    """A damaged key is named, not replaced."""
    bootstrap()
    key = keys_dir / "node.key"
    key.write_text("0" * 128)
    with pytest.raises(CommandError) as caught:
        bootstrap()
    assert caught.value.returncode == 1
    assert key.read_text() == "0" * 128


def test_administrator_may_be_called_otherwise(bootstrap):
    """`--admin` names the account."""
    assert "'ada'" in bootstrap("--admin", "ada")
    assert get_user_model().objects.get().username == "ada"
