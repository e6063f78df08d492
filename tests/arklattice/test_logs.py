"""Log lines: one a record, whatever is in it."""

import json
import logging
import sys

import pytest

from arklattice.logs import JsonFormatter, TextFormatter, logging_settings


def record(message, *args, exc_info=None):
    return logging.LogRecord("federation.node", logging.INFO, __file__, 1, message, args, exc_info)


def test_text_line_shows_control_characters_as_escapes():
    """A peer's name can neither end the line nor drive the terminal."""
    line = TextFormatter().format(record("linked with %s", "evil\n2026 ERROR \x1b[2Jforged\u202e"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.endswith(r"INFO federation.node: linked with evil\n2026 ERROR \x1b[2Jforged\u202e")
    assert line[4] == "-"
    assert line[:24].endswith("Z")


def test_json_line_is_one_object_with_its_traceback():
    """Programs read time, level, logger, message and traceback of each line."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = JsonFormatter().format(record("failed: %s", "x\ny", exc_info=sys.exc_info()))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == "failed: x\ny"
    assert entry["level"] == "info"
    assert "ValueError" in entry["traceback"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_libraries_speak_from_warning_up(form):
    """The chosen level is this project's; libraries do not fill the log."""
    chosen = logging_settings("DEBUG", form)
    assert chosen["root"]["level"] == "WARNING"
    assert {logger["level"] for logger in chosen["loggers"].values()} == {"DEBUG"}
