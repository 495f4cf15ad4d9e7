# SPDX-License-Identifier: BSD-3-Clause
"""The checks of the doctor, on machines made of files."""

import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from vof import cli
from vof.cli import checks, machine
from vof.cli.machine import UNLIMITED, Machine
from vof.target.limits import Limits
from vof.transport.sockets import BACKLOG

ROOT = Path(__file__).parents[2]
NODE = "sys/class/infiniband/mlx5_0/node_type"
GIDS = "sys/class/infiniband/mlx5_0/ports/1/gids/"
DIST = "usr/lib/python3/dist-packages/pyverbs/"
GOOD = {
    "proc/cpuinfo": "flags : fpu sse2\n",
    "proc/sys/net/core/somaxconn": "4096\n",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t33554432\n",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304\n",
    "proc/sys/kernel/io_uring_disabled": "0\n",
    "proc/self/mounts": "a / ext4 rw 0 0\nb /images xfs rw 0 0\nc /images/fast tmpfs rw 0 0\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    NODE: "1: CA\n",
    GIDS + "0": "fe80:0000:0000:0000:c0a4:d1ff:fe50:7e43\n",
    GIDS + "1": "0000:0000:0000:0000:0000:ffff:0a00:0001\n",
    GIDS + "2": "0000:0000:0000:0000:0000:0000:0000:0000\n",
    "usr/lib/x86_64-linux-gnu/librdmacm.so.1.3.44.0": "",
    "sys/module/ib_uverbs/x": "",
    "dev/net/tun": "",
    "dev/vduse/control": "",
    "dev/infiniband/rdma_cm": "",
    "sys/module/vhost_vdpa/x": "",
    "sys/module/siw/x": "",
    "sys/module/rdma_rxe/x": "",
    "usr/bin/qemu-storage-daemon": "",
    "usr/libexec/virtiofsd": "",
    "run/systemd/system/x": "",
}
"""All that the doctor looks for."""

VERSIONS = {"trio": "0.35.0", "msgpack": "1.2.4", "pyverbs": ""}
MODULES = ("tun", "vduse", "vhost_vdpa", "rdma_ucm", "ib_uverbs", "siw", "rdma_rxe")


@pytest.fixture
def make(tmp_path):
    """Return ``make(files, **values)``: a good machine but for these; None for no such file."""

    def make(files=(), **values):
        for name, text in (GOOD | dict(files)).items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        good = Machine(
            root=tmp_path,
            environ={},
            python=(3, 12, 1),
            release="6.1",
            cpus=4,
            limits={"nofile": 65536, "memlock": UNLIMITED},
            package=VERSIONS.get,
            nowait=lambda path: {"read": True, "write": True},
        )
        return replace(good, **values)

    return make


def found(machine, name, path=""):
    (finding,) = (one for one in checks.findings(machine, path) if one.id == name)
    return finding


def test_a_good_machine_has_nothing_to_do(make):
    rows = checks.findings(make(), "/images")
    assert [(row.level, row.todo) for row in rows] == [("ok", "")] * len(rows)
    assert checks.worst(rows) == "ok"
    assert len({row.id for row in rows}) == len(rows)


def test_an_empty_machine_says_what_to_do(tmp_path):
    empty = Machine(
        root=tmp_path,
        environ={},
        python=(3, 10, 0),
        release="x",
        cpus=1,
        limits={"nofile": 1024, "memlock": 65536},
        package=lambda name: None,
    )
    rows = checks.findings(empty, str(tmp_path / "none"))
    fails = {row.id for row in rows if row.level == "fail"}
    assert fails == {"python", "trio", "msgpack", "path"}
    assert checks.worst(rows) == "fail"
    unseen = {"somaxconn", "tcp_rmem", "tcp_wmem", "clock", "io_uring"}  # nothing can be said
    for row in rows:
        assert row.seen
        assert row.level == "ok" or row.todo or row.id in unseen


FAR = ("sysctl net.ipv4.tcp_wmem='4096 16384 16777216'",)
NO_DEVICE = {key: None for key in GOOD if key.startswith("sys/class/infiniband")}
LIBRARY = "usr/lib/x86_64-linux-gnu/librdmacm.so.1.3.44.0"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"


