import os
import signal

import pytest
from django.contrib.admin.sites import AdminSite, all_sites
from django.core.management import call_command
from django.db import IntegrityError, OperationalError, transaction

from keys import services
from keys.admin import PublicKeyAdmin, SigningKeyAdmin
from keys.ed25519 import InvalidSignatureError, keypair_from_seed
from keys.encoding import fingerprint_of, node_id_of
from keys.files import IdentityExistsError, KeyFileError, KeyNameError, NoIdentityError, read_identity
from keys.models import PublicKey, SigningKey
from keys.selectors import own_keys
from keys.services import (
    Identity,
    export_public_key,
    generate_keypair,
    load_identity,
    load_keypair,
    prove_signing,
    register_identity,
    register_public_key,
)
from keys.succession import Reason, SuccessionEntry, first_statement, next_statement, verify_chain
from tests.keys.identities import T0, pairs, shows_secret, snapshot, write


@pytest.fixture
def folder(tmp_path, settings):
    """The (missing) keys folder of this test's node."""
    settings.ARK_KEYS_DIR = tmp_path / "home" / "keys"
    return settings.ARK_KEYS_DIR


def rotated(number, reasons=(Reason.ROUTINE,)):
    """Return the identity of a node that had keys 0 to `number` from seeds of that byte."""
    keys = [keypair_from_seed(bytes([index + 1]) * 32) for index in range(number + 2)]
    entries: list[SuccessionEntry] = [first_statement(keys[0], keys[1].fingerprint, T0)]
    for index in range(1, number + 1):
        chain = verify_chain([entry.as_json() for entry in entries])
        reason = reasons[(index - 1) % len(reasons)]
        previous = keys[index - 1] if reason is Reason.ROUTINE else None
        entries.append(next_statement(chain, keys[index], keys[index + 1].fingerprint, T0 + index, reason, previous=previous))
    return Identity(
        name="node",
        node_id=node_id_of(keys[0].public),
        pair=keys[number],
        succession=tuple(entry.as_json() for entry in entries),
        next_key_hash=keys[number + 1].fingerprint,
    )


@pytest.mark.django_db
def test_a_generated_key_is_on_disk_and_in_rows(folder):
    """generate_keypair makes the key and the next one, commits to it, and registers public data only."""
    made = generate_keypair()
    assert made.identity == load_identity()
    assert made.next_key == folder / "node.next.key"
    assert made.set_aside == ()
    assert made.identity.node_id == node_id_of(made.identity.pair.public)
    next_public = bytes.fromhex(made.next_key.read_text()[64:])
    assert made.identity.next_key_hash == fingerprint_of(next_public)
    assert load_keypair() == made.identity.pair
    assert export_public_key() == made.identity.pair.public.hex()
    row = SigningKey.objects.get()
    assert (row.name, row.status, row.node_id) == ("node", "active", made.identity.node_id.hex())
    assert row.public_key.fingerprint == made.identity.pair.fingerprint.hex()
    assert row.next_key_hash == made.identity.next_key_hash.hex()
    rows = str(list(SigningKey.objects.values()) + list(PublicKey.objects.values()))
    assert not shows_secret(rows, made.identity.pair.secret, bytes.fromhex(made.next_key.read_text()))


@pytest.mark.django_db
def test_two_keys_never_share_randomness(folder, tmp_path, settings):
    """Each key of each node is its own."""
    seen = set()
    for number in range(5):
        settings.ARK_KEYS_DIR = tmp_path / str(number)
        made = generate_keypair()
        seen |= {made.identity.pair.secret.hex(), made.next_key.read_text()}
    assert len(seen) == 10


@pytest.mark.django_db
def test_an_unmigrated_database_leaves_the_disk_alone(folder):
    """Without tables nothing is written, not even the folder."""
    with transaction.atomic():
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE keys_signingkey RENAME TO elsewhere")
        with pytest.raises(Exception, match=r"no such table|does not exist"):
            generate_keypair()
        transaction.set_rollback(True)
    assert not folder.parent.exists()


def test_a_missing_database_leaves_the_disk_alone(folder, tmp_path, monkeypatch):
    """A SQLite file that is not there is not made by looking for it."""
    from django.db import connection

    if connection.vendor != "sqlite":
        pytest.skip("a file only with SQLite")
    monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "no.sqlite3"))
    with pytest.raises(OperationalError, match="no such table"):
        generate_keypair()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.django_db
