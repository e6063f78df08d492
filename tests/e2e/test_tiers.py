"""The tables of docs/protocol.md, section 3, between two live nodes, and changes while they are linked."""

import itertools
import time

import pytest

from tests.harness import delay_ms, linked, stays, together, wait_for

TIERS = ["core", "sandbox", "external", "unknown"]
AT_ONCE_S = 1


def flows(sender_files_receiver, receiver_files_sender):
    """What the two tables allow: the sender sends to CORE only, the receiver accepts from CORE and SANDBOX."""
    return sender_files_receiver == "core" and receiver_files_sender in {"core", "sandbox"}


def links(tier_ab, tier_ba):
    """Whether a link stands: never with an UNKNOWN peer; None where it may stay but nobody dials it, EXTERNAL both ways."""
    if "unknown" in {tier_ab, tier_ba}:
        return False
    return None if {tier_ab, tier_ba} == {"external"} else True


def decide(node, peer, tier):
    """File `peer` under `tier` and return the moment (monotonic, s) when that was decided."""
    node.manage("trusttier", peer.name, tier, "--packets", "keep")
    return time.monotonic()


def test_every_pair_of_tiers_behaves_as_the_tables_say(linked_pair):
    """For all 4 x 4 pairs: the link stands or not, and a fresh packet of each side crosses or not, as the tables say."""
    ada, bob = linked_pair
    for tier_ab, tier_ba in itertools.product(TIERS, TIERS):
        where = f"Ada files Bob as {tier_ab}, Bob files Ada as {tier_ba}"
        together(lambda t=tier_ab: decide(ada, bob, t), lambda t=tier_ba: decide(bob, ada, t))
        expected = links(tier_ab, tier_ba)
        if expected:
            wait_for(lambda: linked(ada, bob), 8, f"linked: {where}")
        elif expected is False:
            wait_for(lambda: not ada.linked_with() and not bob.linked_with(), 3, f"not linked: {where}")
        of_ada, of_bob = together(lambda w=where: ada.publish(w), lambda w=where: bob.publish(w))
        to_bob, to_ada = flows(tier_ab, tier_ba), flows(tier_ba, tier_ab)
        wait_for(lambda p=of_ada, q=of_bob, b=to_bob, a=to_ada: bob.holds(p) >= b and ada.holds(q) >= a, 5, f"arrives: {where}")
        if not (to_bob and to_ada):
            stays(
                lambda p=of_ada, q=of_bob, b=to_bob, a=to_ada: bob.holds(p) == b and ada.holds(q) == a, 0.7, f"only that: {where}"
            )


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_demotion_acts_within_a_second(linked_pair, who):
    """From the moment either side demotes the other nothing more crosses; elevated again, what was held back arrives."""
    ada, bob = linked_pair
    before = ada.publish("before")
    wait_for(lambda: bob.holds(before), 5)
    demoting, demoted = (ada, bob) if who == "sender" else (bob, ada)
    demoted_at = decide(demoting, demoted, "external")
    time.sleep(max(0.0, demoted_at + AT_ONCE_S - time.monotonic()))
    during = ada.publish("during")
    stays(lambda: not bob.holds(during), 1.5, "nothing crosses")
    back = decide(demoting, demoted, "core")
    wait_for(lambda: bob.holds(during), 5, "what was held back arrives")
    assert time.monotonic() - back <= 3
    after = ada.publish("after")
    wait_for(lambda: bob.holds(after), 5)
    assert delay_ms(after, ada, bob) <= 1_000


def test_sandbox_to_core_while_linked_opens_the_other_direction(linked_pair):
    """Filing a SANDBOX peer as CORE sends it our packets within 1 s on the same link, no reconnect needed."""
    ada, bob = linked_pair
    decide(ada, bob, "sandbox")
    kept = ada.publish("not for SANDBOX")
    stays(lambda: not bob.holds(kept), 1.5, "nothing is sent to SANDBOX")
    decided = decide(ada, bob, "core")
    wait_for(lambda: bob.holds(kept), 5, "it arrives")
    assert time.monotonic() - decided <= AT_ONCE_S + 0.2


@pytest.mark.parametrize("blocker", ["ada", "bob"])
def test_blocking_ends_the_link(linked_pair, blocker):
    """Blocking ends the link within 1 s on both sides and keeps it down; lifting it brings the peer back."""
    ada, bob = linked_pair
    one, other = (ada, bob) if blocker == "ada" else (bob, ada)
    one.manage("blockpeer", other.name)
    wait_for(lambda: not ada.linked_with() and not bob.linked_with(), AT_ONCE_S, "the link ends")
    packet_id = other.publish("let me in")
    stays(lambda: not one.holds(packet_id) and not one.linked_with(), 2, "it stays down")
    one.manage("blockpeer", other.name, "--undo")
    other.manage("syncnow", one.name)
    wait_for(lambda: one.holds(packet_id), 5, "it comes back")


def test_removed_peer_is_a_stranger_again(linked_pair):
    """Removing a peer ends the link; what it handed over stays, nothing new comes."""
    ada, bob = linked_pair
    before = bob.publish("before")
    wait_for(lambda: ada.holds(before), 5)
    ada.manage("removepeer", "bob")
    wait_for(lambda: not ada.linked_with(), AT_ONCE_S, "the link ends")
    after = bob.publish("after")
    stays(lambda: not ada.holds(after), 2, "nothing new comes")
    assert ada.holds(before)


@pytest.mark.parametrize(("choice", "held", "hidden"), [("keep", 2, 0), ("hide", 2, 2), ("purge", 0, 0)])
def test_demotion_decides_about_the_packets(linked_pair, choice, held, hidden):
    """On demotion the packets that came from the peer are kept, hidden or purged, as the operator says."""
    ada, bob = linked_pair
    packet_ids = [bob.publish(f"thought {number}") for number in range(2)]
    wait_for(lambda: ada.holds(*packet_ids), 5)
    ada.manage("trusttier", "bob", "unknown", "--reason", "no longer", "--packets", choice)
    assert ada.count(bob.node_id) == held
    assert ada.rows("SELECT count(*) FROM federation_knowledgepacket WHERE hidden")[0][0] == hidden
    rows = ada.rows("SELECT tier_from, tier_to, reason, packets, packets_affected FROM peers_tierchange ORDER BY id DESC LIMIT 1")
    assert rows == [("core", "unknown", "no longer", choice, 2 if choice != "keep" else rows[0][4])]
