"""Manage.py peers: everybody this node knows."""

from typing import Any

from django.utils import timezone

from federation.management.peer_command import PeerCommand, live_peers
from keys.encoding import grouped
from peers.models import Peer
from peers.selectors import current_key, listed_peers, peer_row

MAX_SHOWN_ADDRESSES = 2


class Command(PeerCommand):
    help = "List the peers this node knows, with tier, state and the fingerprint to compare."

    def run(self, **options: Any) -> list[dict[str, Any]]:
        peers = list(listed_peers())
        live = live_peers()
        now = timezone.now()
        if not peers:
            self.say("no peers yet: run discover, addpeer URL, or importkey PEER KEY")
        rows = [peer_row(peer, live=live, now=now) for peer in peers]
        for peer, row in zip(peers, rows, strict=True):
            self._show(peer, row["state"], row["addresses"])
        return rows

    def _show(self, peer: Peer, state: str, addresses: list[str]) -> None:
        called = f' calls itself "{peer.declared_name}"' if peer.declared_name and peer.declared_name != peer.name else ""
        blocked = " BLOCKED" if peer.blocked else ""
        self.say(f"{peer.name or '(unnamed)'}  {peer.node_id}  {peer.tier.upper()}{blocked}  {state}{called}")
        key = current_key(peer)
        if key is not None:
            self.say(f"    {grouped(bytes.fromhex(key.public_key.fingerprint))}  {key.status}")
        if addresses:
            more = f" and {len(addresses) - MAX_SHOWN_ADDRESSES} more" if len(addresses) > MAX_SHOWN_ADDRESSES else ""
            self.say(f"    {', '.join(addresses[:MAX_SHOWN_ADDRESSES])}{more}")
        if peer.penalty_until is not None and peer.penalty_until > timezone.now():
            self.say(f"    under penalty until {peer.penalty_until:%Y-%m-%d %H:%M:%SZ}: {peer.penalty_reason}")
