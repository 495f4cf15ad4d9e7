# SPDX-License-Identifier: BSD-3-Clause
"""The life of a real target process: what it announces, how it ends, and its exit codes."""

import os
import signal
import socket

import pytest
import trio

import vof
from tests.daemon import ANY, LONGEST_S, Daemon
from vof.errors import QueueBroken, VofError
from vof.initiator.drivers.blk import Blk
from vof.initiator.drivers.net import Net
from vof.initiator.drivers.rng import Rng
from vof.target import daemon

STUCK = """
import sys
import trio
from vof.cli import main
from vof.target import exports
from vof.target.devices import RngModel

class Stuck(RngModel):
    async def serve(self, index, queue):
        await queue.receive()
        print("taken", flush=True)
        await trio.sleep_forever()

exports.FACTORIES["rng"] = lambda values: exports.Made(Stuck)
sys.exit(main(sys.argv[1:]))
"""
"""A target whose source of random bytes takes a request and never answers."""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_life(start, image, number):
    target = start(*ANY, "--blk", str(image), "--mem", "1M", "--rng", "tvqn=noise")
    urls = [target.line() for _ in range(3)]
    port = vof.transport.parse_url(urls[0]).port
    assert port
    assert urls == [f"vof+tcp://127.0.0.1:{port}/{name}" for name in ("blk/disk", "mem", "noise")]
    with trio.fail_after(LONGEST_S):
        async with vof.connect(urls[0]) as device, Blk(device) as disk:
            await disk.write(512, b"x" * 512)
            await disk.flush()
        async with vof.connect(urls[2]) as device, Rng(device) as rng:
            assert len(await rng.read(32)) == 32
    assert image.read_bytes()[512:1024] == b"x" * 512
    target.signal(number)
    code, out, err = target.end()
    assert (code, out) == (daemon.EXIT_OK, "")
    assert f"{number.name}: draining" in err
    assert "Traceback" not in err


def test_every_listener_announces_every_device(start, tmp_path):
    path = tmp_path / "s"
    target = start(*ANY, "--listen", f"vof+unix://{path}", "--rng", "--rng")
    lines = [target.line() for _ in range(4)]
    assert [line.partition("://")[0] for line in lines] == ["vof+tcp", "vof+unix"] * 2
    assert lines[1] == f"vof+unix://{path}?tvqn=rng"
    assert lines[3] == f"vof+unix://{path}?tvqn=rng-2"
    assert path.is_socket()
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK
    assert not path.exists()


async def test_a_driver_that_only_listens_does_not_hold_up_the_end(start, tmp_path):
    ours = tmp_path / "ours"
    target = start(*ANY, "--net", f"socket={ours},peer={tmp_path / 'theirs'}")
    with trio.fail_after(LONGEST_S):
        async with vof.connect(target.line()) as device, Net(device) as net:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.sendto(b"x" * 60, str(ours))
            assert await net.receive() == b"x" * 60
            target.signal()
            with pytest.raises(QueueBroken):
                await net.receive()
    code, _, err = target.end()
    assert code == daemon.EXIT_OK
    assert "Traceback" not in err
    assert not await trio.Path(ours).exists()


async def test_a_change_of_the_file_reaches_the_driver(start, image):
    target = start(*ANY, "--blk", str(image))
    url = target.line()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(url) as device, Blk(device) as disk:
            changed = trio.Event()
            disk.resized = changed.set
            os.truncate(image, 2 << 20)
            await changed.wait()
            assert await disk.refresh() == 2 << 20


# -- what keeps it from starting ------------------------------------------------------------------


