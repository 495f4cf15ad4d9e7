# SPDX-License-Identifier: BSD-3-Clause
"""Who may use a device: entries, connections from several addresses, a real target."""

import signal
from functools import partial

import pytest
import trio

import vof
from tests.daemon import ANY, LONGEST_S
from tests.models import Echo
from tests.wire import Peer, connect_control, names, request, serving
from vof.errors import (
    CommandError,
    ConfigError,
    ConnectionLost,
    InvalidArgument,
    QueueBroken,
    VofError,
)
from vof.initiator.drivers.blk import Blk
from vof.protocol import v5
from vof.target import config, daemon, files
from vof.target.access import (
    LOCAL,
    THIS_MACHINE,
    Allow,
    decide,
    parse_name,
    parse_origin,
)
from vof.target.devices import BlkModel, MemoryBacking
from vof.transport import parse_url
from vof.virtio.blk import (
    RANGE,
    REQUEST,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from vof.virtio.constants import bit


def allow(text):
    """An entry as on the command line."""
    who, _, mode = text.partition(",")
    ivqn, _, origin = who.rpartition("@")
    return Allow(parse_name(ivqn or "*"), parse_origin(origin), mode == "ro")


# -- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "ivqn", "peer", "admitted"),
    [
        ("any", "x", "192.0.2.1", True),
        ("any", "x", "unix:0", True),
        ("any", "x", "loopback", True),
        ("local", "x", "127.9.9.9", True),
        ("local", "x", "::1", True),
        ("local", "x", "unix:7", True),
        ("local", "x", "loopback", True),
        ("local", "x", "192.0.2.1", False),
        ("local", "x", "2001:db8::1", False),
        ("unix", "x", "unix:7", True),
        ("unix", "x", "127.0.0.1", False),
        ("unix", "x", "loopback", False),
        ("unix:7", "x", "unix:7", True),
        ("unix:7", "x", "unix:70", False),
        ("unix:007", "x", "unix:7", True),
        ("192.0.2.1", "x", "192.0.2.1", True),
        ("192.0.2.1", "x", "192.0.2.2", False),
        ("192.0.2.1", "x", "unix:0", False),
        ("192.0.2.1", "x", "loopback", False),
        ("192.0.2.0/31", "x", "192.0.2.1", True),
        ("192.0.2.0/31", "x", "192.0.2.2", False),
        ("0.0.0.0/0", "x", "2001:db8::1", False),
        ("2001:db8::/32", "x", "2001:db8::1", True),
        ("2001:db8::/32", "x", "192.0.2.1", False),
        ("fe80::/10", "x", "fe80::1%eth0", True),
        ("host1@any", "host1", "192.0.2.1", True),
        ("host1@any", "host10", "192.0.2.1", False),
        ("host1@any", "Host1", "192.0.2.1", False),
        ("host1*@any", "host10", "192.0.2.1", True),
        ("host1*@any", "host1", "192.0.2.1", True),
        ("host1*@any", "host2", "192.0.2.1", False),
        ("host1*@192.0.2.1", "host1", "192.0.2.2", False),
        ("a@b@192.0.2.1", "a@b", "192.0.2.1", True),
    ],
)
def test_whom_an_entry_means(entry, ivqn, peer, admitted):
    assert allow(entry).admits(ivqn, peer) is admitted


def test_the_first_that_matches_decides():
    entries = [allow("a@any,ro"), allow("a*@any"), allow("any,ro")]
    assert decide(entries, "a", "192.0.2.1") is entries[0]
    assert decide(entries, "ab", "192.0.2.1") is entries[1]
    assert decide(entries, "b", "192.0.2.1") is entries[2]
    assert decide([], "a", "127.0.0.1") is None
    assert decide(THIS_MACHINE, "a", "192.0.2.1") is None


