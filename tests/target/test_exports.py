# SPDX-License-Identifier: BSD-3-Clause
"""From configured devices to exports."""

import os

import pytest

from vof.errors import ConfigError, VofError
from vof.target import config
from vof.target.exports import FACTORIES, close_all, open_all, open_device, probe
from vof.virtio.blk import VIRTIO_BLK_F_RO, BlkConfig
from vof.virtio.console import ConsoleConfig
from vof.virtio.constants import (
    VIRTIO_ID_BLOCK,
    VIRTIO_ID_CONSOLE,
    VIRTIO_ID_NET,
    VIRTIO_ID_RNG,
    bit,
)
from vof.virtio.net import NetConfig, parse_mac, station


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def devices(*options):
    built = tuple(config.option(name, text) for name, text in options)
    return config.build("here", (), built, {}).devices


def test_there_is_a_factory_for_every_type():
    assert FACTORIES.keys() == config.DEVICES.keys()


def test_a_disk_is_as_configured(image):
    (device,) = devices(("blk", f"{image},ro,queues=3,queue_size=64,block_size=4k"))
    opened = open_device(device)
    model = opened.export.make()
    shown = BlkConfig.unpack(model.config())
    assert opened.export.tvqn == "blk/disk"
    assert model.device_id == VIRTIO_ID_BLOCK
    assert model.queue_sizes == (64, 64, 64)
    assert model.device_features & bit(VIRTIO_BLK_F_RO)
    assert (shown.capacity, shown.blk_size, shown.num_queues) == (2048, 4096, 3)
    model.close()
    close_all([opened])


def test_each_initiator_gets_its_own_model_of_one_backing():
    (device,) = devices(("mem", "1M"))
    opened = open_device(device)
    one, other = opened.export.make(), opened.export.make()
    assert one is not other
    opened.backing.write((b"x" * 512,), 0)
    assert BlkConfig.unpack(one.config()).capacity == 2048
    one.close()
    other.close()
    close_all([opened])


def test_a_source_of_random_bytes_has_nothing_behind_it():
    (device,) = devices(("rng", "queue_size=8"))
    opened = open_device(device)
    assert opened.backing is None
    assert opened.export.make().device_id == VIRTIO_ID_RNG
    assert opened.export.make().queue_sizes == (8,)
    close_all([opened])


def test_a_network_device_is_as_configured(tmp_path):
    echo, plugged = devices(
        ("net", "echo,mac=02:00:00:00:00:07,mtu=9000,queue_size=8"),
        ("net", f"socket={tmp_path / 'ours'},peer={tmp_path / 'theirs'},tvqn=net7"),
    )
    opened = open_all([echo, plugged])
    model = opened[0].export.make()
    assert model.device_id == VIRTIO_ID_NET
    assert model.queue_sizes[:2] == (8, 8)
    assert NetConfig.unpack(model.config()) == (parse_mac("02:00:00:00:00:07"), 1, 1, 9000)
    assert opened[0].backing is None
    model = opened[1].export.make()
    assert NetConfig.unpack(model.config()).mac == station("net7")
    with pytest.raises(VofError, match="one initiator at a time"):
        opened[1].export.make()
    model.close()
    close_all(opened)
    assert not list(tmp_path.iterdir())


def test_a_console_is_as_configured(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    wanted = devices(
        ("console", f"socket={tmp_path / 'a'},queue_size=8"),
        ("console", f"pty={tmp_path / 'b'},cols=80,rows=25"),
    )
    probe(wanted)
    assert not list(tmp_path.iterdir())
    opened = open_all(wanted)
    assert [one.export.tvqn for one in opened] == ["console", "console-2"]
    models = [one.export.make() for one in opened]
    assert [model.device_id for model in models] == [VIRTIO_ID_CONSOLE] * 2
    assert [model.queue_sizes for model in models] == [(8, 8), (128, 128)]
    shown = [ConsoleConfig.unpack(model.config())[:2] for model in models]
    assert shown == [(0, 0), (80, 25)]
    assert os.get_terminal_size(opened[1].backing._fd) == (80, 25)
    with pytest.raises(VofError, match="one initiator at a time"):
        opened[0].export.make()
    close_all(opened)
    assert not list(tmp_path.iterdir())
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ConfigError, match="create it"):
        probe(devices(("console", f"socket={tmp_path / 'none' / 'a'}")))


def test_all_are_opened_or_none(image, tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="does not exist"):
        open_all(devices(("blk", str(image)), ("mem", "1M"), ("blk", str(tmp_path / "none"))))
    assert set(os.listdir("/proc/self/fd")) == before


def test_closing_twice_is_harmless(image):
    opened = open_all(devices(("blk", str(image))))
    close_all(opened)
    close_all(opened)
    assert opened[0].backing.fd == -1


def test_a_probe_changes_nothing_and_keeps_nothing(image, tmp_path):
    before = set(os.listdir("/proc/self/fd")), image.stat()
    probe(devices(("blk", str(image)), ("mem", "1M"), ("rng", "")))
    assert set(os.listdir("/proc/self/fd")) == before[0]
    assert image.stat().st_mtime_ns == before[1].st_mtime_ns
    with pytest.raises(ConfigError, match="does not exist"):
        probe(devices(("blk", str(tmp_path / "none"))))
    with pytest.raises(ConfigError, match="neither a regular file"):
        probe(devices(("blk", str(tmp_path))))


def test_a_probe_knows_what_may_not_be_written(image, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    probe(devices(("blk", f"{image},ro")))
    with pytest.raises(ConfigError, match="read-only"):
        probe(devices(("blk", str(image))))
