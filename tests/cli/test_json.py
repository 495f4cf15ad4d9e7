# SPDX-License-Identifier: BSD-3-Clause
"""What commands print as JSON is what specs/json.md says."""

import json
import re
import socket
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.wire import connect_control, names
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
    own, _, _of_parts = TABLES[command].partition("\nEach of ")
    return {key: KINDS[kind] for key, kind in ROW.findall(COMMON + own)}


def arguments(world, tmp_path) -> dict[str, list[str]]:
    return {
        "info": ["info", world["disk"], "--json"],
        "bench": ["bench", world["disk"], "--json", "--seconds", "0.05"],
        "net": ["net", world["net"], "--ping", "10", "--json"],
        "fs": ["fs", "ls", world["fs"], "--json"],
        "doctor": ["doctor", "--json", "--path", str(tmp_path)],
        "blk": ["blk", "read", world["disk"], str(tmp_path / "out"), "--json"],
    }


ADMIN = {
    "status": ["status"],
    "drain": ["drain", "noise"],
    "reload": ["reload"],
    "disconnect": ["disconnect", "--ivqn", "it's me"],
}


@pytest.fixture
def target(tmp_path):
    """The admin socket of a target process that has one association, and its configuration."""
    config, path = tmp_path / "target.toml", tmp_path / "admin"
    config.write_text(
        f'listen = ["vof+unix://{tmp_path}/s"]\n'
        f'[[device]]\ntype = "rng"\ntvqn = "noise"\n[[device]]\ntype = "mem"\nsize = 512\n'
    )
    target = Daemon(("--config", str(config), "--admin", str(path)))
    try:
        target.line()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.sendall(connect_control(body=names(b"it's me", b"noise")))
            assert peer.recv(16)
            yield path
    finally:
        target.signal()
        target.end()


@pytest.mark.parametrize("command", TABLES)
def test_documents(command: str, request, tmp_path, capsys):
    if command in ADMIN:
        path = request.getfixturevalue("target")
        words = [*ADMIN[command], "--json", "--socket", str(path)]
    else:
        words = arguments(request.getfixturevalue("world"), tmp_path)[command]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = documented(command)
    assert document.keys() == wanted.keys()
    for key, kind in wanted.items():
        assert isinstance(document[key], kind), key
    for key in ("transport", "latency_us", "polling", "counters", "ping", "totals"):
        if key in document:
            (row,) = re.findall(rf"^\| `{key}` .*$", TABLES[command], re.MULTILINE)
            assert document[key].keys() == set(re.findall(r"`([\w.]+)`", row)) - {key}


def test_entries_of_a_file_system(world, capsys):
    assert main(["fs", "stat", world["fs"], "hello", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    keys = dict(ROW.findall(TABLES["fs"].partition("\nEach of ")[2]))
    assert entry.keys() == keys.keys()
    for key, kind in keys.items():
        assert isinstance(entry[key], KINDS[kind]), key
    assert entry["name"] == "hello"


def test_findings_of_the_doctor(tmp_path, capsys):
    assert main(["doctor", "--json", "--path", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert all(row.keys() == {"id", "level", "seen", "todo"} for row in found)
    _, levels, ids = re.split(r"A level is|; ids stay.", TABLES["doctor"])
    names = re.findall(r"`([^`]+)`", ids)
    assert [row["id"] for row in found] == names
    assert {row["level"] for row in found} <= set(re.findall(r"`(\w+)`", levels))


def test_every_command_with_json_is_documented():
    source = Path(__file__).parents[2] / "vof" / "cli"
    printing = {p.stem for p in source.glob("*.py") if "print_json(" in p.read_text()}
    assert printing - {"output"} == TABLES.keys()
