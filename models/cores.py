"""How many threads compute: as many as this process may have and as the machine has to spare."""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROBE_SECONDS = 0.05
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables with which somebody has chosen how threads wait."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""Environment variables: threads of torch, and of TensorFlow in the Keras process."""


def wait_asleep() -> None:
    """Let threads sleep while they wait for each other, unless the environment says otherwise.

    By default they turn in circles for a while, and so take the processor from the very threads that they wait for
    where something else runs as well. It must be called before torch is imported.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def use_threads(threads: int | None, share: bool = True) -> None:
    """Set how many threads torch and the Keras processes compute with.

    Args:
        threads: how many; None chooses, unless `OMP_NUM_THREADS` has.
        share: choose by what is free. Otherwise by what this process may use, which is the same every time.
    """
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = threads_for(_allowed(), core_limit(), idle_shares() if share else None)
    if threads is None:
        return
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in this thread alone, for what is so short that waiting for others would take longer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def threads_for(allowed: set[int], limit: float | None, idle: Mapping[int, float] | None) -> int | None:
    """Choose the number of threads.

    Args:
        allowed: the processors that this process may run on.
        limit: processors' time that it may use in all, such as 1.5; None for no limit.
        idle: the share of the time that each processor had nothing to do, 0 to 1; None leaves it out of account.

    Returns:
        At least 1; None if nothing is taken, so that the libraries may choose: they know which processors share a core.
    """
    free = float(len(allowed))
    if idle is not None:
        free = min(free, math.floor(sum(idle.get(each, 1.0) for each in allowed) + 0.5))
    if limit is not None:
        free = min(free, math.ceil(limit))
    return None if free >= len(allowed) else max(1, int(free))


def usable_cores() -> int:
    """Return how many processors this process may use, by its affinity and its container's limit; at least 1."""
    allowed = _allowed()
    return threads_for(allowed, core_limit(), None) or len(allowed)


def core_limit(root: Path = Path("/")) -> float | None:
    """Return the limit that a container sets, in processors; None without one.

    Args:
        root: where `/proc` and `/sys` are.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = mount / path.lstrip("/")
        # a limit of any folder above holds as well; inside a container only the mount itself may be there
        for folder in (place, *(each for each in place.parents if each.is_relative_to(mount))):
            parts = _text(folder / "cpu.max").split()
            parts = parts or [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
            if len(parts) == 2 and all(part.isdigit() for part in parts) and int(parts[1]):  # "max" and -1: none
                limits.append(int(parts[0]) / int(parts[1]))
    return min(limits, default=None)


def idle_shares() -> dict[int, float] | None:
    """Measure for a twentieth of a second which processors have nothing to do; None where the system does not say."""
    before = _ticks(_text(Path("/proc/stat")))
    if not before:
        return None
    time.sleep(_PROBE_SECONDS)
    return shares_between(before, _ticks(_text(Path("/proc/stat"))))


def shares_between(before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]) -> dict[int, float]:
    """Return each processor's share of idle time between two counts of (idle, all) ticks; 1 if none has passed."""
    shares = {}
    for each in before.keys() & after.keys():
        idle, passed = (now - then for now, then in zip(after[each], before[each], strict=True))
        shares[each] = idle / passed if passed > 0 else 1.0
    return shares


def _ticks(stat: str) -> dict[int, tuple[int, int]]:
    """Read (idle, all) ticks of every processor; see proc_stat(5)."""
    counts = {}
    for line in stat.splitlines():
        name, *rest = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            numbers = [int(each) for each in rest[:8]]  # the guests' time is in the user's already
            counts[int(name[3:])] = (numbers[3] + numbers[4], sum(numbers))
    return counts


def _allowed() -> set[int]:
    system: Any = os  # not every system has the function
    return system.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # no such file on this system
