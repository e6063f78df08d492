"""The claim on a peer's link: one a peer, whichever process holds it."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from federation import claims
from federation.claims import CLAIM_LIFE, Claimant, claim_link, held_links, is_live, live_claims, process_token, refresh_claims
from federation.models import LinkClaim
from keys.encoding import NodeId

pytestmark = pytest.mark.django_db

PEER = NodeId(bytes(15) + b"\x07")
LOW, HIGH = NodeId(bytes(15) + b"\x01"), NodeId(bytes(15) + b"\x09")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def here():
    return process_token()


def take(process, link, *, dialler=LOW, now=NOW):
    return claim_link(claimant=Claimant(PEER, process, link, dialler, "somewhere"), now=now)


@pytest.fixture
def elsewhere(here):
    """Another process that lives, as the claims see it: a pid that runs and the token of when it started."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    token = f"{claims._started(child.pid):016x}" + "e" * 16

    class Elsewhere:
        process, pid = token, child.pid

        def take(self, link, **more):
            result = take(token, link, **more)
            LinkClaim.objects.filter(process=token).update(pid=child.pid)
            return result

        def kill(self):
            child.kill()
            child.wait()

    yield Elsewhere()
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    ("first", "second", "granted"), [(LOW, HIGH, False), (HIGH, LOW, True), (LOW, LOW, True), (HIGH, HIGH, True)]
)
def test_which_of_two_stays(here, first, second, granted):
    """Of different diallers the lower node_id's link stays, of the same dialler the newest."""
    assert take(here, "1", dialler=first).granted
    assert take(here, "2", dialler=second).granted is granted
    assert LinkClaim.objects.get().link == ("2" if granted else "1")


@pytest.mark.parametrize(("first", "second", "granted"), [(LOW, HIGH, False), (HIGH, LOW, True), (LOW, LOW, True)])
def test_across_processes_the_same_holds(here, elsewhere, first, second, granted):
    """The rule does not ask which process holds the link; the loser finds out that it lost."""
    assert elsewhere.take("1", dialler=first).granted
    assert take(here, "2", dialler=second).granted is granted
    assert held_links(process=elsewhere.process) == (set() if granted else {"1"})


def test_claim_of_a_killed_process_counts_for_nothing(here, elsewhere):
    """A process that was killed holds up nobody, from the moment it is gone."""
    elsewhere.take("1", dialler=LOW)
    elsewhere.kill()
    assert live_claims(NOW) == []
    assert take(here, "2", dialler=HIGH).granted


def test_pid_used_again_is_another_process(here, elsewhere):
    """A pid that another program has by now does not keep the claim of the process that had it before."""
    LinkClaim.objects.create(
        peer=PEER.hex(), process="00000000000000ff" + "a" * 16, pid=elsewhere.pid, link="1", dialler=LOW.hex(), refreshed=NOW
    )
    assert live_claims(NOW) == []
    assert take(here, "2", dialler=HIGH).granted


def test_own_pid_used_again_is_another_process(here):
    """A leftover of a crash whose pid is this process's own now is no claim."""
    LinkClaim.objects.create(
        peer=PEER.hex(), process="00000000000000ff" + "a" * 16, pid=os.getpid(), link="1", dialler=LOW.hex(), refreshed=NOW
    )
    assert take(here, "2", dialler=HIGH).granted


def test_claim_lives_as_long_as_it_is_refreshed(here, elsewhere):
    """A claim of another process counts until its life is over, and no longer."""
    elsewhere.take("1", dialler=LOW)
    row = LinkClaim.objects.get()
    assert is_live(row, NOW + CLAIM_LIFE - timedelta(milliseconds=1))
    assert not is_live(row, NOW + CLAIM_LIFE)
    later = NOW + CLAIM_LIFE
    refresh_claims(process=elsewhere.process, states={"1": {"behind": 3}, "gone": {}}, now=later)
    assert [claim.state for claim in live_claims(later + CLAIM_LIFE / 2)] == [{"behind": 3}]
    assert not take(here, "2", dialler=HIGH, now=later).granted


def test_giving_back_takes_only_the_own(here, elsewhere):
    """An ended link gives back its own claim, never the one that displaced it."""
    take(here, "1", dialler=HIGH)
    elsewhere.take("2", dialler=LOW)
    claims.release_claim(process=here, link="1")
    claims.release_process(process=here)
    assert LinkClaim.objects.get().link == "2"
    claims.release_claim(process=elsewhere.process, link="2")
    assert not LinkClaim.objects.exists()


@pytest.mark.parametrize("process", ["", "x", "z" * 32, "0" * 32])
def test_unreadable_process_token_is_judged_by_its_pid(process):
    """A row whose token says nothing of when its process started is judged by the pid alone."""
    row = LinkClaim(peer=PEER.hex(), process=process, pid=os.getpid(), link="1", dialler=LOW.hex(), refreshed=NOW)
    assert is_live(row, NOW)
    row.pid = 2**22 - 1
    assert not is_live(row, NOW)
