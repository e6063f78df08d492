from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from keys.command import ArkCommand, Exit
from keys.contact import contact_card, own_addresses, qr_code
from keys.ed25519 import KeysError
from keys.encoding import EncodingError
from keys.services import load_identity


class Command(ArkCommand):
    help = "Print this node's public key, 64 hex digits and nothing else; with --card its contact card as text and QR code."
    failures = {KeysError: Exit.FAILED, EncodingError: Exit.FAILED}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--card", action="store_true", help="key, node id, name and addresses in one text that importkey accepts"
        )

    def run(self, *, card: bool, **options: Any) -> dict[str, str]:
        identity = load_identity()
        answer = {
            "name": identity.name,
            "node_id": identity.node_id.hex(),
            "public_key": identity.pair.public.hex(),
            "fingerprint": identity.pair.fingerprint.hex(),
        }
        if not card:
            self.say(answer["public_key"])
            return answer
        addresses = own_addresses(settings.ARK_ADVERTISE, settings.ARK_SYNC_BIND)
        answer["card"] = contact_card(identity, name=settings.ARK_NODE_NAME, addresses=addresses).encode()
        self.say(answer["card"])
        self.say()
        self.say(qr_code(answer["card"]))
        return answer
