import copy

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_module.classifier import ProductClassifier
from lightning_module.evaluation.figures import per_class
from lightning_module.fine_tuning import Regularisation
from models.bad_input import BadInput
from models.keras_adam import KerasAdam
from models.timm_mobilenetv2 import TimmClassifier

SETTINGS = {"class_names": ["a", "b", "c"], "image_size": [32, 32], "backbone": "mobilenetv2_short", "hidden": [8]}


def classifier(**settings) -> ProductClassifier:
    torch.manual_seed(0)
    return ProductClassifier(**SETTINGS | {"pretrained": False} | settings)


def batches(count: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    photos = torch.rand(count, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(photos, torch.arange(count) % 3), batch_size=4)


def trainer(folder, **settings) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1} | settings,
    )


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_backbone_keeps_weights_and_statistics_while_the_head_learns(tmp_path):
    module = classifier(trainable="head")
    before = snapshot(module.network)
    trainer(tmp_path).fit(module, batches(), batches())
    assert changed(before, module.network) == {name for name in before if name.startswith("head.")}
    assert not any(layer.training for layer in module.network.backbone.modules())


def test_trainable_all_moves_everything(tmp_path):
    module = classifier(trainable="all")
    before = snapshot(module.network)
    trainer(tmp_path).fit(module, batches(), batches())
    moved = changed(before, module.network)
    assert "backbone.conv_stem.weight" in moved
    assert "backbone.bn1.running_mean" in moved


def test_frozen_forward_keeps_no_graph_of_the_backbone():
    photos = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(trainable="head")(photos).sum().backward()
    assert photos.grad is None
    classifier(trainable="all")(photos).sum().backward()
    assert photos.grad is not None


