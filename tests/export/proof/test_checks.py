"""What the checks say of given numbers: no Keras, no network."""

import numpy as np
import pytest

from export.graph.nodes import Graph, Node
from export.proof.checks import check_file_labels, check_file_pixels, check_layers, check_top1, check_training
from export.proof.image_sets import ImageSet
from export.proof.report import Check, LayerError, Report, print_report, worst_photos


def images_of(count: int, name: str = "synthetic") -> ImageSet:
    return ImageSet(name, np.zeros((count, 2, 2, 3), np.uint8), [f"image {number}" for number in range(count)])


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


# Labels ------------------------------------------------------------------------------------------


def test_label_that_is_as_likely_counts_as_the_same():
    torch_gave = rows((0.400001, 0.4, 0.2), (0.1, 0.2, 0.7))
    keras_gave = rows((0.4, 0.400001, 0.2), (0.1, 0.2, 0.7))
    check = check_top1(images_of(2), torch_gave, keras_gave)
    assert (check.name, check.passed, check.figure, check.first_divergence) == ("top1_synthetic", True, 1.0, None)


def test_label_that_is_a_little_less_likely_is_another():
    torch_gave = rows((0.1, 0.2, 0.7), (0.40002, 0.4, 0.2))
    keras_gave = rows((0.1, 0.2, 0.7), (0.4, 0.40002, 0.2))
    check = check_top1(images_of(2), torch_gave, keras_gave)
    assert (check.passed, check.figure, check.first_divergence) == (False, 0.5, "image 1")


@pytest.mark.parametrize("side", ["torch", "keras", "both"])
def test_what_is_not_a_number_has_no_label(side):
    good, broken = rows((0.6, 0.4), (0.3, 0.7)), rows((0.6, 0.4), (np.nan, np.nan))
    check = check_top1(images_of(2), good if side == "keras" else broken, good if side == "torch" else broken)
    assert (check.passed, check.first_divergence) == (False, "image 1")


def test_other_numbers_of_classes_have_no_label_in_common():
    assert not check_top1(images_of(1), rows((0.5, 0.5)), rows((0.4, 0.3, 0.3))).passed


# Photos from file --------------------------------------------------------------------------------

FILES = ["a.jpg", "b.jpg", "c.jpg"]


def test_photo_labelled_from_its_file_may_have_a_label_that_is_as_likely():
    torch_gave = rows((0.400001, 0.4, 0.2), (0.1, 0.2, 0.7), (1, 0, 0))
    keras_gave = rows((0.4, 0.400001, 0.2), (0.1, 0.2, 0.7), (1, 0, 0))
    assert check_file_labels(FILES, (torch_gave, keras_gave), {}).passed
    check = check_file_labels(FILES, (torch_gave, keras_gave[[0, 2, 1]]), {})
    assert (check.passed, check.figure, check.first_divergence) == (False, 2, "b.jpg")
    assert "for 1 of 3 photos" in check.detail
    assert "probability 0.9, for b.jpg" in check.detail


def test_probability_that_moves_is_said_even_where_no_label_changes():
    check = check_file_labels(FILES, (rows((0.9, 0.1)) * np.ones((3, 1)), rows((0.9, 0.1), (0.8, 0.2), (0.9, 0.1))), {})
    assert check.passed
    assert "largest difference of a probability 0.1, for b.jpg" in check.detail


def test_pixels_of_files_that_differ_are_counted_with_how_much():
    ours = np.full((3, 2, 2, 3), 7, np.uint8)
    assert check_file_pixels(FILES, (ours, ours.copy()), {}).passed
    theirs = ours.copy()
    theirs[1, 0, 0, 2] += 1
    theirs[2, 1, :, 0] -= 2  # less counts as much as more, also below 0
    theirs[2, 0, 0] = 255
    check = check_file_pixels(FILES, (ours, theirs), {})
    assert (check.passed, check.figure, check.first_divergence) == (False, 2, "b.jpg")
    assert check.detail.endswith("the same pixels, but for 2, by up to 248 of 255 in 50% of their pixels")


def test_share_of_nearly_all_pixels_is_a_plain_number():
    ours = np.zeros((3, 40, 40, 3), np.uint8)
    assert "in 100% of" in check_file_pixels(FILES, (ours, ours + 1), {}).detail


def test_photo_that_keras_cannot_read_has_neither_pixels_nor_label():
    pixels, same = np.ones((3, 2, 2, 3), np.uint8), rows((1, 0), (1, 0), (1, 0))
    zeros = pixels.copy()
    zeros[1] = 0
    for check in (
        check_file_pixels(FILES, (pixels, zeros), {1: "no reader"}),
        check_file_labels(FILES, (same, same), {1: "no reader"}),
    ):
        assert (check.passed, check.figure, check.first_divergence) == (False, 1, "b.jpg")
        assert check.detail.endswith("b.jpg: Keras cannot read it: no reader")
        assert "255" not in check.detail
    assert "for 2 of 3 photos" in check.detail


