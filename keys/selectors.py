"""Reading the rows of own keys."""

from keys.models import SigningKey

__all__ = ["own_keys"]


def own_keys() -> list[dict[str, str]]:
    """Return every key this node had, the active one first, as `keygen` and `listkeys` print them: never a secret."""
    rows = SigningKey.objects.select_related("public_key").all()
    ordered = sorted(rows, key=lambda row: row.status != SigningKey.Status.ACTIVE)
    return [
        {
            "name": row.name,
            "node_id": row.node_id,
            "public_key": row.public_key.public_key,
            "fingerprint": row.public_key.fingerprint,
            "status": row.status,
        }
        for row in ordered
    ]
