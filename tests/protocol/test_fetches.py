"""One board for all links: an id is asked of one peer at a time."""

from federation.protocol.fetches import FetchBoard


def test_three_links_take_turns():
    """Who claims first fetches; the others may when it gives up, ends, or runs out of time."""
    board = FetchBoard()
    assert board.claim(b"id", "one", now=0.0, until=30.0)
    assert not board.claim(b"id", "two", now=1.0, until=31.0)
    assert not board.claim(b"id", "three", now=29.9, until=60.0)
    assert board.claim(b"id", "two", now=30.0, until=60.0)
    board.release(b"id", "one")
    assert board.is_claimed(b"id", now=59.9)
    board.release(b"id", "two")
    assert board.claim(b"id", "three", now=31.0, until=61.0)
    board.release_all("three")
    assert len(board) == 0


def test_a_claim_is_renewed_by_its_holder():
    board = FetchBoard()
    assert board.claim(b"id", "one", now=0.0, until=30.0)
    assert board.claim(b"id", "one", now=10.0, until=40.0)
    assert board.is_claimed(b"id", now=39.9)
    assert not board.is_claimed(b"id", now=40.0)


def test_the_end_of_a_link_leaves_the_claims_of_others():
    board = FetchBoard()
    for number in range(10):
        board.claim(number.to_bytes(1), "one" if number % 2 else "two", now=0.0, until=30.0)
    board.release_all("one")
    assert len(board) == 5
    assert board.is_claimed(bytes([0]), now=1.0) and not board.is_claimed(bytes([1]), now=1.0)


def test_releasing_what_nobody_claimed_does_nothing():
    board = FetchBoard()
    board.release(b"id", "one")
    assert not board.is_claimed(b"id", now=0.0)
