# SPDX-License-Identifier: BSD-3-Clause
"""``vof rng``."""

import re

import pytest

from vof.cli import main, rng


@pytest.mark.parametrize(("count", "length"), [("0", 0), ("1", 1), ("3k", 3072)])
def test_raw_bytes(world, capsysbinary, count, length):
    assert main(["rng", world["rng"], count]) == 0
    assert len(capsysbinary.readouterr().out) == length


def test_digits(world, capsysbinary):
    assert main(["rng", world["rng"], "16", "--hex"]) == 0
    one = capsysbinary.readouterr().out
    assert re.fullmatch(rb"[0-9a-f]{32}\n", one)
    assert main(["rng", world["rng"], "16", "--hex"]) == 0
    assert capsysbinary.readouterr().out != one


def test_more_than_one_step_into_a_file(world, tmp_path, capsysbinary, monkeypatch):
    monkeypatch.setattr(rng, "STEP", 1000)
    path = tmp_path / "bytes"
    assert main(["rng", world["rng"], "2500", "-o", str(path)]) == 0
    data = path.read_bytes()
    assert len(data) == 2500
    assert len({data[:500], data[1000:1500], data[2000:]}) == 3
    assert not capsysbinary.readouterr().out


def test_digits_are_one_line_however_many(world, tmp_path, monkeypatch):
    monkeypatch.setattr(rng, "STEP", 10)
    path = tmp_path / "digits"
    assert main(["rng", world["rng"], "25", "--hex", "-o", str(path)]) == 0
    assert re.fullmatch(r"[0-9a-f]{50}\n", path.read_text())


@pytest.mark.parametrize(
    ("name", "count", "output", "code"),
    [("rng", "x", "-", 2), ("disk", "1", "-", 2), ("gone", "1", "-", 1), ("rng", "1", "/no/f", 1)],
)
def test_what_cannot_be(world, capsys, name, count, output, code):
    assert main(["rng", world[name], count, "-o", output]) == code
    assert capsys.readouterr().err.count("\n") == 1