@pytest.mark.parametrize(
    "text", ["", "any ", "unix:", "unix:x", "unix:-1", "unix:²", "10.0.0.1/8", "host", "[::1]", "*"]
)
def test_what_is_no_origin(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the vocabulary names it
        parse_origin(text)


@pytest.mark.parametrize("text", ["", "a*b", "*a", "**"])
def test_what_is_no_name(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the vocabulary names it
        parse_name(text)


# -- configuration --------------------------------------------------------------------------------

RNG = '[[device]]\ntype = "rng"\n'
MEM = '[[device]]\ntype = "mem"\nsize = 512\n'


def load(tmp_path, text):
    (tmp_path / "t.toml").write_text(text)
    return files.load(str(tmp_path / "t.toml")).devices[0].allow


def test_entries_of_a_file(tmp_path):
    assert load(tmp_path, RNG) == THIS_MACHINE
    assert load(tmp_path, RNG + "allow = []") == ()
    rows = '{ivqn = "a*", from = "10.0.0.0/8", read_only = true}, {from = "unix:5"}'
    assert load(tmp_path, MEM + f"allow = [{rows}]") == (allow("a*@10.0.0.0/8,ro"), allow("unix:5"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow = 1", r"device\[0\]\.allow: expected a list, such as \[{ ivqn"),
        ('allow = ["any"]', r"device\[0\]\.allow: expected a list"),
        ("allow = [{}]", r"device\[0\]\.allow\[0\]\.from: missing; expected an address"),
        ('allow = [{from = "x"}]', r"device\[0\]\.allow\[0\]\.from: .*local.*, not 'x'"),
        (
            'allow = [{from = "any", ivqn = "a*b"}]',
            r"\.allow\[0\]\.ivqn: expected a name",
        ),
        ('allow = [{from = "any", ivnq = "a"}]', r"allow\[0\]\.ivnq: .* did you mean ivqn"),
        (
            'allow = [{from = "any"}, {from = "any", read_only = true}]',
            r"device\[0\]\.allow\[1\]\.read_only: a device of type rng is never read-only; blk and",
        ),
        ("alow = []", r"device\[0\]\.alow: unknown key; did you mean allow"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, RNG + text)


def test_entries_of_the_command_line():
    devices = config.option("mem", "512"), config.option("blk", "disk.img")
    for device in config.allowed(devices, ["a@10.0.0.0/8,ro", "unix"]):
        assert device.allow == (allow("a@10.0.0.0/8,ro"), allow("unix"))
    assert config.allowed(devices, []) == devices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("any,rw", "^--allow any,rw: expected ,ro or nothing"),
        ("x", "^--allow x: from: expected an address"),
        ("@any", "^--allow @any: ivqn: expected a name"),
        ("any,ro", "^--allow any,ro: read_only: a device of type rng is never"),
    ],
)
def test_what_is_wrong_on_the_command_line(text, message):
    with pytest.raises(ConfigError, match=message):
        config.allowed((config.option("rng", ""),), [text])


def test_the_documentation_names_every_key_of_an_entry():
    lines = config.describe().splitlines()
    for name, key in config.ALLOW.items():
        assert any(line.startswith(f"# {name} = ") and key.expected in line for line in lines)


def test_the_types_that_can_be_read_only(tmp_path):
    from vof.target.exports import open_device

    (tmp_path / "x").write_bytes(bytes(512))
    first = {"blk": str(tmp_path / "x"), "mem": "512", "rng": "", "net": "echo"}
    for kind, text in first.items():
        opened = open_device(config.option(kind, text))
        assert (opened.export.read_only is not None) == (kind in config.READ_ONLY)
        if opened.backing is not None:
            opened.backing.close()


# -- connections ----------------------------------------------------------------------------------


async def come(target, address, data):
    """Connect from an address and send; return the peer and the status that comes back."""
    host, port = target.url.host, target.url.port
    target.peers.append(Peer(await trio.open_tcp_stream(host, port, local_address=address)))
    return target.peers[-1], await target.peers[-1].status(data)


ME, OTHER = connect_control(), connect_control(body=names(ivqn=b"other"))


async def test_where_an_initiator_comes_from_decides():
    async with serving(Echo) as target:
        target.server.allow("it", [allow("me@127.0.0.2"), allow("127.0.0.4/31")])
        assert (await come(target, "127.0.0.2", ME))[1] == v5.OK
        assert (await come(target, "127.0.0.5", OTHER))[1] == v5.OK
        for address, data in (("127.0.0.1", ME), ("127.0.0.2", OTHER), ("127.0.0.6", ME)):
            assert (await come(target, address, data))[1] == v5.EACLREJECTED
        assert target.server.refusals == {"allow": 3}


async def test_a_refusal_is_logged_with_who_what_and_the_key(caplog):
    caplog.set_level("INFO")
    async with serving(Echo) as target:
        target.server.allow("it", [allow("other@127.0.0.1")])
        assert (await come(target, "127.0.0.2", ME))[1] == v5.EACLREJECTED
    (record,) = [one for one in caplog.records if "refused" in one.message]
    assert record.message == (
        "127.0.0.2: CONNECT refused: EACLREJECTED: it: 'me' may not use it; "
        'its key "allow" names other@127.0.0.1/32'
    )


async def test_a_refused_initiator_may_try_another_name():
    async with serving(Echo) as target:
        target.server.allow("it", [allow("other@any")])
        peer, status = await come(target, "127.0.0.1", ME)
        assert status == v5.EACLREJECTED
        assert await peer.status(OTHER) == v5.OK


async def test_nobody(caplog):
    caplog.set_level("INFO")
    async with serving(Echo) as target:
        target.server.allow("it", [])
        assert (await come(target, "127.0.0.1", ME))[1] == v5.EACLREJECTED
    assert 'its key "allow" names nobody' in caplog.text


async def test_a_device_is_for_this_machine_alone_by_default():
    assert allow(LOCAL) == THIS_MACHINE[0]
    async with serving(Echo) as target:
        assert target.server.exports["it"].allow == THIS_MACHINE


async def test_a_change_ends_only_those_to_whom_it_makes_a_difference():
    async with serving(Echo) as target:
        stays, _ = await come(target, "127.0.0.2", ME)
        goes, _ = await come(target, "127.0.0.3", ME)
        target.server.allow("it", [allow("127.0.0.2")])
        assert await goes.ended()
        assert (await stays.ask(v5.GET_STATUS))["status"] == v5.OK
        assert (await come(target, "127.0.0.3", ME))[1] == v5.EACLREJECTED
        target.server.allow("it", [allow("127.0.0.2"), allow("127.0.0.3")])
        assert (await come(target, "127.0.0.3", ME))[1] == v5.OK
        assert (await stays.ask(v5.GET_STATUS))["status"] == v5.OK


# -- read-only ------------------------------------------------------------------------------------


def test_a_disk_that_one_initiator_may_not_write():
    backing = MemoryBacking(1 << 20)
    free, bound = BlkModel(backing), BlkModel(backing, read_only=True)
    assert not free.device_features & bit(VIRTIO_BLK_F_RO)
    assert bound.device_features & bit(VIRTIO_BLK_F_RO)
    assert free.device_features & bit(VIRTIO_BLK_F_DISCARD)
    assert not bound.device_features & bit(VIRTIO_BLK_F_DISCARD)
    for model in (free, bound):
        model.close()
    backing.close()


async def test_writes_are_refused_to_whom_only_reading_is_allowed():
    backing = MemoryBacking(1 << 20)
    async with serving(partial(BlkModel, backing)) as target:
        server = target.server
        bound = server.exports["it"]._replace(read_only=partial(BlkModel, backing, read_only=True))
        server.exports["it"] = bound._replace(allow=[allow("127.0.0.1,ro")])
        _, vq = await target.queue()
        kinds = (VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES)
        for kind in kinds:
            data = b"x" * 512 if kind == VIRTIO_BLK_T_OUT else RANGE.pack(0, 1, 0)
            await vq.send(request(1, REQUEST.pack(kind, 0, 0) + data, 1))
            assert await vq.used() == (1, 1, bytes([VIRTIO_BLK_S_IOERR]))
        await vq.send(request(1, REQUEST.pack(VIRTIO_BLK_T_IN, 0, 0), 513))
        assert await vq.used() == (1, 513, bytes(513))
    backing.close()


# -- a real target --------------------------------------------------------------------------------


FILE = """
listen = ["vof+tcp://127.0.0.1:0", "vof+unix://{path}/s"]
[[device]]
type = "mem"
size = "1M"
tvqn = "disk"
allow = [
  {{ ivqn = "writer", from = "127.0.0.1" }},
  {{ ivqn = "reader*", from = "127.0.0.0/24", read_only = true }},
]
"""


async def test_a_target_tells_its_initiators_apart(start, tmp_path):
    (tmp_path / "t.toml").write_text(FILE.format(path=tmp_path))
    target = start("--config", str(tmp_path / "t.toml"))
    tcp, unix = target.line(), target.line()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(tcp, ivqn="writer") as device, Blk(device) as disk:
            await disk.write(0, b"x" * 512)
        async with vof.connect(tcp, ivqn="reader-1") as device, Blk(device) as disk:
            assert disk.read_only
            assert await disk.read(0, 512) == b"x" * 512
            with pytest.raises(InvalidArgument, match="read-only"):
                await disk.write(0, b"y" * 512)
        for url, ivqn in ((tcp, "nobody"), (unix, "writer")):
            with pytest.raises(VofError, match=r"EACLREJECTED .*name and address") as caught:
                async with vof.connect(url, ivqn=ivqn):
                    pass
            assert isinstance(caught.value, CommandError)
    expected = "EACLREJECTED: disk: 'nobody' may not use it; its key \"allow\" names"
    while expected not in target.line("stderr"):
        pass
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


async def test_a_reload_lets_others_in_and_leaves_the_rest_alone(start, tmp_path):
    file = tmp_path / "t.toml"
    file.write_text(FILE.format(path=tmp_path))
    target = start("--config", str(file))
    url = target.line()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(url, ivqn="writer") as device, Blk(device) as disk:
            await disk.write(0, b"x" * 512)
            async with vof.connect(url, ivqn="reader") as other, Blk(other) as theirs:
                assert await theirs.read(0, 512) == b"x" * 512
                file.write_text(FILE.format(path=tmp_path).replace("reader*", "late"))
                target.signal(signal.SIGHUP)
                while "reloaded: " not in (line := target.line("stderr")):
                    pass
                assert line.endswith("unchanged disk, allowed disk")
                with pytest.raises((QueueBroken, ConnectionLost)):
                    await theirs.read(0, 512)
            assert await disk.read(0, 512) == b"x" * 512
        async with vof.connect(url, ivqn="late") as device, Blk(device) as disk:
            assert disk.read_only
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


def test_the_command_line_allows_and_the_check_shows_it(start):
    words = (*ANY, "--mem", "1M", "--rng", "--allow", "host*@10.0.0.0/8", "--allow", "unix")
    code, out, _ = start("--check", *words).end()
    assert code == daemon.EXIT_OK
    for line in ("  host* from 10.0.0.0/8 may use it", "  * from unix may use it"):
        assert out.splitlines().count(line) == 2


async def test_the_name_of_an_initiator_may_stand_in_its_environment(start, monkeypatch):
    target = start(*ANY, "--mem", "1M", "--allow", "host1@any")
    url = target.line()
    with trio.fail_after(LONGEST_S):
        with pytest.raises(CommandError, match="EACLREJECTED"):
            async with vof.connect(url):
                pass
        monkeypatch.setenv("VOF_IVQN", "host1")
        async with vof.connect(url) as device:
            assert device.device_id == 2
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


async def test_the_command_line_refuses(start):
    target = start(*ANY, "--rng", "--allow", "unix")
    with trio.fail_after(LONGEST_S), pytest.raises(CommandError, match="EACLREJECTED"):
        async with vof.connect(target.line()):
            pass
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


def test_a_file_says_itself_who_may_use_what(start, tmp_path):
    (tmp_path / "t.toml").write_text(RNG)
    code, _, err = start("--config", str(tmp_path / "t.toml"), "--allow", "any").end()
    assert code == daemon.EXIT_CONFIG
    assert "--allow belong into the file" in err


def test_who_can_be_reached_from_elsewhere_and_is_for_nobody_there_is_warned_of(caplog):
    mine = config.option("rng", "tvqn=mine")
    ours = config.option("rng", "tvqn=ours")._replace(allow=(allow("10.0.0.0/8"),))
    for url, expected in (
        ("vof+tcp://127.0.0.1:1", []),
        ("vof+tcp://[::1]:1", []),
        ("vof+unix:///s", []),
        ("vof+loopback://name", []),
        ("vof+tcp://0.0.0.0:1", ["mine"]),
        ("vof+tcp://[::]:1", ["mine"]),
        ("vof+tcp://192.0.2.1:1", ["mine"]),
    ):
        caplog.clear()
        daemon.warn(parse_url(url), (mine, ours))
        assert [one.message for one in caplog.records] == [
            f'{url}: {name} is for this machine alone; its key "allow" names others'
            for name in expected
        ]
