import pytest

from keys import selftest


def test_every_check_holds_here():
    """Known answers and refusals, each under a name of its own."""
    checks = selftest.run_checks()
    assert all(check.held for check in checks)
    assert len({check.name for check in checks}) == len(checks) >= 26


@pytest.mark.parametrize("broken", ["sign", "verify", "check_public_key", "parse_hex"])
def test_the_self_test_notices_a_lax_library(monkeypatch, broken):
    """A signer or verifier that lets everything pass does not get through."""
    lax = {
        "sign": lambda pair, message: bytes(64),
        "verify": lambda public, message, signature: None,
        "check_public_key": lambda key: None,
        "parse_hex": lambda text, size: bytes(size),
    }
    monkeypatch.setattr(selftest, broken, lax[broken])
    assert not all(check.held for check in selftest.run_checks())
