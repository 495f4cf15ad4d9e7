# SPDX-License-Identifier: BSD-3-Clause
"""What commands print as JSON is what specs/json.md says."""

import json
import re
from pathlib import Path

import pytest

from vof.cli import main

TEXT = (Path(__file__).parents[2] / "specs" / "json.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
KINDS = {
    "integer": int,
    "number": int | float,
    "text": str,
    "boolean": bool,
    "list": list,
    "object": dict,
}
COMMON, *SECTIONS = re.split(r"^## (\w+)$", TEXT, flags=re.MULTILINE)
TABLES = dict(zip(SECTIONS[::2], SECTIONS[1::2], strict=True))


def documented(command: str) -> dict[str, type]:
    return {key: KINDS[kind] for key, kind in ROW.findall(COMMON + TABLES[command])}


def arguments(world, tmp_path) -> dict[str, list[str]]:
    return {
        "info": ["info", world["disk"], "--json"],
        "bench": ["bench", world["disk"], "--json", "--seconds", "0.05"],
        "net": ["net", world["net"], "--ping", "10", "--json"],
        "blk": ["blk", "read", world["disk"], str(tmp_path / "out"), "--json"],
    }


@pytest.mark.parametrize("command", TABLES)
def test_documents(command: str, world, tmp_path, capsys):
    assert main(arguments(world, tmp_path)[command]) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = documented(command)
    assert document.keys() == wanted.keys()
    for key, kind in wanted.items():
        assert isinstance(document[key], kind), key
    for key in ("latency_us", "polling", "counters", "ping"):
        if key in document:
            (row,) = re.findall(rf"^\| `{key}` .*$", TABLES[command], re.MULTILINE)
            assert document[key].keys() == set(re.findall(r"`([\w.]+)`", row)) - {key}


def test_every_command_with_json_is_documented():
    source = Path(__file__).parents[2] / "vof" / "cli"
    printing = {p.stem for p in source.glob("*.py") if "print_json(" in p.read_text()}
    assert printing - {"output"} == TABLES.keys()
