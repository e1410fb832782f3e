"""The network's own tensors are found under whatever prefix, and anything missing or foreign is named."""

from pathlib import Path

import pytest
import torch

from models.bad_input import BadInput
from models.foreign.fitting import check_fit, classes_in, find_own
from tests.foreign_networks import random_net, state_of

FILE = Path("a.pth")


def fit(tensors, prefix=None, **settings):
    expected = random_net(**settings).state_dict()
    fitted = find_own(FILE, tensors, expected, prefix)
    check_fit(FILE, fitted, expected, "net")
    return fitted


@pytest.mark.parametrize(
    ("before", "prefix", "wrappers"),
    [
        ("", "", ()),
        ("module.", "", ("module",)),
        ("model.", "model.", ()),
        ("backbone._orig_mod.", "backbone.", ("_orig_mod",)),
        ("_orig_mod.module.", "", ("module", "_orig_mod")),
        ("a.b.c.", "a.b.c.", ()),
    ],
)
def test_one_prefix_is_found(before, prefix, wrappers):
    fitted = (
        fit({**state_of(random_net(), before), "other.loss": torch.ones(1)})
        if prefix
        else fit(state_of(random_net(), before))
    )
    assert (fitted.prefix, fitted.wrappers) == (prefix, wrappers)
    assert torch.equal(fitted.tensors["fc.weight"], random_net().fc.weight)
    assert fitted.outside == (("other.loss",) if prefix else ())


def test_two_copies_are_refused_until_one_is_named():
    both = {**state_of(random_net(), "student."), **state_of(random_net(1), "teacher.")}
    with pytest.raises(BadInput, match=r"under 2 prefixes: 'student\.', 'teacher\.'. Name one: --prefix student\."):
        fit(both)
    for prefix in ("teacher.", "teacher"):
        assert torch.equal(fit(both, prefix).tensors["fc.weight"], random_net(1).fc.weight)
    with pytest.raises(BadInput, match=r"expected tensors of the network under 'pupil\.'"):
        fit(both, "pupil")


def test_a_name_that_is_the_networks_own_is_no_wrapper():
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(3, 2)

    expected = Wrapped().state_dict()
    fitted = find_own(FILE, {f"model.{name}": tensor for name, tensor in expected.items()}, expected)
    assert (fitted.prefix, fitted.wrappers, set(fitted.tensors)) == ("model.", (), set(expected))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("fc.bias"), r"1( under 'model.')? do not fit: fc.bias is missing"),
        (
            lambda state: state.pop("features.1.running_var"),
            r"1( under 'model.')? do not fit: features.1.running_var is missing",
        ),
        (
            lambda state: state.update({"extra.weight": torch.ones(2)}),
            r"1( under 'model.')? do not fit: extra.weight is unknown",
        ),
        (
            lambda state: state.update({"features.0.weight": torch.ones(6, 3, 5, 5)}),
            r"1( under 'model.')? do not fit: features.0.weight is \(6, 3, 5, 5\), not \(6, 3, 3, 3\)",
        ),
        (
            lambda state: state.update({"fc.bias": state["fc.bias"].double() + 1e-12}),
            r"that float32 holds exactly.*fc\.bias \(torch\.float64\)",
        ),
    ],
    ids=["missing", "missing statistics", "foreign", "shape", "rounded"],
)
@pytest.mark.parametrize("before", ["", "model."])
def test_what_does_not_fit_is_named(change, said, before):
    state = state_of(random_net())
    change(state)
    with pytest.raises(BadInput, match=said):
        fit({before + name: tensor for name, tensor in state.items()})


def test_another_network_is_told_both_sides_names():
    with pytest.raises(BadInput, match=r"such as fc\.bias.*whose names are others: a\.b\."):
        fit({"a.b": torch.ones(2)})


def test_counters_may_be_missing_or_there_besides():
    state = state_of(random_net())
    del state["features.1.num_batches_tracked"]
    assert fit({**state, "n_averaged": torch.tensor(4)}).outside == ("n_averaged",)


def test_classes_are_counted_where_only_the_classifier_differs():
    expected, state = random_net().state_dict(), state_of(random_net(num_classes=9))
    assert classes_in(state, expected) == 9
    assert classes_in(state_of(random_net()), expected) is None
    assert classes_in({**state, "features.0.bias": torch.ones(7)}, expected) is None
