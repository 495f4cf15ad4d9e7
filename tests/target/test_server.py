# SPDX-License-Identifier: BSD-3-Clause
"""The server: who may connect, what is refused, what the limits do, how it ends."""

import errno
import logging
import socket

import pytest
import trio
import trio.testing

from tests.models import Echo, Hoard
from tests.wire import Peer, command, connect_control, names, request, serving
from vof.errors import InvalidArgument
from vof.protocol import v5
from vof.target.limits import Limits
from vof.transport import listen, parse_url
from vof.transport.base import USUAL
from vof.transport.sockets import SocketListener

CONNECTS = [
    (connect_control(body=names(tvqn=b"nothing")), v5.ENOTGT),
    (connect_control(body=names(tvqn=b"")), v5.ENOTGT),
    (connect_control(body=names(ivqn=b"")), v5.EBADVQN),
    (connect_control(body=names(ivqn=b"\xff")), v5.EBADVQN),
    (connect_control(body=names(tvqn=b"x" * 256)), v5.EBADVQN),
    (connect_control(body=b""), v5.EBADVQN),
    (connect_control(queue_size=33), v5.EQSIZEQUOT),
    (command(v5.CONNECT, device_instance_id=5), v5.EBADDEV),
]


async def test_connect_refusals_and_retry_on_the_same_connection():
    async with serving(Echo) as target:
        peer = await target.peer()
        for data, status in CONNECTS:
            await peer.send(data)
            got = await peer.answer(v5.CONNECT)
            assert (got["status"], got["command_id"]) == (status, 1)
        await peer.control()
        assert len(target.server.associations) == 1


async def test_listeners_have_room_for_the_queues_of_what_is_used():
    async with serving(lambda: Echo(queue_sizes=(16, 300))) as target:
        [listener] = target.server.listeners
        assert listener.largest == USUAL
        control = await target.peer()
        await control.control()
        assert listener.largest == 300
        [later] = await listen(parse_url("vof+tcp://127.0.0.1:0"))
        target.server.listen(later)
        assert later.largest == 300


async def test_virtqueue_connect_refusals():
    async with serving(Echo) as target:
        control, other = await target.peer(), await target.peer()
        instance = await control.control()
        assert await other.join(instance, index=2) == v5.EQUEUEQUOT
        assert await other.join(instance, size=65) == v5.EQSIZEQUOT
        assert await other.join(instance ^ 1) == v5.EBADDEV
        wrong = names(ivqn=b"stranger")
        fields = {"device_instance_id": instance, "vq_index": 0, "length": 1024}
        assert await other.status(command(v5.CONNECT, **fields) + wrong) == v5.EBADVQN
        assert await other.status(command(v5.CONNECT, **fields) + names()) == v5.OK
        late = await target.peer()
        assert await late.join(instance) == v5.EQUEUEBUSY
        await other.stream.aclose()
        with trio.fail_after(5):
            while await late.join(instance) == v5.EQUEUEBUSY:
                pass


async def test_no_device_when_the_model_cannot_be_made(caplog: pytest.LogCaptureFixture):
    def make():
        raise OSError("the disk is gone")

    async with serving(make) as target:
        peer = await target.peer()
        assert await peer.status(connect_control()) == v5.ENODEV
    assert "the disk is gone" in caplog.text


async def test_association_limit():
    async with serving(Echo, Limits(associations=1)) as target:
        one, two = await target.peer(), await target.peer()
        await one.control()
        assert await two.status(connect_control()) == v5.ENODEV
        await one.stream.aclose()
        await target.gone()
        await two.control()


async def test_connection_limit():
    async with serving(Echo, Limits(connections=1)) as target:
        one = await target.peer()
        await one.control()
        two = await target.peer()
        assert await two.ended()
        assert (await one.ask(v5.GET_DEVICE_ID))["status"] == 0


async def test_time_to_connect():
    async with serving(Echo, Limits(connect_seconds=0.05)) as target:
        peer = await target.peer()
        await peer.send(connect_control()[:100])
        assert await peer.ended()


@pytest.mark.parametrize(
    "data", [command(v5.GET_STATUS), request(1, b"x", 1), b"\xff" * 16, command(v5.DISCONNECT)]
)
async def test_nothing_before_connect(data: bytes):
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.send(data)
        assert await peer.take(100) in (b"", v5.COMPLETION.encode({"status": 1, "command_id": 1}))
        assert await peer.ended()


async def test_second_connect_ends_the_connection():
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.control()
        await peer.send(connect_control())
        assert await peer.ended()
        await target.gone()


