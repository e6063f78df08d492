"""The keys folder alone carries the identity: a node that lost its database gets its own packets back."""

from tests.harness import wait_for


def test_own_packets_come_back_from_peers(linked_pair):
    """With keys and nothing else, a re-made node is the same node, and its peers hand its packets back."""
    ada, bob = linked_pair
    packet_ids = ada.publish_lines("\n".join(f'"thought {number}"' for number in range(300)))
    of_bob = bob.publish("Bob's own")
    wait_for(lambda: bob.count() == 301 and ada.holds(of_bob), 10, "both have all")
    bodies = {packet_id: ada.body(packet_id) for packet_id in packet_ids}
    node_id = ada.node_id
    ada.stop()
    for path in ada.home.glob("ark.sqlite3*"):
        path.unlink()

    ada.manage("migrate", "--verbosity", "0")
    assert ada.count() == 0
    assert ada.ask("listkeys")[0]["node_id"] == node_id
    ada.manage("importkey", "bob", bob.public_key, "--tier", "core", "--url", bob.url)
    ada.start()
    wait_for(lambda: ada.count() == 301, 10, "everything is back")
    assert {packet_id: ada.body(packet_id) for packet_id in packet_ids} == bodies
    assert ada.receipt(packet_ids[0]) == (bob.node_id, "accept-core-ours")
