from typing import Any

from keys.command import ArkCommand, Exit
from keys.ed25519 import InvalidSignatureError, KeysError
from keys.services import load_identity, prove_signing


class Command(ArkCommand):
    help = "Sign and verify with this node's own key; needs no database."
    failures = {InvalidSignatureError: Exit.UNVERIFIED, KeysError: Exit.FAILED}

    def run(self, **options: Any) -> dict[str, Any]:
        identity = load_identity()
        prove_signing(identity.pair)
        self.say(f"signed and verified with the key {identity.name!r} of node {identity.node_id.hex()}")
        return {
            "ok": True,
            "name": identity.name,
            "node_id": identity.node_id.hex(),
            "public_key": identity.pair.public.hex(),
            "fingerprint": identity.pair.fingerprint.hex(),
        }
