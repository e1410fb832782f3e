"""What a killed process left beside a place is removed by the next that writes there, and nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_module.commands.options import check_report_place
from models import atomic_write
from models.atomic_write import replacing, replacing_folder, working_folder
from models.bad_input import BadInput

NAME = "shop[1] *.h5"  # letters that would be patterns


@pytest.fixture(scope="module")
def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(process: int, ending: str = "tmp", name: str = NAME) -> str:
    return f".{name}.{atomic_write._where_processes_are_counted()}-{process}.{ending}"


def write(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("new")


def write_folder(path: Path) -> None:
    with replacing_folder(path) as temporary:
        temporary.mkdir()


def work(path: Path) -> None:
    with working_folder(path) as temporary:
        (temporary / "on the way").write_text("half")
        temporary.rename(path)


def test_what_is_no_plain_file_stays_what_it_is(tmp_path):
    """Somebody who says /dev/null as root wants no file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match="which is no plain file"):
        write(pipe)
    with pytest.raises(BadInput, match="expected a file in a folder that can be written"):
        check_report_place("--out", pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    link, file = tmp_path / "link", tmp_path / "disk" / "file"
    link.symlink_to(file)
    for _ in range(2):  # it is not there yet, and it is
        write(link)
        assert link.readlink() == file
        assert file.read_text() == "new"
        file.write_text("old")


@pytest.mark.parametrize(
    ("do", "ending", "folder"), [(write, "tmp", False), (write_folder, "tmp", True), (work, "work", True)]
)
def test_leftover_of_a_killed_process_goes_with_the_next_writing(tmp_path, gone, do, ending, folder):
    left = tmp_path / names(gone, ending)
    if folder:
        left.mkdir()
        (left / "inner").write_text("half")
    else:
        left.write_text("half")
    do(tmp_path / NAME)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_what_may_be_another_process_s_work_stays(tmp_path, gone):
    """One that runs, one on another machine or in another container, one that writes something else."""
    others = [
        names(os.getppid()),
        f".{NAME}.01234567-{gone}.tmp",
        names(gone, name=f"{NAME}.json"),
        names(gone, name="shop1 b.h5"),
        names(gone, "old"),  # perhaps the only whole one
        f".{NAME}.tmp",
        f".{NAME}.{atomic_write._where_processes_are_counted()}-mine.tmp",
    ]
    for name in others:
        (tmp_path / name).write_text("somebody's")
    write(tmp_path / NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, NAME])


def test_a_process_of_somebody_else_is_not_gone(gone, monkeypatch):
    def refuse(process: int, signal: int) -> None:
        raise PermissionError

    assert atomic_write._is_gone(gone)
    assert not atomic_write._is_gone(os.getpid())
    monkeypatch.setattr(os, "kill", refuse)
    assert not atomic_write._is_gone(gone)


def test_working_folder_goes_whatever_happens(tmp_path):
    with pytest.raises(RuntimeError), working_folder(tmp_path / NAME) as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise RuntimeError("planted")
    assert not list(tmp_path.iterdir())
