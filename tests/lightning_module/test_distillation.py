"""A student learns what its teachers say of the very photos that it sees, and keeps nothing of them."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_module.classifier import ProductClassifier
from lightning_module.distillation import Distillation, Teachers
from lightning_module.fine_tuning import Regularisation
from models.bad_input import BadInput
from tests.conftest import random_classifier, save_checkpoint
from tests.lightning_module.test_classifier import SETTINGS, batches, classifier, trainer

NAMES = SETTINGS["class_names"]
PHOTOS = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list:
    """Two that are sure of what they say; the second is larger and has more classes, in another order."""
    folder = tmp_path_factory.mktemp("teachers")
    found = []
    for number, (names, size) in enumerate(((NAMES, (32, 32)), (["z", "c", "a", "b"], (48, 40)))):
        network = random_classifier(number, backbone="mobilenetv2_short", hidden=())
        network.head.predictions = nn.Linear(network.head.predictions.in_features, len(names))
        with torch.no_grad():
            network.head.predictions.weight.mul_(20)
        found.append(save_checkpoint(folder / f"{number}.ckpt", network, size, class_names=names))
    return found


def loaded(path) -> nn.Module:
    from export.checkpoint import read_checkpoint

    return read_checkpoint(path).network


def test_probabilities_are_the_teachers_own(teachers):
    with torch.no_grad():
        expected = (loaded(teachers[0])(PHOTOS) / 3).softmax(dim=1)
    taught = Teachers(teachers[:1], NAMES, "float32").probabilities(PHOTOS, 3)
    torch.testing.assert_close(taught, expected, rtol=1e-4, atol=1e-5)


def test_classes_are_matched_by_name_and_photos_brought_to_the_teachers_size(teachers):
    seen = nn.functional.interpolate(PHOTOS, (48, 40), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = loaded(teachers[1])(seen)
    taught = Teachers(teachers[1:], NAMES, "float32").probabilities(PHOTOS, 1)
    torch.testing.assert_close(taught, logits[:, [2, 3, 1]].softmax(dim=1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(taught, logits[:, [1, 2, 3]].softmax(dim=1), atol=1e-2)  # in the teacher's order


def test_several_teach_their_mean(teachers):
    both = Teachers(teachers, NAMES, "float32").probabilities(PHOTOS, 2)
    each = [Teachers([path], NAMES, "float32").probabilities(PHOTOS, 2) for path in teachers]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    torch.testing.assert_close(both.sum(dim=1), torch.ones(len(PHOTOS)))


def test_loss_is_the_divergence_times_the_temperatures_square():
    logits, taught = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64).softmax(1)
    student = (logits / 4).softmax(1)
    expected = 16 * (taught * (taught / student).log()).sum(1).mean()
    torch.testing.assert_close(Distillation(temperature=4).loss(logits, taught), expected)
    assert Distillation(temperature=4).loss(taught.log() * 4, taught) == pytest.approx(0, abs=1e-12)


def fitted(folder, teachers, **settings):
    module = classifier(
        trainable="all", hidden=[], learning_rate=1e-2, teacher=[str(each) for each in teachers], **settings
    )
    trainer(folder, max_epochs=12, enable_checkpointing=False).fit(module, batches())
    return module


def distance(module, taught) -> float:
    photos, _ = batches().dataset.tensors
    with torch.no_grad():
        return float((module.eval()(photos).softmax(1) - taught).abs().mean())


def test_student_comes_nearer_to_its_teacher_than_to_the_labels(tmp_path, teachers):
    """Photos are noise and labels go by turns: neither says anything of the other."""
    photos, _ = batches().dataset.tensors
    taught = Teachers(teachers[:1], NAMES).probabilities(photos, 1)
    by_teacher = fitted(tmp_path, teachers[:1], distillation=Distillation(weight=1.0))
    by_labels = fitted(tmp_path, teachers[:1], distillation=Distillation(weight=0.0))
    assert distance(by_teacher, taught) < 0.5 * distance(by_labels, taught)


def test_nothing_of_a_teacher_is_saved(tmp_path, teachers):
    module = classifier(teacher=str(teachers[0]))
    plain = classifier()
    run = trainer(tmp_path, enable_checkpointing=False)
    run.fit(module, batches())
    run.save_checkpoint(tmp_path / "student.ckpt")
    content = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert content["state_dict"].keys() == plain.state_dict().keys()
    assert content["hyper_parameters"].keys() == dict(plain.hparams).keys()
    assert str(teachers[0]).encode() not in (tmp_path / "student.ckpt").read_bytes()
    optimised = {id(each) for group in run.optimizers[0].param_groups for each in group["params"]}
    assert optimised <= {id(each) for each in module.parameters()}


def test_teacher_sees_what_the_student_sees_mixed_and_at_the_full_size(tmp_path, teachers, monkeypatch):
    seen, learnt = [], []
    probabilities, logits = Teachers.probabilities, type(classifier()).logits_while_fitting

    def teach(self, images, temperature):
        seen.append(images.clone())
        return probabilities(self, images, temperature)

    def learn(self, images, exact):
        learnt.append(images.clone())
        return logits(self, images, exact)

    monkeypatch.setattr(Teachers, "probabilities", teach)
    module = classifier(
        trainable="all", teacher=str(teachers[0]), train_size=16, regularisation=Regularisation(mixup=1.0)
    )
    monkeypatch.setattr(type(module), "logits_while_fitting", learn)
    trainer(tmp_path, enable_checkpointing=False).fit(module, batches())
    for full, small in zip(seen, learnt, strict=True):
        assert full.shape[-2:] == (32, 32)
        assert torch.equal(module.shrunk(full), small)
    photos, _ = batches().dataset.tensors
    assert not any(torch.equal(full, part) for full, part in zip(seen, photos.split(4), strict=True))


def test_teacher_that_lacks_a_class_is_refused(teachers):
    with pytest.raises(BadInput, match=r"--model\.teacher: .* not \['d'\]"):
        Teachers(teachers, [*NAMES, "d"])


class Labels(L.LightningDataModule):
    """Eight photos of noise; labels of -1 are none."""

    unlabelled, batch_size = "a folder", 4

    def __init__(self, labels):
        super().__init__()
        self.labels = torch.tensor(labels)

    def train_dataloader(self):
        photos, _ = batches().dataset.tensors
        return DataLoader(TensorDataset(photos, self.labels), batch_size=4)


@pytest.mark.parametrize(
    "settings", [{}, {"regularisation": Regularisation(label_smoothing=0.1)}], ids=["hard", "soft"]
)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_photos_without_labels_are_taught_by_the_teacher_alone(tmp_path, teachers, weight, settings, monkeypatch):
    labels = [0, -1, 2, -1, -1, -1, -1, -1]
    seen = []
    monkeypatch.setattr(ProductClassifier, "backward", lambda self, loss: (seen.append(loss.item()), loss.backward()))
    module = classifier(
        teacher=str(teachers[0]),
        distillation=Distillation(weight=weight),
        learning_rate=1e-12,
        frozen_precision="float32",
        **settings,
    )
    run = trainer(tmp_path, enable_checkpointing=False)
    run.fit(module, datamodule=Labels(labels))
    photos, _ = batches().dataset.tensors
    with torch.no_grad():
        logits = module.eval()(photos)
    of_teacher = Distillation().loss(logits[:4], Teachers(teachers[:1], NAMES, "float32").probabilities(photos[:4], 1))
    smoothing = module.regularisation.label_smoothing
    of_labels = nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([0, 2]), label_smoothing=smoothing)
    assert seen[0] == pytest.approx(float(weight * of_teacher + (1 - weight) * of_labels), rel=1e-3)
    of_teacher = Distillation().loss(logits[4:], Teachers(teachers[:1], NAMES, "float32").probabilities(photos[4:], 1))
    assert seen[1] == pytest.approx(float(weight * of_teacher), rel=1e-3)  # a batch without any label
    right = (logits[[0, 2]].argmax(1) == torch.tensor([0, 2])).float().mean()
    assert run.callback_metrics["train/accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("settings", [{}, {"distillation": Distillation(weight=0.0)}], ids=["none", "not heard"])
def test_photos_without_labels_want_a_teacher(tmp_path, teachers, settings):
    if settings:
        settings["teacher"] = str(teachers[0])
    with pytest.raises(BadInput, match=r"--data\.unlabelled: expected a teacher .* --model\.teacher"):
        trainer(tmp_path).fit(classifier(**settings), datamodule=Labels([0] * 8))


def test_teacher_that_is_not_there_is_refused_before_photos_are_read(tmp_path):
    with pytest.raises(BadInput, match=r"--model\.teacher: expected a trained checkpoint, received .*gone.ckpt"):
        classifier(teacher=str(tmp_path / "gone.ckpt")).check_fit(torch.device("cpu"))


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": float("nan")}, {"weight": 1.1}])
def test_settings_out_of_range(settings):
    (name,) = settings
    with pytest.raises(BadInput, match=rf"--model\.distillation\.{name}: expected"):
        Distillation(**settings)
