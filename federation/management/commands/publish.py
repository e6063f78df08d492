"""Manage.py publish: sign content and store it, from where running links take it to peers.

A file whose name ends in `.json` is published as the JSON value it holds; any other file, standard input and
`--text` as a string, exactly as it is. With `--ndjson` each line is one JSON value and becomes one packet; blank
lines are passed over, and the options describe every packet alike.
"""

import argparse
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from django.core.management.base import CommandParser
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from federation.packet_arguments import moment
from federation.protocol.canonical import JSONValue, parse
from federation.protocol.errors import Code, PacketError
from federation.protocol.limits import MAX_PACKET_BYTES
from federation.protocol.packet import PacketId
from federation.selectors import AmbiguousPacketError, MalformedIdError, UnknownPacketError, resolve_packet
from federation.services import Draft, publish
from keys.command import ArkCommand, Exit, fail
from keys.ed25519 import KeysError
from keys.services import load_identity
from peers.trust import Audience

# What people write may be longer than its canonical bytes (blanks, escapes of six bytes for one character), never
# more than this; a longer file or line is refused unread, so that no input fills the memory.
MAX_TEXT_BYTES = 8 * MAX_PACKET_BYTES
# Lines between two looks of the progress bar.
LINES_A_STEP = 500
ID_BYTES = 32


