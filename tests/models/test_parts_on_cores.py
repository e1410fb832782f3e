"""Parts of a batch side by side: what one thread computes, in order, whoever calls."""

import copy
import os
import threading

import pytest
import torch

from models.parts_on_cores import PartsOnCores


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_what_is_computed_and_its_order_do_not_depend_on_threads(threads, count, most):
    seen, images = [], torch.arange(count * 6.0).reshape(count, 6)

    def run(part):
        seen.append((len(part), torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))
        return part * 2

    with torch.no_grad():
        assert torch.equal(PartsOnCores().map(run, images, most), images * 2)
    assert max(size for size, *_ in seen) <= min(most, -(-count // threads))
    assert {(each, grad) for _, each, grad, _ in seen} == {(1, False)}
    assert (threading.get_ident() in {ident for *_, ident in seen}) == (threads == 1)
    assert torch.get_num_threads() == threads


def test_threads_yet_to_come_have_their_number_again(threads):
    PartsOnCores().map(lambda part: part, torch.ones(6, 1), 1)
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads]


def test_an_error_of_a_part_is_raised_and_the_next_batch_computed(threads):
    parts = PartsOnCores()

    def refuse(part):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        parts.map(refuse, torch.ones(6, 1), 1)
    assert torch.get_num_threads() == threads
    assert parts.map(torch.neg, torch.ones(6, 1), 1).sum() == -6


def test_another_number_of_threads_and_a_copy_have_threads_of_their_own(threads):
    parts, images = PartsOnCores(), torch.ones(6, 1)
    for number in (threads, threads + 1, 1):
        torch.set_num_threads(number)
        assert torch.equal(parts.map(torch.neg, images, 2), -images)
    assert torch.equal(copy.deepcopy(parts).map(torch.neg, images, 2), -images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_fork_makes_threads_of_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    parts, images = PartsOnCores(), torch.ones(6, 1)
    parts.map(torch.clone, images, 1)
    child = os.fork()
    if not child:
        os._exit(not torch.equal(parts.map(torch.clone, images, 1), images))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    torch.set_num_threads(before)
