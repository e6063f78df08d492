"""Sync URLs: what an operator may type, and what a source address becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.addresses import host_of, parse_url, sync_url
from peers.errors import AddressError


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("ws://192.0.2.7:8104/sync", "ws://192.0.2.7:8104/sync"),
        ("ws://192.0.2.7", "ws://192.0.2.7:8104/sync"),
        ("WSS://Node.Example:443/", "wss://node.example:443/sync"),
        ("wss://node.example/peers/sync", "wss://node.example:8104/peers/sync"),
        ("ws://[2001:DB8::1]", "ws://[2001:db8::1]:8104/sync"),
        ("ws://[fe80::1%enP2s0]:9000", "ws://[fe80::1%enP2s0]:9000/sync"),
    ],
)
def test_what_is_typed_becomes_one_spelling(typed, url):
    """Port and path are filled in, host and scheme lowered, an interface name kept as it is; twice changes nothing."""
    assert parse_url(typed) == url
    assert parse_url(url) == url


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "192.0.2.7:8104",
        "http://192.0.2.7",
        "ws://",
        "ws://:8104",
        "ws://host:0",
        "ws://host:65536",
        "ws://host:port",
        "ws://user:secret@host",
        "ws://host/sync?x=1",
        "ws://host/sync#x",
        "ws://ho st",
        "ws://host\n",
        "ws://host\0",
        "ws://[::1",
        "ws://[nonsense]",
        "ws://" + "h" * 245,
        "ws://" + "h" * 300,
    ],
)
def test_anything_else_is_refused(typed):
    """What is no dialable URL is refused, naming it."""
    with pytest.raises(AddressError, match=r"ws://|dial|may hold|longer"):
        parse_url(typed)


def test_longest_url_fits_its_column():
    """255 characters pass, one more does not."""
    fits = "ws://" + "h" * (255 - len("ws://:8104/sync"))
    assert len(parse_url(fits)) == 255
    with pytest.raises(AddressError, match="longer than 255"):
        parse_url(fits + "h")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("192.0.2.7", "ws://192.0.2.7:8104/sync"),
        ("::ffff:192.0.2.7", "ws://192.0.2.7:8104/sync"),
        ("fe80::1%eth0", "ws://[fe80::1%eth0]:8104/sync"),
    ],
)
def test_source_address_becomes_a_url(host, url):
    """An address as the socket gives it, with zone or mapped, has one spelling, and its host can be read back."""
    assert sync_url(host, 8104) == url
    assert parse_url(url) == url
    assert host_of(url) == host.removeprefix("::ffff:").partition("%")[0]


@pytest.mark.parametrize(("host", "port"), [("node.example", 1), ("", 1), ("192.0.2.7", 0), ("192.0.2.7", 65_536)])
def test_source_addresses_are_ip_addresses(host, port):
    """A name, or a port that is none, is refused."""
    with pytest.raises(AddressError):
        sync_url(host, port)


@given(st.text(max_size=300))
def test_junk_raises_only_its_own_error(text):
    """Any text is a URL or an AddressError."""
    try:
        assert parse_url(text).startswith(("ws://", "wss://"))
    except AddressError:
        pass
