"""Admission: every check in its place, every row its own outcome, the author's key decides and no one else's."""

import random
from dataclasses import replace

import pytest

from federation.protocol.admission import Candidate, Refused, admit, verify_candidates
from federation.protocol.envelope import Envelope, VerifiedPacket, sign_packet
from federation.protocol.errors import Code
from federation.protocol.limits import CLOCK_SKEW_MS
from federation.protocol.packet import build_packet, packet_id_of
from keys.ed25519 import keypair_from_seed
from keys.encoding import node_id_of
from peers.trust import Audience, KeyStatus, Standing, Tier, TrustedKey, TrustTable

NOW = 1_700_000_000_000
PAIRS = {
    name: keypair_from_seed(bytes([number]) * 32)
    for number, name in enumerate(
        [
            "own",
            "core",
            "core2",
            "sandbox",
            "sandbox2",
            "external",
            "unknown",
            "blocked",
            "keyless",
            "stranger",
            "old",
            "new",
            "bad",
        ]
    )
}
NODES = {name: node_id_of(pair.public) for name, pair in PAIRS.items()}
TIERS = {
    "core": Tier.CORE,
    "core2": Tier.CORE,
    "sandbox": Tier.SANDBOX,
    "sandbox2": Tier.SANDBOX,
    "external": Tier.EXTERNAL,
    "unknown": Tier.UNKNOWN,
    "blocked": Tier.CORE,
}


def trust_table():
    """Every tier twice where it matters; `core` also has a retired, an unconfirmed and a revoked key."""
    standings = {NODES[name]: Standing(NODES[name], tier, blocked=name == "blocked", keyed=True) for name, tier in TIERS.items()}
    standings[NODES["keyless"]] = Standing(NODES["keyless"], Tier.EXTERNAL)
    keys = {PAIRS[name].fingerprint: TrustedKey(NODES[name], PAIRS[name].public, KeyStatus.TRUSTED) for name in ["own", *TIERS]}
    for name, status in [("old", KeyStatus.RETIRED), ("new", KeyStatus.UNCONFIRMED), ("bad", KeyStatus.REVOKED)]:
        keys[PAIRS[name].fingerprint] = TrustedKey(NODES["core"], PAIRS[name].public, status)
    return TrustTable(own=NODES["own"], standings=standings, keys=keys)


TABLE = trust_table()


def envelope(origin="core", *, signer=None, timestamp=NOW, created_at=NOW, content="text", audience=None):
    packet = build_packet(origin=NODES[origin], kind="note.text", content=content, created_at=created_at, audience=audience)
    return sign_packet(PAIRS[signer or origin], packet, timestamp=timestamp)


def room_for_all(origin, packets, size):
    return None


def judge(batch, link_peer="core", *, known=(), quota=room_for_all, now_ms=NOW, **kwargs):
    """Return the outcomes of a batch, signatures verified too."""
    outcomes = admit(batch, table=TABLE, link_peer=NODES[link_peer], now_ms=now_ms, known=known, quota=quota, **kwargs)
    verified = iter(verify_candidates([outcome for outcome in outcomes if isinstance(outcome, Candidate)]))
    return [next(verified) if isinstance(outcome, Candidate) else outcome for outcome in outcomes]


def code(batch_of_one, *args, **kwargs):
    outcome = judge([batch_of_one], *args, **kwargs)[0]
    return Code.ACCEPTED if isinstance(outcome, VerifiedPacket) else outcome.code


def test_a_good_packet_comes_through_with_its_rule():
    """A CORE peer's own packet becomes a candidate with the origin's key and the rule, then a verified packet."""
    sent = envelope()
    [candidate] = admit([sent], table=TABLE, link_peer=NODES["core"], now_ms=NOW, known=(), quota=room_for_all)
    assert (candidate.envelope, candidate.verify_key, candidate.rule) == (sent, PAIRS["core"].public, "accept-core-own")
    assert verify_candidates([candidate]) == [VerifiedPacket(candidate.packet, sent)]


