"""Tell the truth about this node, whether it runs or not."""

from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from federation import state
from federation.claims import links_up
from federation.conf import CLOCK_WARNING_MS
from federation.lock import runner_note, runner_pid
from federation.models import KnowledgePacket, PeerCounter
from keys.command import ArkCommand, Exit
from keys.folder import KeyFileError
from keys.services import load_identity
from peers.models import Peer


class Command(ArkCommand):
    help = "Show whether the node runs, its links, and its counters since the first start."
    failures = {KeyFileError: Exit.FAILED}

    def run(self, **options: Any) -> dict[str, Any]:
        identity = load_identity()
        pid = runner_pid()
        now = datetime.now(UTC)
        row = state.node_state()
        names = {peer.node_id: str(peer) for peer in Peer.objects.all()}
        links = [
            {
                "peer": claim.peer,
                "name": names.get(claim.peer),
                "address": claim.address,
                "since": int(claim.since.timestamp() * 1000),
                **claim.state,
            }
            for claim in links_up(now)
        ]
        document = {
            "node_id": identity.node_id.hex(),
            "name": settings.ARK_NODE_NAME,
            "running": pid is not None,
            "pid": pid,
            "started_at": int(row.started_at.timestamp() * 1000) if pid and row and row.started_at else None,
            "auto_sync": state.auto_sync(),
            "links": links,
            "packets": KnowledgePacket.objects.count(),
            "counters": _counters(),
            "acceptance_stopped": runner_note() or None,
            "detail": row.detail if pid and row else {},
        }
        self._tell(document, names)
        return document

    def _tell(self, document: dict[str, Any], names: dict[str, str]) -> None:
        running = f"running (pid {document['pid']})" if document["running"] else "not running"
        counted = f"{document['packets']} packets, {len(document['links'])} links"
        self.say(f"{document['name']} {document['node_id'][:8]}: {running}, {counted}")
        if document["acceptance_stopped"]:
            self.say(f"  packets are declined: {document['acceptance_stopped']}")
        for link in document["links"]:
            behind = link.get("behind", 0) + link.get("missing", 0)
            line = f"  {link['name']} {link['peer'][:8]} at {link['address']}: {link.get('direction', 'new')}, {behind} behind"
            offset_ms = link.get("clock_offset_ms") or 0
            self.say(line if abs(offset_ms) < CLOCK_WARNING_MS else f"{line}; its clock is {offset_ms / 1000:+.0f} s off ours")
        for peer, counts in document["counters"].items():
            shown = ", ".join(f"{name} {count}" for name, count in counts.items() if name != "since")
            self.say(f"  counted with {names.get(peer, peer[:8])}: {shown}")


def _counters() -> dict[str, dict[str, int]]:
    counters: dict[str, dict[str, int]] = {}
    for row in PeerCounter.objects.all():
        counts = counters.setdefault(row.peer, {"since": int(row.since.timestamp() * 1000)})
        counts[row.name] = row.count
        counts["since"] = min(counts["since"], int(row.since.timestamp() * 1000))
    return counters
