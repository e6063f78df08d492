"""The tables of docs/protocol.md, section 3, cell by cell, and what must hold whatever the registry says."""

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.errors import Code, Goodbye
from peers.trust import (
    ELEVATE_KEYLESS,
    MAX_ORIGIN_ROWS,
    OK,
    RULES,
    UNKNOWN_ORIGIN,
    Audience,
    Grants,
    Place,
    Standing,
    Tier,
    TrustTable,
    explain,
    may_elevate,
)
from tests.peers import build_vectors

OWN = b"self".ljust(16, b".")
PEER = b"peer".ljust(16, b".")
OTHER = b"other".ljust(16, b".")
PLACES = ["core", "sandbox", "external", "unknown", "blocked"]
SHARED = [Audience.CORE, Audience.PUBLIC]


def standing(node_id, place, *, keyed=True):
    """Return how a node stands whose place is one of the tiers, or `blocked` (a CORE peer, then blocked)."""
    if place == "blocked":
        return Standing(node_id, Tier.CORE, blocked=True, keyed=keyed)
    return Standing(node_id, Tier(place), keyed=keyed)


def table(*standings):
    return TrustTable(OWN, {entry.node_id: entry for entry in standings}, {})


def origin_of(relation):
    return {"own": PEER, "ours": OWN}.get(relation, OTHER)


def table_for(link, relation):
    others = [standing(OTHER, relation)] if relation in PLACES else []
    return table(standing(PEER, link), *others)


# The second table of section 3, by hand: what is handed over on a link of the row's peer. ok, or the code.
COLUMNS = ["own", "core", "sandbox", "external", "unknown", "blocked", "ours"]
ACCEPT = {
    "core": "ok ok ok tier tier tier ok",
    "sandbox": "ok tier tier tier tier tier tier",
    "external": "tier tier tier tier tier tier tier",
    "unknown": "tier tier tier tier tier tier tier",
    "blocked": "tier tier tier tier tier tier tier",
}
# The first table: what is sent to the row's peer, of whose packets.
SEND = {
    "core": "ok ok tier tier tier tier ok",
    "sandbox": "tier tier tier tier tier tier tier",
    "external": "tier tier tier tier tier tier tier",
    "unknown": "tier tier tier tier tier tier tier",
    "blocked": "tier tier tier tier tier tier tier",
}
# Its last column, for public packets: our own and CORE origins' only.
QUERY = {
    "core": "ok ok tier tier tier tier ok",
    "sandbox": "tier ok tier tier tier tier ok",
    "external": "tier ok tier tier tier tier ok",
    "unknown": "tier tier tier tier tier tier tier",
    "blocked": "tier tier tier tier tier tier tier",
}


def cells(rows):
    return [(link, relation, code) for link, codes in rows.items() for relation, code in zip(COLUMNS, codes.split(), strict=True)]


@pytest.mark.parametrize(("link", "relation", "code"), cells(ACCEPT))
@pytest.mark.parametrize("audience", SHARED)
def test_accept_is_the_table(link, relation, code, audience):
    """Every cell of what is taken on a link, for both audiences that travel."""
    decision = table_for(link, relation).may_accept(PEER, origin_of(relation), audience)
    assert (decision.code, decision.allowed) == (code, code == "ok")


@pytest.mark.parametrize(("link", "relation", "code"), cells(SEND))
@pytest.mark.parametrize("audience", SHARED)
def test_send_is_the_table(link, relation, code, audience):
    """Every cell of what goes out on a link."""
    decision = table_for(link, relation).may_send(PEER, origin_of(relation), audience)
    assert (decision.code, decision.allowed) == (code, code == "ok")


@pytest.mark.parametrize(("link", "relation", "code"), cells(QUERY))
def test_public_query_is_the_table(link, relation, code):
    """Every cell of what a peer may ask for, public packets."""
    decision = table_for(link, relation).may_query(PEER, origin_of(relation), Audience.PUBLIC)
    assert (decision.code, decision.allowed) == (code, code == "ok")


