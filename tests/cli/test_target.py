# SPDX-License-Identifier: BSD-3-Clause
"""The command line: the table of commands, ``vof target`` without serving, and what is printed."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vof
from vof import cli
from vof.cli import output, target
from vof.errors import ConfigError, ConnectionLost, InvalidArgument, VofError
from vof.sizes import parse_size
from vof.target import config, daemon

ROOT = Path(__file__).parents[2]


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "vof", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        **options,
    )


# -- all commands ---------------------------------------------------------------------------------


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for name, (_, summary) in cli.COMMANDS.items():
        assert name in done.stdout
        assert summary in done.stdout


def test_the_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"vof {vof.__version__}\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert callable(importlib.import_module(cli.COMMANDS[name][0]).run)
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: vof {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_loads_nothing_slow_and_no_other_command(words):
    code = (
        "import sys\nfrom vof.cli import COMMANDS, main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    loaded = set(done.stderr.split())
    others = {module for name, (module, _) in cli.COMMANDS.items() if name != words[0]}
    assert "vof.cli" in loaded
    assert not loaded & ({"trio", "socket", "asyncio", "tomllib", "msgpack"} | others)


@pytest.mark.parametrize("words", [[], ["nothing"], ["target", "--nothing"]])
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("f", "k", "bad"), 2, "vof: f: k: bad\n"),
        (InvalidArgument("bad"), 2, "vof: bad\n"),
        (VofError("no"), 1, "vof: no\n"),
        (OSError("no"), 1, "vof: no\n"),
        (ConnectionLost("gone").as_in_flight(), 1, "may have been executed"),
        (ExceptionGroup("", [ExceptionGroup("", [VofError("no")])]), 1, "vof: no\n"),
        (ExceptionGroup("", [VofError("no"), VofError("nor")]), 1, "vof: no\n"),
        (
            ExceptionGroup("", [VofError("a"), ExceptionGroup("", [OSError("b"), VofError("c")])]),
            1,
            "vof: a\nvof: b\n",
        ),
        (ExceptionGroup("", [VofError("no"), InvalidArgument("bad")]), 2, "vof: no\nvof: bad\n"),
        (BaseExceptionGroup("", [VofError("no"), KeyboardInterrupt()]), 130, ""),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), 130, ""),
    ],
)
def test_an_error_for_the_user_is_an_exit_code_and_a_line(monkeypatch, capsys, error, code, said):
    def fail(args):
        raise error

    monkeypatch.setattr(target, "run", fail)
    assert cli.main(["target"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == (said.count("\n") or bool(said))


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ExceptionGroup("", [VofError("a"), ZeroDivisionError()])]
)
def test_a_bug_is_not_hidden(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr(target, "run", fail)
    with pytest.raises(type(error)):
        cli.main(["target"])


def test_a_reader_that_left_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vof", "target", "--help-config"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# -- vof target -----------------------------------------------------------------------------------


def test_the_help_tells_all_exit_codes():
    lines = {line.strip() for line in target.EPILOG.splitlines()}
    for code, meaning in daemon.EXIT_CODES.items():
        assert f"{code:<3} {meaning}" in lines


def test_there_is_an_option_for_every_type_of_device():
    assert set(target.OPTIONS) == config.DEVICES.keys()


def test_help_config(capsys):
    assert cli.main(["target", "--help-config"]) == 0
    assert capsys.readouterr().out == config.describe() + "\n"


def test_a_check_says_what_would_be_done(capsys, tmp_path):
    image = tmp_path / "a.img"
    image.write_bytes(bytes(512))
    words = ["--blk", f"{image},ro,queues=2", "--mem", "8M", "--rng", "--limit", "poll_us=7"]
    assert cli.main(["target", "--check", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("  * from local may use it") == 3
    lines = [line for line in lines if line[0] != " "]
    assert lines[0] == "listen on vof+tcp://127.0.0.1:8549"
    assert lines[1].startswith(f"serve blk/a (blk: path={image}, read_only=True, queues=2,")
    assert lines[2].startswith("serve mem (mem: size=8388608,")
    assert lines[3].startswith("serve rng (rng: ")
    assert lines[-1] == "limit poll_us = 7"
    assert image.read_bytes() == bytes(512)


def test_a_check_of_a_file(capsys, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('listen = ["vof+unix:///s"]\n[[device]]\ntype = "rng"\ntvqn = "r"\n')
    assert cli.main(["target", "--check", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("listen on vof+unix:///s\nserve r (rng: queue_size=128)\n")


def test_a_check_finds_what_cannot_be_opened(tmp_path):
    done = run("target", "--check", "--blk", str(tmp_path / "none.img"))
    assert done.returncode == daemon.EXIT_DEVICE
    assert "none.img: does not exist" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to serve"),
        (["--mem", "3x"], "--mem: size: expected a number of bytes"),
        (["--blk", "a,queue=1"], "--blk: queue: unknown key; did you mean queues"),
        (["--rng", "--limit", "polls=1"], "command line: limits.polls: unknown key"),
        (["--rng", "--limit", "poll_us"], "command line: limits.poll_us: expected an integer"),
        (["--rng", "--listen", "x://y"], "command line: listen[0]: x://y: unknown scheme"),
        (["--config", "a.toml", "--rng"], "--config: devices, --listen, --limit and --allow"),
        (["--config", "/none.toml"], "/none.toml: "),
    ],
)
def test_a_wrong_command_line_says_where(words, said, capsys):
    assert cli.main(["target", *words]) == 2
    assert said in capsys.readouterr().err


def test_options_may_be_repeated():
    parser = argparse.ArgumentParser()
    target.configure(parser)
    args = parser.parse_args(["--mem", "1M", "--rng", "--mem", "2M", "--rng", "tvqn=r"])
    assert (args.mem, args.rng, args.blk) == (["1M", "2M"], ["", "tvqn=r"], [])


# -- what commands print --------------------------------------------------------------------------


def test_json_has_a_version(capsys):
    output.print_json("info", {"url": "u"})
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "command": "info", "url": "u"}


def test_a_table_has_numbers_to_the_right():
    text = output.table([("a", 1, "x"), ("bcd", 23, "")], ("name", "count", "more"))
    assert text.splitlines() == ["name  count  more", "a         1  x", "bcd      23"]
    assert output.table([("a", "b")]) == "a  b"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")],
)
def test_bytes_for_people(count, text):
    assert output.human_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4096),
        ("256M", 256 << 20),
        ("1GiB", 1 << 30),
        ("2T", 2 << 40),
    ],
)
def test_bytes_of_people(text, size):
    assert parse_size("it", text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5M", "4x", "0x10", "²", "1 2"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ConfigError) as caught:
        parse_size("--length", text)
    assert caught.value.path == "--length"


@pytest.mark.parametrize("number", [1 << 44, 123456 << 20])
def test_large_numbers_of_bytes_stay_readable(number):
    assert "e" not in output.human_bytes(number)
