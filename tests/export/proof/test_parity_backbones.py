"""The ladder against a real Keras: twins of many networks, paddings and sizes pass.

One Keras process for all of them. That it fails where it should is `test_parity.py`'s matter.
"""

import pytest

from export.proof.parity import Pair, check_pairs
from export.proof.report import Report
from export.torch_to_keras import write_twin
from tests.conftest import photos_of, random_classifier, save_checkpoint

pytestmark = pytest.mark.keras

WIDTHS = ["035", "050", "075", "100", "110d", "120d", "140"]
SIZES = [(64, 64), (61, 61), (70, 45)]  # even, odd, rectangular and mixed
# Every width with both paddings, going round the sizes, in six blocks; whole, one with each padding, and the one with
# the most blocks.
COMBINATIONS = [
    (f"mobilenetv2_short_{width}", pad_type, SIZES[(2 * number + column) % 3])
    for number, width in enumerate(WIDTHS)
    for column, pad_type in enumerate(("", "same"))
]
COMBINATIONS += [
    ("mobilenetv2_100", "", SIZES[1]), ("mobilenetv2_100", "same", SIZES[0]), ("mobilenetv2_120d", "same", SIZES[2])
]  # fmt: skip
# The trace knows operations, not MobileNetV2: residual branches of another order, squeeze-and-excitation, swish,
# hard-swish, max pooling, grouped convolutions, bottlenecks; LayerNorm, GELU and layers that torch holds as (H, W, C),
# at the size that they are made for.
COMBINATIONS += [
    (backbone, None, (64, 64))
    for backbone in ("resnet18", "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnetx_002")
]
COMBINATIONS.append(("convnext_atto", None, (224, 224)))
AT_ONCE = 7
MATRIX = [
    pytest.param(*each, id=f"{each[0]}-{each[1] or 'symmetric'}-{each[2][0]}x{each[2][1]}") for each in COMBINATIONS
]


@pytest.fixture(scope="module")
def matrix_reports(tmp_path_factory) -> dict[tuple[str, str, tuple[int, int]], Report]:
    """In groups of `AT_ONCE`, each in one Keras process: all networks together would take gigabytes."""
    folder = tmp_path_factory.mktemp("matrix")
    reports = {}
    for start in range(0, len(COMBINATIONS), AT_ONCE):
        pairs, keys = [], COMBINATIONS[start : start + AT_ONCE]
        for number, (backbone, pad_type, size) in enumerate(keys, start):
            network = random_classifier(
                number, backbone=backbone, pad_type=pad_type, bn_eps=1e-3 if pad_type == "same" else None, mean=0.45,
                std=0.25,
            )  # fmt: skip
            checkpoint = save_checkpoint(folder / f"{number}.ckpt", network, size)
            twin = write_twin(checkpoint, folder / f"{number}.h5", input_range="raw" if number % 2 else "unit")
            pairs.append(Pair(checkpoint, twin.path, photos_of(size)))
        reports.update(zip(keys, check_pairs(pairs), strict=True))
    return reports


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "pad_type", "size"), MATRIX)
def test_every_backbone_padding_and_size_passes(matrix_reports, backbone, pad_type, size):
    report = matrix_reports[backbone, pad_type, size]
    assert report.verdict == "PASS", report.failed
    assert [check.name for check in report.checks] == [
        "labels", "weights", "layers_float64", "probabilities_synthetic", "top1_synthetic", "probabilities_photos",
        "top1_photos", "training_steps", "contents",
    ]  # fmt: skip
