import os
import shutil
import socket
import stat

import pytest
import rfc8785

from keys.files import (
    IdentityExistsError,
    KeyFileError,
    KeyNameError,
    NoIdentityError,
    check_name,
    next_key_path,
    read_identity,
    read_pair,
    write_identity,
)
from keys.succession import Reason, first_statement, next_statement, verify_chain
from tests.keys.identities import STAMP, T0, pairs, shows_secret, snapshot, write

PAIR, NEXT = pairs(0)
OTHER, OTHER_NEXT = pairs(1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


@pytest.fixture
def folder(tmp_path):
    """The keys folder of a node that has an identity."""
    path = tmp_path / "home" / "keys"
    write(path)
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_four_files_make_an_identity(folder):
    """Exact hex, no line break, the modes of section 1, a folder 0700, and nothing left over."""
    assert sorted(path.name for path in folder.iterdir()) == ["node.key", "node.next.key", "node.pub", "node.succession.json"]
    assert (folder / "node.key").read_text() == PAIR.secret.hex()
    assert (folder / "node.pub").read_text() == PAIR.public.hex()
    assert (folder / "node.next.key").read_text() == NEXT.secret.hex()
    assert next_key_path(folder, "node") == folder / "node.next.key"
    assert mode(folder) == 0o700
    assert [mode(folder / f"node{suffix}") for suffix in (".key", ".next.key", ".pub", ".succession.json")] == [
        0o600,
        0o600,
        0o644,
        0o644,
    ]
    assert all(path.stat().st_nlink == 1 for path in folder.iterdir())


def test_modes_do_not_hang_on_the_umask(tmp_path):
    """An open or a closed umask makes the same files."""
    for number, umask in enumerate((0o000, 0o077, 0o022)):
        before = os.umask(umask)
        try:
            write(tmp_path / str(number) / "keys")
        finally:
            os.umask(before)
        assert mode(tmp_path / str(number) / "keys" / "node.key") == 0o600
        assert mode(tmp_path / str(number) / "keys" / "node.pub") == 0o644
        read_identity(tmp_path / str(number) / "keys")


def test_an_identity_is_read_from_its_files_alone(folder):
    """Name, pair and chain come back as they were written, again and again."""
    for _ in range(2):
        identity = read_identity(folder)
        assert (identity.name, identity.pair) == ("node", PAIR)
        assert identity.chain.keys == (PAIR.public,)
        assert identity.chain.next_key_hash == NEXT.fingerprint
    assert read_pair(folder, "node") == PAIR


def test_the_next_key_may_be_away(folder):
    """The next key belongs offline: an identity without it is whole."""
    (folder / "node.next.key").unlink()
    assert read_identity(folder).pair == PAIR


def test_a_chain_of_several_keys_is_read(folder):
    """After a rotation the chain ends with the key that is there, and names the node by its first."""
    entries = [first_statement(PAIR, NEXT.fingerprint, T0)]
    chain = verify_chain([entry.as_json() for entry in entries])
    entries.append(next_statement(chain, NEXT, OTHER.fingerprint, T0 + 1, Reason.ROUTINE, previous=PAIR))
    (folder / "node.key").write_text(NEXT.secret.hex())
    (folder / "node.pub").write_text(NEXT.public.hex())
    with pytest.raises(KeyFileError, match=r"node\.key is not the key that node\.succession\.json ends with"):
        read_identity(folder)
    (folder / "node.succession.json").write_bytes(rfc8785.dumps([entry.as_json() for entry in entries]))
    identity = read_identity(folder)
    assert identity.pair == NEXT and identity.chain.node_id == chain.node_id


def test_no_folder_and_an_empty_one_have_no_key(tmp_path):
    """Reading makes nothing: it says to run keygen."""
    with pytest.raises(NoIdentityError, match=r"run manage\.py keygen"):
        read_identity(tmp_path / "home" / "keys")
    assert not (tmp_path / "home").exists()
    (tmp_path / "keys").mkdir(mode=0o700)
    with pytest.raises(NoIdentityError, match=r"run manage\.py keygen"):
        read_identity(tmp_path / "keys")
    with pytest.raises(NoIdentityError, match="no key 'node'"):
        read_pair(tmp_path / "keys", "node")


def test_a_name_is_found_whatever_it_is(tmp_path):
    """The one identity in the folder counts, also under another name; strangers' public keys beside it do not matter."""
    write(tmp_path / "keys", name="alice-2.b_c")
    (tmp_path / "keys" / "bob.pub").write_text(OTHER.public.hex())
    (tmp_path / "keys" / "notes.txt").write_text("hello")
    assert read_identity(tmp_path / "keys").name == "alice-2.b_c"
    assert read_pair(tmp_path / "keys", "alice-2.b_c") == PAIR


@pytest.mark.parametrize("name", ["a", "0", "node", "a" * 64, "a.b-c_d", "a..b", "x.next.y"])
def test_key_names(name):
    """Small letters, digits and . _ - after a first letter or digit, to 64 characters."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/x",
        "A",
        "a" * 65,
        "-a",
        "_a",
        ".a",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "node.next",
        "~",
        "a\\b",
        None,
        5,
        b"node",
    ],
)
def test_wrong_key_names_touch_nothing(tmp_path, name):
    """A name that could be a path or another's file is refused before the disk is looked at."""
    with pytest.raises(KeyNameError, match="is no key name"):
        check_name(name)
    with pytest.raises(KeyNameError):
        read_pair(tmp_path / "keys", name)
    with pytest.raises(KeyNameError):
        write_identity(tmp_path / "keys", name, PAIR, NEXT, first_statement(PAIR, NEXT.fingerprint, T0), stamp=STAMP, replace=True)
    assert list(tmp_path.iterdir()) == []


# What may be wrong with a key, each with words of the refusal: 40 states that load nothing, change nothing and show no secret.


def replace(entry, content):
    def change(folder):
        (folder / entry).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def chmod(entry, bits):
    return lambda folder: (folder / entry).chmod(bits)


def remove(*entries):
    def change(folder):
        for entry in entries:
            (folder / entry).unlink()

    return change


def link_out(entry):
    """Put a symbolic link to the very file, elsewhere, in its place."""

    def change(folder):
        shutil.move(folder / entry, folder.parent / "elsewhere")
        (folder / entry).symlink_to(folder.parent / "elsewhere")

    return change


def hard_link(entry):
    return lambda folder: os.link(folder / entry, folder.parent / "second-name")


def as_folder(entry):
    def change(folder):
        (folder / entry).unlink()
        (folder / entry).mkdir(mode=0o700)

    return change


def as_fifo(entry):
    def change(folder):
        (folder / entry).unlink()
        os.mkfifo(folder / entry, 0o600)

    return change


def as_socket(folder):
    (folder / "node.key").unlink()
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(folder)
        end.bind("node.key")
    (folder / "node.key").chmod(0o600)


def move_folder_behind_link(folder):
    folder.rename(folder.parent / "true-keys")
    folder.symlink_to(folder.parent / "true-keys")


def folder_is_file(folder):
    folder.rename(folder.parent / "true-keys")
    folder.write_text("")


def two_identities(folder):
    shutil.copytree(folder, folder.parent / "copy")
    write(folder.parent / "two", name="second", number=1)
    for path in (folder.parent / "two").iterdir():
        path.rename(folder / path.name)


SECRET = PAIR.secret.hex()
PUBLIC = PAIR.public.hex()
CHAIN = rfc8785.dumps([first_statement(PAIR, NEXT.fingerprint, T0).as_json()])
STATES = {
    "key readable by the group": (chmod("node.key", 0o640), "chmod 600"),
    "key readable by all": (chmod("node.key", 0o604), "chmod 600"),
    "key writable by the group": (chmod("node.key", 0o620), "chmod 600"),
    "key executable by all": (chmod("node.key", 0o601), "chmod 600"),
    "next key readable by all": (chmod("node.next.key", 0o644), "chmod 600"),
    "public key writable by all": (chmod("node.pub", 0o666), "chmod 644"),
    "succession writable by the group": (chmod("node.succession.json", 0o664), "chmod 644"),
    "folder writable by the group": (chmod(".", 0o770), "chmod 700"),
    "folder writable by all": (chmod(".", 0o777), "chmod 700"),
    "folder sticky and writable by all": (chmod(".", 0o1777), "chmod 700"),
    "folder is a link": (move_folder_behind_link, "is a link or no folder"),
    "folder is a file": (folder_is_file, "is a link or no folder"),
    "key is a link": (link_out("node.key"), "is a link: put the file itself there"),
    "next key is a link": (link_out("node.next.key"), "is a link"),
    "public key is a link": (link_out("node.pub"), "is a link"),
    "succession is a link": (link_out("node.succession.json"), "is a link"),
    "key has two names": (hard_link("node.key"), "has 2 names"),
    "next key has two names": (hard_link("node.next.key"), "has 2 names"),
    "public key has two names": (hard_link("node.pub"), "has 2 names"),
    "key is a folder": (as_folder("node.key"), "is no regular file"),
    "key is a pipe": (as_fifo("node.key"), "is no regular file"),
    "public key is a pipe": (as_fifo("node.pub"), "is no regular file"),
    "succession is a pipe": (as_fifo("node.succession.json"), "is no regular file"),
    "key is a socket": (as_socket, "is no regular file"),
    "key is empty": (replace("node.key", ""), "has 0 bytes, not 128"),
    "key lacks a digit": (replace("node.key", SECRET[:-1]), "has 127 bytes, not 128"),
    "key has a digit more": (replace("node.key", SECRET + "0"), "longer than 128 bytes"),
    "key ends with a line break": (replace("node.key", SECRET + "\n"), "longer than 128 bytes"),
    "key is half": (replace("node.key", SECRET[:64]), "has 64 bytes, not 128"),
    "key is raw bytes": (replace("node.key", PAIR.secret), "has 64 bytes, not 128"),
    "key is in capitals": (replace("node.key", SECRET.upper()), "is not 128 lower-case hex digits"),
    "key has a wrong digit": (replace("node.key", SECRET[:40] + "g" + SECRET[41:]), "is not 128 lower-case hex digits"),
    "key has a blank": (replace("node.key", SECRET[:40] + " " + SECRET[41:]), "is not 128 lower-case hex digits"),
    "key is not ASCII": (replace("node.key", "é" * 64), "is not 128 lower-case hex digits"),
    "seed has a changed digit": (replace("node.key", ("1" if SECRET[0] == "0" else "0") + SECRET[1:]), "halves do not match"),
    "halves of two keys": (replace("node.key", SECRET[:64] + OTHER.public.hex()), "halves do not match"),
    "key is zeros": (replace("node.key", "0" * 128), "halves do not match"),
    "key is another whole key": (replace("node.key", OTHER.secret.hex()), "is not the public half of node.key"),
    "public key is another": (replace("node.pub", OTHER.public.hex()), "is not the public half of node.key"),
    "public key lacks a digit": (replace("node.pub", PUBLIC[:-1]), "has 63 bytes, not 64"),
    "public key is in capitals": (replace("node.pub", PUBLIC.upper()), "is not 64 lower-case hex digits"),
    "public key is the seed": (replace("node.pub", SECRET[:64]), "is not the public half of node.key"),
    "public key is missing": (remove("node.pub"), "tail -c 64"),
    "key is missing": (remove("node.key"), "node.key is missing: restore it from a backup"),
    "succession is missing": (remove("node.succession.json"), "node.succession.json is missing: restore it from a backup"),
    "only the public key is left": (remove("node.key", "node.next.key", "node.succession.json"), "holds node.pub, but neither"),
    "only the next key is left": (remove("node.key", "node.pub", "node.succession.json"), "holds node.next.key, but neither"),
    "succession is empty": (replace("node.succession.json", ""), "no canonical JSON"),
    "succession is cut": (replace("node.succession.json", CHAIN[:-2]), "no canonical JSON"),
    "succession has a blank": (replace("node.succession.json", CHAIN + b"\n"), "no canonical JSON"),
    "succession is no chain": (replace("node.succession.json", b"[]"), "no valid succession"),
    "succession nests deeply": (replace("node.succession.json", b"[" * 16_000), "no canonical JSON"),
    "succession is not text": (replace("node.succession.json", b"\xff\xfe"), "no canonical JSON"),
    "succession is huge": (replace("node.succession.json", b" " * 16_385), "longer than 16384 bytes"),
    "succession is the secret": (replace("node.succession.json", SECRET), "no canonical JSON"),
    "succession names the secret": (
        replace("node.succession.json", CHAIN.replace(PUBLIC.encode(), SECRET[:64].encode())),
        "no valid succession",
    ),
    "succession is another node's": (
        replace("node.succession.json", rfc8785.dumps([first_statement(OTHER, NEXT.fingerprint, T0).as_json()])),
        "is not the key that node.succession.json ends with",
    ),
    "two identities": (two_identities, "holds the keys 'node' and 'second', a node has one"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_key_that_is_not_as_it_must_be_is_refused_and_left_alone(folder, state, monkeypatch):
    """Nothing is loaded or overwritten, no new identity arises, and the refusal says how to mend it without a byte of the key."""
    monkeypatch.chdir(folder.parent)
    change, said = STATES[state]
    change(folder)
    before = snapshot(folder.parent)
    for attempt in (read_identity, lambda folder: write(folder, number=7), lambda folder: write(folder, name="other", number=7)):
        with pytest.raises(KeyFileError) as caught:
            attempt(folder)
        if attempt is read_identity:
            assert said in str(caught.value)
        error = caught.value
        while error is not None:
            assert not shows_secret(repr(error) + str(error), PAIR.secret, NEXT.secret, OTHER.secret)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert snapshot(folder.parent) == before


def test_there_are_more_than_30_such_states():
    """Threat T31 asks for 30."""
    assert len(STATES) >= 30


@needs_root
@pytest.mark.parametrize("entry", [".", "node.key", "node.next.key", "node.pub", "node.succession.json"])
def test_another_users_file_is_refused(folder, entry):
    """A folder or file that someone else owns, and so may change, is not read."""
    os.chown(folder / entry, 12_345, -1)
    before = snapshot(folder)
    with pytest.raises(KeyFileError, match="belongs to user 12345, not to 0"):
        read_identity(folder)
    assert snapshot(folder) == before


def test_the_whole_of_a_strangers_folder_is_refused(folder, monkeypatch):
    """Run as another user than the owner, the node says so."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(KeyFileError, match="not to 54321 who runs this"):
        read_identity(folder)


def test_an_advice_to_mend_mends(folder):
    """The command that a refusal names makes the public key anew."""
    (folder / "node.pub").unlink()
    with pytest.raises(KeyFileError) as caught:
        read_identity(folder)
    command = str(caught.value).partition("anew with: ")[2]
    os.system(command)  # noqa: S605 - the very words the operator would type
    assert (folder / "node.pub").read_text() == PUBLIC
    assert read_identity(folder).pair == PAIR


def test_a_new_key_never_takes_an_old_ones_place(folder):
    """Beside a key keygen refuses, names rotatekey and changes nothing."""
    before = snapshot(folder)
    for name in ("node", "other"):
        with pytest.raises(IdentityExistsError, match=r"there is a key already, 'node' in .*: rotatekey replaces a key"):
            write(folder, name=name, number=1)
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["node", "other"])
def test_force_keeps_the_old_files_under_a_dated_name(folder, name):
    """A new identity by force sets every file of the old one aside, byte for byte, and then is the only one."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    aside = write(folder, name=name, number=1, replace=True)
    assert sorted(aside) == sorted(entry.replace("node.", f"node-replaced-{STAMP}.", 1) for entry in before)
    assert {entry: (folder / entry.replace("node.", f"node-replaced-{STAMP}.", 1)).read_bytes() for entry in before} == before
    assert mode(folder / f"node-replaced-{STAMP}.key") == 0o600
    assert (read_identity(folder).name, read_identity(folder).pair) == (name, OTHER)
    assert len(list(folder.iterdir())) == 8


def test_force_twice_in_one_second_keeps_all(folder):
    """A second replacement under the same stamp is numbered; nothing is overwritten."""
    write(folder, number=1, replace=True)
    write(folder, number=2, replace=True)
    secrets = {path.read_text() for path in folder.iterdir() if path.name.endswith(".key") and ".next" not in path.name}
    assert secrets == {pairs(number)[0].secret.hex() for number in range(3)}
    assert (folder / f"node-replaced-{STAMP}-2.key").exists()
    assert read_identity(folder).pair == pairs(2)[0]


@pytest.mark.parametrize("state", [state for state in STATES if not state.startswith("folder")])
def test_force_sets_damaged_files_aside_too(folder, state, monkeypatch):
    """Whatever is wrong with the old files, force moves them as they are and makes a whole identity."""
    monkeypatch.chdir(folder.parent)
    STATES[state][0](folder)
    old = [value for name, value in snapshot(folder).items() if name != "."]
    write(folder, number=7, replace=True)
    assert read_identity(folder).pair == pairs(7)[0]
    after = [value for name, value in snapshot(folder).items() if name != "."]
    assert all(value in after for value in old)
    assert len(after) == len(old) + 4


def test_dated_names_are_no_key_names(folder):
    """A file set aside is never loaded as a key."""
    write(folder, number=1, replace=True)
    with pytest.raises(KeyNameError):
        read_pair(folder, f"node-replaced-{STAMP}")


def test_a_readable_folder_is_closed_when_a_key_comes_in(tmp_path):
    """An existing folder that others may read becomes 0700."""
    (tmp_path / "keys").mkdir(mode=0o755)
    write(tmp_path / "keys")
    assert mode(tmp_path / "keys") == 0o700
