"""The frozen backbone's fast pass computes the network's features, and leaves no trace in what is saved."""

import copy
import importlib.util
import io
import math

import lightning as L
import pytest
import torch
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_module.classifier import ProductClassifier
from models import frozen_backbone
from models.bad_input import BadInput
from models.frozen_backbone import (
    COMPILE_PAYS_AT,
    FrozenBackbone,
    convolves_in_bfloat16,
    fold_batchnorm,
    join_activations,
    relative_error,
    resolve_precision,
    turn_around,
)
from models.timm_mobilenetv2 import TimmClassifier
from tests.conftest import random_classifier

MODELS = {
    "mobilenetv2_same": {"backbone": "mobilenetv2_035", "pad_type": "same", "bn_eps": 1e-3},
    "mobilenetv2_timm": {"backbone": "mobilenetv2_035"},
    "mobilenetv3": {"backbone": "mobilenetv3_small_050"},
    "efficientnet_same": {"backbone": "efficientnet_lite0", "pad_type": "same"},
    "resnet": {"backbone": "resnet18"},
    "without_batchnorm": {"backbone": "convnext_atto"},
}


def photos(count: int = 2, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def features(network: TimmClassifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.features(images)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [(64, 48), (61, 75)])
def test_exact_features_are_the_networks(model, size):
    network = random_classifier(**MODELS[model])
    images = photos(size=size)
    error = relative_error(FrozenBackbone(network).features(images, exact=True), features(network, images))
    print(f"{model}: {error:.1e}")
    assert error < 1e-5


FAST = "bfloat16" if convolves_in_bfloat16() else "float32"
"""What training steps are computed in here, for tests that do not care which it is."""

needs_bfloat16 = pytest.mark.skipif(FAST != "bfloat16", reason="this processor cannot convolve in bfloat16")


@needs_bfloat16
def test_bfloat16_features_are_near():
    network = random_classifier(**MODELS["mobilenetv2_same"])
    error = relative_error(FrozenBackbone(network, "bfloat16").features(photos()), features(network, photos()))
    assert 1e-4 < error < 5e-2  # the lower bound: bfloat16 really was used


def test_a_processor_without_bfloat16_is_told_before_anything_is_read(tmp_path, monkeypatch):
    """It was torch's traceback, out of the first training step."""
    monkeypatch.setattr(frozen_backbone, "convolves_in_bfloat16", lambda: False)
    with pytest.raises(BadInput, match=r"--model\.frozen_precision auto"):
        fit(tmp_path, classifier(frozen_precision="bfloat16"))
    fit(tmp_path, classifier(frozen_precision="auto"))  # the advice works
    fit(tmp_path, classifier(frozen_precision="bfloat16", trainable="all"))  # nothing is frozen, nothing is refused


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16"])
def test_auto_takes_no_instructions_that_onednn_refuses(monkeypatch, capability):
    """As with ONEDNN_MAX_CPU_ISA=AVX2: the processor has them, oneDNN does without."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    for convolves, expected in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(frozen_backbone, "convolves_in_bfloat16", lambda answer=convolves: answer)
        assert resolve_precision("auto", cpu) == expected


def test_float32_can_be_chosen():
    network = random_classifier(**MODELS["mobilenetv2_same"])
    assert relative_error(FrozenBackbone(network, "float32").features(photos()), features(network, photos())) < 1e-5


@pytest.mark.parametrize("model", ["mobilenetv2_same", "resnet"])
def test_no_batchnorm_is_left(model):
    network = random_classifier(**MODELS[model])
    folded = fold_batchnorm(network.backbone)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.backbone.modules())


def test_the_epsilon_counts():
    """Negative control: an epsilon of timm's in place of TensorFlow's is seen."""
    network = random_classifier(**MODELS["mobilenetv2_same"])
    reference = features(network, photos())
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5
    assert relative_error(FrozenBackbone(network).features(photos(), exact=True), reference) > 1e-4


def test_turning_alone_is_another_function():
    """Negative control: the images must be turned, too."""
    network = random_classifier(**MODELS["mobilenetv2_same"])
    turned = fold_batchnorm(network.backbone)
    assert turn_around(turned)
    with torch.no_grad():
        images = network.normalise(photos())
        assert relative_error(turned(images), network.backbone(images)) > 1e-3
        assert relative_error(turned(images.flip(2, 3)), network.backbone(images)) < 1e-5
    assert not turn_around(fold_batchnorm(random_classifier(**MODELS["mobilenetv2_timm"]).backbone))


def test_activations_are_joined_and_all_convolutions_are_onednns():
    network = random_classifier(**MODELS["mobilenetv2_timm"])
    joined = fold_batchnorm(network.backbone)
    join_activations(joined)
    names = [
        type(joined.get_submodule(node.target)).__name__ for node in joined.graph.nodes if node.op == "call_module"
    ]
    assert not {"ReLU6", "Conv2d"} & set(names)
    with torch.no_grad():
        assert relative_error(joined(photos()), network.backbone(photos())) < 1e-5


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_convolutions_with_other_padding_stay_torchs(settings):
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, **settings), nn.ReLU(), nn.Conv2d(4, 4, 1))
    traced = fx.symbolic_trace(layers)
    join_activations(traced)
    assert [type(each) for each in (traced.get_submodule("0"), traced.get_submodule("1"))] == [nn.Conv2d, nn.ReLU]
    assert type(traced.get_submodule("2")) is not nn.Conv2d
    with torch.no_grad():
        assert relative_error(traced(photos()), layers(photos())) < 1e-5


def test_a_shortcut_that_goes_wrong_is_not_taken(monkeypatch, recwarn):
    """A backbone that is not what the shortcuts take it for runs as it is."""
    network = random_classifier(**MODELS["mobilenetv2_same"])
    monkeypatch.setattr(frozen_backbone, "turn_around", lambda _: True)  # the images are turned, the network is not
    backbone = FrozenBackbone(network)
    for size in ((64, 48), (48, 64)):
        images = photos(size=size)
        assert relative_error(backbone.features(images, exact=True), features(network, images)) < 1e-5
    assert len([each for each in recwarn if "without shortcuts" in str(each.message)]) == 1  # said once


def test_the_check_of_the_shortcuts_is_done_in_whole_float32(monkeypatch):
    """TF32, which a GPU may be allowed to use, is further from float32 than the check allows."""

    def settings():
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    def spy(ours, reference):
        seen.append(settings())
        return relative_error(ours, reference)

    seen = []
    monkeypatch.setattr(frozen_backbone, "relative_error", spy)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        before = settings()
        FrozenBackbone(random_classifier(**MODELS["mobilenetv2_same"])).features(photos())
        assert settings() == before == ("tf32", "tf32")
    finally:
        torch.set_float32_matmul_precision(precision)
    assert seen == [("ieee", "ieee")]


def test_shortcuts_that_hold_are_no_warning(recwarn):
    FrozenBackbone(random_classifier(**MODELS["mobilenetv2_same"])).features(photos())
    assert not [each for each in recwarn if "shortcuts" in str(each.message)]


def test_shared_layers_are_not_folded_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, images):
            return self.norm(self.convolution(self.norm(self.convolution(images))))

    network = Twice().eval()
    network.norm.running_mean.fill_(0.3)
    with torch.no_grad():
        torch.testing.assert_close(fold_batchnorm(network)(photos()), network(photos()))


def test_parts_of_a_batch_are_put_together(monkeypatch):
    network = random_classifier(**MODELS["mobilenetv2_same"])
    monkeypatch.setattr(frozen_backbone, "PIXELS_AT_ONCE", 64 * 48 * 2)
    images = photos(5)
    ours = FrozenBackbone(network).features(images, exact=True)
    assert ours.shape == (5, 1280)
    assert relative_error(ours, features(network, images)) < 1e-5


def test_changed_weights_are_noticed():
    network = random_classifier(**MODELS["mobilenetv2_same"])
    frozen = FrozenBackbone(network)
    frozen.features(photos(), exact=True)
    other = random_classifier(seed=1, **MODELS["mobilenetv2_same"])
    network.load_state_dict(other.state_dict())
    assert relative_error(frozen.features(photos(), exact=True), features(other, photos())) < 1e-5
    with torch.no_grad():
        network.backbone.conv_stem.weight.mul_(1.5)
    assert relative_error(frozen.features(photos(), exact=True), features(network, photos())) < 1e-5
    network.double().float()  # moved: new tensors in the same places
    assert relative_error(frozen.features(photos(), exact=True), features(network, photos())) < 1e-5


def test_copies_are_made_once(tmp_path, monkeypatch):
    """The head's steps are no reason to make them again: one for training, one for measuring."""
    made = []
    original = FrozenBackbone._make_pass
    monkeypatch.setattr(
        FrozenBackbone, "_make_pass", lambda self, dtype, *rest: made.append(dtype) or original(self, dtype, *rest)
    )
    module = classifier(frozen_precision=FAST)
    module.on_train_start = lambda: None  # makes the sanity check's anew, which is no waste worth counting here
    fit(tmp_path, module)
    assert sorted(made, key=str) == ([torch.bfloat16, torch.float32] if FAST == "bfloat16" else [torch.float32])


def test_network_is_left_alone():
    network = random_classifier(**MODELS["mobilenetv2_same"])
    before = copy.deepcopy(network.state_dict())
    FrozenBackbone(network, FAST).features(photos())
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_features_made_while_validating_serve_training():
    """Lightning validates in inference mode; the copy that is made there must not be of its tensors."""
    network = random_classifier(**MODELS["mobilenetv2_same"])
    frozen = FrozenBackbone(network)
    with torch.inference_mode():
        frozen.features(photos(), exact=True)
    network.head(frozen.features(photos(), exact=True)).sum().backward()
    assert network.head.predictions.weight.grad.abs().sum() > 0


def test_compiling_waits_for_enough_photos(monkeypatch):
    frozen = FrozenBackbone(random_classifier(backbone="mobilenetv2_035"))
    for kind, enough in COMPILE_PAYS_AT.items():
        for photo_count, compiler, compiles in (
            (enough, True, True),
            (enough - 1, True, False),
            (enough, False, False),
        ):
            # a GPU wants Triton and does not ask for a C++ compiler; a CPU the other way round
            at_hand, other = (compiler, not compiler) if kind == "cpu" else (not compiler, compiler)
            monkeypatch.setattr(frozen_backbone, "has_cpp_compiler", lambda at_hand=at_hand: at_hand)
            monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=other: name if there else None)
            frozen.expect(photo_count, torch.device(kind))
            assert frozen._compiles == compiles, (kind, photo_count, compiler)
    frozen.expect(math.inf, torch.device("mps"))  # without a last epoch
    assert not frozen._compiles


