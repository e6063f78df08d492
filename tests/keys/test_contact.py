import ipaddress

import pytest

from keys.contact import contact_card, host_addresses, own_addresses, qr_code, shown_name
from keys.encoding import MAX_CARD_ADDRESSES, ContactCard
from tests.keys.identities import pairs, write

HOSTS = ["192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize(
    ("advertised", "bind", "told"),
    [
        ([], "0.0.0.0:8104", ("ws://192.0.2.1:8104/sync", "ws://[2001:db8::1]:8104/sync")),
        ([], "[::]:9000", ("ws://192.0.2.1:9000/sync", "ws://[2001:db8::1]:9000/sync")),
        ([], ":9000", ("ws://192.0.2.1:9000/sync", "ws://[2001:db8::1]:9000/sync")),
        ([], "127.0.0.1:8104", ("ws://127.0.0.1:8104/sync",)),
        ([], "[::1]:8105", ("ws://[::1]:8105/sync",)),
        ([], "192.0.2.9:8104", ("ws://192.0.2.9:8104/sync",)),
        (["wss://example.org/sync"], "0.0.0.0:8104", ("wss://example.org/sync",)),
        (["wss://example.org"], "0.0.0.0:8104", ("wss://example.org/sync",)),
        (["ws://example.org:1/x/"], "0.0.0.0:8104", ("ws://example.org:1/x/",)),
        (["example.org"], "0.0.0.0:8204", ("ws://example.org:8204/sync",)),
        (["example.org:99"], "0.0.0.0:8104", ("ws://example.org:99/sync",)),
        (["192.0.2.5"], "0.0.0.0:8104", ("ws://192.0.2.5:8104/sync",)),
        (["2001:db8::5"], "0.0.0.0:8104", ("ws://[2001:db8::5]:8104/sync",)),
        (["[2001:db8::5]"], "0.0.0.0:8104", ("ws://[2001:db8::5]:8104/sync",)),
        (["[2001:db8::5]:7"], "0.0.0.0:8104", ("ws://[2001:db8::5]:7/sync",)),
        ([" a.example ", "", "a.example"], "0.0.0.0:8104", ("ws://a.example:8104/sync",)),
        (["x" * 300], "0.0.0.0:8104", ()),
    ],
)
def test_addresses_are_dialable_urls(advertised, bind, told):
    """What is advertised wins, else what is bound, else the machine's addresses; each with port and path, once."""
    assert own_addresses(advertised, bind, HOSTS) == told


def test_a_card_has_room_for_eight_addresses():
    """Of more, the first eight are told."""
    told = own_addresses([], "0.0.0.0:8104", [f"192.0.2.{number}" for number in range(20)])
    assert len(told) == MAX_CARD_ADDRESSES and told[0] == "ws://192.0.2.0:8104/sync"


def test_this_machines_addresses_mean_something_elsewhere():
    """No loopback, no link-local, IPv4 first."""
    addresses = [ipaddress.ip_address(text) for text in host_addresses()]
    assert not any(address.is_loopback or address.is_link_local for address in addresses)
    assert [address.version for address in addresses] == sorted(address.version for address in addresses)
    own_addresses([], "0.0.0.0:8104")


def test_a_qr_code_draws_every_module():
    """The half blocks are the matrix of the code, with a light border, read back module for module."""
    import qrcode

    text = "ark1" + "Ab0-_" * 60
    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_L, border=2)
    code.add_data(text)
    code.make(fit=True)
    dark = code.get_matrix()
    halves = {"█": (False, False), "▀": (False, True), "▄": (True, False), " ": (True, True)}
    drawn = []
    for line in qr_code(text).split("\n"):
        pairs_of_rows = [halves[character] for character in line.ljust(len(dark))]
        drawn += [[upper for upper, _ in pairs_of_rows], [lower for _, lower in pairs_of_rows]]
    assert drawn[: len(dark)] == dark


def test_names_are_cleaned():
    """A node may call itself anything printable, up to 64 characters, and never nothing."""
    assert shown_name("ann’s 机") == "ann’s 机"
    assert shown_name(" a\x00\u202e\nb ") == "ab"
    assert shown_name("x" * 65) == "x" * 64
    assert shown_name("\n") == shown_name("") == "node"


def test_a_card_says_what_the_identity_is(tmp_path, settings):
    """Node id and current key come from the identity."""
    from keys.services import load_identity

    settings.ARK_KEYS_DIR = tmp_path / "keys"
    write(tmp_path / "keys")
    card = contact_card(load_identity(), name="ann", addresses=["ws://192.0.2.1:8104/sync"])
    assert ContactCard.decode(card.encode()) == card
    assert card.public_key == pairs(0)[0].public