def refuse_all(origin, packets, size):
    return "full"


# One defect for each check, in the order of docs/protocol.md, section 2. Each spoils what a good envelope
# and its surroundings were, and leaves what the others spoiled.
def too_large(case):
    case["body"] += b" " * 65_536


def no_json(case):
    case["body"] = case["body"].replace(b'"kind"', b'"kind', 1)


def no_origin(case):
    case["body"] = case["body"].replace(b'"origin"', b'"0rigin"', 1)


def other_version(case):
    case["body"] = case["body"].replace(b'"v":1', b'"v":2', 1)


def stray_blank(case):
    case["body"] += b" "


def bad_field(case):
    case["body"] = case["body"].replace(b'"kind":"note.text"', b'"kind":"NOTE.TEXT"', 1)


def unknown_origin(case):
    case["body"] = case["body"].replace(NODES["core"].hex().encode(), NODES["stranger"].hex().encode(), 1)


def is_private(case):
    case["body"] = case["body"].replace(b'{"', b'{"audience":"private","', 1)


def known_id(case):
    case["is_known"] = True


def early(case):
    case["timestamp"] = NOW + CLOCK_SKEW_MS + 1


def unknown_key(case):
    case["key_fingerprint"] = PAIRS["stranger"].fingerprint


def over_quota(case):
    case["quota"] = refuse_all


def bad_signature(case):
    case["signature"] = bytes(64)


IN_ORDER = [
    (too_large, Code.TOO_LARGE),
    (no_json, Code.MALFORMED),
    (no_origin, Code.MALFORMED),
    (other_version, Code.UNSUPPORTED),
    (stray_blank, Code.NOT_CANONICAL),
    (bad_field, Code.MALFORMED),
    (unknown_origin, Code.UNKNOWN_ORIGIN),
    (is_private, Code.TIER),
    (known_id, Code.DUPLICATE),
    (early, Code.EARLY),
    (unknown_key, Code.UNKNOWN_KEY),
    (over_quota, Code.QUOTA),
    (bad_signature, Code.BAD_SIGNATURE),
]


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_the_first_failing_check_gives_the_code(first):
    """Whatever else is wrong as well, alone or all together, the earliest check names the reason."""
    rng = random.Random(first)
    later = IN_ORDER[first + 1 :]
    for number in range(20):
        chosen = later if number == 0 else rng.sample(later, rng.randint(0, len(later)))
        good = envelope()
        case = {
            "body": good.body,
            "signature": good.signature,
            "timestamp": good.timestamp,
            "key_fingerprint": good.key_fingerprint,
        }
        case |= {"is_known": False, "quota": room_for_all}
        # Spoiled from the last to the first, so that blanks and size go around everything else.
        for defect, _ in sorted([IN_ORDER[first], *chosen], key=IN_ORDER.index, reverse=True):
            defect(case)
        is_known, quota = case.pop("is_known"), case.pop("quota")
        known = {packet_id_of(case["body"])} if is_known else set()
        assert code(Envelope(**case), known=known, quota=quota) == IN_ORDER[first][1]


def test_each_row_has_its_own_outcome_in_its_place():
    """One bad packet never holds up another, and a row that is no envelope is malformed."""
    good = envelope(content="good")
    spoiled = replace(envelope(content="spoiled"), signature=bytes(64))
    outcomes = judge([None, good, replace(good, timestamp=-1), spoiled, envelope("stranger"), envelope(content="last")])
    assert [getattr(outcome, "code", Code.ACCEPTED) for outcome in outcomes] == [
        Code.MALFORMED,
        Code.ACCEPTED,
        Code.MALFORMED,
        Code.BAD_SIGNATURE,
        Code.UNKNOWN_ORIGIN,
        Code.ACCEPTED,
    ]
    assert outcomes[0] == Refused(None, None, Code.MALFORMED, "the row is no envelope")
    assert outcomes[3].packet_id == packet_id_of(spoiled.body)
    assert outcomes[3].origin == NODES["core"]
    assert outcomes[4].reason == "No trusted key of the packet's origin is held here."


