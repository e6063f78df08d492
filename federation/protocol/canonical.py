"""Canonical JSON: the one strict parser and the one encoder of the project.

Packets, manifests, beacons, envelopes and contact cards all pass through here, so that bytes mean the
same to whoever signs, checks, stores or shows them. Two questions are kept apart because the checks on
receipt ask them at different points (docs/protocol.md, section 2):

- Is it JSON with one meaning? `decode` says no with MALFORMED: not JSON, bad UTF-8, a byte order mark,
  NaN or infinity, a key twice in one object, nesting too deep. Size comes before it: TOO_LARGE.
- Is it *the* bytes for that meaning? `require_canonical` says no with NOT_CANONICAL: a lone surrogate, a
  number out of range, stray blanks, other key order, other escapes or another number form (RFC 8785).

How the fast path decides without rfc8785 (22 µs for 500 bytes) in about 3 µs: msgspec decodes, orjson
encodes with sorted keys, and equal bytes are canonical because

- a key given twice, blanks, other escapes and other forms of integers cannot survive the round trip;
- orjson and JCS escape the same characters the same way (a test compares all of them);
- OPT_STRICT_INTEGER refuses integers beyond ±(2^53-1);
- a float literal reaches `float_hook`, which refuses every literal that rfc8785 would write otherwise;
- orjson orders keys by UTF-8, JCS by UTF-16. The two differ only between characters beyond the BMP (first
  byte F0 or more) and those from U+E000 (first byte EE or EF): text with both takes the slow path.

What is not proven so is decided by Python's json with hooks and by rfc8785. Text with blanks or keys in another
order, as people and programs write it, is still decoded fast when it has no escapes: see `_has_one_meaning`.
"""

import json
import re
from typing import Any, NoReturn

import msgspec
import orjson
import rfc8785

from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import MAX_NESTING, MAX_PACKET_BYTES, MAX_SAFE_INTEGER

__all__ = ["JSONValue", "canonicalize", "decode", "parse", "parse_canonical", "require_canonical"]

# A tree of dict[str, ...], list, str, int, float, bool and None.
JSONValue = Any

_BOM = b"\xef\xbb\xbf"
_ORJSON_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
# Floats from here on are written with an exponent, below it as integers (ECMA-262, Number::toString).
_FIRST_EXPONENT = 1e21
# Integer literals up to this length are kept exact; longer ones lie beyond ±(2^53-1) and count as floats.
_EXACT_DIGITS = 17
_BEYOND_BMP = re.compile(rb"[\xf0-\xff]")
_FROM_E000 = re.compile(rb"[\xee\xef]")
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse(data: bytes, *, max_bytes: int = MAX_PACKET_BYTES, max_nesting: int = MAX_NESTING) -> JSONValue:
    """Return the value of JSON text that need not be canonical but has exactly one meaning.

    Raises:
        PacketError: TOO_LARGE beyond `max_bytes`; MALFORMED and NOT_CANONICAL as above, of the latter
            only what no canonical form exists for: lone surrogates and numbers out of range.
    """
    value, canonical = decode(data, max_bytes=max_bytes, max_nesting=max_nesting)
    if not canonical:
        _check(value, max_nesting)
    return value


def parse_canonical(data: bytes, *, max_bytes: int = MAX_PACKET_BYTES) -> JSONValue:
    """Return the value of `data`, which must be its canonical bytes.

    Raises:
        PacketError: TOO_LARGE beyond `max_bytes`, MALFORMED, NOT_CANONICAL.

    Source: docs/protocol.md, section 2; RFC 8785.
    """
    value, canonical = decode(data, max_bytes=max_bytes)
    if not canonical:
        require_canonical(data, value)
    return value


def canonicalize(value: JSONValue, *, max_bytes: int = MAX_PACKET_BYTES, max_nesting: int = MAX_NESTING) -> bytes:
    """Return the canonical bytes of `value`.

    Raises:
        PacketError: TOO_LARGE beyond `max_bytes`; MALFORMED for what JSON cannot say (another type, a key
            that is no string, NaN, infinity) and for too deep a nesting; NOT_CANONICAL for a lone
            surrogate or a number out of range.

    Source: RFC 8785, narrowed by docs/protocol.md, section 2.
    """
    data = _encode(value, max_nesting)
    if len(data) > max_bytes:
        raise PacketError(Code.TOO_LARGE, f"{len(data)} canonical bytes, at most {max_bytes} are allowed")
    return data


def decode(data: bytes, *, max_bytes: int = MAX_PACKET_BYTES, max_nesting: int = MAX_NESTING) -> tuple[JSONValue, bool]:
    """Return the value of JSON text, and whether its bytes are already proven canonical.

    Where they are not, nothing is decided yet: the caller goes on with `require_canonical`. Until then
    the value may hold lone surrogates, infinities and numbers out of range.

    Raises:
        PacketError: TOO_LARGE beyond `max_bytes`, MALFORMED.
    """
    if len(data) > max_bytes:
        raise PacketError(Code.TOO_LARGE, f"{len(data)} bytes, at most {max_bytes} are allowed")
    # Before any recursive parser sees it. So few brackets cannot nest too deeply: no scan is needed.
    if data.count(b"{") + data.count(b"[") > max_nesting and not _closes_within(data, max_nesting):
        raise _too_deep(max_nesting)
    try:
        value = _fast_decoder.decode(data)
        encoded = orjson.dumps(value, option=_ORJSON_OPTIONS)
        if encoded == data and _sorts_alike(data):
            return value, True
        if _has_one_meaning(data, encoded):
            return value, False
    except (msgspec.MsgspecError, orjson.JSONEncodeError, ValueError, RecursionError):
        pass  # not the plain case: the strict parser says what is wrong, if anything
    return _decode_strictly(data), False


