import copy

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol import limits
from keys import succession
from keys.ed25519 import keypair_from_seed, sign
from keys.encoding import node_id_of
from keys.selftest import LOW_ORDER_KEYS
from keys.succession import (
    MAX_SUCCESSION_BYTES,
    MAX_SUCCESSION_STATEMENTS,
    Reason,
    SuccessionError,
    first_statement,
    next_statement,
    verify_chain,
)

PAIRS = [keypair_from_seed(bytes([number]) * 32) for number in range(MAX_SUCCESSION_STATEMENTS + 2)]
T0 = 1_760_000_000_000


def chain_of(length, reasons=(Reason.ROUTINE, Reason.COMPROMISE, Reason.LOST)):
    """Return a valid chain as JSON values, its reasons in turn."""
    entries = [first_statement(PAIRS[0], PAIRS[1].fingerprint, T0).as_json()]
    for number in range(1, length):
        reason = reasons[(number - 1) % len(reasons)]
        previous = PAIRS[number - 1] if reason is Reason.ROUTINE else None
        chain = verify_chain(entries)
        entries.append(
            next_statement(chain, PAIRS[number], PAIRS[number + 1].fingerprint, T0 + number, reason, previous=previous).as_json()
        )
    return entries


def resigned(entries, number, signers, **fields):
    """Return the chain with fields of one statement changed and signed anew, as a forger with these keys would."""
    changed = copy.deepcopy(entries)
    changed[number]["statement"].update(fields)
    signed = succession.SUCCESSION_LABEL + rfc8785.dumps(changed[number]["statement"])
    changed[number]["signatures"] = [sign(signer, signed).hex() for signer in signers]
    return changed


def test_statement_0_proves_a_new_identity():
    """A chain of one names the node by its first key and commits to the next."""
    entries = chain_of(1)
    assert set(entries[0]["statement"]) == {"node_id", "sequence", "next_key", "next_key_hash", "issued_at"}
    chain = verify_chain(entries)
    assert chain.node_id == node_id_of(PAIRS[0].public)
    assert chain.keys == (PAIRS[0].public,)
    assert chain.current == PAIRS[0].public
    assert chain.next_key_hash == PAIRS[1].fingerprint
    assert [entry.as_json() for entry in chain.entries] == entries


def test_a_chain_ends_with_the_current_key():
    """Keys follow each other oldest first, whatever the reasons; routine has two signatures, the others one."""
    entries = chain_of(4)
    chain = verify_chain(entries)
    assert chain.keys == tuple(pair.public for pair in PAIRS[:4])
    assert chain.current == PAIRS[3].public
    assert chain.node_id == node_id_of(PAIRS[0].public)
    assert [len(entry["signatures"]) for entry in entries] == [1, 2, 1, 1]
    assert [entry.statement.reason for entry in chain.entries] == [None, Reason.ROUTINE, Reason.COMPROMISE, Reason.LOST]


def test_20_statements_pass_and_21_do_not():
    """The bound on statements holds at it and one beyond, and 20 of the longest form stay below 16 KiB."""
    longest = chain_of(MAX_SUCCESSION_STATEMENTS, reasons=(Reason.ROUTINE,))
    verify_chain(longest)
    assert len(rfc8785.dumps(longest)) < MAX_SUCCESSION_BYTES
    with pytest.raises(SuccessionError, match="1 to 20 statements, this one 21"):
        verify_chain([*longest, longest[-1]])
    with pytest.raises(SuccessionError, match="1 to 20 statements, this one 0"):
        verify_chain([])


def test_the_bounds_are_the_protocols():
    """The protocol's limits and those of the keys are the same numbers."""
    assert limits.MAX_SUCCESSION_BYTES == MAX_SUCCESSION_BYTES
    assert limits.MAX_SUCCESSION_STATEMENTS == MAX_SUCCESSION_STATEMENTS
    assert limits.MAX_SAFE_INTEGER == succession.MAX_TIME_MS