@pytest.mark.parametrize(("link", "relation", "code"), cells(QUERY))
def test_only_core_may_ask_for_core_packets(link, relation, code):
    """Packets for CORE are answered to CORE peers only, the others ask for public ones."""
    decision = table_for(link, relation).may_query(PEER, origin_of(relation), Audience.CORE)
    assert decision.allowed == (code == "ok" and link == "core")


@pytest.mark.parametrize(("link", "relation"), list(product(PLACES, COLUMNS)))
def test_private_never_travels(link, relation):
    """A private packet is neither taken from a link nor sent nor answered, whoever made it; on a link its code is `tier`."""
    trust = table_for(link, relation)
    for question in (trust.may_accept, trust.may_send, trust.may_query):
        assert question(PEER, origin_of(relation), Audience.PRIVATE).code == "tier"


@pytest.mark.parametrize("link", PLACES)
@pytest.mark.parametrize("audience", list(Audience))
def test_unknown_origin_comes_first(link, audience):
    """Without a trusted key of the origin the code is `unknown-origin`, whoever relays it and whatever the audience."""
    for trust in (table(standing(PEER, link)), table(standing(PEER, link), standing(OTHER, "core", keyed=False))):
        assert trust.may_accept(PEER, OTHER, audience) is UNKNOWN_ORIGIN
        assert trust.may_send(PEER, OTHER, audience) is UNKNOWN_ORIGIN


@pytest.mark.parametrize(
    ("place", "code"),
    [("core", OK), ("sandbox", OK), ("external", OK), ("unknown", "pending"), ("blocked", "blocked")],
)
def test_link(place, code):
    """CORE, SANDBOX and EXTERNAL may link; UNKNOWN is told `pending`, a blocked peer `blocked`."""
    assert table(standing(PEER, place)).may_link(PEER).code == code


@pytest.mark.parametrize("tier", ["core", "sandbox"])
def test_trust_without_a_key_counts_for_nothing(tier):
    """A CORE or SANDBOX peer whose keys are all revoked stands as UNKNOWN: pending, nothing in, nothing out."""
    trust = table(standing(PEER, tier, keyed=False))
    assert trust.may_link(PEER).code == "pending"
    assert trust.grants(PEER) == Grants(push=False, pull=False, query=False)
    assert trust.accepted_origins(PEER) == trust.offered_origins(PEER) == []
    assert not trust.may_accept(PEER, OWN, Audience.CORE).allowed


def test_external_links_without_a_key():
    """EXTERNAL needs no imported key: the handshake proves who asks."""
    trust = table(standing(PEER, "external", keyed=False))
    assert trust.may_link(PEER).allowed
    assert trust.may_query(PEER, OWN, Audience.PUBLIC).allowed


@pytest.mark.parametrize("tier", list(Tier))
def test_blocking_stands_beside_any_tier(tier):
    """Blocked is blocked at every tier, and ends every grant."""
    trust = table(Standing(PEER, tier, blocked=True, keyed=True))
    assert trust.may_link(PEER).code == "blocked"
    assert trust.grants(PEER) == Grants(push=False, pull=False, query=False)
    assert not trust.may_relay(PEER).allowed


def test_never_met_is_unknown():
    """A node that is not in the registry is told `pending`; this node itself is refused."""
    trust = table()
    assert trust.may_link(PEER).code == "pending"
    assert trust.may_link(OWN).code == "protocol"
    assert trust.grants(OWN) == Grants(push=False, pull=False, query=False)


def test_own_standing_is_never_looked_up():
    """A row that claims to be this node (a restored database, say) changes nothing about it."""
    trust = table(standing(OWN, "blocked"), standing(PEER, "core"))
    assert trust.may_send(PEER, OWN, Audience.CORE).allowed
    assert trust.may_relay(OWN).allowed
    assert trust.offered_origins(PEER) == [OWN, PEER]


