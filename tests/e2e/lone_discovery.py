"""Run nothing but Discovery, and print what it hears as NDJSON: for tests across processes and networks.

    python lone_discovery.py NUMBER [--port P] [--interfaces A,B] [--interval S] [--seconds S]

The node's key is the one of seed NUMBER. Each line has `event` (started, heard, departed, stale) and `at`,
wall-clock seconds. Ends after S seconds, or at SIGTERM, with a goodbye.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"

import django

django.setup()

from federation.discovery import Discovery, DiscoverySettings, Event  # noqa: E402
from federation.neighbours import Heard  # noqa: E402
from federation.protocol.beacon import Announcer, Profile  # noqa: E402
from federation.protocol.limits import Limits  # noqa: E402
from federation.protocol.sightings import Departed, Sighting, UnfamiliarKey  # noqa: E402
from keys.ed25519 import keypair_from_seed  # noqa: E402
from keys.encoding import node_id_of  # noqa: E402


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)


def on_sighting(sighting: Sighting) -> None:
    if not isinstance(sighting, UnfamiliarKey):
        say("heard", node_id=sighting.beacon.peer_id.hex(), url=sighting.url)


def on_event(event: Event) -> None:
    if not isinstance(event, Heard):
        say("departed" if isinstance(event, Departed) else "stale", node_id=event.node_id.hex())


async def run(options: argparse.Namespace) -> None:
    pair = keypair_from_seed(options.number.to_bytes(32, "big"))
    profile = Profile(
        node_id=node_id_of(pair.public),
        name=f"node {options.number}",
        port=8102,
        sync_port=8104 + options.number,
        network="arklattice",
        version="1",
    )
    discovery = Discovery(
        settings=DiscoverySettings(
            network="arklattice",
            limits=Limits(),
            port=options.port,
            interval_s=options.interval,
            interfaces=tuple(filter(None, options.interfaces.split(","))),
        ),
        announcer=Announcer(pair=pair, profile=profile),
        on_event=on_event,
        on_sighting=on_sighting,
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await discovery.start()
    say("started", status=discovery.status())
    try:
        await asyncio.wait_for(ended.wait(), options.seconds)
    except TimeoutError:
        pass
    await discovery.stop()


parser = argparse.ArgumentParser()
parser.add_argument("number", type=int)
parser.add_argument("--port", type=int, default=8103)
parser.add_argument("--interfaces", default="")
parser.add_argument("--interval", type=float, default=60.0)
parser.add_argument("--seconds", type=float, default=60.0)
asyncio.run(run(parser.parse_args()))
