"""Two nodes that hold each other's keys as CORE: live, and after one was away."""

import time

from tests.harness import delay_ms, linked, stays, together, wait_for

LIVE_MS = 1_000
CATCH_UP_S = 3


def test_packet_is_on_the_other_within_a_second(linked_pair):
    """Published on either side by a command in another process, it is stored on the other within 1 s, byte for byte."""
    ada, bob = linked_pair
    for publisher, receiver in [(ada, bob), (bob, ada), (ada, bob)]:
        packet_id = publisher.publish(f"from {publisher.name} at {time.time_ns()}", "--title", "Ünïcödé ✓", "--tag", "live")
        wait_for(lambda p=packet_id, r=receiver: r.holds(p), 5, "it arrives")
        assert receiver.body(packet_id) == publisher.body(packet_id)
        assert delay_ms(packet_id, publisher, receiver) <= LIVE_MS
        assert receiver.receipt(packet_id) == (publisher.node_id, "accept-core-own")
    assert (ada.count(), bob.count()) == (3, 3)


def test_many_at_once_arrive_complete_and_in_one_second(linked_pair):
    """A burst of 1,000 lines published in one go is complete on the other side."""
    ada, bob = linked_pair
    packet_ids = ada.publish_lines("\n".join(f'{{"line": {number}}}' for number in range(1_000)))
    assert len(set(packet_ids)) == 1_000
    wait_for(lambda: bob.count() == 1_000, 20, "all arrive")
    last = packet_ids[-1]
    assert delay_ms(last, ada, bob) <= 2 * LIVE_MS
    assert all(bob.body(packet_id) == ada.body(packet_id) for packet_id in packet_ids[::97])


def test_published_while_the_other_was_down(linked_pair):
    """What was published while the other side was down is there within 3 s of its start, with nothing new published."""
    ada, bob = linked_pair
    bob.stop()
    packet_ids = [ada.publish(f"missed {number}") for number in range(3)]
    began = time.monotonic()
    bob.launch()
    wait_for(lambda: bob.holds(*packet_ids), 20, "the missed packets arrive")
    assert time.monotonic() - began <= CATCH_UP_S
    assert all(bob.body(packet_id) == ada.body(packet_id) for packet_id in packet_ids)


def test_both_published_while_neither_ran(pair):
    """Packets of both sides, published before either ever ran, cross as soon as both do."""
    ada, bob = pair
    of_ada, of_bob = together(lambda: ada.publish("from ada"), lambda: bob.publish("from bob"))
    together(ada.start, bob.start)
    wait_for(lambda: bob.holds(of_ada) and ada.holds(of_bob), 10, "both cross")


def test_private_packets_never_leave(pair):
    """A packet of audience private stays, live and at catch-up; its neighbours go."""
    ada, bob = pair
    before = ada.publish("private before", "--audience", "private")
    together(ada.start, bob.start)
    during = ada.publish("private during", "--audience", "private")
    public = ada.publish("public", "--audience", "public")
    wait_for(lambda: bob.holds(public), 5, "the public one arrives")
    stays(lambda: not bob.holds(before) and not bob.holds(during), 1, "no private packet arrives")
    why = ada.ask("why", before, "--peer", bob.name)
    assert "audience-private" in str(why)


def test_equal_packet_is_stored_once(linked_pair):
    """Publishing the very same lines again on the other side makes other packets: ids bind origin and time."""
    ada, bob = linked_pair
    first = ada.publish("the same words")
    second = bob.publish("the same words")
    assert first != second
    wait_for(lambda: ada.holds(second) and bob.holds(first), 5, "both arrive")
    for node in (ada, bob):
        assert node.rows("SELECT count(*), count(DISTINCT packet_id) FROM federation_knowledgepacket") == [(2, 2)]


def test_status_tells_the_truth(linked_pair):
    """`federationstatus` names link, counters and lag while running, keeps the counters when stopped, exit 0 either way."""
    ada, bob = linked_pair
    packet_id = ada.publish("counted")
    wait_for(lambda: bob.holds(packet_id), 5, "it arrives")
    wait_for(lambda: bob.counter("received") == 1 and ada.counter("sent") == 1, 5, "both counted it")
    status = bob.ask("federationstatus")
    assert status["running"] is True
    assert status["pid"] == bob.process.pid
    assert (status["node_id"], status["name"], status["packets"]) == (bob.node_id, "bob", 1)
    assert [link["peer"] for link in status["links"]] == [ada.node_id]
    assert status["counters"][ada.node_id]["received"] == 1
    peer = next(row for row in bob.ask("peers") if row["node_id"] == ada.node_id)
    assert (peer["tier"], peer["state"], peer["blocked"], peer["name"]) == ("core", "connected", False, "ada")
    ada.stop()
    wait_for(lambda: not bob.linked_with(), 3, "the link is gone at once")
    bob.stop()
    status = bob.ask("federationstatus")
    assert (status["running"], status["pid"], status["links"]) == (False, None, [])
    assert status["counters"][ada.node_id]["received"] == 1
    bob.start()
    assert bob.ask("federationstatus")["counters"][ada.node_id]["received"] == 1


def test_killed_node_is_not_said_to_run(pair):
    """After SIGKILL the status says that the node does not run, whatever its last words in the database were."""
    ada, _ = pair
    ada.start()
    ada.kill()
    status = ada.ask("federationstatus")
    assert (status["running"], status["links"]) == (False, [])


def test_added_by_address_then_trusted(nodes):
    """`addpeer URL` registers an UNKNOWN peer with its fingerprint; the key then makes it CORE; `syncnow` reconciles."""
    ada, bob = together(lambda: nodes("ada"), lambda: nodes("bob"))
    together(ada.start, bob.start)
    row = ada.ask("addpeer", bob.url, "--name", "Bob")
    assert (row["node_id"], row["tier"], row["name"]) == (bob.node_id, "unknown", "Bob")
    fingerprint = bob.ask("listkeys")[0]["fingerprint"]
    assert row["fingerprint"] == fingerprint
    packet_id = bob.publish("for friends")
    ada.manage("importkey", "Bob", bob.public_key, "--tier", "core")
    bob.manage("importkey", "Ada", ada.public_key, "--tier", "core")
    wait_for(lambda: linked(ada, bob), 10, "elevation dials at once")
    ada.manage("syncnow", "Bob")
    wait_for(lambda: ada.holds(packet_id), 3, "it arrives")


def test_auto_sync_off_means_no_dialling(pair):
    """With auto-sync stopped on both sides nobody dials; started again, the link comes by itself."""
    ada, bob = pair
    together(lambda: ada.manage("autosync", "stop"), lambda: bob.manage("autosync", "stop"))
    together(ada.start, bob.start)
    stays(lambda: not ada.linked_with() and not bob.linked_with(), 2, "nobody dials")
    ada.manage("autosync", "start")
    wait_for(lambda: linked(ada, bob), 5, "the link comes")
