"""How packets look to people: every byte that came from elsewhere is made harmless for a terminal first."""

import io
import json
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.protocol.canonical import JSONValue
from keys.command import printable

SHORT_ID = 12
SHORT_NODE = 8


def one_line(text: str) -> str:
    """Return `text` for a cell of a table: nothing in it moves the cursor, starts a line or ends the cell."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def utc(milliseconds: int) -> str:
    """Return a time as people read it, or the number itself where the calendar ends."""
    try:
        return datetime.fromtimestamp(milliseconds // 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def node_label(node_id: str, names: dict[str, str]) -> str:
    """Return the operator's name for a node with the start of its id, or the start alone."""
    name = names.get(node_id)
    return f"{name} ({node_id[:SHORT_NODE]})" if name else node_id[:SHORT_NODE]


def content_text(content: JSONValue) -> str:
    """Return content as people read it: text as it is, anything else as indented JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, fixed: Sequence[str] = (), colour: bool) -> str:
    """Return a table no wider than the terminal, one line a row; cells pass `one_line` and mean nothing to rich.

    Columns that are `fixed` keep their width where others are cut; columns with nothing in them are left out.
    """
    lines = [[one_line(cell) for cell in row] for row in rows]
    used = [number for number in range(len(columns)) if any(cells[number] for cells in lines)]
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number in used:
        width = max(len(cells[number]) for cells in lines) if columns[number] in fixed else None
        grid.add_column(columns[number], no_wrap=True, overflow="ellipsis", min_width=width)
    for cells in lines:
        grid.add_row(*(Text(cells[number]) for number in used))
    out = io.StringIO()
    width = shutil.get_terminal_size().columns
    Console(file=out, width=width, force_terminal=colour, no_color=not colour, color_system="auto" if colour else None).print(grid)
    return out.getvalue()