def test_a_second_key_needs_force(folder):
    """Beside an active key generation refuses; by force the old row is replaced and the new one active."""
    first = generate_keypair().identity
    before = snapshot(folder)
    with pytest.raises(IdentityExistsError, match="rotatekey"):
        generate_keypair("other")
    assert snapshot(folder) == before
    second = generate_keypair("other", force=True)
    assert len(second.set_aside) == 4
    assert load_identity() == second.identity
    assert [(row["name"], row["status"]) for row in own_keys()] == [("other", "active"), ("node", "replaced")]
    assert own_keys()[1]["node_id"] == first.node_id.hex()
    assert own_keys()[0] == {
        "name": "other",
        "node_id": second.identity.node_id.hex(),
        "public_key": second.identity.pair.public.hex(),
        "fingerprint": second.identity.pair.fingerprint.hex(),
        "status": "active",
    }


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["../node", "Node", ""])
def test_a_wrong_name_is_refused_before_anything(folder, name):
    """Neither generation nor loading looks at the disk for a name that is none."""
    for attempt in (generate_keypair, load_keypair, export_public_key):
        with pytest.raises(KeyNameError):
            attempt(name)
    assert not folder.parent.exists()


def test_loading_needs_no_database(folder):
    """Identity, key pair and public key come from the folder alone; this test may not touch a database."""
    with pytest.raises(NoIdentityError):
        load_identity()
    with pytest.raises(NoIdentityError):
        load_keypair()
    write(folder)
    assert load_identity().pair == load_keypair() == pairs(0)[0]
    prove_signing(load_identity().pair)
    assert load_identity().succession[0]["statement"]["sequence"] == 0


@pytest.mark.django_db
def test_a_lost_database_gets_its_rows_back(folder):
    """register_identity draws the rows anew from the files, and is one read from then on."""
    write(folder)
    row = register_identity(load_identity())
    assert row.status == "active" and row.created_at.timestamp() * 1000 == T0
    SigningKey.objects.all().delete()
    PublicKey.objects.all().delete()
    again = register_identity(load_identity())
    assert again.public_key.public_key == pairs(0)[0].public.hex()
    assert SigningKey.objects.count() == 1


@pytest.mark.django_db
def test_registering_twice_costs_one_read(folder, django_assert_num_queries):
    """Commands and the node may register at every start."""
    write(folder)
    identity = load_identity()
    register_identity(identity)
    with django_assert_num_queries(1):
        register_identity(identity)


@pytest.mark.django_db
def test_older_keys_of_the_chain_are_registered_as_retired():
    """A chain of three gives three rows, the last one active; registering the next step moves it on."""
    register_identity(rotated(1))
    row = register_identity(rotated(2))
    assert row.status == "active" and row.public_key.public_key == rotated(2).pair.public.hex()
    assert sorted(SigningKey.objects.values_list("status", flat=True)) == ["active", "retired", "retired"]
    assert {row["node_id"] for row in own_keys()} == {rotated(0).node_id.hex()}


@pytest.mark.django_db
def test_an_identity_restored_from_a_backup_is_active_again(folder):
    """Whoever puts the old files back has the old identity back, and the other is replaced."""
    write(folder)
    old = load_identity()
    register_identity(old)
    generate_keypair(force=True)
    register_identity(old)
    assert [row["status"] for row in own_keys()] == ["active", "replaced"]
    assert own_keys()[0]["public_key"] == old.pair.public.hex()


@pytest.mark.django_db
def test_one_key_is_active():
    """The database itself holds one active key at most."""
    for number in (0, 1):
        key = register_public_key(pairs(number)[0].public)
        if number == 0:
            SigningKey.objects.create(name="a", node_id="0" * 32, public_key=key)
        else:
            with pytest.raises(IntegrityError), transaction.atomic():
                SigningKey.objects.create(name="b", node_id="0" * 32, public_key=key)


@pytest.mark.django_db
def test_a_public_key_is_one_row():
    """Registering a key again returns the row that is there."""
    key = pairs(0)[0].public
    assert register_public_key(key) == register_public_key(key)
    assert PublicKey.objects.get().fingerprint == fingerprint_of(key).hex()


