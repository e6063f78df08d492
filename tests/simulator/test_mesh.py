"""Meshes of CORE nodes, once every author was heard: bodies go where they are missing, and along short ways."""

import random
from statistics import mean

import pytest

from federation.protocol.wants import HAVE_PATIENCE_S
from tests.simulator.mesh import full_edges, mesh, publish, random_edges, report

NODES = 20


def settled(world):
    """Let every author be heard once or twice, after which each link knows whose packets it is to announce."""
    publish(world, 2 * NODES, every_s=0.2)
    return world


@pytest.mark.parametrize("every_s", [0.2, 0.002])
def test_in_a_settled_full_mesh_of_20_nodes_a_body_reaches_each_node_once(every_s):
    """One at a time, and many at once."""
    world = settled(mesh(1, NODES, full_edges(NODES)))
    assert report(world, publish(world, 2 * NODES, every_s=every_s)).bodies <= 1.1


@pytest.mark.parametrize("seed", range(5))
def test_in_a_random_mesh_of_degree_4_packets_take_two_hops_more_at_most(seed):
    """On the shortest way, and a body reaches each node once there too."""
    world = settled(mesh(seed, NODES, random_edges(random.Random(seed), NODES, 4)))
    told = report(world, publish(world, 2 * NODES, every_s=0.2))
    assert max(told.late_hops) <= 2
    assert mean(told.late_hops) <= 1
    assert told.bodies <= 1.1


def test_when_a_link_of_the_way_falls_packets_come_by_another_one():
    """The announcements of the others are still there; what they name is Wanted, and then pushed again."""
    world = settled(mesh(2, NODES, random_edges(random.Random(2), NODES, 4)))
    author = world.nodes[0]
    for peer in author.neighbours[:-1]:
        world.part(author, peer)
    packet_id = author.publish()
    world.run_for(5.0)
    assert len(world.arrived_at[packet_id]) == NODES - 1
    later = author.publish()
    published_at = world.now
    world.run_for(5.0)
    took = max(world.arrived_at[later].values()) - published_at
    assert took < HAVE_PATIENCE_S, "nobody had to wait before asking"
