"""Placeholder replaced by the policy module."""

from enum import StrEnum


class Tier(StrEnum):
    CORE = "core"
    SANDBOX = "sandbox"
    EXTERNAL = "external"
    UNKNOWN = "unknown"
