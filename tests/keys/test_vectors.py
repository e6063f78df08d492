"""The published vectors hold here: each input gives its output or the error it names."""

import base64
import json
from pathlib import Path

import pytest

from keys import ed25519, encoding, succession

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs" / "vectors" / "keys.json").read_text(encoding="utf-8"))
ERRORS = {
    error.__name__: error
    for error in (encoding.EncodingError, ed25519.InvalidKeyError, ed25519.InvalidSignatureError, succession.SuccessionError)
}


def from_seed(seed):
    pair = ed25519.keypair_from_seed(bytes.fromhex(seed))
    return {
        "secret_key": pair.secret.hex(),
        "public_key": pair.public.hex(),
        "fingerprint": pair.fingerprint.hex(),
        "fingerprint_grouped": encoding.grouped(pair.fingerprint),
        "node_id": encoding.node_id_of(pair.public).hex(),
    }


def from_secret(secret_key):
    return {"public_key": ed25519.keypair_from_secret(bytes.fromhex(secret_key)).public.hex()}


def public_key(public_key):
    ed25519.check_public_key(bytes.fromhex(public_key))
    return {"usable": True}


def verify(public_key, message, signature):
    ed25519.verify(bytes.fromhex(public_key), bytes.fromhex(message), bytes.fromhex(signature))
    return {"valid": True}


def hex32(text):
    return {"bytes_base64": base64.b64encode(encoding.parse_hex(text, size=32)).decode()}


def card(text):
    read = encoding.ContactCard.decode(text)
    assert read.encode() == text
    return {
        "node_id": read.node_id.hex(),
        "name": read.name,
        "public_key": read.public_key.hex(),
        "addresses": list(read.addresses),
    }


def chain(succession):
    verified = _verify_chain(succession)
    return {
        "node_id": verified.node_id.hex(),
        "keys": [key.hex() for key in verified.keys],
        "current": verified.current.hex(),
        "next_key_hash": verified.next_key_hash.hex(),
    }


def first_statement(seed, next_key_hash, issued_at):
    pair = ed25519.keypair_from_seed(bytes.fromhex(seed))
    return succession.first_statement(pair, encoding.parse_fingerprint(next_key_hash), issued_at).as_json()


_verify_chain = succession.verify_chain
SECTIONS = {
    "key_from_seed": from_seed,
    "key_from_secret": from_secret,
    "public_key": public_key,
    "verify": verify,
    "hex32": hex32,
    "card": card,
    "succession": chain,
    "succession_first_statement": first_statement,
}
CASES = [(section, number) for section in SECTIONS for number in range(len(VECTORS[section]))]


@pytest.mark.parametrize(("section", "number"), CASES, ids=lambda value: str(value))
def test_vector(section, number):
    """Input gives output, or the refusal it names."""
    vector = VECTORS[section][number]
    assert ("output" in vector) != ("error" in vector)
    if "error" in vector:
        with pytest.raises(ERRORS[vector["error"]]):
            SECTIONS[section](**vector["input"])
    else:
        assert SECTIONS[section](**vector["input"]) == vector["output"]


def test_every_section_is_run():
    """No vector lies in the file without being tried, and each section has both outcomes where both exist."""
    assert set(VECTORS) - {"about"} == set(SECTIONS)
    assert {vector["error"] for section in SECTIONS for vector in VECTORS[section] if "error" in vector} == set(ERRORS)


def test_the_signing_input_is_published():
    """Another implementation can compare the very bytes that a statement's signature covers."""
    vector = VECTORS["succession"][0]
    entry = _verify_chain(vector["input"]["succession"]).entries[0]
    assert entry.statement.signing_input().hex() == vector["signing_input_0"]
