"""How a command ends that does not end well: where the traceback is kept. Imports nothing heavy."""

import shlex
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

LOG = "error.log"
_LONGEST = 300
"""Characters of an error's message that are printed; all of them are in the log."""

_run_folders: list[Path] = []


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
