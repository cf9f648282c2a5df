"""Files are written whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit_rs.checkpoints import atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")])
def test_a_file_is_written_whole(tmp_path: Path, content: object) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old and longer")
    atomic_write(path, content)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("no")])
def test_whatever_stops_the_writing_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def writer(file: object) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, writer)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_failure_at_the_last_moment_leaves_the_old_file(tmp_path: Path, monkeypatch: object) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        atomic_write(tmp_path / "nowhere" / "file.bin", b"")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        atomic_write(tmp_path, b"")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_links_are_followed_and_the_umask_decides(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    link.symlink_to(real)
    old_umask = os.umask(0o027)
    try:
        atomic_write(link, b"new")
    finally:
        os.umask(old_umask)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o664])
def test_permissions_of_a_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    path.chmod(mode)

    def writer(file: object) -> None:
        [temporary] = set(names(tmp_path)) - {"file.bin"}
        assert (tmp_path / temporary).stat().st_mode & 0o777 == mode
        file.write(b"new")

    atomic_write(path, writer)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match=r"cannot write .*pipe: it is not a regular file"):
            atomic_write(path, b"new")
    assert pipe.is_fifo()
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
def test_errors_name_the_file_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*arguments: object) -> None:
        name = () if function == "fsync" else (str(arguments[0]),)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *name)

    path = tmp_path / "file.bin"
    monkeypatch.setattr(Path if function == "replace" else os, function, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        atomic_write(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_errors_of_reading_another_file_name_that(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(tmp_path / "file.bin", lambda _file: (tmp_path / "other").read_bytes())
    assert caught.value.filename == str(tmp_path / "other")

    def damaged(file: object) -> None:
        file.write(b"new")
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # as reading from a failing disk: it names no file

    with pytest.raises(OSError, match="Input/output error") as caught:
        atomic_write(tmp_path / "file.bin", damaged)
    assert caught.value.filename is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("letter", ["a", "é", "\N{SNOWMAN}"])
def test_names_may_be_as_long_as_the_system_s(tmp_path: Path, letter: str) -> None:
    path = tmp_path / (letter * (255 // len(letter.encode())))
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == [path.name]


FULL = """
import resource, signal, sys, torch
from vit_rs.checkpoints import save_state
from vit_rs.checkpoints.files import open_weights, rewrite

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for path in sys.argv[1:]:
    for new in ({"a": torch.zeros(300_000)}, {str(index): torch.zeros(400) for index in range(200)}):
        try:
            if path.endswith(".state"):
                save_state(path, new)
            else:
                with open_weights(path) as file:
                    rewrite(file, {key: new.get(key, torch.zeros(400)) for key in file.tensors}, path)
        except OSError as error:
            print(error.errno, error.filename == path, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """torch raises RuntimeError, "unexpected pos 704 vs 598"; small tensors wait in a buffer, a large one does not."""
    tensors = {"a": torch.zeros(3), **{str(index): torch.zeros(3) for index in range(200)}}
    torch.save(tensors, tmp_path / "new.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    paths = [str(tmp_path / name) for name in ("new.pth", "old.pth", "run.state")]
    run = subprocess.run([sys.executable, "-c", FULL, *paths], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.split() == [str(errno.EFBIG), "True"] * 6
    assert names(tmp_path) == ["new.pth", "old.pth"]
