"""A hundred thousand lines, and a receiver that dies in the middle of them."""

import json

from tests.harness import together, wait_for

LINES = 100_000
# Shown to be the middle: neither the first batches nor the last ones.
MIDDLE = (LINES // 10, LINES * 9 // 10)


def test_a_hundred_thousand_lines_survive_sigkill_in_the_middle(pair):
    """100,000 NDJSON lines arrive complete though the receiver is killed half way; no row is doubled."""
    ada, bob = pair
    lines = "\n".join(json.dumps({"number": number, "text": f"line {number}"}) for number in range(LINES))
    done = ada.manage("publish", "-", "--ndjson", stdin=lines, timeout=300)
    assert ada.count() == LINES, done.stderr[-500:]
    together(ada.start, bob.start)
    wait_for(lambda: bob.count() >= LINES // 4, 120, "a quarter arrives")
    bob.kill()
    held = bob.count()
    assert MIDDLE[0] <= held <= MIDDLE[1]
    bob.start()
    wait_for(lambda: bob.count() == LINES, 240, "all arrive", interval=0.2)
    wait_for(lambda: ada.counter("sent") > 0, 5)
    assert bob.rows("SELECT count(*), count(DISTINCT packet_id) FROM federation_knowledgepacket") == [(LINES, LINES)]
    digest = "SELECT packet_id, body, signature, timestamp FROM federation_knowledgepacket ORDER BY packet_id"
    assert bob.rows(digest) == ada.rows(digest)
    assert bob.rows("PRAGMA integrity_check") == [("ok",)]
    assert (ada.stop(), bob.stop()) < (3, 3)
