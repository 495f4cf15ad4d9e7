# SPDX-License-Identifier: BSD-3-Clause
"""RDMA where there is none: what is said. What it does where there is some is in ``tests/lab``."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vof.transport import rdmacm, verbs
from vof.transport.rdma import is_there
from vof.transport.rdmacm import Attributes, NoRdma

HERE = Path("/dev/infiniband/rdma_cm").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("info", "vof+rdma://127.0.0.1:1/disk"),
        ("target", "--admin", "none", "--listen", "vof+rdma://127.0.0.1:0", "--rng", "tvqn=r"),
    ],
)
def test_it_is_one_sentence(words):
    if HERE and words[0] == "target":
        words = (*words, "--listen", "vof+rdma://192.0.2.1")  # nobody's address
    done = subprocess.run(
        [sys.executable, "-m", "vof", *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode
    [line] = done.stderr.splitlines()
    assert HERE or "modprobe rdma_ucm" in line or "apt install librdmacm1" in line


def test_importing_needs_nothing():
    code = "import sys, vof, vof.transport.rdma; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "vof.transport.rdma" in done.stdout
    assert "pyverbs" not in done.stdout


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No pyverbs but what a test puts into ``tmp_path``."""
    monkeypatch.setattr(verbs, "PLACES", (str(tmp_path),))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "pyverbs", raising=False)
    verbs.pyverbs.cache_clear()
    yield tmp_path
    sys.modules.pop("pyverbs", None)
    verbs.pyverbs.cache_clear()


def test_pyverbs_is_missing(elsewhere: Path):
    assert verbs.find_pyverbs() == ""
    with pytest.raises(NoRdma, match="apt install python3-pyverbs"):
        verbs.load()


def test_pyverbs_is_for_another_python(elsewhere: Path):
    (elsewhere / "pyverbs").mkdir()
    (elsewhere / "pyverbs/__init__.py").touch()
    (elsewhere / "pyverbs/device.cpython-27-x86_64-linux-gnu.so").touch()
    (elsewhere / "other.py").touch()
    assert verbs.find_pyverbs() == str(elsewhere / "pyverbs")
    with pytest.raises(NoRdma, match="does not fit this Python"):
        verbs.load()
    assert str(elsewhere) not in sys.path


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("192.0.2.7", 8549)),
        (socket.AF_INET6, ("2001:db8::7", 8549, 0, 0)),
        (socket.AF_INET6, ("fe80::1%3", 1, 5, 3)),
    ],
)
def test_an_address_is_that_of_the_system(family: socket.AddressFamily, address):
    """As ``bind`` and ``getsockname`` have it, but for the scope, which has a field of its own."""
    raw = rdmacm.pack_address(family, address)
    assert len(raw) == {socket.AF_INET: 16, socket.AF_INET6: 28}[family]
    assert raw[:2] == int(family).to_bytes(2, sys.byteorder)
    assert rdmacm.unpack_address(raw) == (address[0].partition("%")[0], address[1])
    if len(address) > 2:
        assert raw[4:8] == address[2].to_bytes(4, "big")
        assert raw[24:] == address[3].to_bytes(4, sys.byteorder)


@pytest.mark.parametrize(
    ("peer", "gid", "there"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "::ffff:192.0.2.8", False),
        ("192.0.2.7", "fe80::5054:ff:fe00:1", False),
        ("2001:db8::7", "2001:db8::7", True),
        ("2001:db8::7", "2001:db8::8", False),
    ],
)
def test_a_peer_on_ethernet_is_where_packets_to_it_go(peer: str, gid: str, there: bool):
    attributes = Attributes()
    vector = attributes.ah_attr
    vector.is_global = 1
    raw = socket.inet_pton(socket.AF_INET6, gid)
    vector.grh.dgid = type(vector.grh.dgid).from_buffer_copy(raw)
    assert is_there(peer, "192.0.2.1", attributes) is there
    vector.dlid = 1
    assert is_there(peer, "192.0.2.1", attributes)  # InfiniBand
    assert not is_there(peer, peer, attributes)
    assert not is_there("127.0.0.1", "192.0.2.1", attributes)
