"""Scratch folders go with their owner, however it ends, and other users' files stay out of it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.process import temporary_folders
from workers.errors import CheckpointError, UnsupportedPlatformError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(temporary_folders, "home", lambda: tmp_path)
    return tmp_path


def test_close_deletes(home: Path):
    first, second = temporary_folders.Scratch("a"), temporary_folders.Scratch("a")
    assert first.path != second.path
    first.close()
    first.close()
    assert not first.path.exists()
    assert second.path.exists()
    second.close()


def test_a_killed_owner_is_swept_and_a_living_one_is_not(home: Path):
    living = temporary_folders.Scratch("living")
    killed = subprocess.run(
        [sys.executable, "-c",
         "import os, sys, pathlib; from orchestrator.process import temporary_folders as folders;"
         "folders.home = lambda: pathlib.Path(sys.argv[1]);"
         "print(folders.Scratch('killed').path, flush=True); os.kill(os.getpid(), 9)",
         str(home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    abandoned = Path(killed.stdout.strip())
    assert killed.returncode == -9
    assert abandoned.is_dir()
    assert temporary_folders.sweep(home) == [abandoned]
    assert not abandoned.exists()
    assert living.path.is_dir()
    living.close()


def test_links_and_finished_run_folders_are_never_swept(home: Path, tmp_path: Path):
    run = tmp_path / "outputs" / "run"
    run.mkdir(parents=True)
    (run / ".lock").touch()  # unlocked: the run is finished
    linked = home / "ray-abcdefgh.tmp"
    linked.symlink_to(run)
    (home / "ray-ijklmnop.tmp").touch()
    (home / "mine").mkdir()
    (home / "mine" / ".lock").touch()
    assert temporary_folders.sweep(home) == []
    assert (run / ".lock").exists()
    assert linked.is_symlink()
    assert sorted(p.name for p in home.iterdir()) == [
        "mine", "outputs", "ray-abcdefgh.tmp", "ray-ijklmnop.tmp"
    ]  # fmt: skip


def test_a_folder_that_is_being_made_is_not_swept(home: Path):
    (home / ".ray-abcdefgh").mkdir()
    assert temporary_folders.sweep(home) == []


def test_the_home_is_made_for_this_user_alone(tmp_path: Path):
    made = temporary_folders.private_folder(tmp_path / "home")
    assert made.stat().st_mode & 0o777 == 0o700
    assert temporary_folders.private_folder(made) == made


def test_a_link_in_place_of_the_home_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsupportedPlatformError, match="is a link or a file"):
        temporary_folders.private_folder(tmp_path / "home")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(UnsupportedPlatformError, match="cannot be made"):
        temporary_folders.private_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_home_that_others_can_write_to_is_refused(tmp_path: Path, mode: int):
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(mode)
    with pytest.raises(UnsupportedPlatformError, match="written by other users"):
        temporary_folders.private_folder(tmp_path / "home")


def test_a_home_that_others_could_replace_is_refused(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(UnsupportedPlatformError, match="replaced by other users"):
        temporary_folders.private_folder(shared / "home")
    shared.chmod(0o1777)
    temporary_folders.private_folder(shared / "home")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_what_another_user_made_is_neither_used_nor_deleted(home: Path, tmp_path: Path):
    other = tmp_path / "home"
    other.mkdir(mode=0o700)
    os.chown(other, 65534, 65534)
    with pytest.raises(UnsupportedPlatformError, match="belongs to user 65534"):
        temporary_folders.private_folder(other)
    planted = home / "ray-abcdefgh.tmp"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    assert temporary_folders.sweep(home) == []
    assert planted.is_dir()


def test_the_lock_is_on_the_folder_itself(home: Path):
    mine = temporary_folders.Scratch("ray")
    handle = os.open(mine.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)
    mine.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter of a MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=1777", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system, and not everywhere")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_before_anything_is_started_on_it(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(temporary_folders, "home", lambda: small_disk)
    (small_disk / "something").write_bytes(bytes(200 << 10))
    with pytest.raises(CheckpointError, match="is full: 56 KiB are free, 16,384 are") as caught:
        temporary_folders.Scratch("ray")
    assert caught.value.where == str(small_disk)
    assert "TMPDIR" in caught.value.fix


def test_a_scratch_folder_that_cannot_be_made_is_a_typed_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(temporary_folders.tempfile, "mkdtemp", full)
    with pytest.raises(CheckpointError, match="temporary files cannot be written: No space left"):
        temporary_folders.Scratch("ray")


def test_without_any_folder_that_takes_a_file_all_of_them_are_named(
    monkeypatch: pytest.MonkeyPatch,
):
    def nowhere() -> str:
        story = "No usable temporary directory found in ['/a', '/b']"
        raise FileNotFoundError(errno.ENOENT, story)

    monkeypatch.setattr(temporary_folders.tempfile, "gettempdir", nowhere)
    with pytest.raises(CheckpointError, match="no folder for temporary files") as caught:
        temporary_folders.home()
    assert "['/a', '/b']" in caught.value.where


def test_the_home_leaves_room_for_the_path_of_a_socket(monkeypatch: pytest.MonkeyPatch):
    socket = "ray-abcdefgh.tmp/session_2026-11-28_13-53-37_051472_4194304/sockets/plasma_store"
    made: list[str] = []
    monkeypatch.setattr(temporary_folders, "private_folder", lambda path: made.append(str(path)))
    monkeypatch.setattr(temporary_folders.os, "getuid", lambda: 1234567890)
    for base in ("/tmp", "/a/longer/one", "/" + "long" * 20):
        monkeypatch.setattr(temporary_folders.tempfile, "gettempdir", lambda base=base: base)
        temporary_folders.home()
    assert all(len(f"{home}/{socket}") <= 107 for home in made)
    monkeypatch.setattr(temporary_folders.os, "getuid", lambda: 7)
    monkeypatch.setattr(temporary_folders.tempfile, "gettempdir", lambda: "/scratch/me")
    temporary_folders.home()
    assert made[-1] == "/scratch/me/rehearsal-7"
