# SPDX-License-Identifier: BSD-3-Clause
"""Manual pages: complete, and without a complaint of those who format them."""

import argparse
import re
import subprocess

import pytest

from vof import cli
from vof.cli import man
from vof.target import config


def rendered(require, roff: str) -> str:
    """Return what a reader sees. A warning is a failure."""
    groff = require("groff", "groff-base")
    done = subprocess.run(
        [groff, "-man", "-ww", "-rLL=70n", "-Tutf8", "-P-c", "-P-bou"],
        input=roff,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def flat(text: str) -> str:
    """Return text without line breaks, hyphenation and justification."""
    return " ".join(re.sub(r"\u2010\n *", "", text).split())


@pytest.mark.parametrize("topic", man.topics())
def test_a_page_renders_without_warnings(topic, require, capsys):
    assert cli.main(["man", *filter(None, [topic])]) == 0
    roff = capsys.readouterr().out
    assert roff.isascii()
    text = rendered(require, roff)
    assert text.startswith(f"{man.page(topic).upper()}({man.section(topic)})")
    for heading in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert re.search(rf"^{heading}$", text, re.MULTILINE)


def test_the_page_of_all_passes_man(require):
    done = subprocess.run(
        [require("man", "man-db"), "--warnings", "-l", "-"],
        input=man.render(""),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_page_has_what_the_help_has(name, require, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    text = flat(rendered(require, man.render(name)))
    assert cli.COMMANDS[name][1] in text
    top = cli.parsers(name)[1]
    for parser in (top, *man._subcommands(top).values()):
        options = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]
        formatter = parser._get_formatter()
        for action in options:
            for option in action.option_strings:
                assert option in text
            assert flat(formatter._expand_help(action) if action.help else "") in text
        for line in man.EXIT.split((parser.epilog or "").replace("exit codes:", "")):
            assert flat(line) in text


def test_the_page_of_the_file_has_every_key(require):
    text = flat(rendered(require, man.render(man.FILE)))
    for keys in (config.LIMITS, *config.DEVICES.values()):
        for name, key in keys.items():
            assert f" {name} = " in text
            assert flat(f"{key.help}; {key.expected}") in text


@pytest.mark.parametrize("text", [".TH", "'", "a\\b", "`x` 'y' -1", "\\fB", "…é", "a\n.b\n'c"])
def test_text_is_shown_as_it_is(text, require):
    roff = f'.TH X 1 "" "" ""\n.nf\n{man.escape(text)}\n.fi\n'
    shown = rendered(require, roff).splitlines()
    assert [line.strip() for line in shown if line.strip()][1:-1] == text.splitlines()


def test_a_page_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        cli.main(["man", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
