# SPDX-License-Identifier: BSD-3-Clause
"""The admin socket: who may connect, what is answered, and what hostile clients achieve."""

import os
import socket
import stat
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

from vof.errors import ConfigError, InvalidArgument
from vof.target import admin
from vof.target.admin import Admin, Place, Verb

LONGEST_S = 10
ECHO = {"version": 1, "verb": "echo"}


class Client:
    """One connection to an admin socket."""

    def __init__(self, stream):
        self.stream = stream
        self.unpacker = msgpack.Unpacker()

    async def send(self, data):
        await self.stream.send_all(data)

    async def reply(self):
        """The next reply, None at the end."""
        with trio.fail_after(LONGEST_S):
            while True:
                for reply in self.unpacker:
                    return reply
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    return None
                if not data:
                    return None
                self.unpacker.feed(data)

    async def ask(self, **request):
        await self.send(msgpack.packb({**ECHO, **request}))
        return await self.reply()


class World:
    """An admin socket that echoes, and its clients."""

    def __init__(self, path):
        self.path = path
        self.calls = []
        self.gate = None
        self.clients = []

    async def echo(self, fields):
        self.calls.append(fields)
        if self.gate is not None:
            await self.gate.wait()
        if fields.get("word") == "wrong":
            raise InvalidArgument("a wrong word")
        if fields.get("word") == "bug":
            raise ZeroDivisionError
        return {"fields": dict(fields), "blob": b"x" * fields.get("size", 0)}

    async def client(self):
        self.clients.append(Client(await trio.open_unix_socket(self.path)))
        return self.clients[-1]


@asynccontextmanager
async def world(tmp_path):
    here = World(str(tmp_path / "admin"))
    fields = {"word": str, "size": int, "seconds": float}
    here.admin = Admin(admin.listen(Place(here.path)), {"echo": Verb(here.echo, fields)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.admin.serve)
        try:
            yield here
        finally:
            for one in here.clients:
                one.stream.socket.close()
            nursery.cancel_scope.cancel()
    assert not (tmp_path / "admin").exists()


def error(reply):
    assert (reply["version"], reply["ok"]) == (1, False)
    assert reply["error"].keys() == {"code", "message"}
    return reply["error"]["code"]


async def test_requests_and_replies(tmp_path):
    async with world(tmp_path) as here:
        one = await here.client()
        reply = await one.ask(word="a", seconds=2)
        assert reply == {
            "version": 1,
            "ok": True,
            "fields": {"word": "a", "seconds": 2},
            "blob": b"",
        }
        await one.send(msgpack.packb(ECHO) * 3)
        assert [(await one.reply())["ok"] for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"version": 2, "verb": "echo"}, "version", "version 1 is spoken here, not 2"),
        ({"verb": "echo"}, "version", "not None"),
        ({"version": 1}, "verb", "unknown verb None; known: echo"),
        ({"version": 1, "verb": "dance"}, "verb", "unknown verb 'dance'; known: echo"),
        ({"version": 1, "verb": ["echo"]}, "verb", "known: echo"),
        ({**ECHO, "colour": 1}, "field", "unknown field 'colour'; known: word, size, seconds"),
        ({**ECHO, "word": 1}, "field", "word is of type str, not 1"),
        ({**ECHO, "size": True}, "field", "size is of type int, not True"),
        ({**ECHO, "seconds": "1"}, "field", "seconds is of type float, not '1'"),
        ({**ECHO, "word": "wrong"}, "argument", "a wrong word"),
    ],
)
async def test_what_is_wrong_is_said_and_the_connection_goes_on(tmp_path, request_, code, words):
    async with world(tmp_path) as here:
        one = await here.client()
        await one.send(msgpack.packb(request_))
        reply = await one.reply()
        assert error(reply) == code
        assert words in reply["error"]["message"]
        assert (await one.ask())["ok"]


DEEP = b"\x91" * 5000 + b"\xc0"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not-a-map"),
        (b"\xc1", "not-msgpack"),
        (b"\x81\x01\x02", "not-msgpack"),
        (b"\x81\xa1\xff\x01", "not-msgpack"),
        (b"\x81\x90\x01", "not-msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not-msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not-msgpack"),
        (b"\xc6\xff\xff\xff\xff" + b"x" * 100_000, "too-long"),
        (DEEP, "not-msgpack"),
        (b"\xc6\x00\x00\xff\xf0" + b"x" * 100_000, "too-long"),
        (msgpack.packb([1, 2]), "not-a-map"),
        (msgpack.packb(None), "not-a-map"),
    ],
)
async def test_garbage_ends_that_connection_alone(tmp_path, data, code):
    async with world(tmp_path) as here:
        innocent, one = await here.client(), await here.client()
        try:
            await one.send(data)
        except trio.BrokenResourceError:
            pass
        reply = await one.reply()
        assert reply is None or error(reply) in (code, "not-a-map", "too-long")
        assert await one.reply() is None
        assert (await innocent.ask())["ok"]
        assert not any(here.calls[1:])


