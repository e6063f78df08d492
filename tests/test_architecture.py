"""The core stays pure: imported in a fresh interpreter, it brings in none of what it must not know."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import federation.protocol
from tests.harness import ROOT

CORE = [
    "keys.encoding",
    "keys.ed25519",
    "keys.succession",
    "peers.trust",
    "peers.backoff",
    *sorted(f"federation.protocol.{module.name}" for module in pkgutil.iter_modules(federation.protocol.__path__)),
]
# What a core module may not import itself, whatever its libraries do.
NEVER = {"asyncio", "socket", "time", "random", "secrets", "logging", "threading", "subprocess", "os"}
# What may not even be loaded once the core is.
NOT_LOADED = ["django", "channels", "daphne", "twisted", "websockets", "asyncio"]


def imported_names(source: Path) -> set[str]:
    """Return the top-level packages a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("module", CORE)
def test_core_module_loads_without_django_or_asyncio(module):
    """In a fresh interpreter, importing the module alone loads no Django, no event loop and no network library."""
    code = f"import sys, {module}; print([name for name in {NOT_LOADED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("module", CORE)
def test_core_module_is_handed_time_and_randomness(module):
    """No core module imports a socket, a clock, randomness, a log or another thread, not even inside a function."""
    source = ROOT / (module.replace(".", "/") + ".py")
    assert imported_names(source) & NEVER == set()
    assert imported_names(source) & {"django", "channels", "daphne", "twisted", "websockets"} == set()


def test_app_packages_are_empty():
    """Importing a core module executes no app code on the way."""
    for package in ["arklattice", "federation", "keys", "peers", "federation/protocol"]:
        assert (ROOT / package / "__init__.py").read_bytes() == b"", package


def test_layers_hold():
    """import-linter's contracts in pyproject.toml are kept."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
