# SPDX-License-Identifier: BSD-3-Clause
"""What commands print: tables for people, versioned JSON for programs."""

import json
import sys
from collections.abc import Mapping, Sequence

SCHEMA = 1


def print_json(command: str, payload: Mapping[str, object]) -> None:
    """Print one JSON document. ``schema`` grows when the meaning of a key changes."""
    print(json.dumps({"schema": SCHEMA, "command": command, **payload}, indent=2))


def table(rows: Sequence[Sequence[object]], headers: Sequence[str] = ()) -> str:
    """Return rows in columns: numbers to the right, all else to the left."""
    lines = [list(map(str, row)) for row in ([headers] if headers else []) + list(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = [
        all(row[column][:1].isdigit() for row in lines[bool(headers) :])
        for column in range(len(widths))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def human_bytes(count: float) -> str:
    """Return a number of bytes as a person says it."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.4g} {unit}"


class Progress:
    """A line on stderr that shows how far it is; silent where that is no terminal."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._shown = -1
        self._on = sys.stderr.isatty()

    def add(self, count: int) -> None:
        """Note that so many bytes more are done."""
        self._done += count
        percent = 100 * self._done // self._total if self._total else 100
        if self._on and percent != self._shown:
            self._shown = percent
            bar = "#" * (percent // 4)
            print(f"\r{self._what} [{bar:<25}] {percent:3d}%", end="", file=sys.stderr)

    def close(self) -> None:
        """End the line."""
        if self._on and self._shown >= 0:
            print(file=sys.stderr)
