from typing import Any

from django.core.management.base import CommandParser

from keys.command import ArkCommand, Exit
from keys.ed25519 import KeysError
from keys.encoding import grouped
from keys.files import KeyNameError
from keys.selectors import own_keys
from keys.services import DEFAULT_KEY_NAME, generate_keypair


class Command(ArkCommand):
    help = "Make this node's signing key, and the next one that will follow it."
    failures = {KeyNameError: Exit.USAGE, KeysError: Exit.FAILED}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", default=DEFAULT_KEY_NAME, help="name of the key files (default: %(default)s)")
        parser.add_argument(
            "--force",
            action="store_true",
            help="make a NEW identity though there is one; the old files are kept under a dated name",
        )

    def run(self, *, name: str, force: bool, **options: Any) -> dict[str, str]:
        made = generate_keypair(name, force=force)
        identity = made.identity
        if made.set_aside:
            # On standard error, so that it is seen under --json too.
            self.stderr.write(
                f"This is a NEW identity: peers that knew this node do not know it any more. In {made.next_key.parent} "
                f"the old files are now {', '.join(made.set_aside)}"
            )
        self.say(f"made the key {identity.name!r} of node {identity.node_id.hex()}")
        self.say(f"public key   {identity.pair.public.hex()}")
        self.say(f"fingerprint  {grouped(identity.pair.fingerprint)}")
        self.say(f"next key     {made.next_key}")
        self.say("             Move the next key offline now: it alone can replace this one when it is lost or stolen.")
        return next(row for row in own_keys() if row["public_key"] == identity.pair.public.hex())
