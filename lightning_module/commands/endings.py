"""How a command ends that does not end well: where the traceback is kept, what is missing, who has stopped reading.

Imports nothing heavy.
"""

import errno
import io
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from models.bad_input import BadInput

LOG = "error.log"
_LONGEST = 300
"""Characters of an error's message that are printed; all of them are in the log."""

_run_folders: list[Path] = []


class _Overheard(io.FileIO):
    """A stream whose reader may leave: what is written from then on is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return super().write(data)


def outlive_readers() -> None:
    """Let the command go on if nobody reads what it prints any more, as in `lightning fit ... | head -1`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # a notebook's, or none at all
            continue
        stream.flush()
        raw = _Overheard(stream.fileno(), "wb", closefd=False)
        again = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, again)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave as an exception does: what was begun is cleaned up, and a Keras process ends, too.

    Where somebody else answers that signal, as `fit` does while it trains, that stays.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def keep_log_in(folder: Path | None) -> None:
    """Say which folder takes the traceback if the command fails: the run's. None for the system's temporary folder."""
    _run_folders[:] = [] if folder is None else [folder]


def keep_traceback(error: Exception, arguments: list[str]) -> str:
    """Write the traceback of an unexpected error to a file, and return one line about it.

    The file is `error.log` in the run's folder, where it is appended to, or else a new file in the system's temporary
    folder. Where neither can be written, the traceback is printed.

    Args:
        error: what nobody caught.
        arguments: the command line after the command's name.
    """
    text = "".join(traceback.format_exception(error))
    command = shlex.join(["lightning", *arguments])
    report = f"{datetime.now(UTC).isoformat(timespec='seconds')} {command}\n{text}\n"
    log: Path | None = None
    for folder in (*_run_folders, Path(tempfile.gettempdir())):
        try:
            if folder in _run_folders:
                log = folder / LOG
            else:
                log = Path(tempfile.mkstemp(prefix="lightning-", suffix=f"-{LOG}", dir=folder)[1])
            with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(report)
            break
        except OSError:  # the folder is gone, or the disk is full: the next one may do
            log = None
    if log is None:
        print(text, file=sys.stderr)
    words = " ".join(str(error).split())
    words = f": {words[:_LONGEST]}{' ...' if len(words) > _LONGEST else ''}" if words else ""
    where = f"The traceback is in {log}." if log else "The traceback is above."
    return f"an error that is not expected, {type(error).__name__}{words}. {where}"


def reason_in_settings(error: BaseException) -> str | None:
    """Return what is wrong with the settings or the disk if that has led to an error; None if it was something else.

    jsonargparse raises errors of its own for those of the classes that settings name.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BadInput):
            return str(cause)
        if isinstance(cause, ImportError) and (message := missing_package(cause)):
            return message
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {cause.filename}" if cause.filename else ""
            return f"expected room on the disk{where}, received: {cause.strerror}. Free the disk or name another place."
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            name = str(cause.filename)
            return f"expected file names that the system takes, received one of {len(name)} characters: {name[:60]}..."
        cause = cause.__cause__
    # jsonargparse's own, which has the reason of each type that was tried; the first is the class that was named
    said = re.match(
        r"Does not validate against any of the Union subtypes.*?Errors:\s+- (.*?)(?:\n\s+- |$)", str(error), re.S
    )
    if isinstance(error, ValueError) and said:
        return f"expected settings of which the class that they name can be made, received from it: {said[1].strip()}"
    return None


def missing_package(error: ImportError) -> str | None:
    """Return one line about a package that is not installed, with the command that installs it.

    Args:
        error: Python's own, which names the module, or one of Lightning's, whose message has a `pip install`.

    Returns:
        None if the error is about something else, such as a module of this project.
    """
    hint = re.search(r"pip install (?:-U )?([^`]+)`", str(error))
    wanted = hint[1].strip("'\" ") if hint else (error.name or "").partition(".")[0]
    ours = {"datamodule", "export", "lightning_module", "models"}
    if not wanted or wanted in ours or not (hint or isinstance(error, ModuleNotFoundError)):
        return None
    command = shlex.join([sys.executable, "-m", "pip", "install", wanted])
    return f"expected the package {wanted}, which is not installed. Install it: {command}"
