# SPDX-License-Identifier: BSD-3-Clause
"""What the target and a service manager say to each other; a test plays the manager."""

import os
import socket

import pytest
import trio
import trio.testing

import vof
from tests.daemon import ANY, LONGEST_S, PASS_FDS, Manager
from vof.errors import ConfigError
from vof.initiator.drivers.rng import Rng
from vof.target import daemon, systemd
from vof.transport import Url


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    name = f"@vof-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    manager = Manager(name)
    yield manager
    manager.close()


@pytest.fixture
def told(monkeypatch, tmp_path):
    """A manager of this process."""
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.env["NOTIFY_SOCKET"])
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    yield manager
    manager.close()


# -- notifications --------------------------------------------------------------------------------


def test_a_life_is_told(start, manager):
    target = start(*ANY, "--rng", "--limit", "drain_seconds=7", env=manager.env)
    assert manager.read() == {"READY": "1"}
    assert target.line().endswith("/rng")
    target.signal()
    assert manager.read() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "12000000"}
    assert target.end()[0] == daemon.EXIT_OK
    assert manager.quiet()


def test_a_service_manager_that_is_gone_is_not_missed(start, tmp_path):
    target = start(*ANY, "--rng", env={"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert target.line()
    target.signal()
    code, _, err = target.end()
    assert code == daemon.EXIT_OK
    assert "cannot notify" in err


def test_without_a_service_manager_nobody_is_told(monkeypatch, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready()
    assert not caplog.records


def test_a_service_manager_that_does_not_read_does_not_block(told, caplog):
    for _ in range(10_000):
        systemd.ready()
        if caplog.records:
            break
    assert "cannot notify" in caplog.text


def test_a_reload_is_told(told):
    systemd.reloading()
    first = told.read()
    assert first.keys() == {"RELOADING", "MONOTONIC_USEC"}
    systemd.reloading()
    assert int(told.read()["MONOTONIC_USEC"]) >= int(first["MONOTONIC_USEC"]) > 0
    systemd.ready()
    assert told.read() == {"READY": "1"}


# -- the watchdog ---------------------------------------------------------------------------------


def test_a_target_shows_that_it_lives(start, manager):
    target = start(*ANY, "--rng", env=manager.env | {"WATCHDOG_USEC": "20000"})
    assert manager.read() == {"READY": "1"}
    for _ in range(5):
        assert manager.read() == {"WATCHDOG": "1"}
    target.signal()
    while "STOPPING" not in manager.read():
        pass
    assert target.end()[0] == daemon.EXIT_OK


async def test_signs_of_life_come_twice_as_often_as_wanted(told, monkeypatch, autojump_clock):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with trio.move_on_after(60 - 1):
        await systemd.watchdog()
    for _ in range(4):  # at 0, 15, 30, 45 seconds
        assert told.read() == {"WATCHDOG": "1"}
    assert told.quiet()


@pytest.mark.parametrize(
    "env", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}]
)
async def test_without_a_watchdog_there_is_no_wakeup(told, monkeypatch, env):
    if "WATCHDOG_PID" in env:
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with trio.fail_after(LONGEST_S):
        await systemd.watchdog()
    assert told.quiet()


# -- sockets that were passed ---------------------------------------------------------------------


async def test_passed_sockets_are_served_in_place_of_listen(start, manager, tmp_path):
    path = tmp_path / "s"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(str(path))
        unix.listen()
        sockets = [tcp, both, unix]
        target = start(
            *("--rng", "--listen", f"vof+unix://{tmp_path}/unused"),
            program=("-c", PASS_FDS, ",".join(str(one.fileno()) for one in sockets)),
            env=manager.env | {"PYTHONWARNINGS": "error"},
            pass_fds=[one.fileno() for one in sockets],
        )
        port, other = tcp.getsockname()[1], both.getsockname()[1]
        assert [target.line() for _ in sockets] == [
            f"vof+tcp://127.0.0.1:{port}/rng",
            f"vof+tcp://[::]:{other}/rng",
            f"vof+unix://{path}?tvqn=rng",
        ]
        urls = (
            Url("vof+tcp", "127.0.0.1", port, tvqn="rng"),
            Url("vof+tcp", "127.0.0.1", other, tvqn="rng"),
            Url("vof+tcp", "::1", other, tvqn="rng"),
            Url("vof+unix", path=str(path), tvqn="rng"),
        )
        with trio.fail_after(LONGEST_S):
            for url in urls:
                async with vof.connect(str(url)) as device, Rng(device) as rng:
                    assert len(await rng.read(8)) == 8
        target.signal()
        code, _, err = target.end()
        assert code == daemon.EXIT_OK
        assert "from 127.0.0.1" in err
        assert "::ffff:" not in err
        assert not (tmp_path / "unused").exists()
        assert path.exists()
        with socket.socket(socket.AF_UNIX) as early:  # kept for the next start
            early.connect(str(path))


def pass_to_this(monkeypatch, *sockets, pid=None):
    """Have this process find ``sockets``, wherever they are. They are taken by it."""
    fds = [one.detach() for one in sockets]
    assert fds == list(range(fds[0], fds[0] + len(fds)))
    monkeypatch.setattr(systemd, "FIRST_FD", fds[0])
    monkeypatch.setenv("LISTEN_FDS", str(len(fds)))
    monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
    monkeypatch.setenv("LISTEN_FDNAMES", "x")
    return fds


def is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_sockets_are_taken_once_and_not_passed_on(told, monkeypatch):
    fds = pass_to_this(monkeypatch, socket.create_server(("127.0.0.1", 0)))
    os.set_inheritable(fds[0], True)
    (taken,) = systemd.listen_fds()
    assert not taken.get_inheritable()
    assert not {name for name in os.environ if name.startswith("LISTEN_")}
    assert systemd.listen_fds() == []
    taken.close()


def test_sockets_for_another_process_are_let_alone(told, monkeypatch):
    (fd,) = pass_to_this(monkeypatch, socket.create_server(("127.0.0.1", 0)), pid=1)
    assert systemd.listen_fds() == []
    assert is_open(fd)
    os.close(fd)


def test_what_does_not_listen_is_refused(told, monkeypatch):
    fds = pass_to_this(monkeypatch, socket.create_server(("127.0.0.1", 0)), socket.socket())
    with pytest.raises(ConfigError, match=f"descriptor {fds[1]} does not listen"):
        systemd.listen_fds()
    assert not any(map(is_open, fds))


def test_what_is_no_socket_is_refused(told, monkeypatch):
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with open(os.devnull) as file:
        monkeypatch.setattr(systemd, "FIRST_FD", file.fileno())
        with pytest.raises(ConfigError, match="is no socket"):
            systemd.listen_fds()


async def test_a_socket_without_a_name_is_refused(tmp_path):
    for make, said in (
        (lambda: socket.socket(socket.AF_UNIX), "an absolute path, not ''"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "no transport"),
    ):
        sock = make()
        with pytest.raises(ConfigError, match=said):
            vof.transport.adopt(sock)
        assert sock.fileno() < 0


def test_a_wrong_socket_is_a_wrong_configuration(start):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fd = sock.fileno()
        target = start("--rng", program=("-c", PASS_FDS, str(fd)), pass_fds=[fd])
        code, out, err = target.end()
    assert (code, out) == (daemon.EXIT_CONFIG, "")
    assert "descriptor 3 does not listen: use ListenStream=" in err
    assert "Traceback" not in err