def may(capabilities: str):
    """A process with these, and a low limit."""
    files = {"proc/self/status": f"Name:\tvof\nCapEff:\t{capabilities}\n"}
    return files, {"limits": {"nofile": 1, "memlock": 8 << 20}}


@pytest.mark.parametrize(
    ("name", "files", "values", "level", "said"),
    [
        ("python", {}, {"python": (3, 10, 9)}, "fail", ("3.10.9", "3.11 or later")),
        ("trio", {}, {"package": {"msgpack": "1.0"}.get}, "fail", ("not installed", "trio>=0.25")),
        ("trio", {}, {"package": {"trio": "0.24.0"}.get}, "fail", ("too old", "trio>=0.25")),
        ("trio", {}, {"package": {"trio": "1.0"}.get}, "ok", ("1.0",)),
        ("msgpack", {}, {"package": {"msgpack": "0.6.2"}.get}, "fail", ("msgpack>=1.0",)),
        ("pyverbs", {}, {"package": {}.get}, "note", ("apt install python3-pyverbs",)),
        ("pyverbs", {DIST + "cq.cpython-312-x.so": ""}, {"package": {}.get}, "ok", ("distrib",)),
        ("pyverbs", {DIST + "cq.cpython-39-x.so": ""}, {"package": {}.get}, "note", ("/usr/bin",)),
        ("pyverbs", {}, {}, "ok", ("installed",)),
        ("nofile", {}, {"limits": {"nofile": 1024, "memlock": 0}}, "warn", ("1024", "ulimit -n")),
        ("nofile", {}, {"limits": {"nofile": UNLIMITED, "memlock": 0}}, "ok", ("unlimited",)),
        ("memlock", {}, {"limits": {"nofile": 1, "memlock": 8 << 20}}, "warn", ("ulimit -l",)),
        ("memlock", {}, {"limits": {"nofile": 1, "memlock": 64 << 20}}, "ok", ("67108864",)),
        ("memlock", *may("0000000000004000"), "ok", ("as much as there is",)),
        ("memlock", *may("ffffffffffffbfff"), "warn", ("ulimit -l",)),
        ("cpus", {}, {"cpus": 1}, "note", ("1 CPU", "VOF_POLL_US=0")),
        ("virtual", {"proc/cpuinfo": "flags : fpu hypervisor x\n"}, {}, "note", ("wake-up",)),
        ("poll_us", {}, {"environ": {"VOF_POLL_US": "0"}}, "note", ("off", "unset")),
        ("poll_us", {}, {"environ": {"VOF_POLL_US": "50"}}, "ok", ("50",)),
        ("poll_us", {}, {"environ": {"VOF_POLL_US": "-1"}}, "fail", ("'-1' is no number",)),
        ("clock", {CLOCK: "hpet\n"}, {}, "warn", ("hpet", "slow")),
        ("clock", {CLOCK: None}, {}, "note", ("not shown",)),
        ("somaxconn", {"proc/sys/net/core/somaxconn": "128"}, {}, "warn", ("somaxconn=1024",)),
        ("somaxconn", {"proc/sys/net/core/somaxconn": None}, {}, "note", ("not shown",)),
        ("tcp_wmem", {"proc/sys/net/ipv4/tcp_wmem": "4096 16384 65536"}, {}, "note", FAR),
        ("io_uring", {"proc/sys/kernel/io_uring_disabled": "1"}, {}, "note", ("privileged",)),
        ("io_uring", {"proc/sys/kernel/io_uring_disabled": "2"}, {}, "note", ("off", "sysctl")),
        ("rdma", NO_DEVICE, {}, "note", ("rdma link add",)),
        ("rdma", {"sys/class/infiniband/siw0/x": ""}, {}, "ok", ("mlx5_0, siw0",)),
        ("rdma.address", {}, {}, "ok", ("10.0.0.1",)),
        ("rdma.address", {GIDS + "3": "2001:db8::7"}, {}, "ok", ("10.0.0.1 2001:db8::7",)),
        ("rdma.address", {GIDS + "1": None}, {}, "note", ("ip address add",)),
        ("rdma.address", {NODE: "4: RNIC", GIDS + "0": "42:ac11:2::"}, {}, "note", ("iWARP",)),
        ("librdmacm", {LIBRARY: None}, {}, "note", ("apt install rdma-core",)),
        ("helper.virtiofsd", {"usr/libexec/virtiofsd": None}, {}, "note", ("apt install",)),
        ("helper.virtiofsd", {}, {}, "ok", ("/usr/libexec/virtiofsd",)),
        ("systemd", {"run/systemd/system/x": None}, {}, "note", ("LISTEN_FDS",)),
    ],
)
def test_what_is_seen_and_what_to_do(make, name, files, values, level, said):
    finding = found(make(files, **values), name)
    assert finding.level == level
    for text in said:
        assert text in f"{finding.seen} {finding.todo}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module(make, name):
    gone = {key: None for key in GOOD if key.startswith(("sys/module/", "dev/"))}
    machine = make(gone)
    assert "no list of modules" in found(machine, f"module.{name}").seen
    file = name.replace("_", "-")
    machine = make(gone | {"lib/modules/6.1/modules.dep": "kernel/other.ko.xz:\n"})
    assert found(machine, f"module.{name}").seen == "this kernel has none"
    machine = make(gone | {"lib/modules/6.1/modules.dep": f"kernel/x/{file}.ko.xz: a.ko.xz\n"})
    finding = found(machine, f"module.{name}")
    assert (finding.level, finding.seen) == ("note", "not loaded")
    assert finding.todo.endswith(f"modprobe {name}")


