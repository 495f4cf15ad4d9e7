# SPDX-License-Identifier: BSD-3-Clause
"""specs/protocol-v0.md says what the code does: its tables are compared with v0, both ways."""

import errno
import re
from itertools import pairwise

import pytest

from tests.protocol.test_spec import QUEUES, SPECS, tables
from vof.protocol import v0, v5

TEXT = (SPECS / "protocol-v0.md").read_text()
LINES = TEXT.split("\n")


def rows(*columns: str) -> list[list[str]]:
    """Return the rows of the one table with these columns."""
    (found,) = tables(*columns, lines=LINES).values()
    return found


def layouts() -> dict[str, list[list[str]]]:
    """Return the rows of every layout, by its name."""
    return {
        re.fullmatch(r"\*\*(.+)\*\*, \d+ bytes", title)[1]: found
        for title, found in tables("offset", "size", "field", "meaning", lines=LINES).items()
    }


def test_every_layout_is_described_and_no_other():
    assert set(layouts()) == set(v0.LAYOUTS)


@pytest.mark.parametrize("name", v0.LAYOUTS)
def test_a_layout(name):
    layout, described, at = v0.LAYOUTS[name], [], 0
    for offset, size, field, _ in layouts()[name]:
        assert int(offset) == at, field  # no gap, no overlap
        at += int(size)
        if field != "reserved":
            described.append((field, int(offset), int(size)))
    assert at == layout.codec.size
    assert described == layout.fields()


def test_the_commands_and_where_they_are_legal():
    assert rows("command", "opcode", "queue") == [
        [row.name, str(row.opcode), QUEUES[row.queues]] for row in v0.COMMANDS.values()
    ]
    headings = {line[4:] for line in LINES if line.startswith("### ")}
    assert {row.name for row in v0.COMMANDS.values()} <= headings


def test_the_status_codes():
    described = {name: int(number) for name, _, number in rows("v5", "errno", "number")}
    assert described == {v5.STATUS[code][0]: number for code, number in v0.ERRNO.items()}
    for _, name, number in rows("v5", "errno", "number"):
        assert getattr(errno, name, 0) == int(number)


def test_every_table_stands_between_empty_lines():
    for before, line in pairwise(["", *LINES, ""]):
        assert line.startswith("|") == before.startswith("|") or not (before and line), line
