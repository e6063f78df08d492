from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandParser

from arklattice.passwords import make_admin
from keys.command import ArkCommand, Exit, fail
from keys.ed25519 import KeysError
from keys.encoding import grouped
from keys.files import NoIdentityError
from keys.models import SigningKey
from keys.services import GeneratedKey, generate_keypair, load_identity, register_identity


class Command(ArkCommand):
    help = "Prepare what a node needs before it runs: database, key and administrator, each only when it is missing."
    failures = {KeysError: Exit.FAILED}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--admin", default="admin", help="name of the administrator to make when there is none (%(default)s)")

    def run(self, *, admin: str, **options: Any) -> dict[str, Any]:
        settings.ARK_HOME.mkdir(parents=True, exist_ok=True, mode=0o700)
        call_command("migrate", verbosity=0, interactive=False)
        made = self.make_missing_key()
        password = make_admin(admin)
        if password is not None:
            self.say(f"Made the administrator {admin!r} for http://{settings.ARK_HTTP_BIND}/admin/")
            self.say(f"  one-time password  {password}")
            self.say("  It is shown this once, and has to be replaced at the first login.")
            self.say(f"  If it gets lost: .venv/bin/python manage.py changepassword {admin}")
        identity = load_identity()
        return {
            "node_id": identity.node_id.hex(),
            "fingerprint": identity.pair.fingerprint.hex(),
            "key_made": made is not None,
            "admin": admin if password is not None else None,
            "password": password,
        }

    def make_missing_key(self) -> GeneratedKey | None:
        """Make the key of a node that never had one; a key that was here and is gone or damaged stops everything."""
        try:
            register_identity(load_identity())
        except NoIdentityError:
            lost = SigningKey.objects.filter(status=SigningKey.Status.ACTIVE).first()
            if lost is not None:
                raise fail(
                    f"the key of this node ({lost.name!r}, node {lost.node_id}) is missing from {settings.ARK_KEYS_DIR}: "
                    "put it back from a backup, or make a new identity with manage.py keygen"
                ) from None
        else:
            return None
        made = generate_keypair()
        self.say(f"Made this node's key in {settings.ARK_KEYS_DIR}")
        self.say(f"  node id      {made.identity.node_id.hex()}")
        self.say(f"  fingerprint  {grouped(made.identity.pair.fingerprint)}")
        self.say(f"  next key     {made.next_key.name}: move it offline, it alone can replace a lost or stolen key")
        return made
