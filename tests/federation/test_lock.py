"""One runner a node: the lock, and what it tells others."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from federation.lock import NOTE_BYTES, RunnerLock, RunnerLockError, runner_note, runner_pid
from tests.harness import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runner.lock"


def test_held_until_released(path):
    """While it is held the file names the holder; a second one is refused naming that pid; released, it is free."""
    lock = RunnerLock(path)
    assert runner_pid(path) is None
    lock.acquire()
    assert runner_pid(path) == os.getpid()
    with pytest.raises(RunnerLockError, match=f"pid {os.getpid()}"):
        RunnerLock(path).acquire()
    lock.release()
    assert runner_pid(path) is None
    RunnerLock(path).acquire()


def test_killed_holder_leaves_no_lock(path):
    """The kernel drops the lock of a process that was killed; its stale pid is believed by nobody."""
    script = f"""
        import time
        from pathlib import Path
        from federation.lock import RunnerLock
        lock = RunnerLock(Path({str(path)!r}))
        lock.acquire()
        print("held", flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    assert runner_pid(path) == holder.pid
    holder.kill()
    holder.communicate()
    assert runner_pid(path) is None
    assert path.read_bytes().startswith(str(holder.pid).encode())
    RunnerLock(path).acquire()


def test_asking_never_keeps_a_runner_from_starting(path):
    """However often others ask who runs, a start takes the lock: asking holds it for an instant only."""
    path.touch()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            runner_pid(path)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(20):
            lock = RunnerLock(path)
            lock.acquire()
            lock.release()
            time.sleep(0.001)
    finally:
        stop.set()
        for asker in askers:
            asker.join()


@pytest.mark.parametrize("text", ["disk is full", "x" * NOTE_BYTES, "x" * (NOTE_BYTES + 1), "two\nlines  here", "schön"])
def test_note_is_read_by_others(path, text):
    """The note is there for others while the runner is, cut to its place, and can be taken back."""
    lock = RunnerLock(path)
    lock.note("before it is held nothing is noted")
    lock.acquire()
    size = path.stat().st_size
    assert runner_note(path) == ""
    lock.note(text)
    assert runner_note(path) == " ".join(text.split())[:NOTE_BYTES]
    assert runner_pid(path) == os.getpid()
    assert path.stat().st_size == size, "nothing grows: the disk may be full"
    lock.note("")
    assert runner_note(path) == ""
    lock.note(text)
    lock.release()
    assert runner_note(path) == ""


def test_unusable_lock_is_said(path, tmp_path):
    """A link in the lock's place, or no folder at all, is refused in words."""
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunnerLockError, match="cannot be used as a lock"):
        RunnerLock(path).acquire()
    with pytest.raises(RunnerLockError, match="No such file"):
        RunnerLock(tmp_path / "missing" / "runner.lock").acquire()
    assert not (tmp_path / "elsewhere").exists()
