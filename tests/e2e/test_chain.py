"""A - B - C: knowledge travels through a common friend, to those who hold the author's key."""

import pytest

from tests.harness import introduce, stays, together, wait_for


@pytest.fixture
def chain(nodes):
    """Ada - Bob - Cyd in a row, each link CORE both ways; Ada and Cyd do not know each other yet."""
    ada, bob, cyd = together(lambda: nodes("ada"), lambda: nodes("bob"), lambda: nodes("cyd"))
    introduce(ada, bob)
    introduce(bob, cyd)
    return ada, bob, cyd


def start_all(ada, bob, cyd):
    together(ada.start, bob.start, cyd.start)
    wait_for(lambda: bob.linked_with() == {ada.node_id, cyd.node_id}, 10, "Bob is linked with both")


def test_packet_reaches_the_far_end_through_the_middle(chain):
    """Ada's packet reaches Cyd through Bob byte for byte, does not come back to Ada, and `why` tells it on each node."""
    ada, bob, cyd = chain
    # Keys exchanged, no addresses: the two cannot dial each other.
    introduce(ada, cyd, url_of_a=False, url_of_b=False)
    start_all(ada, bob, cyd)
    live = ada.publish("through Bob")
    wait_for(lambda: cyd.holds(live), 5, "it reaches Cyd")
    assert cyd.body(live) == bob.body(live) == ada.body(live)
    assert bob.receipt(live) == (ada.node_id, "accept-core-own")
    assert cyd.receipt(live) == (bob.node_id, "accept-core-core")
    assert ada.linked_with() == cyd.linked_with() == {bob.node_id}

    stays(lambda: ada.counter("received") + ada.counter("duplicate") == 0, 1, "nothing comes back to Ada")
    assert ada.receipt(live)[0] == ""

    said = [node.ask("why", live) for node in chain]
    assert "accept-core-own" in str(said[1])
    assert "accept-core-core" in str(said[2])
    assert bob.node_id in str(said[2])
    assert "send-core-core" in str(bob.ask("why", live, "--peer", "cyd"))


def test_catch_up_goes_through_the_middle_too(chain):
    """Published while Cyd was down, Ada's packet reaches it at its start from Bob alone."""
    ada, bob, cyd = chain
    introduce(ada, cyd, url_of_a=False, url_of_b=False)
    together(ada.start, bob.start)
    packet_id = ada.publish("while Cyd was away")
    wait_for(lambda: bob.holds(packet_id), 5, "Bob has it")
    ada.stop()
    cyd.start()
    wait_for(lambda: cyd.holds(packet_id), 5, "Cyd has it, with Ada down")
    assert cyd.body(packet_id) == bob.body(packet_id)


def test_without_the_authors_key_it_is_declined(chain):
    """Cyd without Ada's key declines her packet as unknown-origin, `why` says so; the key imported, it arrives by itself."""
    ada, bob, cyd = chain
    start_all(ada, bob, cyd)
    packet_id = ada.publish("who is this from?")
    wait_for(lambda: bob.holds(packet_id), 5, "Bob has it")
    wait_for(lambda: cyd.refusal(packet_id) == "unknown-origin", 5, "Cyd declines it")
    stays(lambda: not cyd.holds(packet_id), 0.5)
    assert "unknown-origin" in str(cyd.ask("why", packet_id))
    assert cyd.manage("why", packet_id).stdout.count("unknown-origin") >= 1

    cyd.manage("importkey", "ada", ada.public_key, "--tier", "core")
    wait_for(lambda: cyd.holds(packet_id), 5, "with the key it arrives")
    assert cyd.body(packet_id) == ada.body(packet_id)


def test_sandbox_origins_stay_where_they_are(chain):
    """A packet of Bob's SANDBOX peer stays on Bob; `why --peer` names the rule."""
    ada, bob, cyd = chain
    introduce(ada, cyd, url_of_a=False, url_of_b=False)
    bob.manage("trusttier", "ada", "sandbox", "--reason", "probation")
    start_all(ada, bob, cyd)
    packet_id = ada.publish("on probation")
    wait_for(lambda: bob.holds(packet_id), 5, "Bob has it")
    assert bob.receipt(packet_id) == (ada.node_id, "accept-sandbox-own")
    stays(lambda: not cyd.holds(packet_id), 1.5, "it stays on Bob")
    assert "send-core-sandbox" in str(bob.ask("why", packet_id, "--peer", "cyd"))