@pytest.mark.parametrize(
    ("place", "push", "pull", "query"),
    [
        ("core", True, True, True),
        ("sandbox", True, False, True),
        ("external", False, False, True),
        ("unknown", False, False, False),
        ("blocked", False, False, False),
    ],
)
def test_grants(place, push, pull, query):
    """What a Welcome says: who may push, pull and query."""
    assert table(standing(PEER, place)).grants(PEER) == Grants(push, pull, query)


@pytest.mark.parametrize(
    ("place", "code"), [("core", OK), ("sandbox", "tier"), ("external", "tier"), ("unknown", "tier"), ("blocked", "tier")]
)
def test_relay(place, code):
    """CORE origins' packets go on; a SANDBOX origin's stay here; the others' are not here."""
    assert table(standing(OTHER, place)).may_relay(OTHER).code == code


def test_interest_and_scope_of_each_place():
    """A CORE link is asked for our own, its and all CORE and SANDBOX origins', and offered ours and CORE origins'."""
    names = [f"{place}-{keyed}" for place in PLACES for keyed in ("keyed", "bare")]
    ids = {name: name.encode().ljust(16, b".") for name in names}
    nodes = [standing(ids[name], name.split("-")[0], keyed=name.endswith("keyed")) for name in names]
    core = table(standing(PEER, "core"), *nodes)
    assert core.accepted_origins(PEER) == [OWN, PEER, ids["core-keyed"], ids["sandbox-keyed"]]
    assert core.offered_origins(PEER) == [OWN, PEER, ids["core-keyed"]]
    sandbox = table(standing(PEER, "sandbox"), *nodes)
    assert (sandbox.accepted_origins(PEER), sandbox.offered_origins(PEER)) == ([PEER], [])
    for place in ("external", "unknown", "blocked"):
        closed = table(standing(PEER, place), *nodes)
        assert closed.accepted_origins(PEER) == closed.offered_origins(PEER) == []


@pytest.mark.parametrize(("origins", "rows"), [(MAX_ORIGIN_ROWS - 2, 2_048), (MAX_ORIGIN_ROWS - 1, 2_048), (3_000, 2_048)])
def test_rows_are_bounded_and_always_the_same(origins, rows):
    """At most 2,048 origins, at the limit and beyond; which ones does not hang on the order of the registry."""
    others = [standing(number.to_bytes(16), "core") for number in range(1, origins + 1)]
    forth = table(standing(PEER, "core"), *others)
    back = table(*reversed(others), standing(PEER, "core"))
    assert len(forth.accepted_origins(PEER)) == rows
    assert forth.accepted_origins(PEER) == back.accepted_origins(PEER) == forth.offered_origins(PEER)
    assert forth.accepted_origins(PEER)[:3] == [OWN, PEER, (1).to_bytes(16)]


@pytest.mark.parametrize(
    ("tier", "keyed", "allowed"),
    [
        (Tier.CORE, True, True),
        (Tier.CORE, False, False),
        (Tier.SANDBOX, True, True),
        (Tier.SANDBOX, False, False),
        (Tier.EXTERNAL, False, True),
        (Tier.UNKNOWN, False, True),
    ],
)
def test_elevation_needs_a_key(tier, keyed, allowed):
    """CORE and SANDBOX need a trusted key; the refusal tells the operator what to do."""
    decision = may_elevate(tier, keyed=keyed)
    assert decision.allowed is allowed
    if not allowed:
        assert decision is ELEVATE_KEYLESS
        assert "importkey" in decision.reason


def test_every_rule_explains_itself():
    """Each rule has a slug that fits its column, a sentence, and a code of the protocol."""
    codes = {OK, *Code, *Goodbye}
    for slug, decision in RULES.items():
        assert slug == decision.rule
        assert len(slug) <= 64
        assert slug == slug.lower()
        assert decision.reason.endswith(".")
        assert decision.code in codes
        assert decision.allowed == (decision.code == OK)
        assert explain(slug) == decision.reason
    assert explain("a rule of a later version") == ""


def test_refusals_carry_words_of_the_right_message():
    """A refused link says a Goodbye; a refused packet an Ack code."""
    trust = build_vectors.table()
    for case in build_vectors.build()["cases"]:
        if case["code"] != OK:
            assert case["code"] in (set(Goodbye) if case["question"] == "link" else set(Code)), case
        assert build_vectors.answer(trust, case).rule == case["rule"]


