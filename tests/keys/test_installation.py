"""A key comes into the folder whole or not at all, whenever the process dies: killed with SIGKILL before every single step."""

import errno
import os
import shutil
import signal

import pytest

from keys.files import IdentityExistsError, KeyFileError, NoIdentityError, read_identity
from tests.keys.identities import pairs, shows_secret, snapshot, write

# Every call by which the installation changes the disk or waits for it.
STEPS = ("open", "write", "fchmod", "fsync", "mkdir", "rename", "link", "unlink", "rmdir")


def count_steps(monkeypatch, action):
    """Call `action(number, name)` before each step from now on; returns nothing, ends with the test."""
    number = 0

    def wrap(name):
        original = getattr(os, name)

        def step(*arguments, **options):
            nonlocal number
            number += 1
            action(number, name)
            return original(*arguments, **options)

        return step

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(name))


def die_at(deadly, work):
    """Run `work` in a child that is killed before its step `deadly`; true when it was, false when it came through."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            with pytest.MonkeyPatch.context() as patch:

                def action(number, name):
                    if number == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)

                count_steps(patch, action)
                # Half of each content first, so that some death falls between the halves.
                counted = os.write
                patch.setattr(os, "write", lambda fd, data: counted(fd, data[: max(1, len(data) // 2)]))
                work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def deaths(tmp_path, prepare, work):
    """Yield (step, folder) for each step before which `work` was killed, on a folder made anew by `prepare` each time."""
    for step in range(1, 500):
        folder = tmp_path / f"death-{step}" / "keys"
        prepare(folder)
        if not die_at(step, lambda folder=folder: work(folder)):
            assert step > 10
            return
        yield step, folder
    raise AssertionError("it never came through")


def whole(folder, name="node"):
    """True when the folder holds the identity's four files with one name each, and nothing unfinished."""
    names = {path.name for path in folder.iterdir()}
    return {f"{name}{suffix}" for suffix in (".key", ".pub", ".next.key", ".succession.json")} <= names and not any(
        entry.startswith(".") for entry in names
    )


def test_a_death_leaves_no_identity_or_the_whole_of_it(tmp_path):
    """Killed before any step, the next read finds no key, and keygen makes one; or it completes the one that was born."""
    outcomes = []
    for _, folder in deaths(tmp_path, lambda folder: None, write):
        try:
            identity = read_identity(folder)
        except NoIdentityError:
            outcomes.append("none")
            # Mended by running keygen again: what was half written is cleared away.
            write(folder, number=1)
            assert read_identity(folder).pair == pairs(1)[0]
        else:
            outcomes.append("whole")
            assert identity.pair == pairs(0)[0]
            with pytest.raises(IdentityExistsError):
                write(folder, number=1)
            assert read_identity(folder).pair == pairs(0)[0]
        assert whole(folder)
    # There is one birth: before it none, after it always the whole.
    assert outcomes == sorted(outcomes)
    assert {"none", "whole"} == set(outcomes)


def test_a_keygen_after_a_death_completes_before_it_refuses(tmp_path):
    """Also when no read came between: the identity that was born is completed, and no second one made."""
    seen = set()
    for _, folder in deaths(tmp_path, lambda folder: None, write):
        try:
            write(folder, number=1)
        except IdentityExistsError:
            seen.add("born")
            assert read_identity(folder).pair == pairs(0)[0]
        else:
            seen.add("unborn")
            assert read_identity(folder).pair == pairs(1)[0]
        assert whole(folder)
    assert seen == {"born", "unborn"}


@pytest.mark.parametrize("name", ["node", "other"])
def test_a_death_under_force_leaves_the_old_identity_or_the_new(tmp_path, name):
    """Killed before any step of a replacement, one identity loads, and each old file is still there byte for byte."""
    loaded = []
    for _, folder in deaths(tmp_path, write, lambda folder: write(folder, name=name, number=1, replace=True)):
        old = pairs(0)
        identity = read_identity(folder)
        loaded.append(0 if identity.pair == old[0] else 1)
        assert identity.pair == pairs(loaded[-1])[0]
        contents = [path.read_bytes() for path in folder.iterdir() if path.is_file()]
        for secret in (pair.secret.hex().encode() for pair in old):
            assert contents.count(secret) == 1
        assert all(path.stat().st_nlink == 1 for path in folder.iterdir() if path.is_file())
        if loaded[-1] == 1:
            assert whole(folder, name) and len(list(folder.iterdir())) == 8
    assert loaded == sorted(loaded) and set(loaded) == {0, 1}


