# SPDX-License-Identifier: BSD-3-Clause
"""The network driver, over a real target and over a device that lies."""

import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio

import vof
from tests.initiator.drivers.fakes import FakeDevice, FakeDisk
from vof.errors import (
    DeviceError,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    RemoteProtocolError,
)
from vof.initiator.drivers import Net
from vof.target import Export, Server
from vof.target.devices import NetModel, SocketLink
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_ID_NET, bit
from vof.virtio.net import (
    ETH_HLEN,
    HEADER,
    RECEIVED,
    TRANSMITTED,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    NetConfig,
)

MAC = bytes.fromhex("020000000007")


class World:
    """A network device at a target, and its driver here."""

    def __init__(self, net, models):
        self.net = net
        self.model = models[-1]


@asynccontextmanager
async def world(path, link=None, **options):
    models = []

    def make():
        models.append(NetModel(link, mac=MAC, **options))
        return models[-1]

    async with trio.open_nursery() as nursery:
        server = Server({"it": Export("it", make)})
        await nursery.start(server.serve, await listen(parse_url(f"vof+unix://{path}/s")))
        async with vof.connect(f"vof+unix://{path}/s?tvqn=it") as device, Net(device) as net:
            yield World(net, models)
        nursery.cancel_scope.cancel()


async def collect(net, count):
    frames = []
    with trio.fail_after(20):
        while len(frames) < count:
            frames += await net.receive_batch()
    return frames


# -- echo -----------------------------------------------------------------------------------------


async def test_what_the_device_is(tmp_path):
    async with world(tmp_path, mtu=9000) as it:
        assert (it.net.mac, it.net.mtu, it.net.link_up) == (MAC, 9000, True)


async def test_thousands_of_frames_of_all_sizes_each_whole_and_in_order(tmp_path):
    some = random.Random(0)
    sent = [some.randbytes(size) for size in (ETH_HLEN, 1518, ETH_HLEN + 1, 1517)]
    sent += [some.randbytes(some.randint(ETH_HLEN, 1518)) for _ in range(5000)]
    async with world(tmp_path) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.net.send_batch, sent)
        assert await collect(it.net, len(sent)) == sent
        total = len(sent), sum(map(len, sent))
        assert (it.net.counters.tx_frames, it.net.counters.tx_bytes) == total
        assert (it.net.counters.rx_frames, it.net.counters.rx_bytes) == total
        assert (it.model.counters.rx_frames, it.model.counters.rx_dropped) == (len(sent), 0)


async def test_jumbo_frames(tmp_path):
    sent = [random.Random(number).randbytes(65553 - number) for number in range(50)]
    async with world(tmp_path, mtu=65535, queue_size=16) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.net.send_batch, sent)
        assert await collect(it.net, len(sent)) == sent


async def test_many_senders_and_many_receivers(tmp_path):
    got, each, tasks = [], 200, 8
    async with world(tmp_path, queue_size=32) as it:

        async def send(number):
            for step in range(each):
                await it.net.send(bytes([number, step]) * 30)

        async def receive():
            got.extend([await it.net.receive() for _ in range(each)])

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(tasks):
                    nursery.start_soon(send, number)
                    nursery.start_soon(receive)
    assert sorted(got) == sorted(bytes([n, s]) * 30 for n in range(tasks) for s in range(each))
    for number in range(tasks):
        mine = [frame[1] for frame in got if frame[0] == number]
        assert len(mine) == each


async def test_cancelling_receivers_loses_no_frame(tmp_path):
    some, got = random.Random(1), []
    sent = [some.randbytes(60) for _ in range(1000)]
    async with world(tmp_path) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.net.send_batch, sent)
        with trio.fail_after(20):
            while len(got) < len(sent):
                with trio.move_on_after(some.random() / 2000):
                    while True:
                        got.append(await it.net.receive())
    assert got == sent


async def test_a_cancelled_send_did_not_send(tmp_path):
    some, sent = random.Random(2), []
    async with world(tmp_path, queue_size=4) as it, trio.open_nursery() as nursery:

        async def send():
            for number in range(500):
                frame = number.to_bytes(2, "big") * 10
                with trio.move_on_after(some.random() / 5000):
                    await it.net.send(frame)
                    sent.append(frame)
            await it.net.send(b"last" * 10)

        nursery.start_soon(send)
        got = []
        with trio.fail_after(20):
            while (frame := await it.net.receive()) != b"last" * 10:
                got.append(frame)
    assert got == sent
    assert len(sent) > 0


async def test_flush_waits_until_the_device_took_everything(tmp_path):
    async with world(tmp_path) as it:
        await it.net.send_batch([bytes(60)] * 100)
        await it.net.flush()
        assert it.model.counters.tx_frames == 100


@pytest.mark.parametrize("size", [0, ETH_HLEN - 1, 1519])
async def test_what_is_no_frame_is_not_sent(tmp_path, size):
    async with world(tmp_path) as it:
        with pytest.raises(InvalidArgument, match="14 to 1518"):
            await it.net.send_batch([bytes(60), bytes(size)])
        assert it.net.counters.tx_frames == 0


async def test_the_link_goes_down_and_up(tmp_path):
    async with world(tmp_path) as it:
        for up in (False, True):
            changed = trio.Event()
            it.net.link_changed = changed.set
            it.model.set_link(up)
            with trio.fail_after(5):
                await changed.wait()
            assert await it.net.refresh() is up
            assert it.net.link_up is up


