from typing import Any

from keys.command import ArkCommand, fail
from keys.selftest import run_checks


class Command(ArkCommand):
    help = "Check the cryptography on this machine: known answers and things that must be refused; needs no key and no database."

    def run(self, **options: Any) -> dict[str, Any]:
        checks = run_checks()
        broken = [check.name for check in checks if not check.held]
        if broken:
            raise fail(f"the cryptography on this machine cannot be trusted: {'; '.join(broken)}")
        self.say(f"{len(checks)} checks passed")
        return {"ok": True, "checks": [check.name for check in checks]}