def test_a_wrong_configuration(start, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('[[device]]\ntype = "rng"\nqueus = 2\n')
    code, out, err = start("--config", str(path)).end()
    assert (code, out) == (daemon.EXIT_CONFIG, "")
    assert err == f"vof: {path}: device[0].queus: unknown key; did you mean queue_size?\n"


def test_drop_ins_and_a_reload_of_one_more(start, tmp_path):
    path, more = tmp_path / "t.toml", tmp_path / "t.toml.d"
    more.mkdir()
    (more / "10-listen.toml").write_text(f'listen = ["{ANY[1]}"]')
    (more / "20-rng.toml").write_text('[[device]]\ntype = "rng"\n')
    target = start("--config", str(path))
    assert target.line().endswith("/rng")
    (more / "30-rng.toml").write_text('[[device]]\ntype = "rng"\ntvqn = "two"\nqueu = 1\n')
    target.signal(signal.SIGHUP)
    expected = f"nothing has changed: {more}/30-rng.toml: device[0].queu: unknown key"
    while expected not in target.line("stderr"):
        pass
    (more / "30-rng.toml").write_text('[[device]]\ntype = "rng"\ntvqn = "two"\n')
    target.signal(signal.SIGHUP)
    while "reloaded: added two" not in target.line("stderr"):
        pass
    target.signal()
    assert target.end()[0] == daemon.EXIT_OK


def test_a_file_that_is_missing(start, tmp_path):
    code, out, err = start(*ANY, "--rng", "--blk", str(tmp_path / "none.img")).end()
    assert (code, out) == (daemon.EXIT_DEVICE, "")
    assert "none.img: does not exist" in err


def test_a_port_in_use_and_nothing_is_left_behind(start, tmp_path):
    path = tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"vof+tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = start("--listen", f"vof+unix://{path}", "--listen", url, "--rng").end()
    assert (code, out) == (daemon.EXIT_LISTEN, "")
    assert f"cannot listen on {url}: " in err
    assert not path.exists()


@pytest.mark.parametrize("url", [f"vof+tcp://{'a' * 80}:1", f"vof+unix:///{'a' * 200}"])
def test_a_place_where_nobody_can_listen(start, url):
    code, _, err = start("--listen", url, "--rng").end()
    assert code == daemon.EXIT_LISTEN
    assert "Traceback" not in err


BROKEN = """
import sys
from vof.cli import main
from vof.target import daemon, exports

def fail(*_):
    raise ZeroDivisionError

if sys.argv.pop(1) == "open":
    exports.FACTORIES["rng"] = fail
else:
    daemon.announce = fail
sys.exit(main(sys.argv[1:]))
"""
"""A target with a bug."""


@pytest.mark.parametrize("where", ["open", "serve"])
def test_a_bug_is_told_apart(start, where):
    target = start(*ANY, "--rng", program=("-c", BROKEN, where))
    code, out, err = target.end()
    assert (code, out) == (daemon.EXIT_INTERNAL, "")
    assert "internal error" in err
    assert "ZeroDivisionError" in err


# -- draining -------------------------------------------------------------------------------------


async def stuck(start, seconds, act):
    """Let a request be taken, ``act`` on the target; return its exit code and stderr."""
    words = (*ANY, "--rng", "--limit", f"drain_seconds={seconds}")
    target = start(*words, program=("-c", STUCK))
    url = target.line()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(url) as device, Rng(device) as rng, trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(VofError) as caught:
                    await rng.read(8)
                assert caught.value.maybe_executed

            nursery.start_soon(ask)
            assert await trio.to_thread.run_sync(target.line) == "taken"
            act(target)
            code, _, err = await trio.to_thread.run_sync(target.end)
    return code, err


async def test_the_deadline_cuts_what_is_in_flight(start):
    code, err = await stuck(start, 0.05, Daemon.signal)
    assert code == daemon.EXIT_DRAIN
    assert "Traceback" not in err


async def test_a_second_signal_does_not_wait(start):
    def twice(target):
        target.signal()
        while "draining" not in target.line("stderr"):
            pass
        target.signal(signal.SIGINT)

    code, err = await stuck(start, 3600, twice)
    assert code == daemon.EXIT_DRAIN
    assert "Traceback" not in err


# -- announcements --------------------------------------------------------------------------------


def test_a_reader_that_left_does_not_end_the_target(start):
    read, write = os.pipe()
    os.close(read)
    target = start(*ANY, "--rng", stdout=write)
    os.close(write)
    assert "nobody reads" in target.line("stderr")
    target.signal()
    target.process.wait(LONGEST_S)
    assert target.process.returncode == daemon.EXIT_OK
    assert b"Traceback" not in target.process.stderr.read()
