"""Settings of the test run: the project's own, in a throwaway ARK_HOME.

pytest-django loads the settings before any conftest is imported, so this is the one place early
enough to keep a developer's node, `.env` and exported settings out of the tests.
"""

import atexit
import os
import shutil
import tempfile

for name in list(os.environ):
    if name.startswith("ARK_") or name in {"SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "LOG_LEVEL", "LOG_FORMAT", "REDIS_URL"}:
        del os.environ[name]
os.environ["ARK_HOME"] = tempfile.mkdtemp(prefix="ark-tests-")
os.environ["ARK_ENV_FILE"] = os.devnull
atexit.register(shutil.rmtree, os.environ["ARK_HOME"], ignore_errors=True)

from arklattice.settings import *  # noqa: E402, F403

# Hashing a password the slow way in every test that logs in proves nothing.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
