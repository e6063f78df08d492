"""A throwaway PostgreSQL server from the installed packages: a folder, a socket in it, one process, gone at the end.

`python -m tests.postgres COMMAND...` runs tests with DATABASE_URL naming an empty database of such a server, and
exits as the command does. Where PostgreSQL is not installed it says so and how to change that; with CI=true that fails.

The server listens on a Unix socket in its own folder (mode 0700) and nowhere else, so it needs no port and no
password. It never runs as root: root starts it as the user `postgres`, anybody else as themselves. It gets SIGINT, its
fast shutdown, when the process that started it dies, however that happens.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import environ
import psycopg
from psycopg import sql as composed

ENABLE = "sudo make test-deps && make test"
SUPERUSER = "ark"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20

# A crash of the machine may cost a test its database; a crash of the server must not, so commits still reach the kernel.
_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
}


def binaries() -> Path | None:
    """Return the folder of the newest installed server's programs, where Debian puts them or on the PATH."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if folders:
        return max(folders, key=lambda folder: [int(digits) for digits in re.findall(r"\d+", folder.parent.name)])
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def lacking() -> str:
    """Return why no server can be started here, or an empty string."""
    if binaries() is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "there is no user postgres to run the server as"
    return ""


class PostgresServer:
    """One server; a context manager that starts it, and at the end stops it and removes its folder."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, lacking()
        self._binaries = found
        self._process: subprocess.Popen[bytes] | None = None
        # Straight under the system's folder for temporary files: the server's user has to reach it, and the path
        # of a socket holds at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ark-postgres-"))
        self._as_server: list[str] = ["setpriv", "--pdeathsig", "INT"]
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_server += ["--reuid", "postgres", "--regid", "postgres", "--init-groups"]

    def __enter__(self) -> "PostgresServer":
        try:
            self._run("initdb", "-D", "data", "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
            self.start()
            self.create("ark")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server and return when it answers."""
        options = [f"-c{name}={value}" for name, value in {**_OPTIONS, "unix_socket_directories": str(self.folder)}.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_server, str(self._binaries / "postgres"), "-D", "data", *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for the tests; the server ends after them.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start ({error})\n{self.log_tail()}") from error
            time.sleep(0.02)

    def stop(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT ends its connections and writes what it holds, SIGQUIT is as good as a crash."""
        if self._process is None:
            return
        self._process.send_signal(with_signal)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None

    def create(self, database: str, *, template: str = "template0") -> str:
        """Make a database, empty or as a copy of `template`, and return its DATABASE_URL."""
        with self.connect("postgres") as connection:
            names = composed.Identifier(database), composed.Identifier(template)
            connection.execute(composed.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        return self.url(database)

    def url(self, database: str) -> str:
        """Return what DATABASE_URL has to say for a database of this server."""
        return f"postgres://{SUPERUSER}@/{self.folder}/{database}"

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True)

    def log_tail(self, characters: int = 4000) -> str:
        log = self.folder / "log"
        return log.read_text(encoding="utf-8", errors="replace")[-characters:] if log.exists() else ""

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_server, str(self._binaries / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} exited {done.returncode}: {done.stdout[-1000:]}{done.stderr[-3000:]}")


def rows(url: str, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    """Return the rows of a query, `?` standing for parameters, on the database that a DATABASE_URL names."""
    named = environ.Env.db_url_config(url)
    with psycopg.connect(
        host=named["HOST"], port=named["PORT"] or None, user=named["USER"], password=named["PASSWORD"] or None, dbname=named["NAME"]
    ) as connection:
        connection.read_only = True
        return connection.execute(sql.replace("?", "%s"), parameters or None).fetchall()


def main(words: Sequence[str]) -> int:
    if problem := lacking():
        if os.environ.get("CI") == "true":
            print(f"the tests on PostgreSQL cannot run in CI: {problem}", file=sys.stderr)
            return 1
        print(f"left out: the tests of the database on PostgreSQL ({problem}); to run them: {ENABLE}")
        return 0
    with PostgresServer() as server, subprocess.Popen(words, env={**os.environ, "DATABASE_URL": server.url("ark")}) as child:
        # A terminal sends Ctrl-C to the command as well; the server is stopped once the command has ended.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
        status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