def test_every_signature_counts():
    """A flipped bit in any signature of any statement, a missing, foreign or additional one breaks the chain."""
    entries = chain_of(4)
    for number, entry in enumerate(entries):
        for index in range(len(entry["signatures"])):
            changed = copy.deepcopy(entries)
            signature = bytearray.fromhex(changed[number]["signatures"][index])
            signature[3] ^= 1
            changed[number]["signatures"][index] = signature.hex()
            whose = "the key it retires" if index else "the key it brings in"
            with pytest.raises(SuccessionError, match=f"statement {number}: not signed by {whose}"):
                verify_chain(changed)
        changed = copy.deepcopy(entries)
        changed[number]["signatures"].pop()
        with pytest.raises(SuccessionError, match=f"statement {number}: .* signatures, expected"):
            verify_chain(changed)
    changed = copy.deepcopy(entries)
    changed[2]["signatures"].append(changed[2]["signatures"][0])
    with pytest.raises(SuccessionError, match="statement 2: 2 signatures, expected 1"):
        verify_chain(changed)
    changed = copy.deepcopy(entries)
    changed[1]["signatures"].reverse()
    with pytest.raises(SuccessionError, match="statement 1: not signed by the key it brings in"):
        verify_chain(changed)


def test_who_steals_the_current_key_cannot_name_a_successor():
    """Neither a foreign successor, nor a foreign commitment, nor a routine claim without the committed key holds."""
    thief = keypair_from_seed(b"\xee" * 32)
    entries = chain_of(2)
    with pytest.raises(SuccessionError, match="its key is not the one committed to before"):
        verify_chain(resigned(entries, 1, [thief, PAIRS[0]], next_key=thief.public.hex()))
    with pytest.raises(SuccessionError, match="not signed by the key it brings in"):
        verify_chain(resigned(entries, 1, [PAIRS[0], PAIRS[0]], next_key_hash=thief.fingerprint.hex()))
    with pytest.raises(SuccessionError, match="not signed by the key it retires"):
        verify_chain(resigned(entries, 1, [PAIRS[1], thief], next_key_hash=thief.fingerprint.hex()))


def test_another_history_of_the_same_key_is_another_valid_chain():
    """Who holds the first key can sign a second statement 0; that it conflicts is for the registry, which pins the first."""
    other = first_statement(PAIRS[0], PAIRS[9].fingerprint, T0).as_json()
    assert verify_chain([other]).next_key_hash != verify_chain(chain_of(1)).next_key_hash


def test_a_chain_never_turns_back():
    """Committing to the key itself or to one used before is refused, also when properly signed."""
    entries = chain_of(2)
    with pytest.raises(SuccessionError, match="statement 0: it commits to a key that was used already"):
        verify_chain(resigned(entries[:1], 0, [PAIRS[0]], next_key_hash=PAIRS[0].fingerprint.hex()))
    with pytest.raises(SuccessionError, match="statement 1: it commits to a key that was used already"):
        verify_chain(resigned(entries, 1, [PAIRS[1], PAIRS[0]], next_key_hash=PAIRS[0].fingerprint.hex()))


def test_order_and_identity_hold():
    """Statements out of order, repeated or left out, or of another node, are no chain."""
    entries = chain_of(4)
    for wrong in ([entries[1], entries[0]], entries[1:], [entries[0], entries[2]], [entries[0], entries[0]]):
        with pytest.raises(SuccessionError, match="statement"):
            verify_chain(wrong)
    with pytest.raises(SuccessionError, match="statement 0: the first key does not give node_id"):
        verify_chain(resigned(entries[:1], 0, [PAIRS[0]], node_id="00" * 16))
    with pytest.raises(SuccessionError, match=r"statement 1: node_id .* is not the chain's"):
        verify_chain(resigned(entries, 1, [PAIRS[1], PAIRS[0]], node_id="00" * 16))