async def test_commands(tmp_path):
    other = b"\2other"
    async with world(tmp_path) as it:
        await it.net.set_promiscuous(False)
        await it.net.send_batch([other + bytes(54), MAC + bytes(54)])
        assert await it.net.receive() == MAC + bytes(54)
        await it.net.set_table([other], [b"\3group"])
        await it.net.send_batch([b"\3group" + bytes(54), other + bytes(54)])
        assert [frame[:6] for frame in await collect(it.net, 2)] == [b"\3group", other]
        await it.net.set_mac(other)
        assert it.net.mac == other
        await it.net.refresh()
        assert it.net.mac == other
        for bad in ((0, 0, b""), (0, 99, b"\0"), (1, 1, b"\1" * 6), (9, 9, b"x" * 100)):
            with pytest.raises(DeviceError, match="refuses"):
                await it.net.command(*bad)


async def test_a_queue_that_ends_says_why(tmp_path):
    async with world(tmp_path) as it, trio.open_nursery() as nursery:

        async def cut():
            await trio.testing.wait_all_tasks_blocked()
            await it.net.device.reset()
            done.set()

        done = trio.Event()
        nursery.start_soon(cut)
        with pytest.raises(QueueBroken, match="receiveq is broken: "):
            await it.net.receive()
        await done.wait()
        with pytest.raises(QueueBroken):
            await it.net.send(bytes(60))
        with pytest.raises(QueueBroken):
            await it.net.flush()


async def test_a_second_start_begins_anew(tmp_path):
    async with world(tmp_path) as it:
        await it.net.send(bytes(60))
        async with Net(it.net.device) as again:
            await again.send(b"x" * 60)
            assert await again.receive() == b"x" * 60


# -- on a socket ----------------------------------------------------------------------------------


async def test_frames_to_and_from_another_program(tmp_path):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    some = random.Random(3)
    frames = [some.randbytes(some.randint(ETH_HLEN, 1518)) for _ in range(300)]
    link = SocketLink(ours, theirs)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        await peer.bind(theirs)
        async with world(tmp_path, link) as it, trio.open_nursery() as nursery:

            async def answer():
                for frame in frames:
                    await peer.sendto(frame, ours)

            nursery.start_soon(it.net.send_batch, frames)
            with trio.fail_after(20):
                assert [await peer.recv(2000) for _ in frames] == frames
                nursery.start_soon(answer)
                assert await collect(it.net, len(frames)) == frames
            assert it.model.counters.tx_dropped + it.model.counters.rx_dropped == 0
    link.close()


async def test_the_link_is_free_for_the_next(tmp_path):
    link = SocketLink(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    for _ in range(2):
        async with world(tmp_path, link) as it:
            assert it.net.link_up
    link.close()


# -- a device that lies ---------------------------------------------------------------------------


class FakeNet(FakeDevice):
    """Keeps receive buffers until ``bring``; swallows frames; acks with ``ack``."""

    def __init__(self, *features, queues=3, mtu=1500, ack=b"\0"):
        config = NetConfig(MAC, 1, 1, mtu).pack()
        super().__init__(VIRTIO_ID_NET, bit(*features), config, queues)
        self.spaces, self.sent, self.ack = [], [], ack

    def take(self, vq, token, readable, writable):
        if vq.index == 0:
            self.spaces.append((vq, token, writable[0]))
        elif vq.index == 1:
            self.sent.append(b"".join(readable))
            vq.use(token, 0)
        else:
            writable[0][: len(self.ack)] = self.ack
            vq.use(token, len(self.ack))

    def bring(self, data, written=None):
        vq, token, space = self.spaces.pop(0)
        space[: len(data)] = data
        vq.use(token, len(data) if written is None else written)


async def test_a_plain_device_gets_defaults():
    async with Net(FakeNet(queues=2)) as net:
        assert (net.mtu, net.link_up) == (1500, True)
        assert net.mac != MAC
        assert net.mac[0] & 3 == 2
        with pytest.raises(NotSupported):
            await net.set_promiscuous(True)


async def test_headers_and_buffers_are_as_specified():
    device = FakeNet(VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, mtu=68)
    async with Net(device) as net:
        assert (net.mac, net.mtu) == (MAC, 68)
        assert {len(space) for _, _, space in device.spaces} == {1526}
        await net.send(bytearray(60))
        assert device.sent == [TRANSMITTED + bytes(60)]


async def test_what_is_no_frame_is_counted_and_its_buffer_used_again():
    device = FakeNet()
    async with Net(device) as net:
        count = len(device.spaces)
        for data in (b"", RECEIVED, RECEIVED + bytes(13)):
            device.bring(data)
        device.bring(RECEIVED + b"x" * 60)
        assert await net.receive() == b"x" * 60
        assert net.counters.rx_errors == 3
        assert len(device.spaces) == count


async def test_the_number_of_buffers_is_not_looked_at():
    device = FakeNet()
    async with Net(device) as net:
        for number in (0, 2):  # without VIRTIO_NET_F_MRG_RXBUF, DPDK leaves it 0
            device.bring(HEADER.pack(0, 0, 0, 0, 0, 0, number) + b"x" * 60)
            assert await net.receive() == b"x" * 60


async def test_a_frame_shows_nothing_of_an_earlier_one():
    device = FakeNet()
    async with Net(device) as net:
        for _ in range(len(device.spaces)):
            device.bring(RECEIVED + b"s" * 1000)
        await net.receive_batch()
        device.bring(RECEIVED + b"x" * 14)
        assert await net.receive() == b"x" * 14


@pytest.mark.parametrize(("ack", "error"), [(b"\1", DeviceError), (b"", RemoteProtocolError)])
async def test_acks(ack, error):
    async with Net(FakeNet(VIRTIO_NET_F_CTRL_VQ, ack=ack)) as net:
        with pytest.raises(error):
            await net.set_promiscuous(True)


def test_another_device_is_refused():
    with pytest.raises(InvalidArgument, match="network"):
        Net(FakeDisk())
