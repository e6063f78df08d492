"""Settings of one node, read from the environment and from `.env` beside manage.py.

Every setting a person may change is documented in `.env.example`. What only the
federation uses is read lazily through `federation.conf`.
"""

import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import environ
from django.core.exceptions import ImproperlyConfigured

from arklattice.logs import logging_settings

BASE_DIR = Path(__file__).resolve().parent.parent

Number = TypeVar("Number", int, float)

env = environ.Env()
environ.Env.read_env(os.environ.get("ARK_ENV_FILE", BASE_DIR / ".env"))

ARK_HOME = Path(env("ARK_HOME", default=str(BASE_DIR / "var"))).expanduser().resolve()


def generated_secret(path: Path) -> str:
    """Return the Django secret kept in `path`, made (mode 0600, never overwritten) when missing.

    It appears whole or not at all: several commands may start at once in a new folder, or one may be killed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".django-secret-", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(50))
                file.flush()
                os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, path)
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ImproperlyConfigured(f"ARK_HOME cannot be used: {error.strerror}: {path}") from error


def number(kind: Callable[[str], Number], name: str, default: Number) -> Number:
    """Return a numeric setting."""
    text = env(name, default="")
    try:
        return kind(text) if text else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a number, not {text!r}") from None


SECRET_KEY = env("SECRET_KEY", default="") or generated_secret(ARK_HOME / "django-secret")
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

INSTALLED_APPS = [
    # Its app is there for `runserver`; it imports Twisted, half the start of every other command.
    *(["daphne"] if sys.argv[1:2] == ["runserver"] else []),
    "arklattice.apps.ArkLatticeConfig",
    "arklattice.apps.ArkAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "keys",
    "peers",
    "federation",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "arklattice.middleware.ContentSecurityPolicyMiddleware",
    "arklattice.middleware.StaticFilesMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "arklattice.middleware.PasswordChangeMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "arklattice.urls"
ASGI_APPLICATION = "arklattice.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{ARK_HOME / 'ark.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # synchronous=FULL: an acknowledged packet survives a power cut (docs/architecture.md).
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=20000;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
    {"NAME": "arklattice.passwords.OneTimePasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

# Served by WhiteNoise straight from the installed apps: nothing to collect, nothing that can be out of date.
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False

X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"

# HTTPS only: 8102 speaks plain HTTP on loopback, and TLS for others is a reverse proxy's, which redirects and sets HSTS itself.
SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008", "security.W012", "security.W016"]

LOG_LEVEL = env("LOG_LEVEL", default="INFO").upper()
LOG_FORMAT = env("LOG_FORMAT", default="text")
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
    raise ImproperlyConfigured(f"LOG_LEVEL must be DEBUG, INFO, WARNING, ERROR or CRITICAL, not {LOG_LEVEL!r}")
if LOG_FORMAT not in ("text", "json"):
    raise ImproperlyConfigured(f"LOG_FORMAT must be text or json, not {LOG_FORMAT!r}")
LOGGING = logging_settings(LOG_LEVEL, LOG_FORMAT)

# Module that stores packets; the registry of peers lives below it and must not import it.
ARK_PACKET_HOLDER = "federation.services"

ARK_KEYS_DIR = ARK_HOME / "keys"
ARK_NODE_NAME = env("ARK_NODE_NAME", default=socket.gethostname())
ARK_CAPABILITIES = env.list("ARK_CAPABILITIES", default=[])
ARK_DECLARED_TIER = env("ARK_DECLARED_TIER", default="unknown")
ARK_ADVERTISE = env.list("ARK_ADVERTISE", default=[])
ARK_NETWORK = env("ARK_NETWORK", default="arklattice")
ARK_HTTP_BIND = env("ARK_HTTP_BIND", default="127.0.0.1:8102")
# Browsers share cookies between the ports of a host: without a name of its own, logging in to one of
# several nodes on this machine would log out of the others.
SESSION_COOKIE_NAME = f"ark_session_{ARK_HTTP_BIND.rpartition(':')[2]}"
CSRF_COOKIE_NAME = f"ark_csrf_{ARK_HTTP_BIND.rpartition(':')[2]}"
ARK_SYNC_BIND = env("ARK_SYNC_BIND", default="0.0.0.0:8104")
ARK_DISCOVERY = env.bool("ARK_DISCOVERY", default=True)
ARK_DISCOVERY_GROUP = env("ARK_DISCOVERY_GROUP", default="239.255.0.1")
ARK_DISCOVERY_PORT = number(int, "ARK_DISCOVERY_PORT", 8103)
ARK_DISCOVERY_INTERVAL_S = number(float, "ARK_DISCOVERY_INTERVAL_S", 60.0)
ARK_DISCOVERY_INTERFACES = env.list("ARK_DISCOVERY_INTERFACES", default=[])
ARK_STATIC_PEERS = env.list("ARK_STATIC_PEERS", default=[])
REDIS_URL = env("REDIS_URL", default="")
ARK_LIMITS = {name.removeprefix("ARK_LIMIT_").lower(): value for name, value in os.environ.items() if name.startswith("ARK_LIMIT_")}
