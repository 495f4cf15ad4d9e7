# SPDX-License-Identifier: BSD-3-Clause
"""What the base classes derive from what an implementation provides."""

from collections import deque

import pytest

from vof.errors import (
    CommandError,
    ConfigError,
    DeviceError,
    FeatureError,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    RemoteProtocolError,
    VofError,
)
from vof.memory import HEAP
from vof.virtio import Chain, DeviceModel, VirtioDevice, Virtqueue, VirtqueueInfo
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit
from vof.virtio.device import CONFIG_RETRIES

VERSION_1 = bit(VIRTIO_F_VERSION_1)


class FakeQueue(Virtqueue):
    """A queue that notes what it is asked, and does what the test sets."""

    def __init__(self) -> None:
        self.index, self.name, self.num_max, self.callback = 0, "fake", 4, None
        self.added: list[tuple[object, ...]] = []
        self.used: deque[tuple[object, int, object]] = deque()
        self.needs_notify = True
        self.notified = 0
        self.pending = False
        self.cause: BaseException | None = None
        self.broken = False

    @property
    def num_free(self) -> int:
        return self.num_max - len(self.added)

    def add_sgs(self, sgs, out_sgs, in_sgs, data, ctx=None):
        self.added.append((sgs, out_sgs, in_sgs, data, ctx))

    def kick_prepare(self) -> bool:
        return self.needs_notify

    def notify(self) -> bool:
        self.notified += 1
        return not self.broken

    def enable_cb_prepare(self) -> int:
        return 17

    def poll(self, last_used_idx: int) -> bool:
        assert last_used_idx == 17
        return self.pending

    def enable_cb_delayed(self) -> bool:
        return True

    def disable_cb(self) -> None:
        pass

    def get_buf_ctx(self):
        return self.used.popleft() if self.used else None

    def detach_unused_buf(self):
        return None

    def get_vring_size(self) -> int:
        return self.num_max

    resize = None  # nothing derived calls it

    def break_(self, cause=None) -> None:
        self.broken, self.cause = True, cause

    def unbreak(self) -> None:
        self.broken = False

    @property
    def is_broken(self) -> bool:
        return self.broken

    @property
    def broken_by(self):
        return self.cause

    async def wait_used(self) -> None:
        pass


class FakeDevice(VirtioDevice):
    """A device of 4 bytes of configuration that keeps a log."""

    def __init__(self, offered: int = VERSION_1, refuses: int = 0, moves: int = 0) -> None:
        self.device_id, self.vendor_id, self.pool = 4, 0, HEAP
        self.features, self.vqs, self.config_changed = 0, [], None
        self.offered, self.refuses, self.moves = offered, refuses, moves
        self.status, self.config, self.at = 0, bytearray(b"\0" * 4), 0
        self.log: list[str] = []

    async def get(self, offset: int, length: int) -> bytes:
        data = bytes(self.config[offset : offset + length])
        if self.moves:
            self.moves -= 1
            self.at += 1
            self.config[0] = self.at & 0xFF
        return data

    async def set(self, offset: int, value: bytes) -> None:
        self.config[offset : offset + len(value)] = value

    async def generation(self) -> int:
        return self.at

    async def get_status(self) -> int:
        return self.status

    async def set_status(self, status: int) -> None:
        self.log.append(f"status {status:#x}")
        if self.features & self.refuses:
            status &= ~8
        self.status = status

    async def reset(self) -> None:
        self.log.append("reset")
        self.status = self.features = 0

    async def get_features(self) -> int:
        return self.offered

    async def finalize_features(self, features: int) -> None:
        self.log.append(f"features {features:#x}")
        self.features = features

    async def get_vq_size(self, index: int) -> int:
        return 4 if index < 2 else 0

    async def find_vqs(self, infos):
        self.vqs = [FakeQueue() for _ in infos]
        return self.vqs

    async def del_vqs(self) -> None:
        self.vqs = []


class FakeModel(DeviceModel):
    """The least that a model is."""

    device_id = 4
    queue_sizes = (4,)

    serve = None  # nobody presents it


# -- the device, as its driver sees it ----------------------------------------------------------


async def test_read_config_of_a_still_device_reads_once():
    device = FakeDevice()
    device.config[:] = b"abcd"
    assert await device.read_config(1, 2) == b"bc"


async def test_read_config_reads_again_until_the_generation_stands():
    device = FakeDevice(moves=3)
    assert await device.read_config(0, 4) == b"\3\0\0\0"


async def test_read_config_succeeds_at_the_last_try():
    device = FakeDevice(moves=CONFIG_RETRIES - 1)
    assert (await device.read_config(0, 4))[0] == CONFIG_RETRIES - 1


async def test_read_config_gives_up_on_a_device_that_never_stands_still():
    device = FakeDevice(moves=CONFIG_RETRIES)
    with pytest.raises(RemoteProtocolError, match="never stands still"):
        await device.read_config(0, 4)


async def test_initialize_goes_the_way_of_the_specification():
    device = FakeDevice(offered=VERSION_1 | 0b1110)
    assert await device.initialize(wanted=0b0111) == VERSION_1 | 0b0110
    await device.ready()
    assert device.log == [
        "reset",
        "status 0x1",
        "status 0x3",
        "features 0x100000006",
        "status 0xb",
        "status 0xf",
    ]


