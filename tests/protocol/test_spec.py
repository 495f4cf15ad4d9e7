# SPDX-License-Identifier: BSD-3-Clause
"""specs/protocol.md says what the code does: its tables are compared with v5, both ways."""

import inspect
import re
from itertools import pairwise
from pathlib import Path

import pytest

from vof.protocol import v5
from vof.target.devices import BlkModel, MemoryBacking
from vof.target.limits import Limits
from vof.transport import OPTIONS, SCHEMES
from vof.virtio import blk
from vof.virtio.constants import RESERVED_FEATURES, bit

SPECS = Path(__file__).parents[2] / "specs"
TEXT = (SPECS / "protocol.md").read_text()
LINES = TEXT.split("\n")
HEADINGS = [line.lstrip("# ") for line in LINES if line.startswith("#")]
QUEUES = {"c": "control", "v": "virtqueue", "cv": "control, virtqueue"}


def tables(*columns: str, lines: list[str] = LINES) -> dict[str, list[list[str]]]:
    """Return the rows of all tables with these columns, by the last line of text before each."""
    found: dict[str, list[list[str]]] = {}
    text = ""
    rows: list[list[str]] | None = None
    for line in lines:
        if not line.startswith("|"):
            rows = None
            text = line or text
            continue
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if rows is not None:
            if set(line) - set("|- "):
                assert len(cells) == len(columns), line
                rows.append(cells)
        elif cells == list(columns):
            assert text not in found, text
            rows = found[text] = []
    return found


def only(*columns: str) -> list[list[str]]:
    """Return the rows of the one table with these columns."""
    (rows,) = tables(*columns).values()
    return rows


def layouts() -> dict[str, list[list[str]]]:
    """Return the rows of every layout, by its name."""
    found = {}
    for title, rows in tables("offset", "size", "field", "meaning").items():
        match = re.fullmatch(r"\*\*(.+)\*\*, (\d+) bytes", title)
        assert match, title
        found[match[1]] = rows
        assert sum(int(size) for _, size, _, _ in rows) == int(match[2]), title
    return found


def test_every_layout_is_described_and_no_other():
    assert set(layouts()) == set(v5.LAYOUTS)


@pytest.mark.parametrize("name", v5.LAYOUTS)
def test_a_layout(name):
    layout, described, at = v5.LAYOUTS[name], [], 0
    for offset, size, field, meaning in layouts()[name]:
        assert int(offset) == at, field  # no gap, no overlap
        at += int(size)
        if field == "reserved":
            assert meaning == "0"
        else:
            described.append((field, int(offset), int(size)))
    assert at == layout.codec.size
    assert described == layout.fields()


@pytest.mark.parametrize("command", v5.COMMANDS.values(), ids=lambda row: row.name)
def test_a_command_names_its_opcode(command):
    first = layouts()[command.command.name][0]
    assert first == ["0", "2", "opcode", f"0x{command.opcode:04x}"]


@pytest.mark.parametrize(
    ("name", "ident"),
    [("config-change event", v5.ID_CONFIG_CHANGE), ("keepalive event", v5.ID_KEEPALIVE)],
)
def test_an_event_names_its_id(name, ident):
    assert layouts()[name][:2] == [
        ["0", "2", "status", "OK"],
        ["2", "2", "command_id", f"0x{ident:04x}"],
    ]


def test_every_table_stands_between_empty_lines():
    for before, line in pairwise(["", *LINES, ""]):
        assert line.startswith("|") == before.startswith("|") or not (before and line), line


def test_the_commands_and_where_they_are_legal():
    rows = only("command", "opcode", "queue", "feature bit")
    assert [row[:3] for row in rows] == [
        [command.name, f"0x{command.opcode:04x}", QUEUES[command.queues]]
        for command in v5.COMMANDS.values()
    ]
    bits = {row[3] for row in rows if row[3]}
    assert {name for name in vars(v5) if name.startswith("F_")} == bits


def test_the_status_codes():
    assert only("name", "code", "meaning") == [
        [name, f"0x{code:04x}", meaning] for code, (name, meaning) in v5.STATUS.items()
    ]


def test_every_status_constant_has_a_row():
    assert all(getattr(v5, name) == code for code, (name, _) in v5.STATUS.items())


def test_the_constants():
    described = {name: int(value, 0) for name, value, _ in only("name", "value", "meaning")}
    opcodes = {row.name for row in v5.COMMANDS.values()}
    statuses = {name for name, _ in v5.STATUS.values()}
    defined = {
        name: value
        for name, value in vars(v5).items()
        if name.isupper() and type(value) is int and name not in opcodes | statuses
    }
    assert described == defined


def test_the_reserved_ids():
    first, last = v5.RESERVED_IDS[0], v5.RESERVED_IDS[-1]
    assert f"ids 0x{first:04x} to 0x{last:04x} are reserved" in " ".join(TEXT.split())


def test_every_section_that_the_code_names_is_there():
    places = {heading.split()[0].rstrip(".") for heading in HEADINGS[1:]}
    for layout in v5.LAYOUTS.values():
        assert layout.section in places, layout


def test_every_link_leads_to_a_heading():
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in HEADINGS}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links
    assert set(links) <= anchors


def test_the_urls():
    described = {form.strip("`") for form, _ in only("form", "carrier")}
    assert described == {scheme.form for scheme in SCHEMES.values()}
    assert all(f"`{k}={value}`" in TEXT for k, values in OPTIONS.items() for value in values)


def test_the_choices_name_nothing_that_does_not_exist():
    codes = {name for name, _ in v5.STATUS.values()}
    assert set(re.findall(r"\bE[A-Z]{5,}\b", TEXT)) <= codes


def test_the_limits():
    defaults = inspect.signature(Limits).parameters
    rows = {name: text.split()[0:2] for name, text, _ in only("limit", "default", "beyond it")}
    assert set(rows) == set(defaults)
    units = {"MiB": 1 << 20}
    for name, (number, unit) in rows.items():
        assert float(number) * units.get(unit, 1) == defaults[name].default, name


def support() -> dict[str, str]:
    """Return each feature of specs/conformance.md with since when it is there."""
    lines = (SPECS / "conformance.md").read_text().split("\n")
    parts = tables("feature", "since", "notes", lines=lines).values()
    rows = [row for part in parts for row in part]
    found = {feature: since for feature, since, _ in rows}
    assert len(found) == len(rows)
    assert set(found.values()) == {"0.1", "not yet", "no"}
    return found


def since(name: str) -> str:
    """Return since when something is there, by the first row that names it."""
    rows = [row for row in support() if re.search(rf"\b{name}\b", row)]
    assert rows, name
    return support()[rows[0]]


def test_every_command_is_in_the_table_of_features():
    for command in v5.COMMANDS.values():
        assert since(command.name) == "0.1", command.name


def test_every_reserved_feature_is_in_the_table_of_features():
    there = {"VERSION_1", "RING_PACKED", "INDIRECT_DESC", "EVENT_IDX"}
    for name in RESERVED_FEATURES.values():
        assert (since(name) == "0.1") == (name.removeprefix("VIRTIO_F_") in there), name


def test_every_blk_feature_is_in_the_table_of_features():
    offered = BlkModel(MemoryBacking(4096)).device_features | bit(blk.VIRTIO_BLK_F_RO)
    for number, name in blk.FEATURES.items():
        assert (since(name) == "0.1") == bool(offered >> number & 1), name
