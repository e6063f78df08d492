"""What every command of this project shares: exit statuses, `--json`, one clear line instead of a traceback.

Exit statuses are fixed (docs/architecture.md): 0 done, 1 failed, 2 wrong usage, 3 port taken,
4 no such peer, packet or key, 5 refused by trust policy, 6 verification failed, 130 interrupted.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, OperationalError, ProgrammingError


class Exit(IntEnum):
    FAILED = 1
    USAGE = 2
    PORT_TAKEN = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNVERIFIED = 6
    INTERRUPTED = 130


def fail(message: str, status: Exit = Exit.FAILED) -> CommandError:
    """Return the error that ends a command with `message` on standard error and this exit status."""
    return CommandError(printable(message), returncode=int(status))


def printable(text: str) -> str:
    """Return `text` with control and format characters shown as escapes, safe for a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1] for character in text)


def escaped_json(text: str) -> str:
    """Return JSON that means the same, with the characters a terminal obeys (C1, bidi, DEL) written as escapes.

    In JSON they stand inside strings only, where an escape says the same; line breaks between tokens stay.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1] for character in text)


def json_text(value: Any, *, encoding: str | None = None) -> str:
    """Return the JSON that commands print: harmless on a terminal, and in every script as far as `encoding` has it."""
    text = escaped_json(json.dumps(value, ensure_ascii=False))
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        # The stream's own escapes would be no JSON.
        return json.dumps(value)
    return text


class ArkCommand(BaseCommand):
    """A command that answers people in one line and programs in JSON.

    Subclasses implement `run(**options)` and return what `--json` prints (a dict or a list),
    writing the human line or table with `self.say`, which is silent under `--json`.
    """

    requires_system_checks: list[str] = []  # type: ignore[assignment]
    # Domain errors of the app mapped to exit statuses, e.g. {UnknownPeerError: Exit.NOT_FOUND}.
    failures: dict[type[Exception], Exit] = {}

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON document and nothing else on standard output"
        )

        def error(message: str) -> NoReturn:
            line = f"{' '.join(message.split())} (see {subcommand} --help)"
            if getattr(self, "_called_from_command_line", False):
                parser.exit(Exit.USAGE, f"{printable(line)}\n")
            raise fail(line, Exit.USAGE)

        # argparse would print every option there is, and the reason last.
        parser.error = error  # type: ignore[method-assign]
        return parser

    def run_from_argv(self, argv: Sequence[str]) -> None:
        # What a terminal's encoding lacks is shown as an escape: a name in another script is no reason to fail.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        super().run_from_argv(list(argv))

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json = bool(options.pop("as_json", False))
        try:
            result = self.run(**options)
        except KeyboardInterrupt:
            raise fail("interrupted", Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader went away (`| head`): nothing is left to say, and flushing at exit would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except tuple(self.failures) as error:
            status = next(status for kind, status in self.failures.items() if isinstance(error, kind))
            raise fail(str(error), status) from error
        except (OperationalError, ProgrammingError) as error:
            text = str(error)
            if "no such table" in text or "no such column" in text or "does not exist" in text:
                raise fail("the database is not migrated: run manage.py migrate") from error
            raise fail(f"the database cannot be used: {text.splitlines()[0]}") from error
        except DatabaseError as error:
            raise fail(f"the database refused: {str(error).splitlines()[0]}") from error
        if self.as_json and result is not None:
            self.stdout.write(self.json_text(result))

    def run(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    def json_text(self, value: Any) -> str:
        """Return what `--json` prints of a value on this command's standard output."""
        return json_text(value, encoding=getattr(self.stdout, "encoding", None))

    def say(self, text: str = "") -> None:
        """Write a line for people; nothing under `--json`."""
        if not self.as_json:
            self.stdout.write(printable(text))
