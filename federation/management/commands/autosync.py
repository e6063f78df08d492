"""Let the node dial CORE and SANDBOX peers by itself, or not."""

from typing import Any

from django.core.management.base import CommandParser

from federation import state
from keys.command import ArkCommand


class Command(ArkCommand):
    help = "Start or stop dialling CORE and SANDBOX peers by itself (on unless stopped); takes effect at once and stays."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["start", "stop", "status"])

    def run(self, *, action: str, **options: Any) -> dict[str, bool]:
        if action != "status":
            state.set_auto_sync(action == "start")
        on = state.auto_sync()
        self.say(f"auto-sync is {'on' if on else 'off'}")
        return {"auto_sync": on}