def test_what_cannot_be_compiled_runs_anyway(monkeypatch):
    def broken(module, **_):
        def run(images):
            raise RuntimeError("no header")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    network = random_classifier(**MODELS["mobilenetv2_same"])
    frozen = FrozenBackbone(network, "float32")
    monkeypatch.setattr(frozen_backbone, "has_cpp_compiler", lambda: True)
    frozen.expect(COMPILE_PAYS_AT["cpu"], torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"without torch\.compile: no header"):
        ours = frozen.features(photos())
    assert relative_error(ours, features(network, photos())) < 1e-5
    with pytest.raises(RuntimeError, match="no header"):
        FrozenBackbone(network, compile="always").features(photos())


@pytest.mark.slow
@pytest.mark.skipif(not frozen_backbone.has_cpp_compiler(), reason="there is no C++ compiler")
def test_compiled_features_are_the_networks(monkeypatch):
    network = random_classifier(**MODELS["mobilenetv2_same"])
    monkeypatch.setattr(frozen_backbone, "PIXELS_AT_ONCE", 64 * 48 * 2)
    frozen = FrozenBackbone(network, "float32", compile="always")
    for count in (4, 3):  # the last part is filled up
        ours = frozen.features(photos(count))
        assert ours.shape == (count, 1280)
        assert relative_error(ours, features(network, photos(count))) < 1e-5