async def test_a_required_feature_is_chosen_though_not_wanted():
    assert await FakeDevice(VERSION_1 | 4).initialize(0, required=4) == VERSION_1 | 4


@pytest.mark.parametrize(("offered", "missing"), [(VERSION_1, 0x4), (0x4, 0x100000000)])
async def test_a_missing_feature_stops_before_anything_is_chosen(offered, missing):
    device = FakeDevice(offered)
    with pytest.raises(FeatureError, match=f"{missing:#x}$"):
        await device.initialize(0, required=4)
    assert device.log == ["reset", "status 0x1", "status 0x3"]


async def test_refused_features_are_an_error():
    device = FakeDevice(VERSION_1 | 4, refuses=4)
    with pytest.raises(FeatureError, match=r"refused the features 0x100000004"):
        await device.initialize(wanted=4)


async def test_break_device_breaks_every_queue_and_unbreak_device_mends_them():
    device = FakeDevice()
    vqs = await device.find_vqs([VirtqueueInfo("a"), VirtqueueInfo("b")])
    cause = VofError("why")
    device.break_device(cause)
    assert [(vq.is_broken, vq.broken_by) for vq in vqs] == [(True, cause)] * 2
    device.unbreak_device()
    assert not any(vq.is_broken for vq in vqs)


def test_what_is_not_said_of_a_queue():
    assert VirtqueueInfo("requests") == ("requests", None, 0)


# -- the queue, as its driver sees it -----------------------------------------------------------


def test_add_wrappers():
    vq, a, b = FakeQueue(), b"a", bytearray(1)
    vq.add_outbuf([a, a], "out")
    vq.add_inbuf([b], "in")
    vq.add_inbuf_ctx([b], "ctx", 5)
    assert vq.added == [
        ([a, a], 2, 0, "out", None),
        ([b], 0, 1, "in", None),
        ([b], 0, 1, "ctx", 5),
    ]


@pytest.mark.parametrize("needs_notify", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_kick_notifies_where_needed_and_says_whether_the_queue_is_whole(needs_notify, broken):
    vq = FakeQueue()
    vq.needs_notify, vq.broken = needs_notify, broken
    assert vq.kick() is not broken
    assert vq.notified == needs_notify


@pytest.mark.parametrize("pending", [False, True])
def test_enable_cb_says_false_when_something_was_used_meanwhile(pending):
    vq = FakeQueue()
    vq.pending = pending
    assert vq.enable_cb() is not pending


def test_get_buf_drops_the_context():
    vq = FakeQueue()
    vq.used.append(("token", 3, "context"))
    assert vq.get_buf() == ("token", 3)
    assert vq.get_buf() is None


def test_check_usable():
    vq = FakeQueue()
    vq.check_usable()
    vq.break_()
    with pytest.raises(QueueBroken, match=r"^queue fake is broken$") as caught:
        vq.check_usable()
    assert caught.value.cause is None
    cause = VofError("the cable")
    vq.break_(cause)
    with pytest.raises(QueueBroken, match=r"^queue fake is broken: the cable$") as caught:
        vq.check_usable()
    assert caught.value.cause is caught.value.__cause__ is cause


# -- the device, as itself ----------------------------------------------------------------------


def test_what_a_model_is_unless_it_says_otherwise():
    model = FakeModel()
    assert model.device_features == VERSION_1
    assert model.features == 0
    assert model.pool is HEAP
    assert model.config() == b""
    model.config_changed()
    model.status_changed(0)
    model.close()
    with pytest.raises(InvalidArgument, match="at 3 is read-only"):
        model.write_config(3, b"x")


def test_a_chain_keeps_what_it_is_given():
    view = memoryview(b"abc")
    chain = Chain((view,), (), 9)
    assert (chain.readable, chain.writable, chain.token) == ((view,), (), 9)


# -- errors and memory --------------------------------------------------------------------------


def test_a_heap_buffer_is_zeroed_writable_bytes():
    view = HEAP.alloc(5)
    assert (bytes(view), view.format, view.readonly) == (bytes(5), "B", False)
    assert len(HEAP.alloc(0)) == 0


def test_an_error_in_flight_is_a_marked_copy():
    error = CommandError("no", 0x1021)
    copy = error.as_in_flight()
    assert copy.maybe_executed
    assert not error.maybe_executed
    assert (type(copy), str(copy), copy.status, copy.__cause__) == (
        CommandError,
        "no",
        0x1021,
        error,
    )


def test_errors_carry_what_they_are_about():
    assert RemoteProtocolError("x").status == CommandError("x").status == 0
    assert RemoteProtocolError("x", 7).status == 7
    assert DeviceError("x", 2).status == 2


@pytest.mark.parametrize(
    ("key", "text"), [("blk.path", "vof.toml: blk.path: missing"), ("", "vof.toml: missing")]
)
def test_a_config_error_says_where(key, text):
    error = ConfigError("vof.toml", key, "missing")
    assert (str(error), error.path, error.key) == (text, "vof.toml", key)
    assert isinstance(error, ValueError)


async def test_single_queues_are_not_for_every_device():
    device = FakeDevice()
    with pytest.raises(NotSupported, match="only all queues"):
        await device.setup_vq(0, VirtqueueInfo("one"))
    with pytest.raises(NotSupported, match="only all queues"):
        await device.del_vq(0)


async def test_not_every_device_comes_back():
    with pytest.raises(NotSupported, match="does not come back"):
        await FakeDevice().recover()
