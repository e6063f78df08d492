"""Meet the node at a URL and register it as UNKNOWN."""

import asyncio
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.core.management.base import CommandParser
from django.db import transaction
from django.utils import timezone

from federation.conf import own_manifest
from federation.contact import meet
from federation.dialer import DialError
from federation.node import declared_of, record_of
from federation.protocol.handshake import Local
from federation.protocol.manifest import SignedManifest
from keys.command import ArkCommand, Exit
from keys.ed25519 import sign
from keys.encoding import grouped
from keys.folder import KeyFileError
from keys.services import load_identity, register_identity
from peers.addresses import parse_url
from peers.encounters import note_contact
from peers.errors import AddressError, PeerNameError
from peers.models import Peer
from peers.selectors import peer_row
from peers.services import check_peer_name, rename_peer
from peers.trust import Tier


class Command(ArkCommand):
    help = "Shake hands with the node at a URL (ws:// or wss://), register it as UNKNOWN, and print its fingerprint to compare."
    failures = {DialError: Exit.FAILED, KeyFileError: Exit.FAILED, AddressError: Exit.USAGE, PeerNameError: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", metavar="URL", help="for example ws://192.168.1.20:8104")
        parser.add_argument("--name", help="what you call this peer here")

    def run(self, *, url: str, name: str | None, **options: Any) -> dict[str, Any]:
        identity = load_identity()
        register_identity(identity)
        url = parse_url(url)
        if name is not None:
            name = check_peer_name(name)
        manifest = own_manifest(identity, issued_at=time.time_ns() // 1_000_000)
        local = Local(
            node_id=identity.node_id,
            manifest=manifest,
            sign=lambda message: sign(identity.pair, message),
            network=manifest.manifest.network,
        )
        signed = asyncio.run(meet(url, local, is_stranger=sync_to_async(_is_stranger)))
        with transaction.atomic():
            contact = note_contact(
                node_id=signed.node_id,
                chain=signed.chain.keys,
                declared=declared_of(signed),
                manifest=record_of(signed),
                now=timezone.now(),
                dialled=url,
                found_by=Peer.FoundBy.OPERATOR,
            )
            peer = contact.peer
            if peer is None:
                raise DialError("the peer could not be registered")
            if name is not None:
                peer = rename_peer(peer=peer, name=name)
        self.say(
            f"{'met' if contact.met else 'already knew'} {peer.declared_name!r} (what it calls itself), tier {peer.tier.upper()}"
        )
        self.say(f"node id      {peer.node_id}")
        self.say(f"fingerprint  {grouped(signed.key_fingerprint)}")
        if peer.tier == Tier.UNKNOWN.value:
            self.say("Compare the fingerprint with its operator, then: manage.py importkey PEER KEY --tier core")
        return peer_row(peer)


def _is_stranger(signed: SignedManifest) -> bool:
    peer = Peer.objects.filter(node_id=signed.node_id.hex()).first()
    return peer is None or (peer.tier == Tier.UNKNOWN.value and not peer.blocked)
