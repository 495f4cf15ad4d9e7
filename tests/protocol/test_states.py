# SPDX-License-Identifier: BSD-3-Clause
"""specs/states.md is what the tables say."""

import re
import runpy
from pathlib import Path

from vof.protocol import session, states
from vof.virtio import status

DOCUMENT = Path(__file__).parents[2] / "specs" / "states.md"


def rows(corner: str) -> dict[str, dict[str, str]]:
    """Return the last table with this corner as row → column → cell."""
    cut = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in states.document().split("\n")
        if line.startswith("|")
    ]
    start = max(i for i, line in enumerate(cut) if line[0] == corner)
    columns, found = cut[start][1:], {}
    for name, *cells in cut[start + 2 :]:
        if len(cells) != len(columns):
            break
        found[name] = dict(zip(columns, cells, strict=True))
    return found


def test_the_document_is_the_generators_output():
    assert DOCUMENT.read_text() == states.document(), (
        "run: python -m vof.protocol.states > specs/states.md"
    )


def test_the_module_prints_the_document(capsys):
    runpy.run_path(states.__file__, run_name="__main__")
    assert capsys.readouterr().out == states.document()


def test_the_session_table_has_every_cell():
    table = rows("state")
    assert list(table) == [state.name for state in session.State]
    for state in session.State:
        for event in session.Event:
            following = session.TRANSITIONS[state].get(event)
            expected = following.name if following else "·"
            assert table[state.name][event.name] == expected, (state, event)


def test_the_status_table_refuses_what_the_transitions_do_not_have():
    table = rows("status")
    for old in status.Phase:
        cells = table[f"{old.name} 0x{old.value:02x}"]
        for new in status.Phase:
            legal = cells[f"{new.name} 0x{new.value:02x}"] != "·"
            assert legal == (new in status.TRANSITIONS[old]), (old, new)
    assert table["DRIVER_OK 0x0f"]["FAILED 0x80"] == "0x8f"
    assert table["DRIVER_OK 0x4f DEVICE_NEEDS_RESET"]["RESET 0x00"] == "0x00"


def test_the_diagrams_have_every_arrow():
    arrows = re.findall(r"^    (\w+) --> (\w+)(?:: (.*))?$", states.document(), re.MULTILINE)
    drawn = {
        (old, label, new)
        for old, new, labels in arrows
        for label in (labels or "write").split(", ")
    }
    expected = {
        (old.name, event.name, new.name)
        for old, row in session.TRANSITIONS.items()
        for event, new in row.items()
    } | {
        (old.name, "write", new.name)
        for old, row in status.TRANSITIONS.items()
        for new in row
        if new is not old
    }
    assert drawn == expected