def test_a_death_while_mending_is_mended_too(tmp_path):
    """Completing an installation may itself be killed before every step, again and again."""
    start = tmp_path / "start" / "keys"
    write(start)
    # Just born: step 2 of the installation is done and nothing of step 3.
    for step in range(1, 500):
        folder = tmp_path / f"try-{step}" / "keys"
        shutil.copytree(start, folder)
        assert die_at(step, lambda folder=folder: write(folder, number=1, replace=True))
        if list(folder.glob(".keygen-2*")):
            break
    born = folder
    for _, folder in deaths(tmp_path, lambda folder: shutil.copytree(born, folder), read_identity):
        assert read_identity(folder).pair == pairs(1)[0]
        assert whole(folder) and len(list(folder.iterdir())) == 8
    # Twenty deaths in a row, each a step later, on one folder.
    for step in range(1, 21):
        die_at(step, lambda: read_identity(born))
    assert read_identity(born).pair == pairs(1)[0]
    assert whole(born) and len(list(born.iterdir())) == 8


def test_all_is_on_the_disk_before_the_birth(tmp_path, monkeypatch):
    """Each file is fsynced, then the folder with their names, before the rename; the rename is before the first link."""
    steps = []
    count_steps(monkeypatch, lambda number, name: steps.append(name))
    write(tmp_path / "keys")
    birth = steps.index("rename")
    assert steps[:birth].count("write") == 4
    assert steps[:birth].count("fsync") >= 5
    assert (
        steps[birth - 1] == "fsync" or "fsync" in steps[max(i for i, name in enumerate(steps[:birth]) if name == "write") : birth]
    )
    assert steps[birth + 1] == "fsync"
    assert "link" not in steps[:birth]
    last_link = max(index for index, name in enumerate(steps) if name == "link")
    assert steps[last_link + 1] == "fsync"
    assert steps[-1] == "fsync"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """Each step of the writing failing as on a full disk ends in one clear line; what is left is no identity or a whole one."""
    outcomes = set()
    for failing in range(1, 200):
        folder = tmp_path / f"full-{failing}" / "keys"
        reached = False

        def action(number, name, failing=failing):
            nonlocal reached
            if number == failing:
                reached = True
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch, action)
            try:
                write(folder)
            except KeyFileError as error:
                assert "No space left on device" in str(error)
                assert not shows_secret(str(error), pairs(0)[0].secret, pairs(0)[1].secret)
        if not reached:
            break
        try:
            assert read_identity(folder).pair == pairs(0)[0]
            outcomes.add("whole")
        except NoIdentityError:
            outcomes.add("none")
            assert not folder.exists() or list(folder.iterdir()) == []
    assert outcomes == {"none", "whole"}


def test_two_at_once_make_one_identity(tmp_path):
    """Of several keygens started together one wins, the others refuse, and the winner's files are whole."""
    children = []
    gate, start = os.pipe()
    for number in range(6):
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(gate, 1)
            status = 2
            try:
                write(tmp_path / "keys", number=number)
                status = 0
            except IdentityExistsError:
                status = 1
            finally:
                os._exit(status)
        children.append(child)
    os.close(gate)
    os.close(start)
    statuses = [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(statuses) == [0, 1, 1, 1, 1, 1]
    assert read_identity(tmp_path / "keys").pair == pairs(statuses.index(0))[0]
    assert whole(tmp_path / "keys") and len(list((tmp_path / "keys").iterdir())) == 4


def test_what_a_stranger_put_there_meanwhile_is_not_overwritten(tmp_path):
    """A file that came into the place of a key after its birth stops the completion, and both stay."""
    folder = tmp_path / "home" / "keys"
    for step in range(1, 500):
        assert die_at(step, lambda: write(folder))
        if list(folder.glob(".keygen-2*")):
            break
        shutil.rmtree(folder.parent, ignore_errors=True)
    (folder / "node.key").write_text("restored by hand")
    before = snapshot(folder)
    for _ in range(2):
        with pytest.raises(KeyFileError, match=r"node\.key is in the way of the new key in .*\.keygen-20260131T235959Z: move one"):
            read_identity(folder)
        assert snapshot(folder) == before
    (folder / "node.key").unlink()
    assert read_identity(folder).pair == pairs(0)[0]
    assert whole(folder)
