# SPDX-License-Identifier: BSD-3-Clause
"""From a URL to a device, and every way in which that fails."""

import os

import pytest
import trio

import vof
from tests.liar import Liar, lying, serving
from tests.models import Echo
from tests.wire import serving as honest
from vof.errors import CommandError, ConfigError, ConnectionLost, RemoteProtocolError
from vof.protocol import v5
from vof.virtio.device import VirtqueueInfo


@pytest.mark.parametrize(
    ("url", "ivqn", "words"),
    [
        ("http://host/it", None, "unknown scheme"),
        ("vof+tcp://host", None, "tvqn"),
        (f"vof+tcp://host/{'x' * 256}", None, "tvqn"),
        (f"vof+tcp://host/{'é' * 128}", None, "1 to 255 bytes"),
        ("vof+tcp://host/a%00b", None, "no NUL"),
        ("vof+tcp://host/it", "", "ivqn"),
        ("vof+tcp://host/it", "x" * 256, "ivqn"),
    ],
)
def test_what_cannot_be_connected_to(url: str, ivqn: str | None, words: str):
    with pytest.raises(ConfigError, match=words):
        vof.connect(url, ivqn=ivqn)


async def test_names_of_any_letters_arrive():
    name = "é" * 127 + "x"
    async with honest(Echo) as target:
        async with vof.connect(str(target.url), ivqn=name) as device:
            (association,) = target.server.associations.values()
            assert (association.ivqn, association.tvqn) == (name, "it")
            assert association.ident == device.instance_id
        async with vof.connect(str(target.url)):
            (association,) = target.server.associations.values()
            assert association.ivqn.endswith(f"/{os.getpid()}")


async def test_a_refusal_says_why():
    async with honest(Echo) as target:
        for _ in range(3):
            with pytest.raises(CommandError, match="names nothing") as refused:
                async with vof.connect(str(target.url.with_tvqn("other"))):
                    pass
            assert refused.value.status == v5.ENOTGT
        with trio.fail_after(5):
            while target.server.connections:
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError),
        (b"\0" * 15, ConnectionLost),
        (b"\xff" * 16, RemoteProtocolError),  # a sign of life, too early
        (b"\0\0\x11\0" + bytes(12), RemoteProtocolError),
    ],
)
async def test_somebody_else_listens_there(said: bytes, kind: type):
    async def server(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(16)
            await stream.send_all(said)
            await stream.send_eof()
            while await stream.receive_some(4096):
                pass

    with trio.fail_after(5):
        async with serving(server) as url:
            with pytest.raises(kind):
                async with vof.connect(url):
                    pass


async def test_a_cancelled_connect_leaves_nothing():
    liar = Liar(None, {v5.CONNECT: None})
    async with serving(liar) as url:
        with trio.move_on_after(0.05) as scope:
            async with vof.connect(url):
                pass
        assert scope.cancelled_caught
        with trio.fail_after(5):  # the liar's end closes too
            while liar.streams[0].socket.fileno() >= 0:
                await trio.lowlevel.checkpoint()


async def test_the_way_out_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """A target that says no goodbye keeps nobody."""
    monkeypatch.setattr("vof.initiator.fabric.GOODBYE_S", 0.05)
    async with lying(None, {v5.DISCONNECT: None}) as url:
        with trio.fail_after(5):
            async with vof.connect(url) as device:
                await device.find_vqs([VirtqueueInfo("q")])


async def test_a_cancelled_block_says_goodbye_too():
    liar = Liar(None)
    async with serving(liar) as url:
        with trio.CancelScope() as scope:
            async with vof.connect(url) as device:
                await device.find_vqs([VirtqueueInfo("q")])
                before = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert trio.current_time() < before + 1  # nor does it wait in vain for an answer
        assert scope.cancelled_caught
        assert liar.seen[-2:] == [v5.DISCONNECT, v5.DISCONNECT]