def test_other_numbers_of_classes_fail_without_a_crash():
    assert check_file_labels(FILES, (rows((1, 0)) * np.ones((3, 1)), np.ones((3, 3), np.float32)), {}).figure == 3


# Layers ------------------------------------------------------------------------------------------


GRAPH = Graph(
    (
        Node("image", "input", (), (1,)),
        Node("first", "softmax", ("image",), (1,)),
        Node("second", "softmax", ("first",), (1,)),
        Node("third", "softmax", ("second",), (1,)),
    ),
    {},
)


def test_error_of_the_first_diverging_layer_is_stated_in_table_and_last_line():
    torch_gave = {name: np.ones((2, 1)) for name in ("first", "second", "third")}
    keras_gave = {"first": np.ones((2, 1)), "second": np.full((2, 1), 1.25), "third": np.full((2, 1), 9.0)}
    check, errors = check_layers(GRAPH, torch_gave, keras_gave)
    assert (check.figure, check.first_divergence) == (8.0, "second")
    assert "second: relative error 0.25" in check.detail
    report = Report({}, {}, [check], layers=errors, likely_cause="A cause")
    assert report.last_line() == "parity FAIL: layers_float64 at second: relative error 0.25. A cause"


def test_layers_that_agree_state_no_layer_and_how_many_images():
    torch_gave = {name: np.ones((2, 1)) for name in ("first", "second", "third")}
    check, _ = check_layers(GRAPH, torch_gave, torch_gave)
    assert check.passed
    assert "the first and the last image" in check.detail
    assert "relative" not in check.detail
    one = {name: array[:1] for name, array in torch_gave.items()}
    assert "for one image" in check_layers(GRAPH, one, one)[0].detail


def test_last_line_of_another_rung_states_no_layer():
    failed = Check("weights", False, 1, 0, "arrays differ", "", "second")
    report = Report({}, {}, [failed], layers=[LayerError("second", "relu", "", 0.25)])
    assert report.last_line() == "parity FAIL: weights at second"


def test_name_from_a_file_is_printed_as_it_is_and_not_taken_for_markup(capsys):
    failed = Check("contents", False, 1, 0, "parts differ", "not written: group [/x]", "group [/x]")
    print_report(Report({}, {}, [failed], skipped={"file_pixels": "no [/y]"}))
    printed = capsys.readouterr().out
    assert "no [/y]" in printed
    assert printed.splitlines()[-1] == "parity FAIL: contents at group [/x]"


# Photos ------------------------------------------------------------------------------------------


def test_photos_that_differ_most_come_first_and_those_without_a_number_before_them():
    from_torch = rows((0.5, 0.5), (0.5, 0.5), (0.5, 0.5))
    from_keras = rows((0.5, 0.5), (0.6, 0.4), (np.nan, 0.5))
    photos = worst_photos(images_of(3, "photos"), from_torch, from_keras)
    assert [photo.name for photo in photos] == ["image 2", "image 1", "image 0"]
    assert photos[0].difference == np.inf
    assert worst_photos(images_of(3, "photos"), from_torch, from_keras[:, :1]) == []


# Training ----------------------------------------------------------------------------------------


def dense(kernel: float) -> Graph:
    """Pooled colours into one dense layer whose weights are all alike; torch's layout, (out, in)."""
    nodes = (
        Node("photo", "input", (), (3, 4, 4)),
        Node("pool", "global_average_pool", ("photo",), (3,), {"keep_dimensions": False}),
        Node("predictions", "dense", ("pool",), (2,), {}, {"kernel": "w"}),
    )
    return Graph(nodes, {"w": np.full((2, 3), kernel)})


def after(kernel: float) -> dict[str, np.ndarray]:
    """What Keras arrived at: (in, out)."""
    return {"predictions/0": np.full((3, 2), kernel)}


def test_training_that_moves_nothing_proves_nothing():
    check = check_training(dense(0.5), dense(0.5), after(0.5), "", steps=3, rate=1e-3)
    assert (check.passed, check.figure) == (False, 0.0)
    assert check.first_divergence == "the first step: nothing moved"


def test_training_that_moves_both_alike_passes_and_otherwise_not():
    assert check_training(dense(0.5), dense(0.499), after(0.499), "", steps=1, rate=1e-3).passed
    check = check_training(dense(0.5), dense(0.499), after(0.4991), "", steps=1, rate=1e-3)
    assert (check.passed, check.first_divergence) == (False, "predictions/kernel")


def test_nothing_compared_is_nothing_proved():
    check, errors = check_layers(Graph((Node("image", "input", (), (3, 4, 4)),), {}), {}, {})
    assert (check.passed, errors) == (False, [])
