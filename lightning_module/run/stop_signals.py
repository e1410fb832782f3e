"""What asks a run to leave: a cluster's SIGTERM, SLURM's signal before its time is up, Ctrl-C."""

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
"""By which SLURM says that the time is nearly up; Windows has neither."""


class Preempted(SIGTERMException):
    """Leaves the program with a shell's exit code for a signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def leave(number: int, where: str) -> NoReturn:
    """Say on the first process where the run stands, and leave.

    Raises:
        Preempted: always.
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(f"lightning: {signal.Signals(number).name}: {where} {CONTINUES}", file=sys.stderr, flush=True)
    raise Preempted(number)


class StopSignals:
    """Answers signals at once, or, between `hold` and `release`, notes them for whoever asks.

    Lightning's own answer to SIGTERM is a collective operation within the signal handler, which with several processes
    meets those of the training; and to SLURM's signal a checkpoint in the middle of whatever is being computed.

    Attributes:
        received: the signal that was noted; 0 for none.
        forward: passes a signal on to the processes that this one has started.
    """

    def __init__(self) -> None:
        self.received = 0
        self.forward: Callable[[int], None] = lambda number: None
        self._held = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer signals meanwhile; afterwards whoever did before."""
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
        """Answer signals from now on, whoever has put himself forward since."""
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in self._numbers():
                signal.signal(number, self._answer)

    def hold(self) -> None:
        """Only note signals, until `release`: a step is not to be interrupted."""
        self._held = True

    def release(self) -> None:
        """Answer signals at once again."""
        self._held = False

    @staticmethod
    def _numbers() -> list[int]:
        # SLURM sends it where the job asks for that: #SBATCH --signal=SIGUSR1@90
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
    """Ask SLURM to start this job again, with the same command; it then goes on as with --resume."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"lightning: the job {job} was not queued again: {error}", file=sys.stderr, flush=True)


def requeued() -> bool:
    """Tell whether SLURM has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
