"""Settings that cannot be meant: one clear line, wrong usage, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from arklattice.settings import generated_secret, number

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("name", "value"),
    [("ARK_DISCOVERY_PORT", "abc"), ("LOG_LEVEL", "loud"), ("DATABASE_URL", "nonsense://x"), ("ARK_HOME", "/proc/nowhere")],
)
def test_wrong_setting_is_one_line_and_wrong_usage(tmp_path, name, value):
    """Each is named on one line of standard error; no traceback, exit 2."""
    env = {"PATH": "/usr/bin:/bin", "ARK_HOME": str(tmp_path), "ARK_ENV_FILE": "/dev/null", name: value}
    done = subprocess.run([sys.executable, ROOT / "manage.py", "peers"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("wrong setting: ")


def test_number_names_the_setting(monkeypatch):
    """A number that is none is refused by name; an empty one is the default."""
    monkeypatch.setenv("ARK_TEST_NUMBER", "1e")
    with pytest.raises(ImproperlyConfigured, match="ARK_TEST_NUMBER must be a number, not '1e'"):
        number(float, "ARK_TEST_NUMBER", 1.0)
    monkeypatch.setenv("ARK_TEST_NUMBER", "")
    assert number(int, "ARK_TEST_NUMBER", 7) == 7


def test_secret_is_made_once_and_private(tmp_path):
    """The second call reads what the first one made; others cannot read it, and no half-written file stays."""
    path = tmp_path / "home" / "django-secret"
    secret = generated_secret(path)
    assert len(secret) >= 50
    assert generated_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["django-secret"]