def test_a_key_that_nobody_can_own_is_refused():
    """A low-order point is no first key."""
    for low in LOW_ORDER_KEYS:
        key = bytes.fromhex(low)
        entry = {
            "statement": chain_of(1)[0]["statement"] | {"next_key": low, "node_id": node_id_of(key).hex()},
            "signatures": ["58" + 31 * "66" + "01" + 31 * "00"],
        }
        with pytest.raises(SuccessionError, match="not a usable Ed25519 public key"):
            verify_chain([entry])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("statement", "sequence"), 2, "sequence is 2"),
        (("statement", "sequence"), True, "sequence is True"),
        (("statement", "sequence"), 1.0, "sequence is 1.0"),
        (("statement", "sequence"), "1", "sequence is '1'"),
        (("statement", "issued_at"), -1, "issued_at -1"),
        (("statement", "issued_at"), 2**53, "issued_at 9007199254740992"),
        (("statement", "issued_at"), 1.5, "issued_at 1.5"),
        (("statement", "issued_at"), None, "issued_at None"),
        (("statement", "issued_at"), False, "issued_at False"),
        (("statement", "node_id"), "0" * 31, "31 characters"),
        (("statement", "node_id"), None, "not text"),
        (("statement", "next_key"), "AB" * 32, "not lower-case hex"),
        (("statement", "next_key_hash"), "ab" * 31, "62 characters"),
        (("statement", "reason"), "bored", "reason 'bored' is none of"),
        (("statement", "reason"), None, "reason None is none of"),
        (("statement", "reason"), [], "reason .* is none of"),
        (("statement", "more"), 1, "exactly the fields"),
        (("statement",), [], "exactly the fields"),
        (("signatures",), "ab" * 64, "not a list"),
        (("signatures",), [], "0 signatures"),
        (("signatures",), ["ab" * 64] * 3, "not a list of one or two"),
        (("signatures",), ["ab" * 63, "ab" * 64], "126 characters"),
        (("signatures",), [None, None], "not text"),
        (("signatures",), None, "not a list"),
        (("more",), 1, "exactly a statement"),
    ],
)
def test_wrong_shapes_are_refused_by_name(path, value, said):
    """Every field has one form; the message names the statement and what is wrong with it."""
    entries = chain_of(2)
    target = entries[1]
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(SuccessionError, match=rf"statement 1: .*{said}"):
        verify_chain(entries)


def test_statement_0_has_no_reason():
    """The first key follows nothing."""
    entries = chain_of(1)
    entries[0]["statement"]["reason"] = "routine"
    with pytest.raises(SuccessionError, match="exactly the fields"):
        verify_chain(entries)


def test_times_run_to_the_last_safe_integer():
    """0 and 2^53 - 1 are times."""
    for issued_at in (0, 2**53 - 1):
        assert verify_chain([first_statement(PAIRS[0], PAIRS[1].fingerprint, issued_at).as_json()])


def test_the_wrong_keys_make_no_statement():
    """A rotation begun with other keys than the chain expects fails before anything is signed."""
    chain = verify_chain(chain_of(1))
    with pytest.raises(SuccessionError, match="not the next key"):
        next_statement(chain, PAIRS[2], PAIRS[3].fingerprint, T0, Reason.LOST)
    with pytest.raises(SuccessionError, match="signs a routine statement, and no other"):
        next_statement(chain, PAIRS[1], PAIRS[2].fingerprint, T0, Reason.ROUTINE)
    with pytest.raises(SuccessionError, match="signs a routine statement, and no other"):
        next_statement(chain, PAIRS[1], PAIRS[2].fingerprint, T0, Reason.LOST, previous=PAIRS[0])
    with pytest.raises(SuccessionError, match="not the chain's current key"):
        next_statement(chain, PAIRS[1], PAIRS[2].fingerprint, T0, Reason.ROUTINE, previous=PAIRS[3])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["statement", "signatures", "sequence", "x"]), inner)
    ),
    max_leaves=12,
)


@given(JUNK)
def test_junk_raises_nothing_but_succession_errors(value):
    """Any JSON value is a chain or a SuccessionError."""
    for entries in (value, [value], {"statement": value}):
        with pytest.raises(SuccessionError):
            verify_chain(entries)


@given(st.integers(0, 1), st.sampled_from(["statement", "signatures"]), JUNK)
def test_junk_within_a_chain_raises_nothing_else_either(number, part, value):
    """A valid chain with a part replaced by anything is refused."""
    entries = chain_of(2)
    entries[number][part] = value
    with pytest.raises(SuccessionError):
        verify_chain(entries)
