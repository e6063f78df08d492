"""A clock far ahead: its packets are declined `early`, and nothing else suffers."""

import subprocess
import sys

from tests.harness import MANAGE, stays, wait_for

PUBLISH_AHEAD = """
import sys, time
from federation.services import Draft, publish
from keys.services import load_identity
identity = load_identity()
ahead_ms = int(sys.argv[1]) * 1000
ids = publish(pair=identity.pair, node_id=identity.node_id, drafts=[Draft(content="from the future")],
              clock=lambda: time.time_ns() // 1_000_000 + ahead_ms)
print(ids[0].hex())
"""


def publish_ahead(node, seconds):
    """Publish on a node whose clock is this far ahead; return the packet id."""
    prelude = "import os, sys, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'arklattice.settings'; django.setup()"
    done = subprocess.run(
        [sys.executable, "-c", prelude + PUBLISH_AHEAD, str(seconds)],
        env=node.env | {"PYTHONPATH": str(MANAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_packet_from_the_future_is_declined_early(linked_pair):
    """Eleven minutes ahead is declined `early` with the reason; nine minutes ahead and the present go through."""
    ada, bob = linked_pair
    future, soon = publish_ahead(ada, 660), publish_ahead(ada, 540)
    present = ada.publish("now")
    wait_for(lambda: bob.holds(soon, present), 5, "what is within ten minutes arrives")
    wait_for(lambda: bob.refusal(future) == "early", 5, "the future is declined")
    stays(lambda: not bob.holds(future), 0.5)
    assert "ahead" in bob.manage("why", future).stdout
