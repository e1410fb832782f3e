"""The schedule and the regularisation, by their own formulas and by what they do to a network that is trained."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_module.classifier import ProductClassifier
from lightning_module.fine_tuning import (
    BatchRegulariser,
    EmaOfWeights,
    Regularisation,
    Schedule,
    balanced_weights,
    shrink,
)
from models.bad_input import BadInput
from models.keras_adam import KerasAdam
from tests.lightning_module.test_classifier import batches, changed, classifier, snapshot, trainer


def seed(number: int = 0) -> None:
    random.seed(number), np.random.seed(number), torch.manual_seed(number)


class TestSchedule:
    def rates(self, steps: int, of_backbone: bool = False, **settings) -> list[float]:
        schedule = Schedule(**settings)
        return [schedule.rate(step, 4, steps, of_backbone) for step in range(steps)]

    def test_nothing_asked_for_is_constant(self):
        assert self.rates(8) == [1.0] * 8

    def test_the_head_learns_alone_first(self):
        assert self.rates(6, head_epochs=1) == [1.0] * 6
        assert self.rates(6, of_backbone=True, head_epochs=1) == [0, 0, 0, 0, 1, 1]

    def test_warm_up_rises_in_equal_steps(self):
        assert self.rates(6, warmup_epochs=1) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])

    def test_cosine_falls_to_nearly_nothing(self):
        rates = self.rates(8, cosine=True)
        assert rates[0] == 1
        assert rates[4] == pytest.approx(0.5)
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 0.05

    def test_all_together(self):
        rates = self.rates(16, head_epochs=1, warmup_epochs=1, cosine=True)
        assert rates[:4] == [1] * 4
        assert rates[4:8] == pytest.approx([0.2, 0.4, 0.6, 0.8])
        assert rates[8] == 1
        assert rates[12] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        "settings",
        [{"head_epochs": -1}, {"warmup_epochs": -1}, {"backbone_factor": 0}, {"batch_norm": "none"}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_out_of_range(self, settings):
        with pytest.raises(BadInput, match=r"--model\.schedule"):
            Schedule(**settings)


class TestRegularisation:
    def photos(self, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 3

    def test_smoothing_is_torchs_own(self):
        images, labels = self.photos()
        _, targets = BatchRegulariser(Regularisation(label_smoothing=0.1), 3)(images, labels)
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
        ours = nn.functional.cross_entropy(logits, targets)
        assert ours.item() == pytest.approx(nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item())

    @pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"mixup": 1.0, "label_smoothing": 0.2}])
    def test_targets_of_photos_without_labels(self, settings):
        """timm's own targets of the labelled share; a photo without a label adds nothing."""
        images, labels = self.photos()
        some = torch.where(torch.arange(6) < 2, -1, labels)
        seed()
        _, whole = BatchRegulariser(Regularisation(**settings), 3)(images.clone(), labels)
        seed()
        _, targets = BatchRegulariser(Regularisation(**settings), 3)(images.clone(), some)
        torch.testing.assert_close(targets[2:4], whole[2:4])  # mixed with each other
        if "mixup" not in settings:
            assert targets[:2].abs().sum() == 0
            return
        # photo 5 is mixed with photo 0, which has no label: what is left is its own share
        assert 0 < targets[5].sum() < 1
        torch.testing.assert_close(targets[5].sum() + targets[0].sum(), torch.tensor(1.0))

    @pytest.mark.parametrize("count", [6, 5, 1])
    def test_mixup_blends_photos_as_it_blends_labels(self, count):
        images, labels = self.photos(count)
        seed()
        mixed, targets = BatchRegulariser(Regularisation(mixup=1.0), 3)(images.clone(), labels)
        pairs = count // 2 * 2
        assert torch.allclose(targets.sum(1), torch.ones(count))
        for row in range(pairs):
            other = pairs - 1 - row
            if labels[row] == labels[other]:
                continue
            share = targets[row, labels[row]]
            assert torch.allclose(mixed[row], share * images[row] + (1 - share) * images[other], atol=1e-5)
        assert torch.equal(mixed[pairs:], images[pairs:])

    def test_cutmix_takes_every_pixel_from_one_of_two(self):
        images, labels = self.photos()
        seed()
        mixed, targets = BatchRegulariser(Regularisation(cutmix=1.0), 3)(images.clone(), labels)
        own = (mixed == images).all(1)
        assert (own | (mixed == images.flip(0)).all(1)).all()
        # row 0 is of class 0 and its partner, the last, of class 2
        assert targets[0, 0].item() == pytest.approx(own[0].float().mean().item(), abs=1e-6)

    def test_mix_share_leaves_batches_alone(self):
        regularise = BatchRegulariser(Regularisation(mixup=1.0, mix_share=0.5), 3)
        images, labels = self.photos()
        seed()
        untouched = [torch.equal(regularise(images.clone(), labels)[0], images) for _ in range(60)]
        assert 15 < sum(untouched) < 45

    def test_erased_is_the_mean_of_the_batch(self):
        images, labels = self.photos()
        seed()
        erased, _ = BatchRegulariser(Regularisation(random_erasing=1.0), 3)(images.clone(), labels)
        different = (erased - images).abs().amax(1) > 1e-6
        assert different.flatten(1).any(1).all()
        mean = images.mean((0, 2, 3))
        assert torch.allclose(erased.permute(0, 2, 3, 1)[different], mean.expand(int(different.sum()), 3), atol=1e-6)

    def test_the_same_seed_draws_the_same(self):
        regularise = BatchRegulariser(Regularisation(mixup=0.4, cutmix=1.0, random_erasing=0.5), 3)
        drawn = []
        for number in (1, 1, 2):
            seed(number)
            images, labels = self.photos()
            drawn.append(regularise(images, labels)[0])
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    @pytest.mark.parametrize(
        "settings",
        [{"label_smoothing": 1}, {"mixup": -1}, {"cutmix": -1}, {"mix_share": 2}, {"random_erasing": 2}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_out_of_range(self, settings):
        with pytest.raises(BadInput, match=r"--model\.regularisation"):
            Regularisation(**settings)


def test_balanced_weights():
    weights = balanced_weights([0, 0, 0, 1], 2)
    assert weights.tolist() == pytest.approx([4 / 6, 2])
    assert (weights[0] * 3 + weights[1]).item() == pytest.approx(4)


def test_shrink_is_antialiased():
    stripes = torch.zeros(1, 3, 8, 8)
    stripes[..., ::2] = 1
    assert torch.allclose(shrink(stripes, (2, 2)), torch.full((1, 3, 2, 2), 0.5), atol=0.07)


class Rates(L.Callback):
    """Notes the rates of every step."""

    def __init__(self, last: int | None = None) -> None:
        self.seen, self.of_backbone, self.last = [], [], last

    def on_train_batch_start(self, trainer, *_) -> None:
        head, backbone = trainer.optimizers[0].param_groups
        self.seen.append(head["lr"])
        self.of_backbone.append(backbone["lr"])
        trainer.should_stop = len(self.seen) == self.last


class TestTraining:
    def test_backbone_stays_while_the_head_learns_and_moves_then(self, tmp_path):
        settings = {"trainable": "all", "schedule": Schedule(head_epochs=1)}
        module = classifier(**settings)
        before = snapshot(module.network)
        trainer(tmp_path, max_epochs=1).fit(module, batches(), batches())
        assert changed(before, module.network) == {name for name in before if name.startswith("head.")}
        module = classifier(**settings)
        trainer(tmp_path, max_epochs=2).fit(module, batches(), batches())
        moved = changed(before, module.network)
        assert {"backbone.conv_stem.weight", "backbone.bn1.weight", "backbone.bn1.running_mean"} <= moved

    def test_frozen_batch_norm_keeps_its_statistics_alone(self, tmp_path):
        module = classifier(trainable="all", schedule=Schedule(batch_norm="frozen"))
        before = snapshot(module.network)
        trainer(tmp_path).fit(module, batches(), batches())
        moved = changed(before, module.network)
        assert "backbone.bn1.weight" in moved
        assert not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)

    def test_backbone_learns_at_its_own_rate(self, tmp_path):
        module = classifier(trainable="all", schedule=Schedule(backbone_factor=0.1, cosine=True))
        run = trainer(tmp_path)
        run.fit(module, batches(), batches())
        head, backbone = run.optimizers[0].param_groups
        assert backbone["initial_lr"] == pytest.approx(0.1 * head["initial_lr"])
        assert head["lr"] == pytest.approx(0.0, abs=1e-12)

    def test_cosine_needs_an_end(self, tmp_path):
        module = classifier(trainable="all", schedule=Schedule(cosine=True))
        with pytest.raises(BadInput, match="max_epochs"):
            trainer(tmp_path, max_epochs=-1).fit(module, batches(), batches())

    def test_rates_follow_the_epochs_when_a_run_goes_on_with_longer_steps(self, tmp_path):
        """As with more processes, which make fewer steps of an epoch."""
        settings = {"trainable": "all", "schedule": Schedule(cosine=True)}
        trainer(tmp_path, max_epochs=2).fit(classifier(**settings), batches(24))
        rates = Rates()
        going_on = trainer(tmp_path, max_epochs=4, callbacks=[rates])
        going_on.fit(classifier(**settings), batches(8), ckpt_path=str(next(tmp_path.rglob("*.ckpt"))))
        expected = [Schedule(cosine=True).rate(step, 2, 8) for step in range(4, 8)]
        assert rates.seen == pytest.approx([1e-3 * rate for rate in expected])

    @pytest.mark.parametrize(
        ("limits", "first_of_epochs"),
        [
            ({"max_epochs": -1, "max_time": {"seconds": 30}}, [(1.0, 0.0), (1 / 3, 1 / 3), (1.0, 1.0)]),
            ({"max_epochs": 10, "max_steps": 6}, [(1.0, 0.0), (1 / 3, 1 / 3), (1.0, 1.0)]),
        ],
    )
    def test_epochs_of_the_schedule_are_real_ones_whatever_ends_the_fit(self, tmp_path, limits, first_of_epochs):
        rates = Rates(last=6)
        module = classifier(trainable="all", schedule=Schedule(head_epochs=1, warmup_epochs=1))
        trainer(tmp_path, callbacks=[rates], **limits).fit(module, batches(8))
        assert rates.seen[::2] == pytest.approx([1e-3 * head for head, _ in first_of_epochs])
        assert rates.of_backbone[::2] == pytest.approx([1e-3 * backbone for _, backbone in first_of_epochs])

    def test_classes_and_sizes_of_steps(self, tmp_path):
        seen = []
        module = classifier(trainable="all", train_size=24)
        module.network.backbone.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, batches(), batches())
        assert seen == [(24, 24)] * 2 + [(32, 32)] * 2

    def test_average_is_what_is_kept(self, tmp_path):
        module = classifier(trainable="all")
        run = trainer(tmp_path, max_epochs=2, callbacks=[EmaOfWeights(0.9)])
        run.fit(module, batches(), batches())
        saved = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
        averaged, current = (
            saved[key]["network.head.predictions.weight"] for key in ("state_dict", "current_model_state")
        )
        assert not torch.equal(averaged, current)
        kept = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
        for measure in (run.test, run.validate, run.test):  # after the fit: the checkpoint as it is, in whatever order
            measure(module, batches(), ckpt_path=run.checkpoint_callback.best_model_path, verbose=False)
            assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())

    @pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
    def test_average_is_of_the_weights_own_kind(self, tmp_path, precision):
        module = classifier(trainable="all")
        run = trainer(tmp_path, precision=precision, callbacks=[EmaOfWeights(0.9)])
        run.fit(module, batches(), batches())
        saved = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
        assert saved["network.head.predictions.weight"].dtype == next(module.parameters()).dtype != torch.float32

    def test_average_by_the_formula(self):
        average = EmaOfWeights(0.5)._kwargs["avg_fn"]
        one, two = torch.tensor(1.0), torch.tensor(2.0)
        assert average(one, two, 0).item() == pytest.approx(0.1 * 1 + 0.9 * 2)
        assert average(one, two, 1000).item() == pytest.approx(1.5)
        assert average(torch.tensor(3), torch.tensor(4), 5) == 4

    def test_checkpoint_brings_the_settings_back(self, tmp_path):
        settings = {
            "schedule": Schedule(head_epochs=1, backbone_factor=0.2),
            "regularisation": Regularisation(label_smoothing=0.1, mixup=0.2),
            "train_size": 24,
        }
        module = classifier(trainable="all", **settings)
        run = trainer(tmp_path)
        run.fit(module, batches(), batches())
        back = ProductClassifier.load_from_checkpoint(run.checkpoint_callback.best_model_path)
        assert {name: getattr(back, name) for name in settings} == settings

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"train_size": 33}, "train_size"),
            ({"train_size": 0}, "train_size"),
            ({"trainable": "head", "schedule": Schedule(head_epochs=1)}, "head_epochs"),
        ],
    )
    def test_bad_settings(self, settings, words):
        with pytest.raises(BadInput, match=words):
            classifier(**settings)


def test_adam_counts_the_steps_of_those_who_learn():
    late, early = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    adam = KerasAdam([{"params": [early]}, {"params": [late]}], 0.1)
    alone = nn.Parameter(torch.ones(3))
    fresh = KerasAdam([alone], 0.1)

    def learn(*parameters):
        def closure():
            adam.zero_grad()
            (sum(parameter.sum() for parameter in parameters) * 1e-6).backward()

        adam.step(closure)

    learn(early)
    learn(early)
    learn(early, late)
    alone.grad = torch.full((3,), 1e-6)
    fresh.step()
    assert torch.equal(late, alone)
    assert [group["iterations"] for group in adam.param_groups] == [3, 1]
