from typing import Any

from keys.command import ArkCommand, Exit
from keys.ed25519 import KeysError
from keys.encoding import grouped
from keys.files import NoIdentityError
from keys.selectors import own_keys
from keys.services import load_identity, register_identity


class Command(ArkCommand):
    help = "List this node's own keys, the active one first; never a secret."
    failures = {KeysError: Exit.FAILED}

    def run(self, **options: Any) -> list[dict[str, str]]:
        try:
            # The folder is the truth: after a lost database its rows are drawn anew here.
            register_identity(load_identity())
        except NoIdentityError as error:
            self.say(str(error))
        rows = own_keys()
        for row in rows:
            self.say(f"{row['name']}  {row['status']}  node {row['node_id']}")
            self.say(f"  public key   {row['public_key']}")
            self.say(f"  fingerprint  {grouped(bytes.fromhex(row['fingerprint']))}")
        return rows