def require_canonical(data: bytes, value: JSONValue) -> None:
    """Return if `data`, which decoded to `value`, is the canonical form of it.

    Raises:
        PacketError: NOT_CANONICAL.
    """
    if _encode(value) != data:
        raise PacketError(Code.NOT_CANONICAL, "the bytes are not the canonical form (RFC 8785) of what they say")


def _float_as_canonical(literal: str) -> float:
    """Return the float of `literal` when rfc8785 writes it just so; ValueError sends the text to the slow path."""
    number = float(literal)
    # Both write the shortest digits that read back; without exponent or a bare .0 also in the same form.
    if repr(number) == literal and "e" not in literal and not literal.endswith(".0"):
        return number
    if rfc8785.dumps(number) != literal.encode():
        raise ValueError("another number form")
    return number


_fast_decoder = msgspec.json.Decoder(float_hook=_float_as_canonical)


def _has_one_meaning(data: bytes, encoded: bytes) -> bool:
    """True when no key of this JSON text is given twice; `encoded` is what its value was encoded to.

    Without escapes every string of either text stands between two quotes and holds none. A key given twice, gone from
    the value with what it said first, takes its quotes along, and nothing adds any.
    """
    return b"\\" not in data and data.count(b'"') == encoded.count(b'"')


def _sorts_alike(data: bytes) -> bool:
    """True when ordering keys by UTF-8 and by UTF-16 cannot differ in this text."""
    return data.isascii() or not _BEYOND_BMP.search(data) or not _FROM_E000.search(data)


def _closes_within(data: bytes, max_nesting: int) -> bool:
    """True when no bracket outside a string of this JSON text nests deeper than `max_nesting`.

    Strings are cut out by splitting at quotes once escapes are gone, then each round removes the innermost
    pairs, so that as many rounds as levels empty the text. All of it runs without recursion at the speed of
    `bytes`. Text with unbalanced brackets is no JSON and never empties: False as well.
    """
    outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_ONE_KIND_OF_BRACKET, _NO_BRACKETS)
    for _ in range(max_nesting):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"")
    return not brackets


def _decode_strictly(data: bytes) -> JSONValue:
    if data.startswith(_BOM):
        raise PacketError(Code.MALFORMED, "the text starts with a byte order mark")
    try:
        return _strict_decoder.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PacketError(Code.MALFORMED, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise PacketError(Code.MALFORMED, f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep(MAX_NESTING) from None


def _object_without_duplicates(pairs: list[tuple[str, JSONValue]]) -> dict[str, JSONValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise PacketError(Code.MALFORMED, f"the key {twice[:40]!r} stands twice in one object")
    return value


def _integer(literal: str) -> int | float:
    return int(literal) if len(literal) <= _EXACT_DIGITS else float(literal)


def _refuse_constant(literal: str) -> NoReturn:
    raise PacketError(Code.MALFORMED, f"{literal} is no JSON number")


_strict_decoder = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates, parse_int=_integer, parse_constant=_refuse_constant, strict=True
)


def _encode(value: JSONValue, max_nesting: int = MAX_NESTING) -> bytes:
    """Return the canonical bytes of `value`, of whatever size; errors as in `canonicalize`."""
    has_float = _check(value, max_nesting)
    data = orjson.dumps(value, option=_ORJSON_OPTIONS)
    if _sorts_alike(data) and not (has_float and _has_other_float_form(data)):
        return data
    return rfc8785.dumps(value)


def _has_other_float_form(data: bytes) -> bool:
    """True when rfc8785 would write some float of this JSON text otherwise (`1.0`, `1e21`)."""
    try:
        _fast_decoder.decode(data)
    except msgspec.MsgspecError:
        return True
    return False


def _check(value: JSONValue, levels: int) -> bool:
    """Walk `value` for what has no canonical form; return whether a float is in it.

    `levels` is how many containers may still nest, so that also a value that contains itself ends.
    """
    kind = type(value)
    if isinstance(value, str):
        _check_text(value)
    elif kind is bool or value is None:
        pass
    elif kind is int:
        if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            raise _out_of_range()
    elif kind is float:
        _check_float(value)
        return True
    elif kind is dict or kind is list or kind is tuple:
        if levels == 0:
            raise _too_deep(MAX_NESTING)
        if kind is dict:
            for key in value:
                if not isinstance(key, str):
                    raise PacketError(Code.MALFORMED, f"a key is a {type(key).__name__}, not a string")
                _check_text(key)
            value = value.values()
        has_float = False
        for item in value:
            has_float |= _check(item, levels - 1)
        return has_float
    else:
        raise PacketError(Code.MALFORMED, f"a {kind.__name__} is no JSON value")
    return False


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PacketError(Code.NOT_CANONICAL, "a string holds a lone surrogate") from None


def _check_float(number: float) -> None:
    if number != number:
        raise PacketError(Code.MALFORMED, "NaN is no JSON number")
    # Infinity comes from a literal beyond the largest double (1e400), or from a caller.
    if number in (float("inf"), float("-inf")) or (MAX_SAFE_INTEGER < abs(number) < _FIRST_EXPONENT):
        raise _out_of_range()


def _out_of_range() -> PacketError:
    return PacketError(Code.NOT_CANONICAL, "a number is out of range: integers lie within ±(2^53-1), others within a double")


def _too_deep(max_nesting: int) -> PacketError:
    return PacketError(Code.MALFORMED, f"nested deeper than {max_nesting}, or brackets that do not close")
