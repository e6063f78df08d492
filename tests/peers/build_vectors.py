"""Writes docs/vectors/trust.json: `python -m tests.peers.build_vectors`.

The file changes only when the policy does; a test builds it again and compares.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from keys.encoding import NodeId
from peers.trust import Audience, Decision, Standing, Tier, TrustTable

PATH = Path(__file__).parents[2] / "docs/vectors/trust.json"

ABOUT = (
    "The trust tables, docs/protocol.md section 3. `nodes`: what the operator of the node `self` decided about the others "
    "(keyed: a trusted key is held); `stranger` is not in its registry. Each case is one question to `self`: link (may a link "
    "with `peer` stand), accept (a packet of `origin` from the hands of `peer`), send (one of `origin` to `peer`), relay (may "
    "packets of `origin` go on at all), query (may an answer to `peer` hold one of `origin`). `code` is ok or the refusal. "
    "`rule` is this implementation's name for the row, informational."
)

NODES: dict[str, dict[str, Any]] = {
    "core-a": {"tier": "core", "blocked": False, "keyed": True},
    "core-b": {"tier": "core", "blocked": False, "keyed": True},
    "core-without-key": {"tier": "core", "blocked": False, "keyed": False},
    "sandbox-a": {"tier": "sandbox", "blocked": False, "keyed": True},
    "sandbox-b": {"tier": "sandbox", "blocked": False, "keyed": True},
    "external-a": {"tier": "external", "blocked": False, "keyed": True},
    "external-b": {"tier": "external", "blocked": False, "keyed": True},
    "unknown-a": {"tier": "unknown", "blocked": False, "keyed": True},
    "unknown-b": {"tier": "unknown", "blocked": False, "keyed": True},
    "blocked-a": {"tier": "core", "blocked": True, "keyed": True},
    "blocked-b": {"tier": "core", "blocked": True, "keyed": True},
}
PEERS = ["core-a", "core-without-key", "sandbox-a", "external-a", "unknown-a", "blocked-a", "stranger"]
ORIGINS = ["self", "core-b", "core-without-key", "sandbox-b", "external-b", "unknown-b", "blocked-b", "stranger"]


def id_of(name: str) -> NodeId:
    return NodeId(sha256(name.encode()).digest()[:16])


def table() -> TrustTable:
    standings = {
        id_of(name): Standing(id_of(name), Tier(node["tier"]), node["blocked"], node["keyed"]) for name, node in NODES.items()
    }
    return TrustTable(id_of("self"), standings, {})


def answer(trust: TrustTable, case: dict[str, Any]) -> Decision:
    """Put one case to the policy."""
    question = getattr(trust, f"may_{case['question']}")
    nodes = [id_of(case[role]) for role in ("peer", "origin") if role in case]
    return question(*nodes, *([Audience(case["audience"])] if "audience" in case else []))


def build() -> dict[str, Any]:
    trust = table()
    questions: list[dict[str, Any]] = [{"question": "link", "peer": peer} for peer in (*PEERS, "self")]
    questions += [{"question": "relay", "origin": origin} for origin in ORIGINS]
    for question in ("accept", "send", "query"):
        for peer in PEERS:
            for origin in dict.fromkeys((peer, *ORIGINS)):
                for audience in ("private", "core", "public"):
                    questions.append({"question": question, "peer": peer, "origin": origin, "audience": audience})
    cases = []
    for case in questions:
        decision = answer(trust, case)
        cases.append(case | {"code": decision.code, "rule": decision.rule})
    return {"about": ABOUT, "nodes": NODES, "cases": cases}


def text() -> str:
    """Return the file: one case a line, so that a change of policy reads as a diff."""
    built = build()
    nodes = ",\n".join(f"    {json.dumps(name)}: {json.dumps(node)}" for name, node in built["nodes"].items())
    cases = ",\n".join(f"    {json.dumps(case)}" for case in built["cases"])
    return f'{{\n  "about": {json.dumps(built["about"])},\n  "nodes": {{\n{nodes}\n  }},\n  "cases": [\n{cases}\n  ]\n}}\n'


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
