"""Fixtures for every test, and the tiers: which tests run here, and how to enable the rest.

A tier needs something a machine may lack. Outside CI a tier that cannot run is left out and named
at the end with the command that enables it; with CI=true in the environment it fails instead, so
that nothing is skipped in silence.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests import postgres


@dataclass(frozen=True, slots=True)
class Tier:
    """Tests under one marker, and what keeps them from running here (empty: nothing)."""

    marker: str
    name: str
    lacking: str
    enable: str
    required_in_ci: bool = True


def network_namespaces_lacking() -> str:
    """Return why network namespaces cannot be made here, or an empty string."""
    if os.geteuid() != 0:
        return "they need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"this machine refuses: {probe.stderr.strip()}"


def tiers(config: pytest.Config) -> list[Tier]:
    in_ci = os.environ.get("CI") == "true"
    wanted_long = config.getoption("--long")
    return [
        Tier("netns", "network namespaces", network_namespaces_lacking(), "sudo make test-deps && sudo make test"),
        Tier("postgres", "nodes on PostgreSQL", postgres.lacking(), postgres.ENABLE),
        Tier("fresh", "fresh clone", "" if in_ci or wanted_long else "it installs everything again", "make test ARGS=--long"),
        Tier("long", "long sweeps", "" if wanted_long else "they take up to an hour", "make test-long", required_in_ci=False),
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long tests and the fresh clone too")
    parser.addoption("--database", action="store_true", help="run only the tests whose outcome the database decides")


def touches_database(item: pytest.Item) -> bool:
    """Return whether a test runs on the database of the settings; nodes have databases of their own."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or not fixtures.isdisjoint({"db", "transactional_db"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--database"):
        config.hook.pytest_deselected(items=[item for item in items if not touches_database(item)])
        items[:] = [item for item in items if touches_database(item)]
    for tier in tiers(config):
        members = [item for item in items if item.get_closest_marker(tier.marker)]
        if not tier.lacking or not members:
            continue
        if os.environ.get("CI") == "true" and tier.required_in_ci:
            raise pytest.UsageError(f"the tier {tier.name!r} cannot run in CI: {tier.lacking}")
        chosen = [item for item in items if item not in members]
        config.hook.pytest_deselected(items=members)
        items[:] = chosen


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # `make test ARGS='-k canonical'` selects nothing for the database, and that is no failure.
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("--database"):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    # Asked anew: where several processes share the tests, this one has collected none.
    for tier in tiers(config):
        if tier.lacking:
            terminalreporter.write_line(f"left out: {tier.name} ({tier.lacking}); to run them: {tier.enable}")


@pytest.fixture
def keys_dir(settings, tmp_path):
    """An empty keys folder of this test alone, mode 0700, that the settings point at."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    settings.ARK_KEYS_DIR = folder
    return folder