def test_steps_log_what_torch_says(tmp_path):
    module = classifier()
    run = trainer(tmp_path)
    (figures,) = run.validate(module, batches(), verbose=False)
    photos, labels = batches().dataset.tensors
    with torch.no_grad():
        logits = module.eval()(photos)
    assert figures["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert figures["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert 0 <= figures["val/f1_macro"] <= 1
    counts = torch.tensor(module.confusion_counts["val"])
    assert counts.sum(dim=1).tolist() == labels.bincount().tolist()
    assert counts.diagonal().sum() == (logits.argmax(1) == labels).sum()


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_what_is_measured_under_mixed_precision_is_float32(tmp_path, monkeypatch, trainable):
    """Validation within a fit and everything after it; the training steps are what the precision is of."""
    measured, trained = [], []
    cross_entropy = nn.functional.cross_entropy

    def spy(logits, *rest):
        (trained if torch.is_grad_enabled() else measured).append(logits.detach())
        return cross_entropy(logits, *rest)

    def in_float32() -> torch.Tensor:
        with torch.no_grad():
            return copy.deepcopy(module.network).eval()(photos)

    monkeypatch.setattr(nn.functional, "cross_entropy", spy)
    module = classifier(trainable=trainable)
    photos, _ = batches().dataset.tensors
    run = trainer(tmp_path, precision="bf16-mixed", enable_checkpointing=False)
    before = in_float32()
    run.fit(module, batches(), batches())
    assert {logits.dtype for logits in trained} == {torch.bfloat16}
    assert {logits.dtype for logits in measured} == {torch.float32}
    # the sanity check's, on the weights from before; a frozen backbone has a pass of its own, equal but for rounding
    torch.testing.assert_close(torch.cat(measured[:2]), before, rtol=0, atol=1e-6 if trainable == "head" else 0)
    measured.clear()
    run.validate(module, batches(), verbose=False)
    run.test(module, batches(), verbose=False)
    probabilities = torch.cat(run.predict(module, batches()))
    torch.testing.assert_close(torch.cat(measured), in_float32().repeat(2, 1), rtol=0, atol=0)
    torch.testing.assert_close(probabilities, in_float32().softmax(dim=1), rtol=0, atol=0)
    # the negative control: computed as the training steps are, they would be others
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = module.eval()(photos)
    assert (rounded.float() - in_float32()).abs().max() > 1e-4


def test_what_is_measured_is_not_computed_in_tf32(tmp_path, monkeypatch):
    """Ten bits of float32's 23, which torch lets convolutions use on GPUs unless told otherwise."""
    places = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    measured, trained = set(), set()
    original = TimmClassifier.features

    def spy(self, images):
        allowed = tuple(place.fp32_precision for place in places)
        (trained if torch.is_grad_enabled() else measured).add(allowed)
        return original(self, images)

    monkeypatch.setattr(TimmClassifier, "features", spy)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        run, module = trainer(tmp_path, enable_checkpointing=False), classifier(trainable="all")
        run.fit(module, batches(), batches())
        run.test(module, batches(), verbose=False)
        run.predict(module, batches())
    finally:
        torch.set_float32_matmul_precision(precision)
    assert measured == {("ieee", "ieee")}
    assert trained == {("tf32", "tf32")}  # the negative control: they were allowed


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_what_is_measured_in_a_precision_of_the_weights_stays_in_it(tmp_path, precision, dtype):
    module = classifier()
    seen = []
    module.network.head.register_forward_hook(lambda _module, _given, logits: seen.append(logits.dtype))
    trainer(tmp_path, precision=precision, enable_checkpointing=False).validate(module, batches(), verbose=False)
    assert set(seen) == {dtype}


def test_training_steps_ask_the_device_for_nothing(tmp_path, monkeypatch):
    """Each number that Python asks for, and each list of what occurs, would have the host wait for a GPU."""
    asked = []
    # other tests may have left them on: torchmetrics counts otherwise then
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)

    class Asks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function._schema.name in (
                "aten::_local_scalar_dense",
                "aten::_unique2",
                "aten::nonzero",
                "aten::bincount",
            ):
                asked.append(function._schema.name)
            return function(*arguments, **(options or {}))

    step = ProductClassifier.training_step

    def watched(self, batch, batch_idx):
        with Asks():
            return step(self, batch, batch_idx)

    monkeypatch.setattr(ProductClassifier, "training_step", watched)
    settings = {"trainable": "all", "train_size": 24, "regularisation": Regularisation(label_smoothing=0.1)}
    trainer(tmp_path, enable_checkpointing=False).fit(classifier(**settings), batches(), batches())
    assert asked == []
    # the negative control: a metric that counts classes is seen
    monkeypatch.setattr(
        "lightning_module.measured_module._figures", lambda name, count: MetricCollection([MulticlassAccuracy(count)])
    )
    trainer(tmp_path, enable_checkpointing=False).fit(classifier(**settings), batches())
    assert "aten::bincount" in asked


def test_labels_that_are_no_class_are_refused(tmp_path):
    photos, labels = batches().dataset.tensors
    wrong = DataLoader(TensorDataset(photos, labels + 1), batch_size=4)  # 1, 2 and 3 of three classes
    for measure in (trainer(tmp_path, enable_checkpointing=False).fit, trainer(tmp_path).validate):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            measure(classifier(), wrong)


def test_confusion_is_counted_anew_each_time(tmp_path):
    module, run = classifier(), trainer(tmp_path)
    run.validate(module, batches(), verbose=False)
    first = module.confusion_counts["val"]
    run.validate(module, batches(), verbose=False)
    assert module.confusion_counts["val"] == first


def test_predictions_are_probabilities():
    probabilities = classifier().eval().predict_step((torch.rand(2, 3, 32, 32), torch.arange(2)), 0)
    assert probabilities.shape == (2, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def test_optimiser_is_keras_adam_over_what_is_trainable():
    module = classifier(trainable="head", learning_rate=0.01)
    optimiser = module.configure_optimizers()
    assert isinstance(optimiser, KerasAdam)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["keras_epsilon"]) == (0.01, 1e-7)
    assert {id(p) for p in group["params"]} == {id(p) for p in module.network.head.parameters()}


