"""What a newcomer meets: make, the settings, the documents. Each promise is held to the code."""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess

import pytest
from django.core.management import get_commands, load_command_class

from arklattice import settings as real
from arklattice.cli import NOUNS
from federation.protocol.errors import CLOSE_CODES, Code
from federation.protocol.limits import Limits
from tests.harness import ROOT

VENV_SCRIPT = ROOT / "scripts" / "venv.sh"


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


# Preparing .venv.


@pytest.fixture
def machine(tmp_path):
    """A folder with the script and a PATH of our own making: `machine(**programs)` writes programs and runs the script."""
    project, bin_dir = tmp_path / "project", tmp_path / "bin"
    (project / "scripts").mkdir(parents=True)
    bin_dir.mkdir()
    shutil.copy(VENV_SCRIPT, project / "scripts")
    (project / "requirements.txt").write_text("")
    (project / "requirements-dev.txt").write_text("")

    def run(*, python, uid=1000, kind="run", **programs):
        for name, script in {"python3": python, "id": f"echo {uid}", **programs}.items():
            path = bin_dir / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        env = {"PATH": f"{bin_dir}:/usr/bin:/bin", "PYTHON": str(bin_dir / "python3")}
        command = ["/bin/sh", project / "scripts" / "venv.sh", kind]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


# Stand-ins for interpreters: one too old, one without ensurepip.
OLD = "exit 1"
NO_ENSUREPIP = 'case "$2" in *ensurepip*) exit 1;; esac'