async def test_half_a_request_may_wait_and_then_end(tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "IDLE_S", 0.1)
    async with world(tmp_path) as here:
        data = msgpack.packb(ECHO)
        one, two = await here.client(), await here.client()
        await one.send(data[:5])
        await two.send(data[:5])
        await two.stream.aclose()
        assert error(await one.reply()) == "idle"
        assert await one.reply() is None
        assert not here.calls


async def test_a_hundred_clients(tmp_path):
    async with world(tmp_path) as here:
        clients = [await here.client() for _ in range(100)]
        answers = []
        for one in clients:
            try:
                answers.append(await one.ask())
            except trio.BrokenResourceError:
                answers.append(await one.reply())
        assert sum(bool(answer and answer["ok"]) for answer in answers) == admin.MOST_CLIENTS
        refused = [answer for answer in answers if answer and not answer["ok"]]
        assert {error(answer) for answer in refused} <= {"busy"}
        assert len(here.calls) == admin.MOST_CLIENTS
        for one in clients:
            await one.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await (await here.client()).ask())["ok"]


async def test_who_takes_no_reply_is_dropped_and_delays_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "SEND_S", 0.1)
    async with world(tmp_path) as here:
        slow, other = await here.client(), await here.client()
        await slow.send(msgpack.packb({**ECHO, "size": 1 << 24}) * 3)
        assert (await other.ask())["ok"]
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert len(here.calls) == 2, "no second request before the first reply was taken"
        with trio.fail_after(LONGEST_S):
            while here.admin._clients > 1:
                await trio.lowlevel.checkpoint()


async def test_a_bug_ends_one_connection(tmp_path, caplog):
    async with world(tmp_path) as here:
        one = await here.client()
        assert await one.ask(word="bug") is None
        assert "internal error" in caplog.text
        assert (await (await here.client()).ask())["ok"]


async def test_calm_is_when_all_are_answered(tmp_path):
    async with world(tmp_path) as here:
        here.gate = trio.Event()
        one = await here.client()
        await here.admin.calm()
        await one.send(msgpack.packb(ECHO))
        with trio.fail_after(LONGEST_S):
            while not here.calls:
                await trio.lowlevel.checkpoint()
        with trio.move_on_after(0.01) as scope:
            await here.admin.calm()
        assert scope.cancelled_caught
        here.gate.set()
        with trio.fail_after(LONGEST_S):
            await here.admin.calm()
        assert (await one.reply())["ok"]


# -- where it is ------------------------------------------------------------------------------


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_only_the_user_may_connect(tmp_path):
    path = tmp_path / "run" / "vof" / "target.sock"
    before = os.umask(0)
    try:
        with admin.listen(Place(str(path), default=True)):
            assert mode(path) == 0o600
            assert mode(path.parent) == 0o700
    finally:
        os.umask(before)


def test_a_directory_of_others_is_not_used(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write"):
        admin.listen(Place(str(tmp_path / "s"), default=True))
    own, link = tmp_path / "own", tmp_path / "link"
    own.mkdir(0o700)
    link.symlink_to(own)
    with pytest.raises(ConfigError, match="others can write"):
        admin.listen(Place(str(link / "s"), default=True))
    admin.listen(Place(str(tmp_path / "s"))).close()  # where one is named, it is taken


def test_a_socket_of_the_dead_is_replaced_and_one_of_the_living_is_not(tmp_path):
    path = str(tmp_path / "s")
    admin.listen(Place(path)).close()
    assert os.path.exists(path)
    with admin.listen(Place(path)):
        with pytest.raises(ConfigError, match=r"s: no admin socket: .*in use"):
            admin.listen(Place(path))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="in use"):
        admin.listen(Place(str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("path", ["/none/such/s", "/tmp/" + "x" * 200])
def test_a_place_that_cannot_be(path):
    with pytest.raises(ConfigError, match="no admin socket"):
        admin.listen(Place(path))


def test_the_socket_is_a_stream(tmp_path):
    with admin.listen(Place(str(tmp_path / "s"))) as sock:
        assert sock.type == socket.SOCK_STREAM