@pytest.mark.django_db
def test_a_statement_far_in_the_future_is_registered():
    """A time beyond what a date holds does not stop the node from knowing itself."""
    pair, next_pair = pairs(3)
    entry = first_statement(pair, next_pair.fingerprint, 2**53 - 1)
    row = register_identity(Identity("node", node_id_of(pair.public), pair, (entry.as_json(),), next_pair.fingerprint))
    assert row.status == "active"


@pytest.mark.django_db
def test_a_death_between_files_and_rows_is_mended(folder):
    """Files without rows are a whole identity: the next registration draws the rows, and keygen does not make another."""
    child = os.fork()
    if child == 0:
        services.register_identity = lambda identity: os.kill(os.getpid(), signal.SIGKILL)
        try:
            pair, next_pair = pairs(0)
            entry = first_statement(pair, next_pair.fingerprint, T0)
            services.write_identity(folder, "node", pair, next_pair, entry, stamp="20260101T000000Z", replace=False)
            services.register_identity(load_identity())
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert SigningKey.objects.count() == 0
    with pytest.raises(IdentityExistsError):
        generate_keypair()
    assert register_identity(load_identity()).public_key.public_key == read_identity(folder).pair.public.hex()


@pytest.mark.django_db
def test_a_refused_row_leaves_a_whole_identity(folder, monkeypatch):
    """When the database fails after the files were written, the identity is there and its rows come later."""

    def refuse(identity):
        raise OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(services, "register_identity", refuse)
        with pytest.raises(OperationalError):
            generate_keypair()
    assert register_identity(load_identity()).status == "active"


def test_a_damaged_key_never_becomes_a_new_one(folder):
    """Loading a damaged identity raises, and the files stay byte for byte."""
    write(folder)
    (folder / "node.key").write_text(pairs(0)[0].secret.hex()[:-1])
    before = snapshot(folder)
    for attempt in (load_identity, load_keypair, export_public_key):
        with pytest.raises(KeyFileError, match="has 127 bytes"):
            attempt()
    assert snapshot(folder) == before


def test_signing_is_proven_by_verifying(monkeypatch):
    """A signature that does not verify is reported, not returned."""
    prove_signing(pairs(0)[0])
    monkeypatch.setattr(services, "sign", lambda pair, message: bytes(64))
    with pytest.raises(InvalidSignatureError):
        prove_signing(pairs(0)[0])


def test_identity_words_hold_no_secret(folder):
    """The repr of an identity, as a traceback or log might show it, has no secret byte."""
    write(folder)
    assert not shows_secret(repr(load_identity()), pairs(0)[0].secret)


@pytest.mark.django_db
def test_no_migration_is_missing():
    """The models and the migrations of this app say the same."""
    call_command("makemigrations", "keys", check=True, dry_run=True, verbosity=0)


@pytest.mark.django_db
def test_the_admin_shows_keys_and_changes_none(folder, rf, admin_user, client):
    """Own and foreign keys can be listed, filtered, searched and read; nothing is added, changed or deleted, no secret shown."""
    made = generate_keypair()
    register_public_key(pairs(5)[0].public)
    site = AdminSite()
    request = rf.get("/")
    request.user = admin_user
    for admin, model in ((SigningKeyAdmin, SigningKey), (PublicKeyAdmin, PublicKey)):
        view = admin(model, site)
        assert view.has_view_permission(request)
        assert not (view.has_add_permission(request) or view.has_change_permission(request) or view.has_delete_permission(request))
        assert view.list_display and view.list_filter and view.search_fields
        assert "delete_selected" not in view.get_actions(request)
        for query in ("", made.identity.pair.fingerprint.hex()[:12]):
            page = view.changelist_view(rf_with(rf, admin_user, f"/?q={query}"))
            page.render()
            assert page.status_code == 200
            assert not shows_secret(page.content.decode(), made.identity.pair.secret)
        page = view.change_view(rf_with(rf, admin_user, "/"), str(model.objects.first().pk))
        page.render()
        assert made.identity.pair.public.hex() in page.content.decode()
        assert not shows_secret(page.content.decode(), made.identity.pair.secret)
    assert any(SigningKey in site._registry for site in all_sites)


def rf_with(rf, user, path):
    request = rf.get(path)
    request.user = user
    return request
