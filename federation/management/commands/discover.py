"""Ask the networks around who is there."""

import asyncio
from argparse import ArgumentTypeError
from dataclasses import replace
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser

from federation.discovery import Discovery, DiscoverySettings, discovery_settings
from federation.protocol.sightings import Sighting
from keys.command import ArkCommand, Exit, fail
from keys.encoding import grouped
from keys.files import KeyFileError, NoIdentityError
from keys.services import load_identity
from peers.models import Peer
from peers.selectors import listed_peers
from peers.trust import Tier

# Somebody at a terminal wants to see all there are, also on one machine; what they cost here is gone in seconds.
MAX_LISTED = 4_096
MAX_LISTED_PER_ADDRESS = 256
MAX_SECONDS = 3_600.0


def seconds(text: str) -> float:
    """Return a waiting time for argparse: more than 0, at most an hour."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most {MAX_SECONDS:g}")
    return value


class Command(ArkCommand):
    help = "Send a probe to every network around and list the nodes that answer, with fingerprint and tier. Registers nothing."
    failures = {ImproperlyConfigured: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seconds", type=seconds, default=3.0, metavar="S", help="how long to wait for answers (default 3)")

    def run(self, **options: Any) -> list[dict[str, Any]]:
        settings = discovery_settings()
        # Before anything is sent: a database that cannot be used is said at once, not after the wait.
        registered = {peer.node_id: peer for peer in listed_peers()}
        sightings = asyncio.run(listen(settings, options["seconds"]))
        answers = rows(sightings, registered, own_node_id())
        for row in answers:
            self.say(f"{row['declared_name']}  {row['tier'].upper()}{'  blocked' if row['blocked'] else ''}{note(row)}")
            self.say(f"    node id      {row['node_id']}")
            self.say(f"    fingerprint  {grouped(bytes.fromhex(row['fingerprint']))}")
            self.say(f"    address      {', '.join(row['addresses'])}")
        if not answers:
            self.say(
                f"nobody answered within {options['seconds']:g} s; where multicast does not pass: addpeer URL or ARK_STATIC_PEERS"
            )
        return answers


def note(row: dict[str, Any]) -> str:
    if row["own"]:
        return "  (this node)"
    if row["key_status"] == "other":
        return "  (NOT the key held for this node: compare fingerprints)"
    return f"  (known here as {row['name']})" if row["name"] else ""


async def listen(settings: DiscoverySettings, seconds: float) -> list[Sighting]:
    """Return every beacon heard within `seconds` after a probe, in order.

    Works beside a running node, which shares the port, and without a key: the probe is unsigned and the
    onlooker is nobody.

    Raises:
        CommandError: Exit status 3 when the port is taken, 1 when there is no network to ask.
    """
    limits = replace(settings.limits, unknown_peers=MAX_LISTED, unknown_peers_per_address=MAX_LISTED_PER_ADDRESS)
    heard: list[Sighting] = []
    discovery = Discovery(settings=replace(settings, limits=limits), announcer=None, on_sighting=heard.append)
    await discovery.start()
    try:
        problem = discovery.status()["problem"]
        if problem:
            raise fail(problem, Exit.PORT_TAKEN if "cannot be bound" in problem else Exit.FAILED)
        await asyncio.sleep(seconds)
    finally:
        await discovery.stop()
    return heard


def rows(sightings: list[Sighting], registered: dict[str, Peer], own: str | None) -> list[dict[str, Any]]:
    """Return one row for each node and key heard, in the order first heard; the newest beacon's words, all addresses."""
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for sighting in sightings:
        beacon = sighting.beacon
        node_id, fingerprint = beacon.peer_id.hex(), beacon.key_fingerprint.hex()
        former = answers.get((node_id, fingerprint))
        addresses = former["addresses"] if former else []
        peer = registered.get(node_id)
        answers[node_id, fingerprint] = {
            "node_id": node_id,
            "name": peer.name if peer else None,
            "declared_name": beacon.peer_name,
            "tier": peer.tier if peer else Tier.UNKNOWN.value,
            "blocked": bool(peer and peer.blocked),
            "fingerprint": fingerprint,
            "key_status": key_status(peer, fingerprint),
            "addresses": addresses if sighting.url in addresses else [*addresses, sighting.url],
            "capabilities": list(beacon.capabilities),
            "version": beacon.version,
            "declared_tier": beacon.trust_tier,
            "own": node_id == own,
        }
    return list(answers.values())


def key_status(peer: Peer | None, fingerprint: str) -> str | None:
    """Return what the registry makes of this key; `other` when it holds another one for the node, None when none."""
    if peer is None:
        return None
    held = {key.public_key.fingerprint: key.status for key in peer.keys.all()}
    return held.get(fingerprint, "other" if held else None)


def own_node_id() -> str | None:
    """Return our node_id, or None without a usable key: asking who is there needs none."""
    try:
        return load_identity().node_id.hex()
    except (NoIdentityError, KeyFileError):
        return None
