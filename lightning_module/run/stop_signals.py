"""Signals that ask a run to stop: a cluster's SIGTERM, SLURM's signal before its time limit, Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

CONTINUES = "The same command with --resume continues."
REQUEUE = getattr(signal, "SIGUSR1", 0)
"""The signal by which SLURM announces its time limit; 0 on Windows, which has no such signal."""


class Preempted(SIGTERMException):
    """Ends the program with the exit code that shells use for a signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def leave(number: int, where: str) -> NoReturn:
    """Print on the first process how far the run has come, and end the program.

    Raises:
        Preempted: always.
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(f"lightning: {signal.Signals(number).name}: {where} {CONTINUES}", file=sys.stderr, flush=True)
    raise Preempted(number)


class StopSignals:
    """Handles signals: stops the program at once or, between `hold` and `release`, only records the signal.

    Lightning's own handler for SIGTERM runs a collective operation, which with several processes can collide with one
    of the training. Its handler for SLURM's signal writes a checkpoint in the middle of whatever is being computed.

    Attributes:
        received: the recorded signal; 0 for none.
        forward: passes a signal on to the processes that this one has started.
    """

    def __init__(self) -> None:
        self.received = 0
        self.forward: Callable[[int], None] = lambda number: None
        self._held = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Install the handlers, and restore the previous ones at the end."""
        self._before = {number: signal.getsignal(number) for number in self._numbers()}
        self.received = 0
        self.take()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in self._before.items():
                    signal.signal(number, handler)

    def take(self) -> None:
        """Install the handlers again, in case others have been installed since."""
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in self._numbers():
                signal.signal(number, self._answer)

    def hold(self) -> None:
        """Only record signals until `release`, so that no step is interrupted."""
        self._held = True

    def release(self) -> None:
        """Stop at once again when a signal comes."""
        self._held = False

    @staticmethod
    def _numbers() -> list[int]:
        # SLURM sends it if the job asks for it: #SBATCH --signal=SIGUSR1@90
        requeue = [REQUEUE] if SLURMEnvironment.detect() else []
        return [signal.SIGTERM, signal.SIGINT, *requeue]

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.received or not self._held):
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGTERM:
            self.forward(number)
        if not self._held:
            if number == REQUEUE and getattr(rank_zero_only, "rank", 0) == 0:
                requeue_job()
            leave(number, "nothing was being trained.")
        if number == signal.SIGINT and getattr(rank_zero_only, "rank", 0) == 0:
            print("Finishing this step; Ctrl-C again leaves at once.", file=sys.stderr, flush=True)


def requeue_job() -> None:
    """Ask SLURM to start this job again with the same command; the run then continues as with --resume."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"lightning: the job {job} was not queued again: {error}", file=sys.stderr, flush=True)


def requeued() -> bool:
    """Return whether SLURM has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
