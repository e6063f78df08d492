"""How every benchmark reports: one JSON line a figure on standard output."""

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, beside what a plain way of doing the same takes and what is asked of it."""

    figure: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    target: str
    met: bool


def report(
    figure: str,
    value: float,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    baseline: float | None = None,
) -> None:
    """Print a figure; its target is one of `at_most` and `at_least`, its baseline in the same unit."""
    if at_most is not None:
        target, met = f"<= {at_most:g}", value <= at_most
    elif at_least is not None:
        target, met = f">= {at_least:g}", value >= at_least
    else:
        target, met = "", True
    ratio = None if not baseline else round(value / baseline, 4)
    line = Figure(figure, round(value, 4), unit, None if baseline is None else round(baseline, 4), ratio, target, met)
    sys.stdout.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
    sys.stdout.flush()