class Command(ArkCommand):
    help = "Sign content and store it as a knowledge packet; peers get it as their tier allows."
    failures = {
        KeysError: Exit.FAILED,
        UnknownPacketError: Exit.NOT_FOUND,
        MalformedIdError: Exit.USAGE,
        AmbiguousPacketError: Exit.USAGE,
    }

    def add_arguments(self, parser: CommandParser) -> None:
        audiences = [audience.value for audience in Audience]
        parser.add_argument(
            "file", nargs="?", metavar="FILE", help="*.json is published as JSON, others as text; -: standard input"
        )
        parser.add_argument("--text", help="publish this text")
        parser.add_argument("--ndjson", action="store_true", help="one JSON value a line, one packet each")
        parser.add_argument("--atomic", action="store_true", help="with --ndjson: all lines or none")
        parser.add_argument("--kind", default="note", help="what it is: a-z 0-9 . _ - (default note)")
        parser.add_argument("--title", help="at most 200 characters")
        parser.add_argument("--tag", action="append", default=[], help="may be repeated, up to 32")
        parser.add_argument("--audience", choices=audiences, default=Audience.CORE.value, help="how far it travels (default core)")
        parser.add_argument("--source", help="attribution, at most 512 characters")
        parser.add_argument("--confidence", type=_confidence, help="from 0 to 1")
        parser.add_argument("--depends-on", action="append", default=[], metavar="ID", help="a packet it builds on; repeatable")
        parser.add_argument("--supersedes", metavar="ID", help="the packet this one replaces")
        parser.add_argument("--expires", type=moment, help="erased everywhere then: ISO 8601 or milliseconds since 1970")

    def run(self, **options: Any) -> dict[str, Any]:
        if (options["file"] is None) == (options["text"] is None):
            raise fail("give a FILE (- for standard input) or --text, one of them", Exit.USAGE)
        if options["ndjson"] and options["file"] is None:
            raise fail("--ndjson reads a FILE or -", Exit.USAGE)
        if options["atomic"] and not options["ndjson"]:
            raise fail("--atomic goes with --ndjson", Exit.USAGE)
        fields: dict[str, Any] = {
            "kind": options["kind"],
            "title": options["title"],
            "tags": tuple(options["tag"]),
            "audience": Audience(options["audience"]),
            "source": options["source"],
            "confidence": options["confidence"],
            "depends_on": tuple(_packet_id(text) for text in options["depends_on"]),
            "supersedes": _packet_id(options["supersedes"]) if options["supersedes"] else None,
            "expires_at": options["expires"],
        }
        if options["ndjson"]:
            return self._publish_lines(options["file"], fields, atomic=options["atomic"], colour=not options["no_color"])
        return self._publish_one(options, fields)

    def _publish_one(self, options: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        try:
            content = options["text"] if options["file"] is None else _whole(options["file"])
            identity = load_identity()
            (packet_id,) = publish(pair=identity.pair, node_id=identity.node_id, drafts=[Draft(content, **fields)], clock=_now_ms)
        except PacketError as error:
            raise fail(f"nothing is published: {error} [{error.code}]", Exit.USAGE) from error
        self.say(f"published {packet_id.hex()}")
        return {"id": packet_id.hex()}

    def _publish_lines(self, name: str, fields: dict[str, Any], *, atomic: bool, colour: bool) -> dict[str, Any]:
        identity = load_identity()
        ids = bytearray()  # 32 bytes a packet, so that a million of them are no burden
        with _opened(name) as file, _progress(file, shown=not self.as_json, colour=colour) as advance:
            lines = _Lines(file, advance)
            try:
                publish(
                    pair=identity.pair,
                    node_id=identity.node_id,
                    drafts=(Draft(content, **fields) for content in lines),
                    clock=_now_ms,
                    atomic=atomic,
                    stored=lambda batch: ids.extend(b"".join(batch)),
                )
            except PacketError as error:
                self._tell_what_stays(ids, atomic=atomic)
                raise fail(f"line {lines.number}: {error} [{error.code}]; {_what_stays(ids, atomic=atomic)}", Exit.USAGE) from error
            except KeyboardInterrupt:
                self._tell_what_stays(ids, atomic=atomic)
                raise fail(f"interrupted; {_what_stays(ids, atomic=atomic)}", Exit.INTERRUPTED) from None
        self.say(f"published {len(ids) // ID_BYTES} packets")
        return {"ids": _hex_ids(ids)} if self.as_json else {}

    def _tell_what_stays(self, ids: bytearray, *, atomic: bool) -> None:
        """Print the ids of a run that ends early, since its packets are published all the same."""
        if self.as_json and not atomic:
            self.stdout.write(self.json_text({"ids": _hex_ids(ids)}))


class _Lines:
    """The JSON values of a file's lines, strictly parsed; `number` is that of the line read last, from 1.

    Iterating raises PacketError for a line that is too long or not JSON of one meaning.
    """

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.number = 0
        self._file = file
        self._advance = advance

    def __iter__(self) -> Iterator[JSONValue]:
        unshown = 0
        while line := self._file.readline(MAX_TEXT_BYTES + 1):
            self.number += 1
            if len(line) > MAX_TEXT_BYTES:
                raise PacketError(Code.TOO_LARGE, f"the line is longer than {MAX_TEXT_BYTES} bytes")
            unshown += len(line)
            if self.number % LINES_A_STEP == 0:
                self._advance(unshown)
                unshown = 0
            if line.strip(b" \t\r\n"):
                yield parse(line, max_bytes=MAX_TEXT_BYTES)
        self._advance(unshown)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """Open a file, or standard input for `-`."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(name).open("rb") as file:
            yield file
    except OSError as error:
        raise fail(f"{name!r} cannot be read: {error.strerror}") from error


@contextmanager
def _progress(file: IO[bytes], *, shown: bool, colour: bool) -> Iterator[Callable[[int], None]]:
    """Show how far reading has come on standard error when that is a terminal; yields what to call with bytes read."""
    if not (shown and sys.stderr.isatty()):
        yield lambda count: None
        return
    status = os.fstat(file.fileno())
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    columns = (TextColumn("signing"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, no_color=not colour), transient=True) as progress:
        task = progress.add_task("signing", total=total)
        yield lambda count: progress.advance(task, count)


def _whole(name: str) -> JSONValue:
    """Return the content that a file holds: a JSON value when it is named so, else its text as it is."""
    with _opened(name) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise PacketError(Code.TOO_LARGE, f"the content is longer than {MAX_TEXT_BYTES} bytes")
    if name.lower().endswith(".json"):
        return parse(data, max_bytes=MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PacketError(Code.MALFORMED, f"the content is not UTF-8 text: byte {error.start} cannot be read") from None


def _packet_id(text: str) -> PacketId:
    """Return the id that an option names; a whole one may be of a packet that is not here."""
    return PacketId(bytes.fromhex(text)) if re.fullmatch(r"[0-9a-f]{64}", text) else resolve_packet(text)


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 0 to 1")
    return value


def _what_stays(ids: bytearray, *, atomic: bool) -> str:
    return "nothing is published" if atomic else f"the {len(ids) // ID_BYTES} packets before it are published"


def _hex_ids(ids: bytearray) -> list[str]:
    text = ids.hex()
    return [text[start : start + 2 * ID_BYTES] for start in range(0, len(text), 2 * ID_BYTES)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
