"""Freed memory is kept for the next operation; no clock is asked, but how many pages the system had to clear."""

import os
import subprocess
import sys

import pytest

from lightning_module.commands.allocator import SETTINGS, keep_freed_memory

FAULTS = """
import resource, sys
import torch
from lightning_module.commands.allocator import keep_freed_memory
if sys.argv[1] == "set":
    assert keep_freed_memory()
torch.set_num_threads(1)
for count in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt if count else 0
    parts = [torch.ones(16 << 20) for _ in range(4)]  # 64 MiB each, more than glibc ever keeps by itself
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(setting: str) -> int:
    """Of the last of several rounds of allocating and freeing 256 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, setting], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc")
def test_what_is_freed_is_used_again():
    assert page_faults("set") < 50
    assert page_faults("as it was") >= 128  # the negative control; where pages are large, they have 2 MiB


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_says_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()