def test_checkpoint_is_plain_types_and_says_all(tmp_path):
    module, run = classifier(pad_type="same", mean=0.5, std=0.5), trainer(tmp_path)
    run.fit(module, batches(), batches())
    run.save_checkpoint(tmp_path / "c.ckpt")
    content = torch.load(tmp_path / "c.ckpt", weights_only=True)
    saved = content["hyper_parameters"]
    assert saved["class_names"] == ["a", "b", "c"]
    assert saved["image_size"] == [32, 32]
    assert (saved["pad_type"], saved["bn_eps"], saved["hidden"]) == ("same", 1e-5, [8])
    assert (saved["mean"], saved["std"]) == ([0.5] * 3, [0.5] * 3)
    assert "network.head.predictions.weight" in content["state_dict"]
    assert all(name.startswith("network.") for name in content["state_dict"])

    again = ProductClassifier.load_from_checkpoint(tmp_path / "c.ckpt").eval()
    photos = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(photos), module.eval()(photos))


def test_pretrained_weights_are_read_when_fitting_starts_and_never_again(tmp_path):
    torch.manual_seed(1)
    teacher = classifier().network.backbone.state_dict()
    teacher["conv_stem.weight"] = torch.full_like(teacher["conv_stem.weight"], 0.5)
    save_file({name: value.contiguous() for name, value in teacher.items()}, tmp_path / "w.safetensors")
    module = classifier(pretrained=True, weights=str(tmp_path / "w.safetensors"))
    assert not torch.equal(module.network.backbone.conv_stem.weight, teacher["conv_stem.weight"])

    run = trainer(tmp_path)
    run.fit(module, batches(), batches())
    assert torch.equal(module.network.backbone.conv_stem.weight, teacher["conv_stem.weight"])
    assert module.weights_report is not None
    run.save_checkpoint(tmp_path / "c.ckpt")

    (tmp_path / "w.safetensors").unlink()
    loaded = ProductClassifier.load_from_checkpoint(tmp_path / "c.ckpt")
    trainer(tmp_path).fit(loaded, batches(), batches())  # goes on from the checkpoint's weights
    resumed = classifier(pretrained=True, weights=str(tmp_path / "w.safetensors"))
    trainer(tmp_path, max_epochs=2).fit(resumed, batches(), batches(), ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(resumed.network.backbone.conv_stem.weight, teacher["conv_stem.weight"])
    with pytest.raises(BadInput, match="not there"):  # the negative control: a fresh start does want the file
        trainer(tmp_path).fit(classifier(pretrained=True, weights=str(tmp_path / "w.safetensors")), batches())


def test_checkpoint_of_other_classes_or_models_is_refused(tmp_path):
    module, run = classifier(), trainer(tmp_path)
    run.fit(module, batches(), batches())
    run.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(BadInput, match=r"trained on the classes \['a', 'b', 'c'\]"):
        run.validate(classifier(class_names=["a", "b", "d"]), batches(), ckpt_path=tmp_path / "c.ckpt")

    torch.save({"state_dict": {}, "pytorch-lightning_version": L.__version__}, tmp_path / "other.ckpt")
    with pytest.raises(BadInput, match="another model"):
        run.validate(classifier(), batches(), ckpt_path=tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"trainable": "tail"}, "trainable"),
        ({"class_names": ["a", "a"]}, "each name once"),
        ({"class_names": ["a"]}, "at least 2"),
        ({"image_size": [0, 32]}, "image_size"),
        ({"weights": "file.pth"}, r"--model\.pretrained false"),
        ({"backbone": "nothing_of_the_kind"}, "backbone"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(BadInput, match=words):
        classifier(**settings)


def test_per_class_figures_against_a_case_by_hand():
    # of 4 photos of a, one is taken for b; both of b are right; c has none
    figures = per_class([[3, 1, 0], [0, 2, 0], [0, 0, 0]], ["a", "b", "c"])
    assert figures["a"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4}
    assert figures["b"] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "support": 2}
    assert figures["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
