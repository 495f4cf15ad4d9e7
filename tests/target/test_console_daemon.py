# SPDX-License-Identifier: BSD-3-Clause
"""A target process with a console: its end, its files, a reload; what it leaves behind."""

import gc
import os
import signal

import pytest
import trio

import vof
from tests.daemon import ANY, LONGEST_S
from tests.target.devices.terminals import Pty, Socket
from tests.wire import serving
from vof.errors import VofError
from vof.initiator.drivers import Console
from vof.target import daemon
from vof.target.devices import ConsoleModel, PtyPort, SocketPort

KINDS = {"socket": (SocketPort, Socket), "pty": (PtyPort, Pty)}
CYCLES = 40


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def there(path):
    return os.path.lexists(path)


async def both_ways(console, here):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.write, b"out")
        await here.until(b"out")  # which makes room, where an earlier one had not read all
    here.send(b"in")
    assert await console.read() == b"in"


async def test_an_idle_console_does_not_hold_up_the_end(start, kind, tmp_path):
    port = tmp_path / "port"
    target = start(*ANY, "--console", f"{kind}={port}")
    with trio.fail_after(LONGEST_S):
        async with vof.connect(target.line()) as device, Console(device) as console:
            here = KINDS[kind][1](str(port))
            await both_ways(console, here)
            target.signal()
            with pytest.raises(VofError, match="lost"):
                await console.read()
            here.leave()
    code, _, err = target.end()
    assert (code, "Traceback" in err) == (daemon.EXIT_OK, False)
    assert not there(port)


async def test_what_a_killed_target_leaves_is_replaced(start, kind, tmp_path):
    port = tmp_path / "port"
    target = start(*ANY, "--console", f"{kind}={port}")
    target.line()
    target.signal(signal.SIGKILL)
    target.process.wait(LONGEST_S)
    assert there(port)
    target = start(*ANY, "--console", f"{kind}={port}")
    with trio.fail_after(LONGEST_S):
        async with vof.connect(target.line()) as device, Console(device) as console:
            here = KINDS[kind][1](str(port))
            await both_ways(console, here)
            here.leave()


def test_two_targets_and_one_socket(start, tmp_path):
    words = (*ANY, "--console", f"socket={tmp_path / 'port'}")
    start(*words).line()
    code, out, err = start(*words).end()
    assert (code, out) == (daemon.EXIT_DEVICE, "")
    assert "port: another program uses it" in err
    assert (tmp_path / "port").exists()


async def test_a_reload_keeps_what_is_the_same_and_replaces_what_changed(start, kind, tmp_path):
    file = tmp_path / "t.toml"
    text = f'listen = ["{ANY[1]}"]\n' + "".join(
        f'[[device]]\ntype = "console"\ntvqn = "{name}"\n{kind} = "{tmp_path / name}"\n'
        for name in "ab"
    )
    file.write_text(text)
    target = start("--config", str(file))
    a, b = target.line(), target.line()
    with trio.fail_after(LONGEST_S):
        async with vof.connect(a) as one, Console(one) as kept:
            at_a, at_b = (KINDS[kind][1](str(tmp_path / name)) for name in "ab")
            await both_ways(kept, at_a)
            file.write_text(text + "queue_size = 8\n")
            target.signal(signal.SIGHUP)
            while "reloaded" not in target.line("stderr"):
                pass
            await both_ways(kept, at_a)
            at_b.leave()
            at_b = KINDS[kind][1](str(tmp_path / "b"))
            async with vof.connect(b) as other, Console(other) as new:
                assert new.device.vqs[0].get_vring_size() == 8
                await both_ways(new, at_b)
            at_a.leave()
            at_b.leave()


async def test_nothing_is_left_behind(kind, tmp_path):
    """Drivers that come and go, politely or cut, while there are bytes both ways."""
    make, attach = KINDS[kind]
    port = make(str(tmp_path / "port"))
    async with serving(lambda: ConsoleModel(port)) as target:

        async def once(polite):
            here = attach(port.path)
            with trio.fail_after(LONGEST_S):
                await drive(polite, here)
            here.leave()

        async def drive(polite, here):
            async with vof.connect(str(target.url)) as device, Console(device) as console:
                await both_ways(console, here)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(console.write, bytes(1 << 20))
                    nursery.start_soon(console.read)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
                if not polite:
                    device._connection.close()
            await target.gone()

        async def settled():
            with trio.fail_after(5):
                while target.server.connections:
                    await trio.lowlevel.checkpoint()
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            gc.collect()
            return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living

        await once(True)
        before = await settled()
        for number in range(CYCLES):
            await once(number % 2)
        found = await settled()
        assert found == before
    port.close()
