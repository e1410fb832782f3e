"""The rule by which threads are chosen: what may be used, what a container allows, what is free."""

import os
import subprocess
import sys

import pytest
import torch

from models import cores
from tests.conftest import ROOT

FREE, HALF, BUSY = 1.0, 0.5, 0.0


@pytest.mark.parametrize(
    ("allowed", "limit", "idle", "threads"),
    [
        (2, None, [FREE, FREE], None),  # nothing is taken: the library's own choice, which knows the cores
        (2, None, None, None),
        (2, None, [FREE, BUSY], 1),
        (2, None, [BUSY, BUSY], 1),
        (2, None, [HALF, HALF], 1),  # one busy program that wanders
        (2, None, [0.8, 1.0], None),  # a short noise
        (8, None, [FREE] * 5 + [BUSY] * 3, 5),
        (8, 2.5, [FREE] * 8, 3),
        (8, 0.5, None, 1),
        (8, 6, [FREE] * 4 + [BUSY] * 4, 4),
        (1, None, [BUSY], 1),  # cannot be fewer
        (4, 8, None, None),
    ],
)
def test_rule(allowed, limit, idle, threads):
    shares = None if idle is None else dict(enumerate(idle))
    assert cores.threads_for(set(range(allowed)), limit, shares) == threads


def test_processors_of_others_do_not_count():
    """Only processor 3 may be used; that the others are busy is nothing to it."""
    assert cores.threads_for({3, 4}, None, {0: BUSY, 1: BUSY, 3: FREE, 4: FREE}) is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3.0),
        (  # the smaller of two, one above the other
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        (  # the first version, and the path of the machine, which the container does not see
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),  # not Linux
    ],
)
def test_limit_of_a_container(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.core_limit(tmp_path) == limit


def test_ticks_of_the_system():
    """Processor 0 worked for 4 of 5 ticks, 1 for none, 2 waited for the disk, and 3 has gone."""
    before = (
        "cpu  9 9 9\ncpu0 10 0 10 100 0 0 0 0 0 0\ncpu1 1 0 1 10 0 0 0 0\ncpu2 1 0 1 10 5 0 0 0\ncpu3 1 0 1 1 1 0 0 0\n"
    )
    after = "cpu0 13 0 11 101 0 0 0 0 3 0\ncpu1 1 0 1 15 0 0 0 0\ncpu2 1 0 1 10 10 0 0 0\nintr 5\n"
    shares = cores.shares_between(cores._ticks(before), cores._ticks(after))
    assert shares == {0: 0.2, 1: 1.0, 2: 1.0}
    assert cores.shares_between(cores._ticks(before), cores._ticks(before))[0] == 1.0  # no tick has passed


@pytest.fixture
def environment(monkeypatch) -> None:
    for name in (*cores.THREAD_VARIABLES, *cores._WAITING):
        monkeypatch.setenv(name, "1")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(cores, "core_limit", lambda: None)
    monkeypatch.setattr(cores, "_allowed", lambda: {0, 1, 2})
    monkeypatch.setattr(cores, "idle_shares", lambda: {0: FREE, 1: FREE, 2: BUSY})
    monkeypatch.setitem(sys.modules, "torch", None)  # not imported yet


@pytest.mark.usefixtures("environment")
def test_free_cores_are_taken_by_torch_and_keras():
    cores.use_threads(None)
    assert [os.environ[name] for name in cores.THREAD_VARIABLES] == ["2", "2"]


@pytest.mark.usefixtures("environment")
def test_the_same_every_time_does_not_ask_what_is_free():
    cores.use_threads(None, share=False)
    assert not any(name in os.environ for name in cores.THREAD_VARIABLES)


@pytest.mark.usefixtures("environment")
def test_what_somebody_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cores.use_threads(None)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    cores.use_threads(3)  # --num_threads is the last word
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    cores.wait_asleep()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    cores.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_torch_takes_the_number():
    """Whether it is imported before or after."""
    code = (
        "import sys\nif sys.argv[1] == 'before': import torch\nfrom models.cores import use_threads\nuse_threads(1)\n"
        "import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in cores.THREAD_VARIABLES}
    for order in ("before", "after"):
        command = [sys.executable, "-c", code, order]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"


def test_one_thread_computes_and_then_as_many_as_before():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)

    @cores.one_thread()
    def refuse():
        seen.append(torch.get_num_threads())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        refuse()
    assert [*seen, torch.get_num_threads()] == [1, 3]
    torch.set_num_threads(before)