async def test_drain():
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        async with trio.open_nursery() as nursery:
            ended = []

            async def drain() -> None:
                ended.append(await target.server.drain(5))

            nursery.start_soon(drain)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            with pytest.raises(OSError, match="connect"):
                await target.peer()
            for late in (2, 3):
                await vq.send(request(late, b"late", 4))
                await trio.testing.wait_all_tasks_blocked()
            assert len(model.chains) <= 2  # who slept takes what wakes it, and no more
            assert not ended
            while model.chains:
                model.use(written=0)
        assert ended == [True]
        assert await vq.used() == (1, 0, b"")
        assert await control.ended()


async def test_a_drain_waits_for_no_buffer_that_the_model_holds():
    class Listener(Hoard):
        held_queues = (0,)

    model = Listener()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"", 1))
        await model.holds(1)
        assert await target.server.drain(5)
        assert await control.ended()


async def test_drain_deadline(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        assert not await target.server.drain(0.02)
        assert await control.ended()


async def test_a_name_cannot_forge_a_log_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.send(connect_control(body=names(ivqn=b"x\nERROR it burns\x1b[2J")))
        assert (await peer.answer(v5.CONNECT))["status"] == v5.OK
        await peer.stream.aclose()
        await target.gone()
    told = [record.getMessage() for record in caplog.records]
    assert any("it burns" in line for line in told)
    assert all(line.isprintable() for line in told)


ODD = command(v5.CONNECT, device_instance_id=v5.NEW_INSTANCE, length=17)


async def test_a_lie_right_behind_connect_leaves_nothing():
    async with serving(Echo, Limits(associations=1)) as target:
        for _ in range(3):
            peer = await target.peer()
            await peer.send(connect_control() + ODD)
            await peer.take(1 << 20)
            await target.gone()
        control, vq = await target.peer(), await target.peer()
        instance = await control.control()
        await vq.send(command(v5.CONNECT, device_instance_id=instance) + ODD)
        await vq.take(1 << 20)
        again = await target.peer()
        with trio.fail_after(5):
            while await again.join(instance) == v5.EQUEUEBUSY:
                pass


async def test_an_instance_belongs_to_the_address_that_made_it():
    async with serving(Echo) as target:
        control = await target.peer()
        instance = await control.control()
        with socket.socket() as sock:
            sock.bind(("127.0.0.2", 0))
            sock.connect((target.url.host, target.url.port))
            sock.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                assert await Peer(stream).join(instance) == v5.EBADDEV


class Broken(Echo):
    """Cannot even say what its configuration is."""

    def config(self) -> bytes:
        raise InvalidArgument("no configuration")


async def test_a_bug_costs_one_connection(caplog: pytest.LogCaptureFixture):
    models = [Broken, Echo]
    async with serving(lambda: models.pop(0)()) as target:
        peer = await target.peer()
        await peer.send(connect_control())
        assert await peer.ended()
        other = await target.peer()
        await other.control()
    assert "internal error" in caplog.text


async def test_accepting_goes_on_when_the_system_has_no_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vof.target.server.PAUSE_S", 0.01)
    accept = SocketListener.accept
    failures = [OSError(errno.EMFILE, "too many open files")]

    async def exhausted(listener: SocketListener):
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(SocketListener, "accept", exhausted)
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.control()
    assert "too many open files" in caplog.text


async def test_ids_are_not_given_twice(monkeypatch: pytest.MonkeyPatch):
    ids = [7, 7, 7, 8]
    monkeypatch.setattr("vof.target.server.secrets.randbelow", lambda _: ids.pop(0))
    async with serving(Echo) as target:
        one, two = await target.peer(), await target.peer()
        assert await one.control() == 7
        assert await two.control() == 8


async def test_the_end_of_the_server_ends_everything():
    model = Hoard()
    async with serving(lambda: model) as target:
        _, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        target.nursery.cancel_scope.cancel()
    assert model.closed
    assert not target.server.associations
    assert not target.server.connections


async def test_a_refused_peer_may_take_its_time_but_not_for_ever():
    async with serving(Echo, Limits(connect_seconds=0.1)) as target:
        peer = await target.peer()
        with trio.fail_after(5):
            while data := await refused(peer):
                assert data["status"] == v5.ENOTGT
        assert not target.server.associations


async def refused(peer: Peer) -> dict[str, int] | None:
    """Be refused; None when the connection has ended."""
    try:
        await peer.send(connect_control(body=names(tvqn=b"nothing")))
    except trio.BrokenResourceError:
        return None
    answer = await peer.take(16)
    return v5.COMMANDS[v5.CONNECT].completion.decode(answer) if answer else None