def test_a_refusal_names_the_id_of_bytes_it_could_not_read():
    """Junk has an id too, so that it is not fetched again."""
    junk = replace(envelope(), body=b"\xff\xfe")
    assert judge([junk]) == [Refused(packet_id_of(b"\xff\xfe"), None, Code.MALFORMED, "not UTF-8 at byte 0")]


ACCEPTED_RULES = {
    ("core", "core"): "accept-core-own",
    ("core", "own"): "accept-core-ours",
    ("core", "core2"): "accept-core-core",
    ("core", "sandbox"): "accept-core-sandbox",
    ("sandbox", "sandbox"): "accept-sandbox-own",
}


@pytest.mark.parametrize("origin", ["own", *TIERS, "keyless", "stranger"])
@pytest.mark.parametrize("link_peer", [*TIERS, "stranger"])
def test_who_may_hand_over_whose_packets(link_peer, origin):
    """All pairs of link and origin follow the table of section 3; a good signature buys nothing."""
    [outcome] = admit([envelope(origin)], table=TABLE, link_peer=NODES[link_peer], now_ms=NOW, known=(), quota=room_for_all)
    rules = {**ACCEPTED_RULES, **{("core2", origin): rule for (peer, origin), rule in ACCEPTED_RULES.items() if peer == "core"}}
    rules |= {("core2", "core2"): "accept-core-own", ("core2", "core"): "accept-core-core"}
    rules |= {(core, "sandbox2"): "accept-core-sandbox" for core in ("core", "core2")} | {
        ("sandbox2", "sandbox2"): "accept-sandbox-own"
    }
    if (link_peer, origin) in rules:
        assert outcome.rule == rules[link_peer, origin]
    else:
        assert outcome.code == (Code.UNKNOWN_ORIGIN if origin in ("keyless", "stranger") else Code.TIER)


@pytest.mark.parametrize("audience, expected", [("private", Code.TIER), ("core", Code.ACCEPTED), ("public", Code.ACCEPTED)])
def test_a_private_packet_on_a_link_is_declined(audience, expected):
    """Private packets never leave their node; one that comes is declined, and known no less."""
    assert code(envelope(audience=Audience(audience))) == expected


def test_private_of_an_unknown_origin_is_unknown_origin():
    """The unknown origin is asked about first."""
    assert code(envelope("stranger", audience=Audience.PRIVATE)) == Code.UNKNOWN_ORIGIN


@pytest.mark.parametrize(
    "ahead_ms, expected",
    [
        (-NOW, Code.ACCEPTED),
        (599_000, Code.ACCEPTED),
        (600_000, Code.ACCEPTED),
        (600_001, Code.EARLY),
        (601_000, Code.EARLY),
        (2**53 - 1 - NOW, Code.EARLY),
    ],
)
def test_time_window(ahead_ms, expected):
    """Ten minutes ahead are allowed, to the millisecond, for either time; the past has no limit."""
    assert code(envelope(created_at=NOW + ahead_ms)) == expected
    assert code(envelope(timestamp=NOW + ahead_ms)) == expected


def test_early_says_by_how_much():
    """Whoever reads the refusal sees which clock to look at."""
    assert (
        judge([envelope(timestamp=NOW + 700_000)])[0].reason
        == "the envelope's timestamp is 700 s ahead of the clock here, 600 s are allowed"
    )


@pytest.mark.parametrize(
    "signer, expected",
    [
        ("core", Code.ACCEPTED),
        ("stranger", Code.UNKNOWN_KEY),
        ("core2", Code.UNKNOWN_KEY),
        ("own", Code.UNKNOWN_KEY),
        ("new", Code.UNKNOWN_KEY),
        ("old", Code.RETIRED_KEY),
        ("bad", Code.REVOKED_KEY),
    ],
)
def test_only_a_trusted_key_of_the_origin_counts(signer, expected):
    """Another node's trusted key is no key of this origin, and neither is a retired, revoked or unconfirmed one."""
    assert code(envelope(signer=signer)) == expected