def test_vectors_are_up_to_date():
    """docs/vectors/trust.json is what the policy answers now."""
    assert build_vectors.PATH.read_text(encoding="utf-8") == build_vectors.text()
    assert json.loads(build_vectors.text()) == build_vectors.build()


# What must hold for any registry.

IDS = [number.to_bytes(16) for number in range(6)]
standings = st.builds(Standing, st.sampled_from(IDS), st.sampled_from(Tier), st.booleans(), st.booleans())
tables = st.builds(
    lambda own, entries: TrustTable(own, {entry.node_id: entry for entry in entries}, {}), st.sampled_from(IDS), st.lists(standings)
)
node_ids = st.sampled_from(IDS)
audiences = st.sampled_from(Audience)


@given(tables, node_ids, node_ids, audiences)
def test_nothing_crosses_that_must_not(trust, peer, origin, audience):
    """No question lets through private packets, those of unkeyed or blocked origins, or anything with a peer who may not link."""
    answers = [question(peer, origin, audience).allowed for question in (trust.may_accept, trust.may_send, trust.may_query)]
    known = origin == trust.own or (trust.standing(origin).keyed and not trust.standing(origin).blocked)
    if audience is Audience.PRIVATE or not known or not trust.may_link(peer).allowed:
        assert not any(answers)


@given(tables, node_ids, node_ids, audiences)
def test_what_is_sent_is_ours_or_a_core_origins(trust, peer, origin, audience):
    """Whatever goes out on a link may be relayed, goes to a CORE peer, and is not a SANDBOX origin's."""
    if trust.may_send(peer, origin, audience).allowed:
        assert trust.may_relay(origin).allowed
        assert trust.standing(peer).place is Place.CORE
        assert origin == trust.own or trust.standing(origin).place is Place.CORE


@given(tables, node_ids, node_ids, audiences)
def test_answers_never_say_more_than_the_audience(trust, peer, origin, audience):
    """A query tells a CORE peer what it would be sent, and the others public packets only."""
    if trust.may_query(peer, origin, audience).allowed:
        assert audience is Audience.PUBLIC or trust.may_send(peer, origin, audience).allowed


@given(tables, node_ids)
def test_lists_say_what_the_questions_say(trust, peer):
    """Interest and Scope name exactly the origins that may_accept and may_send allow, each once."""
    for listed, question in ((trust.accepted_origins(peer), trust.may_accept), (trust.offered_origins(peer), trust.may_send)):
        assert len(set(listed)) == len(listed)
        assert set(listed) == {origin for origin in IDS if question(peer, origin, Audience.CORE).allowed}
        for origin in listed:
            assert question(peer, origin, Audience.PUBLIC).allowed
    grants = trust.grants(peer)
    assert grants.push or not trust.accepted_origins(peer)
    assert grants.pull or not trust.offered_origins(peer)


@given(st.lists(tables, min_size=2, max_size=5), st.data())
def test_a_sandbox_origins_packets_stay_where_they_are(trusts, data):
    """However packets wander, none leaves a node that files its origin as SANDBOX, and each was signed by a key held there."""
    nodes = {trust.own: trust for trust in trusts}
    held = {node_id: {node_id} for node_id in nodes}
    for _ in range(20):
        sender = data.draw(st.sampled_from(sorted(nodes)))
        receiver = data.draw(st.sampled_from(sorted(nodes)))
        for origin in sorted(held[sender]):
            out = nodes[sender].may_send(receiver, origin, Audience.CORE).allowed
            into = nodes[receiver].may_accept(sender, origin, Audience.CORE).allowed
            if sender != receiver and out and into:
                assert origin == sender or nodes[sender].standing(origin).place is Place.CORE
                held[receiver].add(origin)
    for node_id, origins in held.items():
        assert all(origin == node_id or nodes[node_id].standing(origin).keyed for origin in origins)
