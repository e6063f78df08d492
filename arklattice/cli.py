"""`ark-lattice`: noun and verb for the same commands that manage.py has.

Importing this module loads no Django, so that help and mistakes answer at once and with any Python 3.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# noun -> verb -> (the command of manage.py, what it does).
NOUNS: dict[str, dict[str, tuple[str, str]]] = {
    "federation": {
        "start": ("runfederation", "run this node until Ctrl-C"),
        "status": ("federationstatus", "running or not, links, counters"),
        "discover": ("discover", "ask the network who is there"),
        "add-peer": ("addpeer", "shake hands with a URL and register who answers"),
        "sync-now": ("syncnow", "reconcile with a peer now"),
        "auto-sync": ("autosync", "--start, --stop or --status: whether this node dials by itself"),
    },
    "peers": {
        "list": ("peers", "every peer this node knows"),
        "trust-tier": ("trusttier", "decide how far a peer is trusted"),
        "block": ("blockpeer", "refuse a peer; --undo lifts it"),
        "remove": ("removepeer", "forget a peer"),
    },
    "crypto": {
        "keygen": ("keygen", "make this node's key"),
        "list-keys": ("listkeys", "own keys, without secrets"),
        "export-key": ("exportkey", "print the public key, or the contact card with --card"),
        "import-key": ("importkey", "file a peer's key or contact card"),
        "sign-test": ("signtest", "sign and verify with the own key"),
        "self-test": ("cryptoselftest", "known answers and refusals of the cryptography"),
    },
    "packets": {
        "publish": ("publish", "sign knowledge and store it"),
        "list": ("packets", "what is here"),
        "show": ("showpacket", "one packet, or its envelope"),
        "why": ("why", "where a packet came from and which rule let it in"),
        "verify": ("verifyenvelope", "check an envelope offline"),
    },
}

HELP_WORDS = {"-h", "--help", "help"}
AUTO_SYNC_OPTIONS = {"--start": "start", "--stop": "stop", "--status": "status"}


class UsageError(Exception):
    """Words that name no command; says which ones there are."""


def help_text() -> str:
    """Return every noun with its verbs."""
    lines = [
        "usage: ark-lattice NOUN VERB [arguments]",
        "",
        "The same commands as manage.py has, by noun and verb; VERB --help says more.",
        "",
    ]
    for noun, verbs in NOUNS.items():
        lines.append(noun)
        lines += [f"  {verb:<12} {text}" for verb, (_, text) in verbs.items()]
    return "\n".join(lines)


def noun_help(noun: str) -> str:
    """Return the verbs of one noun."""
    verbs = [f"  {verb:<12} {text}" for verb, (_, text) in NOUNS[noun].items()]
    return "\n".join([f"usage: ark-lattice {noun} VERB [arguments]", "", *verbs])


def command_for(words: Sequence[str]) -> list[str]:
    """Return the words for manage.py that `words` (noun, verb, arguments) stand for.

    Raises:
        UsageError: No such noun or verb.
    """
    noun, verb, rest = (words[0], words[1] if len(words) > 1 else "", list(words[2:]))
    if noun not in NOUNS:
        raise UsageError(f"no such noun: {noun!r}; choose from {', '.join(NOUNS)}")
    verbs = NOUNS[noun]
    if verb not in verbs:
        said = f"no such verb of {noun}: {verb!r}" if verb else f"{noun} needs a verb"
        raise UsageError(f"{said}; choose from {', '.join(verbs)}")
    command, _ = verbs[verb]
    if command == "autosync":
        # Here the three actions are options, there an argument.
        rest = [AUTO_SYNC_OPTIONS.get(word, word) for word in rest]
    return [command, *rest]


def main(root: Path, words: Sequence[str]) -> NoReturn:
    """Do what `words` ask for: print help, or become manage.py in `root` with the project's own Python."""
    if not words or words[0] in HELP_WORDS:
        print(help_text())  # noqa: T201 -- help belongs on standard output
        sys.exit(0)
    if words[0] in NOUNS and len(words) > 1 and words[1] in HELP_WORDS:
        print(noun_help(words[0]))  # noqa: T201 -- as above
        sys.exit(0)
    try:
        arguments = command_for(words)
    except UsageError as error:
        print(f"ark-lattice: {error}", file=sys.stderr)  # noqa: T201 -- there is no Django to speak through yet
        sys.exit(2)
    python = root / ".venv" / "bin" / "python"
    interpreter = str(python) if python.exists() else sys.executable
    os.execv(interpreter, [interpreter, str(root / "manage.py"), *arguments])  # noqa: S606 -- no shell is wanted
