# SPDX-License-Identifier: BSD-3-Clause
"""What a target serves: one vocabulary for the file, the command line and the documentation."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vof.errors import ConfigError
from vof.target import config, files
from vof.target.keys import REQUIRED
from vof.target.limits import Limits
from vof.transport import parse_url


def build(*devices, listen=(), **limits):
    return config.build("here", tuple(listen), devices, limits)


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "target.toml"
        path.write_text(text)
        return files.load(str(path))

    return load


WHOLE = """
listen = ["vof+tcp://127.0.0.1:0", "vof+unix:///run/vof.sock"]
[limits]
queue_bytes = "32M"
drain_seconds = 2
poll_us = 0
[[device]]
type = "blk"
tvqn = "disk0"
path = "a.img"
read_only = true
queues = 4
serial = "S1"
[[device]]
type = "mem"
size = "64M"
[[device]]
type = "rng"
queue_size = 8
"""


def test_a_whole_file(load):
    found = load(WHOLE)
    assert [str(url) for url in found.listen] == [
        "vof+tcp://127.0.0.1:0",
        "vof+unix:///run/vof.sock",
    ]
    assert found.limits == Limits(queue_bytes=32 << 20, drain_seconds=2.0)
    assert found.poll_us == 0
    disk, memory, rng = found.devices
    assert (disk.type, disk.tvqn) == ("blk", "disk0")
    assert disk.values == {
        "path": "a.img",
        "read_only": True,
        "queues": 4,
        "queue_size": 128,
        "serial": "S1",
        "block_size": 512,
        "request_max": 1 << 20,
    }
    assert (memory.tvqn, memory.values["size"]) == ("mem", 64 << 20)
    assert (rng.tvqn, rng.values) == ("rng", {"queue_size": 8})


def test_the_default_listener_is_reached_from_this_machine_alone():
    assert build(config.option("rng", "")).listen == (parse_url("vof+tcp://127.0.0.1:8549"),)


def test_the_default_limits_are_those_of_the_server():
    assert build(config.option("rng", "")).limits == Limits()


DEVICE = '[[device]]\ntype = "rng"\n'
BRIDGE = '[[device]]\nbridge = { type = "vhost-user", socket = "s"%s }\n'


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("", "device", "at least one"),
        ("lisen = []", "lisen", "did you mean listen?"),
        ("zzz = 1", "zzz", "known: listen, admin, limits, device"),
        ("listen = 1", "listen", "a list of URLs"),
        ("listen = [1]", "listen", "a list of URLs"),
        ('listen = ["x://y"]\n' + DEVICE, "listen[0]", "unknown scheme"),
        ('listen = ["vof+unix:///s", "vof+tcp://h/name"]\n' + DEVICE, "listen[1]", "no name"),
        ("limits = 1\n" + DEVICE, "limits", "a table"),
        ("device = 1", "device", "tables"),
        ("device = [1]", "device", "tables"),
        (DEVICE + "[limits]\nqueue_byte = 1", "limits.queue_byte", "queue_bytes"),
        (DEVICE + "[limits]\nconnections = 0", "limits.connections", "1 to 1048576, not 0"),
        (DEVICE + "[limits]\nconnections = 1.5", "limits.connections", "an integer"),
        (DEVICE + "[limits]\nconnections = true", "limits.connections", "an integer"),
        (DEVICE + "[limits]\ndrain_seconds = nan", "limits.drain_seconds", "a number of seconds"),
        (DEVICE + "[limits]\ndrain_seconds = inf", "limits.drain_seconds", "a number of seconds"),
        (DEVICE + "[limits]\ndrain_seconds = true", "limits.drain_seconds", "seconds"),
        (DEVICE + '[limits]\nqueue_bytes = "8M"', "limits.queue_bytes", "less than"),
        ("[[device]]", "device[0].type", "blk or mem or rng"),
        ('[[device]]\ntype = "bkl"', "device[0].type", "not 'bkl'"),
        (DEVICE + '[[device]]\ntype = "blk"', "device[1].path", "missing; expected the path"),
        (DEVICE + '[[device]]\ntype = "blk"\npath = 1', "device[1].path", "the path of a file"),
        (DEVICE + '[[device]]\ntype = "blk"\npath = "a\\u0000"', "device[1].path", "the path"),
        (
            DEVICE + '[[device]]\ntype = "blk"\npath = "a"\nqeues = 2',
            "device[1].qeues",
            "did you mean queues",
        ),
        ('[[device]]\ntype = "blk"\npath = "a"\nqueues = 257', "device[0].queues", "1 to 256"),
        ('[[device]]\ntype = "blk"\npath = "a"\nread_only = "so"', "device[0].read_only", "true"),
        ('[[device]]\ntype = "blk"\npath = "a"\nread_only = 1', "device[0].read_only", "true"),
        ('[[device]]\ntype = "mem"\nsize = "64X"', "device[0].size", "64X"),
        ('[[device]]\ntype = "mem"\nsize = []', "device[0].size", "a number of bytes"),
        (
            '[[device]]\ntype = "mem"\nsize = 512\nblock_size = 777',
            "device[0].block_size",
            "a power of two",
        ),
        (
            '[[device]]\ntype = "mem"\nsize = 512\nblock_size = 131072',
            "device[0].block_size",
            "512 to 65536",
        ),
        (
            '[[device]]\ntype = "mem"\nsize = 512\nserial = "123456789012345678901"',
            "device[0].serial",
            "1 to 20 bytes",
        ),
        ('[[device]]\ntype = "rng"\ntvqn = ""', "device[0].tvqn", "1 to 255 bytes"),
        (f'[[device]]\ntype = "rng"\ntvqn = "{"é" * 128}"', "device[0].tvqn", "1 to 255 bytes"),
        ("[[device]\n", "", "Expected"),
        ("[[device]]\nbridge = 1", "device[0].bridge", 'such as { type = "vhost-user"'),
        ('[[device]]\nbridge = { type = "blk" }', "device[0].bridge", "such as"),
        ('[[device]]\ntype = "vhost-user"', "device[0].type", "expected bridge = {"),
        (BRIDGE % "" + 'type = "blk"', "device[0].type", "known: bridge, tvqn, allow"),
        (BRIDGE % ', tvqn = "x"', "device[0].bridge.tvqn", "beside the bridge: device[0].tvqn"),
        (BRIDGE % ", sock = 1", "device[0].bridge.sock", "did you mean socket"),
        (BRIDGE % ', device = "disk"', "device[0].bridge.device", "net, blk, console"),
        (BRIDGE % ", queue_size = 100", "device[0].bridge.queue_size", "a power of two"),
        (BRIDGE % ", command = []", "device[0].bridge.command", "a program and its arguments"),
        (BRIDGE % ", command = [1]", "device[0].bridge.command", "a program and its arguments"),
        (BRIDGE % ', replay = "never"', "device[0].bridge.replay", "resubmit or fail or reset"),
        (BRIDGE % "" + 'tvqn = ""', "device[0].tvqn", "1 to 255 bytes"),
        (BRIDGE % "" + "allow = 1", "device[0].allow", "a list"),
        (
            BRIDGE % "" + 'allow = [{ from = "any", read_only = true }]',
            "device[0].allow[0].read_only",
            "never read-only",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(load, tmp_path, text, key, words):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.path == str(tmp_path / "target.toml")
    assert caught.value.key == key
    assert str(caught.value).startswith(str(tmp_path / "target.toml"))
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        files.load(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        files.load(str(tmp_path / "binary.toml"))


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "same"),
    [
        ("blk", "a.img,ro,queues=2,serial=X", {"path": "a.img", "read_only": True, "queues": 2}),
        ("blk", "a.img,read_only=no", {"path": "a.img", "read_only": False}),
        ("blk", "path=a.img", {"path": "a.img"}),
        ("mem", "64MiB,block_size=4k", {"size": 64 << 20, "block_size": 4096}),
        ("rng", "queue_size=16", {"queue_size": 16}),
        ("blk", "a,,b.img,serial=,,", {"path": "a,b.img", "serial": ","}),
        ("vhost-user", "v.sock", {"socket": "v.sock", "device": "blk", "command": ""}),
        (
            "vhost-user",
            "v.sock,device=26,listen,command=run 'a,,b' c,queue_size=64,replay=fail",
            {
                "device": "fs",
                "listen": True,
                "command": ("run", "a,b", "c"),
                "queue_size": 64,
                "replay": "fail",
            },
        ),
        ("rng", "", {}),
    ],
)
def test_an_option_says_what_a_table_of_the_file_says(name, text, same):
    found = config.option(name, text)
    assert found.type == name
    assert {key: found.values[key] for key in same} == same


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("blk", "", "path"),
        ("blk", "ro,a.img", "a.img"),
        ("blk", "a.img,queue=2", "queue"),
        ("blk", "a.img,queues=two", "queues"),
        ("mem", "", "size"),
        ("mem", "3x", "size"),
        ("rng", "ro", "read_only"),
    ],
)
def test_a_wrong_option_is_named(name, text, key):
    with pytest.raises(ConfigError) as caught:
        config.option(name, text)
    assert (caught.value.path, caught.value.key) == (f"--{name}", key)


# -- names ----------------------------------------------------------------------------------------


def test_devices_without_a_name_get_different_ones():
    found = build(
        config.option("blk", "x/a.img"),
        config.option("blk", "y/a.img"),
        config.option("mem", "1M"),
        config.option("mem", "1M,tvqn=mem"),
        config.option("rng", ""),
        config.option("rng", ""),
    )
    names = [device.tvqn for device in found.devices]
    assert names == ["blk/a", "blk/a-2", "mem-2", "mem", "rng", "rng-2"]


def test_a_name_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"--mem: tvqn 'd' is taken"):
        build(config.option("rng", "tvqn=d"), config.option("mem", "1M,tvqn=d"))


@given(st.lists(st.text(st.characters(exclude_characters=",\0="), min_size=1, max_size=300)))
def test_a_default_name_can_stand_in_a_url(stems):
    """Whatever the file is called: what is announced can be connected to."""
    devices = [config.device("here", "", "blk", {"path": f"d/{stem}.img"}) for stem in stems]
    found = build(config.option("rng", "tvqn=r"), *devices)
    names = [device.tvqn for device in found.devices]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) < 256
        assert parse_url(str(found.listen[0].with_tvqn(name))).tvqn == name


# -- the documentation ----------------------------------------------------------------------------


def test_the_documentation_names_every_key():
    lines = config.describe().splitlines()
    for keys in (config.LIMITS, *config.DEVICES.values()):
        for name, key in keys.items():
            assert any(line.lstrip("# ").startswith(f"{name} = ") for line in lines), name
            assert any(f"{key.help}; {key.expected}" in line for line in lines), name


def test_the_documentation_tells_the_range():
    lines = config.describe().splitlines()
    assert "queues = 1  # number of queues; an integer, 1 to 256" in lines


def test_the_documentation_is_a_file_that_says_the_defaults(load):
    text = config.describe()
    assert tomllib.loads(text)
    found = load(text)
    assert [device.type for device in found.devices] == list(config.DEVICES)
    assert found == found._replace(
        listen=(parse_url(config.DEFAULT_LISTEN),),
        limits=Limits(),
        poll_us=config.LIMITS["poll_us"].default,
    )
    for device in found.devices:
        for name, value in device.values.items():
            key = config.DEVICES[device.type][name]
            chosen = name in config.CHOICES.get(device.type, ((),))[-1]
            assert key.default is REQUIRED or chosen or value == key.default


def test_a_network_device_is_plugged_into_one_thing():
    for text, values in {
        "echo": {"echo": True},
        "tap=tap0,mtu=9000": {"tap": "tap0", "mtu": 9000},
        "socket=a,peer=b,mac=02:00:00:00:0A:01": {"socket": "a", "mac": "02:00:00:00:0a:01"},
    }.items():
        found = config.option("net", text).values
        assert found == {**found, **values}


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("", "", "exactly one of: tap, or socket with peer, or echo"),
        ("echo,tap=tap0", "", "exactly one of"),
        ("socket=a", "", "exactly one of"),
        ("peer=b", "", "exactly one of"),
        ("echo,peer=b", "", "exactly one of"),
        ("echo,mac=01:00:00:00:00:01", "mac", "an address of one station"),
        ("echo,mac=2:0:0:0:0:1", "mac", "an address of one station"),
        ("echo,mac=00:00:00:00:00:00", "mac", "an address of one station"),
        ("echo,mtu=67", "mtu", "68 to 65535"),
        ("ecko", "ecko", "did you mean echo?"),
    ],
)
def test_what_a_network_device_cannot_be(text, key, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config.option("net", text)
    assert (caught.value.path, caught.value.key) == ("--net", key)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("", "", "exactly one of: pty, or socket"),
        ("pty=a,socket=b", "", "exactly one of"),
        ("pty=a,cols=65536", "cols", "0 to 65535"),
        ("/run/console.sock", "/run/console.sock", "known: pty, socket,"),
    ],
)
def test_what_a_console_cannot_be(text, key, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config.option("console", text)
    assert (caught.value.path, caught.value.key) == ("--console", key)


def test_every_default_is_allowed():
    for keys in (config.LIMITS, *config.DEVICES.values()):
        for name, key in keys.items():
            if key.default is not REQUIRED and key.default != "":
                assert key.read("here", name, key.default) == key.default
