"""Which photos come in which batch: for any number of processes, and from any batch on."""

from itertools import chain

import pytest
import torch

from datamodule.photo_order import EpochShuffle, OwnShare, ResumableLoader, even_batch_size
from models.bad_input import BadInput


def batches_of(photos: int, batch_size: int, processes: int = 1, rank: int = 0, epoch: int = 0) -> list[list[int]]:
    order = EpochShuffle(range(photos), 3, batch_size, processes, rank)
    order.set_epoch(epoch)
    loader = ResumableLoader(range(photos), batch_size=batch_size, sampler=order, collate_fn=list)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize(("photos", "processes"), [(40, 2), (41, 2), (47, 3), (48, 4), (50, 4), (9, 8)])
def test_processes_together_see_what_one_sees(photos, processes):
    alone = batches_of(photos, 4 * processes, epoch=2)
    shares = [batches_of(photos, 4, processes, rank, epoch=2) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    if photos % (4 * processes) in range(1, processes):
        alone.pop()  # too few for all processes to have one
    assert [sorted(chain(*step)) for step in zip(*shares, strict=True)] == [sorted(step) for step in alone]


def test_means_of_uneven_shares_are_weighed():
    photos, processes, values = 47, 3, torch.randn(47)
    shares = [batches_of(photos, 4, processes, rank) for rank in range(processes)]
    orders = [EpochShuffle(range(photos), 3, 4, processes, rank) for rank in range(processes)]
    uneven = 0
    for step, (alone, *parts) in enumerate(zip(batches_of(photos, 12), *shares, strict=True)):
        weights = [order.weight_of_share(step) for order in orders]
        means = [values[part].mean() for part in parts]
        together = sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / processes
        assert together == pytest.approx(float(values[alone].mean()), abs=1e-6)
        uneven += sum(means) / processes != pytest.approx(float(values[alone].mean()), abs=1e-6)
    assert uneven == 1  # the last step, had it not been weighed


def test_order_changes_with_epoch_and_seed_alone():
    assert batches_of(20, 4, epoch=0) == batches_of(20, 4, epoch=0)
    assert batches_of(20, 4, epoch=0) != batches_of(20, 4, epoch=1)
    assert list(chain(*batches_of(20, 4, epoch=5))) == list(chain(*batches_of(20, 7, epoch=5)))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_goes_on_where_another_was(workers):
    def loader() -> ResumableLoader:
        return ResumableLoader(
            range(22),
            epoch=lambda: 4,
            batch_size=4,
            sampler=EpochShuffle(range(22), 0, 4),
            collate_fn=list,
            num_workers=workers,
        )

    whole = list(loader())
    interrupted = loader()
    seen = [batch for _, batch in zip(range(3), interrupted, strict=False)]
    state = interrupted.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert len(resumed) == 6
    assert seen + list(resumed) == whole
    assert list(resumed) == whole  # once only
    assert list(loader()) != whole[3:]  # what comes without the state


def test_loader_tells_the_order_which_epoch_begins():
    order = EpochShuffle(range(22), 0, 4)
    list(ResumableLoader(range(22), epoch=lambda: 4, batch_size=4, sampler=order, collate_fn=list))
    assert order.epoch == 4


@pytest.mark.parametrize("changed", [{"photos": 23}, {"batch_size": 5}, {"processes": 2}])
def test_middle_of_an_epoch_of_other_batches_is_refused(changed):
    loader = ResumableLoader(range(22), batch_size=4, sampler=EpochShuffle(range(22), 0, 4), collate_fn=list)
    with pytest.raises(BadInput, match=f"as many {next(iter(changed))}"):
        loader.load_state_dict(loader.state_dict() | changed)


@pytest.mark.parametrize("photos", [8, 9, 33, 64, 65, 66, 127, 129, 341])
@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 16])
def test_measured_photos_are_shared_out_once_in_as_many_batches(photos, processes, batch_size):
    shares = [list(OwnShare(range(photos), processes, rank)) for rank in range(processes)]
    assert sorted(chain(*shares)) == list(range(photos))
    size = even_batch_size(photos, batch_size, processes)
    assert size >= batch_size
    assert len({-(-len(share) // size) for share in shares}) == 1


def test_even_batch_size_is_needed():
    shares = [len(OwnShare(range(33), 2, rank)) for rank in (0, 1)]
    assert [-(-share // 8) for share in shares] == [2, 3]
    assert even_batch_size(33, 8, 2) == 9
    assert even_batch_size(32, 8, 2) == 8


def test_fewer_measured_photos_than_processes_are_refused():
    with pytest.raises(BadInput, match="as many photos to measure as processes, 4; received 3"):
        OwnShare(range(3), 4, 0)