@pytest.mark.parametrize("python", [OLD, NO_ENSUREPIP], ids=["too old", "no ensurepip"])
def test_without_root_one_line_names_the_command(machine, python):
    """What is missing is named with the exact apt command, in one line, status 1."""
    done = machine(python=python, **{"apt-get": "exit 1"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert re.search(r"run: sudo apt-get install -y python3( |-)", done.stderr)


def test_as_root_what_is_missing_is_installed(machine, tmp_path):
    """Root needs to type nothing: apt-get is called with the missing packages."""
    called = tmp_path / "called"
    done = machine(python=NO_ENSUREPIP, uid=0, **{"apt-get": f'echo "$@" >> {called}'})
    assert "install -y -qq --no-install-recommends python3" in called.read_text()
    # The stand-in installed nothing, so there still is no usable Python: said, not looped.
    assert done.returncode == 1
    assert "PYTHON=" in done.stderr


def test_failed_apt_is_shown(machine):
    """apt's own words appear when it fails, and only then."""
    done = machine(python=OLD, uid=0, **{"apt-get": "echo no such host; exit 100"})
    assert done.returncode == 1
    assert "no such host" in done.stderr


def test_unknown_kind_is_wrong_usage(machine):
    """Only `run` and `dev` exist."""
    assert machine(python=OLD, kind="prod").returncode == 2


def test_a_ready_venv_is_left_alone():
    """With nothing changed, preparing takes no time and says nothing."""
    for _ in range(2):
        done = subprocess.run([VENV_SCRIPT, "run"], capture_output=True, text=True, timeout=300, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_make_lists_its_targets():
    """Plain `make` explains; every target it names exists."""
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    named = set(re.findall(r"^make ([a-z-]+)", done.stdout, re.MULTILINE))
    assert {"run", "demo", "test", "test-deps", "test-long", "lint"} <= named
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert named <= targets


# Settings.


def settings_read():
    """Return the names settings.py reads from the environment."""
    source = text_of("arklattice/settings.py")
    return set(re.findall(r'(?:env(?:\.\w+)?\(\s*|number\(\w+, )"(\w+)"', source))


def settings_documented():
    return set(re.findall(r"^#(\w+)=", text_of(".env.example"), re.MULTILINE))


def test_every_setting_is_documented_and_read():
    """`.env.example` names exactly the settings the code reads, and limits that exist."""
    limits = {name for name in settings_documented() if name.startswith("ARK_LIMIT_")}
    assert settings_documented() - limits == settings_read()
    assert {name.removeprefix("ARK_LIMIT_").lower() for name in limits} <= {field.name for field in dataclasses.fields(Limits)}


def test_documented_defaults_are_the_real_ones():
    """A value shown in `.env.example` as the default is what the code uses."""
    source = text_of("arklattice/settings.py")
    for name, shown in re.findall(r"^#(ARK_\w+|LOG_\w+)=(.+)$", text_of(".env.example"), re.MULTILINE):
        found = re.search(rf'(?:env(?:\.\w+)?\("{name}", default=|number\(\w+, "{name}", )([^)]+)\)', source)
        if found and found.group(1) not in {"[]", 'str(BASE_DIR / "var"'} and not name.startswith("ARK_LIMIT_"):
            value = found.group(1).strip('"')
            assert shown.lower() == value.lower() or float(shown) == float(value), name


def test_safe_by_default():
    """DEBUG is off, the secret generated, the admin on loopback, the clock UTC."""
    assert real.DEBUG is False
    assert len(real.SECRET_KEY) >= 50
    assert real.ARK_HTTP_BIND.startswith("127.0.0.1:")
    assert (real.TIME_ZONE, real.USE_TZ) == ("UTC", True)
    assert (real.ARK_HOME / "django-secret").stat().st_mode & 0o777 == 0o600


def test_deployment_checks_pass(tmp_path):
    """`manage.py check --deploy` finds nothing."""
    env = {"PATH": os.environ["PATH"], "ARK_HOME": str(tmp_path), "ARK_ENV_FILE": os.devnull}
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "python", ROOT / "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# Documents.


def test_limits_are_documented_as_they_are():
    """docs/protocol.md, section 8, names every limit with its default."""
    section = text_of("docs/protocol.md").partition("## 8. ")[2].partition("## 9. ")[0]
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|", section, re.MULTILINE))
    assert documented == {field.name.upper(): str(field.default).removesuffix(".0") for field in dataclasses.fields(Limits)}


def test_codes_are_documented():
    """docs/protocol.md names every outcome of a packet and every goodbye with its close code."""
    page = text_of("docs/protocol.md")
    for code in Code:
        assert f"`{code.value}`" in page, code
    for goodbye, close_code in CLOSE_CODES.items():
        assert f"| `{goodbye.value}` | {close_code} |" in page, goodbye


def test_documented_commands_and_options_exist():
    """Every `manage.py` command of the table in docs/architecture.md exists and takes `--json`; every command is in the table."""
    table = text_of("docs/architecture.md")
    documented = set(re.findall(r"`manage\.py ([a-z]+)", table))
    ours = {name for name, app in get_commands().items() if app in {"arklattice", "federation", "peers", "keys"}}
    assert documented == ours
    for name in ours:
        command = load_command_class(get_commands()[name], name)
        options = {option for action in command.create_parser("manage.py", name)._actions for option in action.option_strings}
        assert "--json" in options, name
        assert command.help, name


@pytest.mark.parametrize("page", ["README.md", "docs/operators.md", "docs/architecture.md", "docs/protocol.md", "CHANGELOG.md"])
def test_links_between_pages_lead_somewhere(page):
    """Every relative link of a page names a file or folder that exists."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/operators.md"])
def test_pages_name_commands_that_exist(page):
    """Every `ark-lattice NOUN VERB` a page tells people to type exists."""
    typed = set(re.findall(r"ark-lattice ([a-z]+) ([a-z-]+)", text_of(page)))
    assert typed
    assert {(noun, verb) for noun, verb in typed if verb not in NOUNS.get(noun, {})} == set()


def test_vectors_named_by_the_protocol_exist():
    """Each file of vectors is named by the section it belongs to, and each name is a file."""
    named = set(re.findall(r"`(\w+\.json)`", text_of("docs/protocol.md")))
    assert named == {path.name for path in (ROOT / "docs" / "vectors").glob("*.json")}


def test_licence_is_apache_2():
    """LICENSE is the unchanged text of the Apache License 2.0."""
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
