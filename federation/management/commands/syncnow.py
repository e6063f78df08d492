"""Reconcile with a peer now."""

from typing import Any

from django.core.management.base import CommandParser

from federation import requests
from federation.lock import runner_pid
from keys.command import ArkCommand, Exit, fail
from peers.errors import AmbiguousPeerError, UnknownPeerError
from peers.selectors import resolve_peer


class Command(ArkCommand):
    help = "Compare sets with a peer now and fetch what is missing, dialling it first if there is no link."
    failures = {UnknownPeerError: Exit.NOT_FOUND, AmbiguousPeerError: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("peer", metavar="PEER", help="name given here, node_id, or an unambiguous prefix of it")

    def run(self, *, peer: str, **options: Any) -> dict[str, Any]:
        row = resolve_peer(peer)
        if runner_pid() is None:
            raise fail("the node is not running: start it with manage.py runfederation")
        number = requests.ask(kind=requests.SYNC, argument={"peer": row.node_id})
        answer = requests.wait(pk=number, timeout_s=requests.PATIENCE_S + 15)
        if answer is None:
            raise fail("the node did not answer in time")
        if not answer["linked"]:
            raise fail(f"no link with {row}: {answer.get('problem', 'it ended')}")
        state = "in step" if answer["settled"] else "still receiving"
        self.say(f"{row}: {answer['received']} packets received, {state}")
        return {"peer": row.node_id, **answer}
