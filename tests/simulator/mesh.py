"""How often and how late packets arrive in meshes of CORE nodes, without faults."""

from dataclasses import dataclass
from statistics import mean

from tests.simulator.world import World

HOP_S = 0.02
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """`bodies`: deliveries of a body, per packet and node that is not its author. `late_hops`: (packet, node) pairs
    by how many hops' time they took beyond the shortest way."""

    bodies: float
    late_hops: list


def mesh(seed, count, edges):
    """Return a world of `count` CORE nodes, linked along `edges` (pairs of places), at rest."""
    world = World(seed)
    world.fixed_latency = HOP_S
    nodes = [world.node() for _ in range(count)]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.decide(other, "core")
    for one, other in edges:
        world.introduce(nodes[one], nodes[other])
    for node in nodes:
        node.start()
    world.run_for(SETTLE_S)
    return world


def full_edges(count):
    return [(one, other) for one in range(count) for other in range(one)]


def random_edges(random, count, degree):
    """Return a connected random graph in which every node has `degree` neighbours or one less."""
    edges = {(place, place + 1) for place in range(count - 1)} | {(0, count - 1)}
    for _ in range(10_000):
        near = {place: sum(place in edge for edge in edges) for place in range(count)}
        free = [place for place in near if near[place] < degree]
        if len(free) < 2:
            break
        one, other = sorted(random.sample(free, 2))
        edges.add((one, other))
    return sorted(edges)


def distances(world, start):
    """Return the number of hops from a node to each other one."""
    found, front = {start.node_id: 0}, [start]
    for node in front:
        for peer in node.neighbours:
            if peer.node_id not in found:
                found[peer.node_id] = found[node.node_id] + 1
                front.append(peer)
    return found


def publish(world, packets, *, every_s):
    """Let all nodes publish in turn; return when each packet was published, and by whom."""
    published = {}
    for number in range(packets):
        node = world.nodes[number % len(world.nodes)]
        published[node.publish()] = world.now, node
        world.run_for(every_s)
    world.run_for(SETTLE_S)
    return published


def report(world, published):
    """Return what happened to these packets."""
    bodies, late = [], []
    for packet_id, (moment, author) in published.items():
        hops = distances(world, author)
        for node in world.nodes:
            if node is not author:
                bodies.append(node.bodies_in[packet_id])
                took = world.arrived_at[packet_id][node.node_id] - moment
                late.append(took / HOP_S - hops[node.node_id])
    return Report(mean(bodies), late)
