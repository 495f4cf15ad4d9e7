# SPDX-License-Identifier: BSD-3-Clause
"""A configuration in several files: what is replaced, what is added, and where an error is."""

import os

import pytest

from vof.errors import ConfigError
from vof.target import files
from vof.target.limits import Limits
from vof.transport import parse_url

RNG = '[[device]]\ntype = "rng"\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return ``write("vof.toml", text)``; the files are named from the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


def test_devices_are_added_and_the_rest_is_replaced_in_the_order_of_names(write):
    write("t.toml", 'listen = ["vof+tcp://127.0.0.1:1"]\n[limits]\nconnections = 7\n' + RNG)
    write("t.toml.d/20.toml", "[limits]\nassociations = 6\n[[device]]\ntype='mem'\nsize=512")
    write("t.toml.d/10.toml", '[limits]\nassociations = 5\nqueue_bytes = "32M"\n' + RNG)
    write("t.toml.d/15.toml", 'listen = ["vof+unix:///s"]\nadmin = "none"\n')
    found = files.load("t.toml")
    assert found.listen == (parse_url("vof+unix:///s"),)
    assert found.limits == Limits(connections=7, associations=6, queue_bytes=32 << 20)
    assert [one.tvqn for one in found.devices] == ["rng", "rng-2", "mem"]
    assert [one.where[0] for one in found.devices] == [
        "t.toml",
        "t.toml.d/10.toml",
        "t.toml.d/20.toml",
    ]
    assert found.admin == "none"


def test_a_file_may_have_no_word_about_listening(write):
    write("t.toml", 'listen = ["vof+unix:///s"]\nadmin = "a"\n' + RNG)
    write("t.toml.d/10.toml", "")
    found = files.load("t.toml")
    assert (found.listen, found.admin) == ((parse_url("vof+unix:///s"),), "a")
    write("t.toml.d/20.toml", "listen = []")
    assert files.load("t.toml").listen == (parse_url("vof+tcp://127.0.0.1:8549"),)


def test_what_is_no_drop_in_is_passed_over(write):
    write("t.toml", RNG)
    for name in ("README", "10.toml~", ".10.toml.swp", ".20.toml"):
        write(f"t.toml.d/{name}", "not = = toml")
    assert len(files.load("t.toml").devices) == 1


def test_the_file_itself_may_be_missing(write):
    write("t.toml.d/10.toml", RNG)
    assert [one.tvqn for one in files.load("t.toml").devices] == ["rng"]


def test_neither_is_there(write):
    with pytest.raises(ConfigError, match=r"^t\.toml: .*No such file"):
        files.load("t.toml")
    write("t.toml.d/README", "")
    with pytest.raises(ConfigError, match=r"^t\.toml: .*No such file"):
        files.load("t.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nconnection = 1", "limits.connection: unknown key; did you mean connections"),
        ("[limits]\nconnections = 0", "limits.connections: expected an integer"),
        ("lisen = 1", "lisen: unknown key; did you mean listen?"),
        ('listen = ["x://"]', r"listen\[0\]: "),
        ('listen = "vof+unix:///s"', "listen: expected a list"),
        ("admin = 1", "admin: expected the path"),
        ("[[device]]\ntype = 'rgn'", r"device\[0\].type: expected"),
        (RNG + "queue_size = 0", r"device\[0\].queue_size: expected"),
        (
            '[limits]\nqueue_bytes = "8M"',
            r"limits.queue_bytes: 8388608 is less than limits.request_bytes: 16777216 \(def",
        ),
        (
            '[limits]\nrequest_bytes = "128M"',
            "limits.queue_bytes: 67108864 is less than limits.request_bytes: 134217728$",
        ),
        ("= 1", "Invalid"),
    ],
)
def test_an_error_names_the_file_it_is_in(write, text, message):
    write("t.toml", RNG)
    write("t.toml.d/10.toml", text)
    with pytest.raises(ConfigError, match=rf"^t\.toml\.d/10\.toml: {message}"):
        files.load("t.toml")


def test_bytes_that_are_no_text(write, tmp_path):
    write("t.toml.d/10.toml", "")
    (tmp_path / "t.toml.d/10.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^t\.toml\.d/10\.toml: .*decode"):
        files.load("t.toml")


def test_a_name_that_is_given_in_two_files(write):
    write("t.toml", "[[device]]\ntype = 'rng'\ntvqn = 'a'")
    write("t.toml.d/10.toml", RNG + "[[device]]\ntype = 'rng'\ntvqn = 'a'")
    expected = r"^t\.toml\.d/10\.toml: device\[1\]: tvqn 'a' is taken by t\.toml: device\[0\]: give"
    with pytest.raises(ConfigError, match=expected):
        files.load("t.toml")


def test_the_directory_is_none(write):
    write("t.toml", RNG)
    write("t.toml.d", "a file")
    with pytest.raises(ConfigError, match=r"^t\.toml\.d: .*Not a directory"):
        files.load("t.toml")


def test_a_drop_in_that_is_a_directory_or_leads_nowhere(write, tmp_path):
    write("t.toml", RNG)
    (tmp_path / "t.toml.d/10.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"^t\.toml\.d/10\.toml: .*directory"):
        files.load("t.toml")
    (tmp_path / "t.toml.d/10.toml").rmdir()
    os.symlink("nowhere", tmp_path / "t.toml.d/10.toml")
    with pytest.raises(ConfigError, match=r"^t\.toml\.d/10\.toml: .*No such file"):
        files.load("t.toml")


def test_limits_that_contradict_each_other_in_two_files(write):
    write("t.toml", '[limits]\nqueue_bytes = "32M"\n' + RNG)
    write("t.toml.d/10.toml", '[limits]\nrequest_bytes = "64M"')
    expected = r"^t\.toml: limits\.queue_bytes: 33554432 is .* 67108864 \(t\.toml\.d/10\.toml\)$"
    with pytest.raises(ConfigError, match=expected):
        files.load("t.toml")
