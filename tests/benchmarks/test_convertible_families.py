"""`make families`: what counts as a CNN and as attention, which model stands for a family, what the page says."""

import pytest
import timm
import torch
from torch import nn

from export.graph.record import NotTraced, record
from export.graph.trace import unknown_operations
from tests.conftest import ROOT, load_script, random_classifier

SCRIPT = ROOT / "benchmarks" / "networks" / "convertible_families.py"


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


class Patches(nn.Module):
    """Convolutions whose windows do not overlap, as before a transformer."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=2 if attention else 4)
        self.attention = attention

    def forward(self, images):
        x = self.conv(images).flatten(2)
        return (torch.bmm(x, x.transpose(1, 2)) if self.attention else x).mean(2)


def test_kind_is_told_from_what_is_traced(script):
    assert script.kind(record(random_classifier(backbone="mobilenetv2_035"), (32, 32))) == "CNN"
    assert script.kind(record(Patches(attention=False), (32, 32))) == "mixer"
    assert script.kind(record(Patches(attention=True), (32, 32))) == "attention"


def test_operations_without_a_converter_are_listed():
    class Sums(Patches):
        def forward(self, images):
            return super().forward(images).erfinv().cumprod(1)

    assert unknown_operations(record(Sums(attention=True), (32, 32))) == ["aten.cumprod", "aten.erfinv"]
    assert unknown_operations(record(random_classifier(backbone="mobilenetv2_035"), (32, 32))) == []


def test_smallest_model_stands_for_its_family(script):
    assert script.smallest(["resnet50", "resnet18", "resnet34"]) == "resnet18"
    assert "mobilenetv2_035" in script.families()["efficientnet"]


def test_model_that_converts_and_one_that_does_not(script, tmp_path, monkeypatch):
    good = script.convert("mobilenetv2_035", tmp_path)
    assert (good["converts"], good["kind"], good["size"]) == (True, "CNN", 64)
    assert (tmp_path / "mobilenetv2_035.h5").is_file()

    class Products(nn.Module):
        def forward(self, values):
            return values.cumprod(1)

    create = timm.create_model

    def spoiled(*given, **settings):
        network = create(*given, **settings)
        network.conv_stem = nn.Sequential(network.conv_stem, Products())
        return network

    monkeypatch.setattr(timm, "create_model", spoiled)
    bad = script.convert("mobilenetv2_050", tmp_path)
    assert (bad["kind"], bad["converts"], bad["reason"]) == ("CNN", False, "no counterpart: aten.cumprod")
    assert not (tmp_path / "mobilenetv2_050.ckpt").exists()


def test_model_of_256_pixels_alone_is_tried_at_256(script, tmp_path):
    result = script.convert("halonet_h1", tmp_path)
    assert (result["kind"], result["size"], result["converts"]) == ("attention", 256, True)


def test_model_that_cannot_be_traced_is_told_in_its_own_words(script, tmp_path, monkeypatch):
    def refuse(network, image_size):
        raise NotTraced(network, image_size, RuntimeError("depends on data\nand more"))

    monkeypatch.setattr(script, "record", refuse)
    result = script.convert("mobilenetv2_035", tmp_path)
    assert (result["converts"], result["reason"]) == (False, "not traced: depends on data")


def test_page_says_what_was_proved_what_not_and_what_was_not_tried(script):
    base = {"model": "m", "kind": "CNN", "converts": True, "layers": 9, "size": 64, "reason": ""}
    checks = {"layers_float64": 1e-14, "probabilities_photos": 1e-7}
    results = {
        "a": {**base, "verdict": "PASS", "checks": checks},
        "b": {**base, "verdict": "FAIL", "failed": ["weights 1 at x"], "checks": checks},
        "c": base,
        "d": {**base, "converts": False, "reason": "no counterpart: aten.erf"},
        "e": {**base, "kind": "attention"},
    }
    text = script.page(results, "2026-11-23")
    assert "| a | CNN | m | 64 | 9 | certified | 1.0e-14 | 1.0e-07 |" in text
    assert "FAIL: weights 1 at x" in text
    assert "converts, not certified" in text
    assert "no counterpart: aten.erf" in text
    assert "| e | attention | m | 64 | 9 | converts, not certified |" in text
    assert "4 of 5 convert; 1 of them" in " ".join(text.split())
    assert "Not tried: " in text