def test_a_thousand_packets_of_others_are_judged_by_their_author():
    """A CORE peer relays and forges at will: what its authors signed comes in, no forgery does."""
    rng = random.Random(22)
    batch, expected = [], []
    for number in range(1_000):
        origin = rng.choice(["core2", "sandbox", "own"])
        signed = envelope(origin, content=number)
        forgery = rng.randrange(4)
        if forgery == 0:
            batch.append(signed)
            expected.append(Code.ACCEPTED)
        elif forgery == 1:  # signed by the link's own peer, and naming its key
            batch.append(envelope(origin, signer="core", content=number))
            expected.append(Code.UNKNOWN_KEY)
        elif forgery == 2:  # signed by the link's own peer, naming the author's key
            batch.append(replace(envelope(origin, signer="core", content=number), key_fingerprint=PAIRS[origin].fingerprint))
            expected.append(Code.BAD_SIGNATURE)
        else:  # the author's signature of another packet
            batch.append(replace(signed, signature=envelope(origin, content=-number - 1).signature))
            expected.append(Code.BAD_SIGNATURE)
    assert [getattr(outcome, "code", Code.ACCEPTED) for outcome in judge(batch)] == expected


def test_known_and_erased_ids_are_not_taken_again():
    """What is here is a duplicate; what was erased is declined by its cause."""
    here, erased, purged = (envelope(content=word) for word in ("here", "erased", "purged"))
    outcomes = judge(
        [here, erased, purged],
        known={packet_id_of(here.body)},
        erased={packet_id_of(erased.body): Code.EXPIRED, packet_id_of(purged.body): Code.RETRACTED},
    )
    assert [outcome.code for outcome in outcomes] == [Code.DUPLICATE, Code.EXPIRED, Code.RETRACTED]


def test_a_forged_copy_does_not_stand_in_the_way_of_the_real_one():
    """Of two rows with one id the forged one is refused and the signed one comes in, whichever is first."""
    good = envelope()
    forged = replace(good, signature=bytes(64))
    for batch in ([forged, good], [good, forged]):
        assert [type(outcome) for outcome in judge(batch)] == [VerifiedPacket if row is good else Refused for row in batch]


def test_the_quota_sees_what_the_batch_already_took():
    """A batch cannot pass as many single packets; what is refused takes no room, and origins do not share."""
    asked = []

    def three_packets_each(origin, packets, size):
        asked.append((origin, packets, size))
        return None if packets <= 3 else f"3 packets are stored, and {packets - 3} more do not fit"

    batch = [envelope(content=number) for number in range(5)] + [envelope("core2"), replace(envelope(), body=b"{}")]
    outcomes = admit(batch, table=TABLE, link_peer=NODES["core"], now_ms=NOW, known=(), quota=three_packets_each)
    assert [isinstance(outcome, Candidate) for outcome in outcomes] == [True, True, True, False, False, True, False]
    assert (outcomes[3].code, outcomes[3].reason) == (Code.QUOTA, "3 packets are stored, and 1 more do not fit")
    size = len(batch[0].body)
    assert asked == [(NODES["core"], count, count * size) for count in (1, 2, 3, 4, 4)] + [(NODES["core2"], 1, len(batch[5].body))]


def test_junk_envelopes_are_refused_with_codes():
    """2,000 envelopes of random parts are refused, each with a code and nothing raised."""
    rng = random.Random(13)
    parts = [
        b"",
        b"{}",
        b"null",
        bytes(64),
        bytes(32),
        b"\xff" * 70_000,
        envelope().body,
        None,
        "text",
        5,
        -1,
        2**70,
        True,
        1.5,
        NOW,
    ]
    batch = [Envelope(*(rng.choice(parts) for _ in range(4))) for _ in range(2_000)]
    assert all(isinstance(outcome, Refused) and outcome.code.is_refusal for outcome in judge(batch))
