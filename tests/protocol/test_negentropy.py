"""Frames of Negentropy V1: read strictly, written as the reference implementation writes them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.errors import RemoteProtocolError
from federation.protocol.negentropy import (
    INFINITY,
    MAX_FRAME_BYTES,
    VERSION,
    Bound,
    Fingerprint,
    IdList,
    ReconcileError,
    Skip,
    encode_ranges,
    encode_varint,
    fingerprint_of_sum,
    parse_frame,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs/vectors/reconcile.json").read_text(encoding="utf-8"))

PLACES = st.lists(st.tuples(st.integers(0, 2**64 - 2), st.binary(max_size=32)), max_size=20).map(
    lambda places: sorted(places, key=lambda place: (place[0], place[1].ljust(32, b"\0")))
)


@st.composite
def well_formed(draw):
    """Ranges as some correct peer could send them."""
    uppers = [Bound(*place) for place in draw(PLACES)]
    if draw(st.booleans()):
        uppers.append(INFINITY)
    kinds = st.sampled_from([Skip, Fingerprint, IdList])
    ranges = []
    for upper in uppers:
        kind = draw(kinds)
        if kind is Skip:
            ranges.append(Skip(upper))
        elif kind is Fingerprint:
            ranges.append(Fingerprint(upper, draw(st.binary(min_size=16, max_size=16))))
        else:
            ranges.append(IdList(upper, b"".join(draw(st.lists(st.binary(min_size=32, max_size=32), max_size=3)))))
    return ranges


@given(well_formed())
def test_what_is_written_is_read_back(ranges):
    """Every sequence of ranges survives its bytes, the distinction of spellings of one bound included."""
    assert parse_frame(bytes((VERSION,)) + encode_ranges(ranges, 0)[0]) == ranges


@given(well_formed(), st.data())
def test_a_frame_cut_anywhere_is_shorter_or_refused(ranges, data):
    """A truncated frame raises, unless the cut falls between two ranges."""
    frame = bytes((VERSION,)) + encode_ranges(ranges, 0)[0]
    cut = data.draw(st.integers(0, len(frame) - 1))
    try:
        read = parse_frame(frame[:cut])
    except ReconcileError:
        return
    assert read == ranges[: len(read)]
    assert len(read) < len(ranges)


@given(st.binary(max_size=300).map(lambda junk: bytes((VERSION,)) + junk))
def test_junk_is_read_or_refused_and_has_one_spelling(frame):
    """Any bytes either raise ReconcileError or are exactly what writing their meaning gives."""
    try:
        ranges = parse_frame(frame)
    except ReconcileError:
        return
    assert bytes((VERSION,)) + encode_ranges(ranges, 0)[0] == frame


@pytest.mark.parametrize("vector", VECTORS["varints"], ids=lambda vector: vector["number"])
def test_numbers(vector):
    assert encode_varint(int(vector["number"])).hex() == vector["bytes"]


@pytest.mark.parametrize("vector", VECTORS["fingerprints"])
def test_fingerprints(vector):
    ids = [bytes.fromhex(packet_id) for packet_id in vector["ids"]]
    total = sum(int.from_bytes(packet_id, "little") for packet_id in ids)
    assert fingerprint_of_sum(total, len(ids)).hex() == vector["fingerprint"]


@pytest.mark.parametrize("vector", VECTORS["frames"]["valid"], ids=lambda vector: vector["name"])
def test_unusual_frames_that_are_well_formed(vector):
    assert len(parse_frame(bytes.fromhex(vector["frame"]))) == vector["ranges"]


@pytest.mark.parametrize("vector", VECTORS["frames"]["malformed"], ids=lambda vector: vector["name"])
def test_malformed_frames(vector):
    """Each one ends the link with its code, and a reason that says what was wrong."""
    with pytest.raises(RemoteProtocolError, match=r"^reconcile ") as caught:
        parse_frame(bytes.fromhex(vector["frame"]))
    assert type(caught.value).__name__ == vector["error"]
    assert caught.value.goodbye == vector["goodbye"]
    assert len(caught.value.reason) < 100


def test_a_frame_at_the_size_limit_and_one_beyond():
    """60,000 bytes are read, 60,001 are `too-large` before anything in them is looked at."""
    empty = b"\x01\x00\x00" * 6 + b"\x01\x01\x00\x00" * 2
    frame = bytes((VERSION,)) + empty + b"\x00\x00\x02" + encode_varint(1_874) + bytes(32 * 1_874)
    assert len(frame) == MAX_FRAME_BYTES
    assert len(parse_frame(frame)) == 9
    with pytest.raises(ReconcileError, match="60001 bytes") as caught:
        parse_frame(frame + b"\0")
    assert caught.value.goodbye == "too-large"
