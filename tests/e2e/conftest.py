"""Real nodes as fixtures: `nodes("Ada")` is a new one with a key and a migrated database.

When a test fails, the end of each node's log is part of the report.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import MANAGE, Node, introduce, linked, processes_of, together, wait_for

NODES = pytest.StashKey[list[Node]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed:
        for node in item.stash.get(NODES, []):
            report.sections.append((f"end of the log of {node.name} ({node.home})", node.log_tail()))
    return report


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly migrated database, to copy."""
    home = tmp_path_factory.mktemp("template")
    env = {"PATH": os.environ.get("PATH", os.defpath), "ARK_HOME": str(home), "ARK_ENV_FILE": os.devnull}
    subprocess.run([sys.executable, str(MANAGE), "migrate", "--verbosity", "0"], env=env, check=True, timeout=120)
    return home / "ark.sqlite3"


@pytest.fixture(scope="session")
def introduced(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> tuple[Node, Node]:
    """Ada and Bob with keys exchanged as CORE and each other's address, to copy: ten commands saved a test."""
    home = tmp_path_factory.mktemp("introduced")
    ada, bob = (Node(home / name, name, template=migrated) for name in ("ada", "bob"))
    together(ada.keygen, bob.keygen)
    introduce(ada, bob)
    return ada, bob


@pytest.fixture
def pair(introduced: tuple[Node, Node], nodes, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Node, Node]:
    """Ada and Bob, introduced as CORE both ways, not running."""
    ada, bob = (node.copy(tmp_path / node.name) for node in introduced)
    request.node.stash[NODES] += [ada, bob]
    return ada, bob


@pytest.fixture
def linked_pair(pair: tuple[Node, Node]) -> tuple[Node, Node]:
    """The same two, running, with a link."""
    ada, bob = pair
    together(ada.start, bob.start)
    wait_for(lambda: linked(ada, bob), 15, "both sides hold the link")
    return ada, bob


@pytest.fixture
def nodes(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path):
    """A maker of nodes. `nodes(name, key=False)` has no key yet; `nodes(name, bare=True)` neither key nor database.

    Further words are settings of the node; where they name a DATABASE_URL, that database is migrated already.
    """
    made: list[Node] = []
    request.node.stash[NODES] = made

    def make(name: str, *, key: bool = True, bare: bool = False, **settings: str) -> Node:
        empty = bare or "DATABASE_URL" in settings
        node = Node(tmp_path / name, name, template=None if empty else migrated, settings=settings)
        made.append(node)
        if key and not bare:
            node.keygen()
        return node

    yield make
    for node in made:
        node.kill()
    # A node's helpers die with it, also on SIGKILL; they are given the moment it takes.
    deadline = time.monotonic() + 3
    while (survivors := [pid for node in made for pid in processes_of(node.home)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for node in made:
        shutil.rmtree(node.home, ignore_errors=True)
    assert not survivors, f"processes outlived their node: {survivors}"