# -- a place for images ---------------------------------------------------------------------------


def test_a_place_is_told_by_its_innermost_mount(make):
    machine = make()
    assert machine.file_system("/images/x") == "xfs"
    assert machine.file_system("/images") == "xfs"
    assert machine.file_system("/images2") == "ext4"
    assert machine.file_system("/images/fast/x") == "tmpfs"
    assert found(machine, "path", "/images/fast").level == "note"


@pytest.mark.parametrize("path", ["/images", "/images2"])
def test_a_file_system_that_blocks(make, path):
    machine = make(nowait=lambda path: {"read": True, "write": False})
    finding = found(machine, "path", path)
    assert finding.level == "note"
    assert "no write that does not block" in finding.seen
    assert "threads" in finding.todo


def test_a_place_that_is_not_there(make):
    finding = found(make(nowait=machine.nowait), "path", "/images/none")
    assert (finding.level, finding.seen) == ("fail", "/images/none: No such file or directory")


def test_probing_leaves_nothing_behind(tmp_path):
    before = os.listdir("/proc/self/fd")
    assert machine.nowait(str(tmp_path)).keys() == {"read", "write"}
    assert not list(tmp_path.iterdir())
    assert os.listdir("/proc/self/fd") == before


# -- this machine ---------------------------------------------------------------------------------


def test_numbers_are_those_of_the_rest():
    assert Limits().connections == checks.CONNECTIONS
    assert checks.BACKLOG == BACKLOG
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {f"{name}>={'.'.join(map(str, least))}" for name, least in checks.PACKAGES.items()}
    assert wanted == set(project["dependencies"])
    assert project["requires-python"] == f">={'.'.join(map(str, checks.PYTHON))}"


def test_this_machine():
    here = Machine()
    assert here.python == sys.version_info[:3]
    assert here.limits["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert here.file_system("/proc") == "proc"
    assert machine.package("trio") > ""
    assert machine.package("nothing-of-this-name") is None
    assert machine.package("json") == ""


def test_for_people(tmp_path, capsys):
    assert cli.main(["doctor", "--path", str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^ok +python +3", out, re.MULTILINE)
    assert re.search(
        r"^fail +path +.*none: No such file or directory\n +-> name a", out, re.MULTILINE
    )


def test_it_works_where_a_package_is_missing():
    code = (
        "import sys\nfor name in ('trio', 'msgpack'): sys.modules[name] = None\n"
        "from vof.cli import main\nsys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")  # they are installed all the same
    assert json.loads(done.stdout)["command"] == "doctor"
