# SPDX-License-Identifier: BSD-3-Clause
"""A directory, and the file system device that it is."""

import os

import pytest

from tests.fuse import FuseModel


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    (tmp_path / "empty").touch()
    (tmp_path / "down").symlink_to("a/b")
    (tmp_path / "up").symlink_to("../../a/b/../b/file")
    (tmp_path / "absolute").symlink_to("/a")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "nowhere").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.fixture
def model(tree):
    model = FuseModel(tree)
    yield model
    model.close()