@pytest.mark.parametrize("setting", [{"frozen_precision": "float16"}, {"compile": "yes"}])
def test_settings_are_checked(setting):
    with pytest.raises(BadInput, match=rf"--model\.{next(iter(setting))}: expected .* received"):
        classifier(**setting)


def classifier(**settings) -> ProductClassifier:
    torch.manual_seed(0)
    return ProductClassifier(["a", "b"], [32, 32], backbone="mobilenetv2_035", pretrained=False, **settings)


def fit(folder, module: ProductClassifier, **settings) -> L.Trainer:
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **settings,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(photos(6, (32, 32)), torch.arange(6) % 2), batch_size=4)
    trainer.fit(module, batches, batches)
    return trainer


def test_checkpoint_knows_nothing_of_it(tmp_path):
    fast, plain = classifier(frozen_precision=FAST), classifier(frozen_precision="float32", compile="never")
    assert dict(fast.hparams) == dict(plain.hparams)
    before = list(fast.state_dict())
    trainer = fit(tmp_path, fast)
    assert fast._frozen_backbone._passes  # it was used
    assert list(fast.state_dict()) == before
    trainer.save_checkpoint(tmp_path / "fast.ckpt")
    saved = torch.load(tmp_path / "fast.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == before
    assert not {"frozen_precision", "compile"} & saved["hyper_parameters"].keys()
    loaded = ProductClassifier.load_from_checkpoint(tmp_path / "fast.ckpt")
    torch.testing.assert_close(loaded.eval()(photos(size=(32, 32))), fast.eval()(photos(size=(32, 32))))


def test_module_can_be_copied_and_pickled(tmp_path):
    module = classifier()
    fit(tmp_path, module)
    module.trainer = None
    copied = copy.deepcopy(module)
    assert copied._frozen_backbone.network is copied.network
    assert not copied._frozen_backbone._passes
    torch.save(copied, io.BytesIO())


def test_measuring_takes_the_network_itself(tmp_path, monkeypatch):
    """While fitting, validation is in float32; afterwards nothing of the fast pass is used."""
    asked = []
    original = FrozenBackbone.features

    def spy(self, images, exact=False):
        asked.append((torch.is_grad_enabled(), exact))
        return original(self, images, exact)

    monkeypatch.setattr(FrozenBackbone, "features", spy)
    module = classifier()
    trainer = fit(tmp_path, module)
    assert set(asked) == {(False, True), (True, False)}  # validation, training
    asked.clear()
    batches = DataLoader(TensorDataset(photos(4, (32, 32)), torch.arange(4) % 2), batch_size=4)
    trainer.validate(module, batches, verbose=False)
    trainer.test(module, batches, verbose=False)
    trainer.predict(module, batches)
    assert asked == []


@pytest.mark.parametrize(("precision", "taken"), [("bf16-mixed", True), ("bf16-true", False)])
def test_training_steps_take_the_fast_pass_under_bf16_mixed_too(tmp_path, monkeypatch, precision, taken):
    """configs/gpu.yaml sets it; other precisions are the user's own choice of how to compute."""
    asked = []
    original = FrozenBackbone.features

    def spy(self, images, exact=False):
        features = original(self, images, exact)
        asked.append((exact, features.dtype))
        return features

    monkeypatch.setattr(FrozenBackbone, "features", spy)
    fit(tmp_path, classifier(), precision=precision, limit_val_batches=0)
    assert asked == [(False, torch.float32)] * 4 * taken


def test_float16_is_the_users_own_choice():
    module = classifier()
    with torch.autocast("cpu", torch.float16):  # the trainer's 16-mixed, which Lightning has on GPUs alone
        assert module.logits_while_fitting(photos(size=(32, 32)), exact=False).dtype == torch.float16
    assert not module._frozen_backbone._passes


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_autocast_does_not_reach_the_fast_pass(precision):
    network = random_classifier(**MODELS["mobilenetv2_same"])
    plain = FrozenBackbone(network, precision).features(photos())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = FrozenBackbone(network, precision).features(photos())
        rounded = features(network, photos())
    assert torch.equal(under_autocast, plain)
    assert relative_error(rounded.float(), plain) > 1e-3  # the negative control: the network itself it does reach


def test_fine_tuning_has_no_fast_pass():
    module = classifier(trainable="all")
    logits = module.logits_while_fitting(photos(size=(32, 32)), exact=False)
    assert not module._frozen_backbone._passes
    logits.sum().backward()
    assert module.network.backbone.conv_stem.weight.grad is not None
