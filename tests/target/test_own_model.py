# SPDX-License-Identifier: BSD-3-Clause
"""A device of one's own in a real target process: found, served, and survived."""

import pytest
import trio

import vof
from tests.daemon import ANY, ROOT
from vof.errors import VofError
from vof.initiator import RequestQueue
from vof.target import daemon as life
from vof.target.config import option
from vof.virtio import VirtqueueInfo
from vof.virtio.constants import VIRTIO_CONFIG_S_NEEDS_RESET

MODEL = """
from vof.target import RequestModel

class Talk(RequestModel):
    device_id = 1000
    queue_sizes = (16, 16)

    def __init__(self, **options):
        super().__init__()
        self.options = options

    asked = False

    def handle(self, request, room):
        self.asked = True
        if request == b"options":
            return repr(self.options).encode()
        if request == b"fail":
            raise RuntimeError("a bug of the model")
        return request.upper()

    def status_changed(self, status):
        if self.asked and "fragile" in self.options:
            raise RuntimeError(f"no status {status}")

    def close(self):
        if self.asked and "fragile" in self.options:
            raise RuntimeError("no end")
"""


@pytest.fixture
def own(start, tmp_path):
    """Return ``own(*words)``: a target process in a directory with the model in it.

    ``-P``: Python itself adds no directory, as for an installed command.
    """
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "talk.py").write_text(MODEL)

    def own(*words, directory="own"):
        options = {"env": {"PYTHONPATH": str(ROOT)}, "cwd": tmp_path / directory}
        return start(*words, program=("-P", "-m", "vof"), **options)

    return own


def config(tmp_path, text):
    path = tmp_path / "target.toml"
    path.write_text('listen = ["vof+tcp://127.0.0.1:0"]\n[[device]]\ntype = "model"\n' + text)
    return str(path)


async def ask(url, *requests, queue=0):
    """Return what the device answers."""
    answers = []
    with trio.fail_after(10):
        async with vof.connect(url) as device:
            await device.initialize(0)
            vqs = await device.find_vqs([VirtqueueInfo("a"), VirtqueueInfo("b")])
            await device.ready()
            for request in requests:
                buffer = bytearray(100)
                written = await RequestQueue(vqs[queue]).request([request, buffer], 1, 1)
                answers.append(bytes(buffer[:written]))
    return answers


async def test_from_the_current_directory(own):
    target = own(*ANY, "--model", "talk:Talk,mark=7,loud")
    url = target.line()
    assert url.endswith("model/Talk")
    assert await ask(url, b"hello", queue=1) == [b"HELLO"]
    assert await ask(url, b"options") == [b"{'mark': '7', 'loud': True}"]
    target.signal()
    assert target.end()[0] == life.EXIT_OK


async def test_from_a_file_with_typed_options(own, tmp_path):
    path = config(
        tmp_path,
        'tvqn = "it"\nclass = "talk:Talk"\npython_path = "own"\n'
        '[device.options]\nmark = 7\nnames = ["a", "b"]\nfast = true\nshare = 0.5\n',
    )
    target = own("--config", path, directory=".")
    assert await ask(target.line(), b"options") == [
        b"{'mark': 7, 'names': ['a', 'b'], 'fast': True, 'share': 0.5}"
    ]
    target.signal()
    assert target.end()[0] == life.EXIT_OK


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("talk:Tolk", "talk:Tolk: {here}/own/talk.py has no Tolk; did you mean Talk?"),
        ("tolk:Talk", "tolk:Talk: no module tolk in {here}/own or where Python looks"),
        ("os:path", "os:path: path is no subclass of vof.target.DeviceModel"),
        (
            "talk:RequestModel",
            "talk:RequestModel: RequestModel lacks what a model must have: handle",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_announced(own, tmp_path, check, model, said):
    code, out, err = own(*ANY, "--model", model, *check).end()
    assert code == life.EXIT_DEVICE
    assert err == f"ERROR {said.format(here=tmp_path)}\n"
    assert "tcp://127" not in out or check


def test_a_file_does_not_look_into_the_current_directory(own, tmp_path):
    code, out, err = own("--config", config(tmp_path, 'class = "talk:Talk"\n')).end()
    assert (code, out) == (life.EXIT_DEVICE, "")
    assert "no module talk where Python looks; python_path names the directory" in err


def test_a_check_imports_and_changes_nothing(own):
    code, out, err = own("--check", "--model", "talk:Talk,mark=7").end()
    assert (code, err) == (life.EXIT_OK, "")
    assert "serve model/Talk (model: class=talk:Talk, python_path=., options={'mark': '7'})" in out


async def test_a_bug_ends_the_queue_asks_for_a_reset_and_is_said_once_a_second(own):
    target = own(*ANY, "--model", "talk:Talk")
    url = target.line()
    failures = 20
    for _ in range(failures):
        with pytest.raises(VofError) as caught:
            await ask(url, b"fail")
        assert caught.value.maybe_executed
    async with vof.connect(url) as device:
        await device.initialize(0)
        vqs = await device.find_vqs([VirtqueueInfo("a"), VirtqueueInfo("b")])
        await device.ready()
        buffer = bytearray(16)
        with pytest.raises(VofError):
            await RequestQueue(vqs[0]).request([b"fail", buffer], 1, 1)
        assert await device.get_status() & VIRTIO_CONFIG_S_NEEDS_RESET
        assert await RequestQueue(vqs[1]).request([b"other", buffer], 1, 1) == 5
        await device.initialize(0)
        assert not await device.get_status() & VIRTIO_CONFIG_S_NEEDS_RESET
    assert await ask(url, b"hello") == [b"HELLO"]
    target.signal()
    code, _, err = target.end()
    assert code == life.EXIT_OK
    said = err.count("the model failed on queue 0; it needs a reset")
    assert 1 <= said < failures
    assert err.count("RuntimeError: a bug of the model") == said


async def test_hooks_that_fail_are_said_and_keep_nothing_alive(own):
    target = own(*ANY, "--limit", "associations=1", "--model", "talk:Talk,fragile")
    url = target.line()
    for _ in range(3):
        assert await ask(url, b"hello") == [b"HELLO"]
        while "gone" not in target.line("stderr"):
            pass
    target.signal()
    assert target.end()[0] == life.EXIT_OK


async def test_hooks_that_fail_are_said(own):
    target = own(*ANY, "--model", "talk:Talk,fragile")
    assert await ask(target.line(), b"hello") == [b"HELLO"]
    target.signal()
    code, _, err = target.end()
    assert code == life.EXIT_OK
    assert "model/Talk: the model's status_changed(0) failed\nTraceback" in err
    assert "model/Talk: the model's close() failed\nTraceback" in err
    assert "internal error" not in err


# -- the command line -----------------------------------------------------------------------------


def test_an_option_keeps_the_keys_of_a_device_to_itself():
    device = option("model", "talk:Talk,tvqn=it,class_=1,options=2,deep")
    assert device.tvqn == "it"
    assert device.values == {
        "class": "talk:Talk",
        "python_path": ".",
        "options": {"class_": "1", "options": "2", "deep": True},
    }
