# SPDX-License-Identifier: BSD-3-Clause
"""``vof fs``."""

import io
import json
import os
import stat
import sys

import pytest

from vof.cli import fs, main


@pytest.fixture
def vof(world, capsys):
    """Return ``vof(action, *words)``: what ``vof fs`` prints, if its exit code is as expected."""

    def vof(action, *words, code=0):
        assert main(["fs", action, world["fs"], *map(str, words)]) == code
        out, err = capsys.readouterr()
        assert err.count("\n") == bool(code)
        return out if not code else err

    return vof


def document(text):
    found = json.loads(text)
    assert (found["schema"], found["command"]) == (1, "fs")
    return found


def test_listing(vof, world):
    (world.directory / "d").mkdir()
    for name in (b"\xff\n", "ä b".encode()):
        os.close(os.open(os.path.join(os.fsencode(world.directory), b"d", name), os.O_CREAT))
    (world.directory / "gone").symlink_to("nowhere")
    assert vof("ls") == "d\ngone\nhello\n"
    assert vof("ls", "d") == "ä b\n\\xff\\x0a\n"
    assert vof("ls", "hello") == "hello\n"
    lines = [line.split() for line in vof("ls", "-l").splitlines()]
    assert [line[0][0] + line[-1] for line in lines] == ["dd", "lgone", "-hello"]
    assert lines[2][3] == "12"
    assert vof("ls", "/", "--follow", "-l").count("\n") == 2, "a link to nothing is left out"
    found = document(vof("ls", "/", "--json"))
    assert (found["action"], found["path"], found["bytes"]) == ("ls", "/", 0)
    assert [(one["name"], one["kind"]) for one in found["entries"]] == [
        ("d", "directory"),
        ("gone", "link"),
        ("hello", "file"),
    ]
    assert os.fsencode(document(vof("ls", "d", "--json"))["entries"][1]["name"]) == b"\xff\n"


def test_an_empty_directory(vof, world):
    (world.directory / "hello").unlink()
    assert vof("ls") == vof("ls", "-l") == ""


def test_many_entries_with_attributes(vof, world):
    for number in range(100):
        (world.directory / f"{number:02}").write_bytes(bytes(number))
    found = document(vof("ls", "--json"))["entries"][:-1]
    assert [one["size"] for one in found] == list(range(100))


def test_stat(vof, world):
    there = (world.directory / "hello").stat()
    (found,) = document(vof("stat", "hello", "--json"))["entries"]
    assert (found["ino"], found["mode"], found["size"]) == (there.st_ino, there.st_mode, 12)
    lines = dict(line.split(maxsplit=1) for line in vof("stat", "/hello").splitlines())
    assert (lines["name"], lines["kind"], lines["mode"]) == ("/hello", "file", "-rw-r--r--")


def test_a_time_that_is_none():
    assert fs._time((1 << 64) - 1) == f"{(1 << 64) - 1} s"


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_there_and_back(vof, world, tmp_path, size):
    ours, back = tmp_path / "ours", tmp_path / "back"
    ours.write_bytes(os.urandom(size))
    ours.chmod(0o750)
    assert vof("put", "theirs", ours) == ""
    theirs = world.directory / "theirs"
    assert theirs.read_bytes() == ours.read_bytes()
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o750
    assert document(vof("get", "theirs", back, "--json"))["bytes"] == size
    assert back.read_bytes() == ours.read_bytes()


def test_streams(world, monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from stdin")))
    monkeypatch.setattr(fs, "STEP", 3)
    assert main(["fs", "put", world["fs"], "hello"]) == 0
    assert (world.directory / "hello").read_text() == "from stdin"
    for words in (["cat", world["fs"], "hello"], ["get", world["fs"], "hello", "-"]):
        assert main(["fs", *words]) == 0
        assert capsysbinary.readouterr().out == b"from stdin"


def test_the_name_of_a_copy(vof, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vof("get", "/hello")
    assert (tmp_path / "hello").read_text() == "hello, file\n"


def test_names(vof, world):
    vof("mkdir", "a")
    vof("mkdir", "-p", "a/b/c")
    vof("mkdir", "-p", "/a/b/c/")
    vof("mv", "hello", "a/b/c/hi")
    assert (world.directory / "a" / "b" / "c" / "hi").exists()
    vof("rm", "a/b/c/hi")
    vof("rm", "-d", "a/b/c")
    assert document(vof("rm", "-d", "a/b", "--json"))["entries"] == []
    assert os.listdir(world.directory) == ["a"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cat", "gone"], "No such file or directory: 'gone'"),
        (["get", "gone", "local"], "No such file or directory: 'gone'"),
        (["put", "gone/x", "/dev/null"], "No such file or directory: 'gone/x'"),
        (["put", "x", "not here"], "No such file or directory: 'not here'"),
        (["ls", "hello/x"], "Not a directory: 'hello/x'"),
        (["mkdir", "hello"], "File exists: 'hello'"),
        (["mkdir", "-p", "hello"], "File exists: 'hello'"),
        (["rm", "-d", "hello"], "Not a directory: 'hello'"),
        (["mv", "gone", "x"], "No such file or directory: 'gone'"),
    ],
)
def test_what_fails_is_said(vof, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in vof(*words, code=1)
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cat", "hello", "--json"], "--json"),
        (["get", "hello", "-", "--json"], "--json"),
        (["rm", "a/../hello"], "without .."),
    ],
)
def test_what_is_wrong_is_said(vof, words, says):
    assert says in vof(*words, code=2)


def test_what_is_no_url(capsys):
    assert main(["fs", "ls", "/tmp"]) == 2
    assert "expected a URL" in capsys.readouterr().err


def test_another_device(world, capsys):
    assert main(["fs", "ls", world["rng"]]) == 2
    assert "no file system device" in capsys.readouterr().err


def test_info_knows_the_device(world, capsys):
    assert main(["info", world["fs"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "fs"
    assert found["config"] == {"tag": "shared", "num_request_queues": 2}
