# SPDX-License-Identifier: BSD-3-Clause
"""What is installed, and what is left alone."""

import os
import re
import stat
import sysconfig
from pathlib import Path

import pytest

from vof import cli
from vof.cli import install, man
from vof.errors import ConfigError

PROGRAM = "/opt/vof/bin/vof"
UNITS = "usr/local/lib/systemd/system"


def tree(top: Path) -> dict[str, str]:
    """Return all files below, with their content, or where they lead."""
    return {
        str(path.relative_to(top)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in top.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def run(tmp_path, capsys):
    def run(*words):
        code = cli.main(["install", "--destdir", str(tmp_path), "--program", PROGRAM, *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


# -- installing -----------------------------------------------------------------------------------


def test_all_is_installed_and_said(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    there = tree(tmp_path)
    assert sorted(out) == sorted(f"write {tmp_path}/{name}" for name in there)
    pages = {
        f"usr/local/share/man/man{man.section(one)}/{man.page(one)}.{man.section(one)}"
        for one in man.topics()
    }
    assert there.keys() == pages | {
        f"{UNITS}/vof-target.service",
        f"{UNITS}/vof-target.socket",
        "usr/local/bin/vof",
        "etc/vof/target.toml",
    }
    assert there["usr/local/bin/vof"] == PROGRAM
    assert not re.search("@[A-Z]+@", there[f"{UNITS}/vof-target.service"])
    for name in there.keys() - {"usr/local/bin/vof"}:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_again_changes_nothing(run, tmp_path):
    run()
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    _, out, _ = run()
    assert {line.partition(" ")[0] for line in out} == {"keep"}
    assert before == {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_upgrade_replaces_all_but_the_configuration(run, tmp_path):
    run()
    service, settings = tmp_path / UNITS / "vof-target.service", tmp_path / "etc/vof/target.toml"
    link = tmp_path / "usr/local/bin/vof"
    good = service.read_text()
    service.write_text("old")
    settings.write_text("mine")
    link.unlink()
    link.symlink_to("/old/vof")
    _, out, _ = run()
    assert service.read_text() == good
    assert settings.read_text() == "mine"
    assert os.readlink(link) == PROGRAM
    assert [line for line in out if line.startswith("write")] == [
        f"write {service}",
        f"write {link}",
    ]


def test_a_dry_run_changes_nothing(run, tmp_path):
    _, out, _ = run("--dry-run")
    assert not tree(tmp_path)
    assert {line.partition("/")[0] for line in out} == {"would write "}
    run()
    before = tree(tmp_path)
    _, out, _ = run("--dry-run", "--remove")
    assert tree(tmp_path) == before
    assert {line.partition("/")[0] for line in out} == {"would remove "}


def test_what_was_installed_can_be_removed(run, tmp_path):
    other = tmp_path / UNITS / "other.service"
    run()
    other.write_text("other")
    code, out, _ = run("--remove")
    assert code == 0
    assert tree(tmp_path).keys() == {"etc/vof/target.toml", f"{UNITS}/other.service"}
    assert len(out) == len(man.topics()) + 3
    assert run("--remove") == (0, [], "")


def test_other_places(run, tmp_path):
    run("--prefix", "/usr", "--sysconfdir", "/usr/etc")
    there = tree(tmp_path)
    assert {name.split("/")[0] for name in there} == {"usr"}
    assert "usr/etc/vof/target.toml" in there
    text = there["usr/lib/systemd/system/vof-target.service"]
    assert f"ExecStart={PROGRAM} target --config /usr/etc/vof/target.toml\n" in text


def test_a_program_of_another_kind_is_let_alone(run, tmp_path):
    place = tmp_path / "usr/local/bin/vof"
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    code, _, err = run()
    assert code == 2
    assert f"{place}: is another program" in err
    run("--remove")
    assert place.read_text() == "mine"


def test_without_destdir_the_next_steps_are_said(tmp_path, capsys):
    words = ["--prefix", str(tmp_path / "p"), "--sysconfdir", str(tmp_path / "e")]
    assert cli.main(["install", "--program", PROGRAM, *words]) == 0
    out = capsys.readouterr().out
    assert "systemctl daemon-reload\n" in out
    assert f"edit {tmp_path}/e/vof/target.toml\n" in out


@pytest.mark.parametrize("option", ["--prefix", "--sysconfdir", "--program"])
@pytest.mark.parametrize("path", ["relative", "/with a space", "/100%", "/$x", "/a\nb"])
def test_a_path_that_no_unit_can_name_is_refused(option, path, capsys, tmp_path):
    words = ["--destdir", str(tmp_path), "--program", PROGRAM, option, path]
    assert cli.main(["install", *words]) == 2
    assert f"vof: {option}: expected an absolute path" in capsys.readouterr().err
    assert not tree(tmp_path)


def test_where_the_service_cannot_see_us_is_said(monkeypatch, tmp_path):
    scripts = tmp_path / "bin"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(scripts))
    with pytest.raises(ConfigError, match=f"no {scripts}/vof"):
        install.program()
    scripts.mkdir()
    (scripts / "vof").touch()
    monkeypatch.setattr(install, "HIDDEN", (str(tmp_path),))
    with pytest.raises(ConfigError, match=f"{scripts}/vof is in {tmp_path}, which is hidden"):
        install.program()
    monkeypatch.setattr(install, "HIDDEN", ())
    assert install.program() == str(scripts / "vof")
