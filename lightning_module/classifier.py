"""ProductClassifier: loss, metrics, steps and optimiser around the network."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_module.check_settings import check_fine_tuning, check_settings
from lightning_module.class_rows import Classes, ClassRows, take_weights, with_outputs
from lightning_module.distillation import Distillation, Teachers
from lightning_module.fine_tuning import BatchRegulariser, Regularisation, Schedule, balanced_weights, shrink
from lightning_module.measured_module import MeasuredModule
from lightning_module.optimizer import follow_epochs, make_adam, make_scheduler
from models.bad_input import BadInput, other_names, quoted
from models.choices import DeepGrey, Formats, Trainable
from models.foreign.checkpoint_file import is_ours
from models.frozen_backbone import Compile, FrozenBackbone, FrozenPrecision, resolve_precision, without_tf32
from models.graph_network import build_classifier
from models.pretrained import WeightsReport, load_pretrained
from models.timm_mobilenetv2 import TimmClassifier


class ProductClassifier(MeasuredModule):
    """A photo classifier, trained with cross-entropy and Adam.

    `class_names`, `image_size`, `interpolation`, `background`, `deep_grey` and `formats` describe the photos. On the
    command line they come from the data; they are saved in the checkpoint, because the Keras twin needs them. All
    settings are saved as plain types, with the architecture's defaults resolved, so that
    `torch.load(path, weights_only=True)` reads the checkpoint.

    Pretrained weights are read when fitting starts (or by `load_pretrained_weights`), but not when a checkpoint is
    loaded or a run resumed, because the checkpoint has its own weights.

    Args:
        class_names: names of the classes, in the order of the outputs; at least 2.
        image_size: (height, width) of the photos in pixels.
        interpolation: how photos are resized to that size, by Keras's name.
        backbone: timm's name of a CNN.
        pretrained: start from pretrained weights; false starts untrained.
        weights: `.safetensors` or `.pth` file in timm naming; or a checkpoint of this project, of which the head is
            taken, too, its classes matched by name; null downloads timm's own from its hub.
        trainable: `head` keeps the backbone as it is (BatchNorm in inference mode), `all` fine-tunes everything.
        hidden: widths of the dense layers with ReLU between pooled features and predictions; [] for none.
        dropout: rate after each hidden layer, 0 <= dropout < 1.
        learning_rate: Adam's learning rate, above zero.
        pad_type: '' (timm's symmetric padding) or 'same' (TensorFlow's); null for timm's own for the backbone.
        bn_eps: BatchNorm's epsilon, above zero; null for timm's own. Weights trained with TensorFlow need 0.001.
        mean: one number or three, subtracted from pixels of 0 to 1; null for timm's own.
        std: one number or three, above zero; the pixels are divided by it after the subtraction; null for timm's own.
        graph: the network of an imported Keras file that timm does not have, as `lightning import` describes it. It
            comes with `ckpt_path`; of the network's other settings only `mean` and `std` count beside it.
        frozen_precision: number format of the frozen backbone in training steps. `auto`: bfloat16 if the processor has
            instructions for it, otherwise float32. All measuring is in float32.
        train_size: longer side of the photos in training steps, in pixels, smaller than `image_size`; null for
            `image_size`. Training is cheaper, and a network trained on smaller photos does well on larger ones (Touvron
            et al. 2019). All measuring is done at `image_size`.
        schedule: learning rates of head and backbone over the epochs.
        regularisation: changes to training batches and their loss.
        teacher: checkpoints of this project, one or several, whose probabilities of the training photos the network
            learns, too; null for none. Nothing of them is saved.
        distillation: how it learns from them.
        background: colour that transparent photos are composed on, as "#rrggbb"; null for none.
        deep_grey: what becomes of grey photos of 16 bits.
        formats: which files are photos.
        classes: what is done about a checkpoint (`weights`, `--ckpt_path`) of other classes, or in another order:
            `match`: the last layer's rows are matched by the classes' names; `strict`: it is refused.
        compile: use torch.compile for the frozen backbone. `auto`: if training is long enough to make up for the half
            minute of compiling, and there is a C++ compiler, or Triton for a GPU (not tested on one yet). `always`
            also compiles training steps of all weights.

    Raises:
        BadInput: a setting is out of its range, or the backbone is unknown.
    """

    def __init__(
        self,
        class_names: list[str],
        image_size: list[int] | tuple[int, int] = (244, 244),
        interpolation: str = "nearest",
        backbone: str = "mobilenetv2_100",
        pretrained: bool = True,
        weights: str | None = None,
        trainable: Trainable = "head",
        hidden: list[int] | tuple[int, ...] = (128,),
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        pad_type: str | None = None,
        bn_eps: float | None = None,
        mean: float | list[float] | str | None = None,
        std: float | list[float] | str | None = None,
        graph: str | None = None,
        frozen_precision: FrozenPrecision = "auto",
        compile: Compile = "auto",
        train_size: int | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen, so sharing it does no harm
        regularisation: Regularisation = Regularisation(),  # noqa: B008
        teacher: str | list[str] | None = None,
        distillation: Distillation = Distillation(),  # noqa: B008
        background: str | None = None,
        deep_grey: DeepGrey = "clip",
        formats: Formats = "keras",
        classes: Classes = "match",
    ) -> None:
        super().__init__()
        if isinstance(schedule, dict):  # from a checkpoint, which has only plain types
            schedule = Schedule(**schedule)
        if isinstance(regularisation, dict):
            regularisation = Regularisation(**regularisation)
        class_names, image_size = [str(name) for name in class_names], [int(side) for side in image_size]
        check_settings(class_names, image_size, trainable, learning_rate, pretrained, weights)
        check_fine_tuning(image_size, trainable, train_size, schedule)
        if graph is not None and train_size is not None:
            raise BadInput(
                f"--model.train_size: expected null with a network that was read from a Keras file, received "
                f"{train_size}: its layers are made for photos of {image_size} pixels. Give --model.train_size null."
            )
        if graph is not None:
            graph = with_outputs(graph, len(class_names))
        described = {"backbone": backbone, "hidden": hidden, "dropout": dropout, "pad_type": pad_type, "bn_eps": bn_eps}
        network = build_classifier(len(class_names), graph, **described, mean=mean, std=std)
        # The same memory layout as the data module's photos: a narrow MobileNetV2 trains about twice as fast on a CPU.
        self.network: TimmClassifier = network.to(memory_format=torch.channels_last)
        # Both settings affect only speed and not what is learnt, so they are not saved in the checkpoint.
        self._frozen_backbone = FrozenBackbone(self.network, frozen_precision, compile)
        self._compile: Compile = compile
        self._classes: Classes = classes
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.class_names = class_names
        self.trainable = trainable
        self.train_size, self.schedule, self.regularisation = train_size, schedule, regularisation
        self._regularise = BatchRegulariser(regularisation, len(class_names))
        self._class_weights: Tensor | None = None
        self.teacher_paths = [teacher] if isinstance(teacher, str) else list(teacher or [])
        self.distillation = distillation
        self._teachers: Teachers | None = None
        self.save_hyperparameters(
            {
                "class_names": class_names,
                "image_size": image_size,
                "interpolation": str(interpolation),
                "background": background,
                "deep_grey": deep_grey,
                "formats": formats,
                "pretrained": pretrained,
                "weights": None if weights is None else str(weights),
                "trainable": trainable,
                "learning_rate": float(learning_rate),
                "train_size": train_size,
                "schedule": asdict(schedule),
                "regularisation": asdict(regularisation),
                **self.network.architecture,
            }
        )
        self.measure_sets(len(class_names))
        self.weights_report: WeightsReport | None = None
        self._has_trained_weights = not pretrained
        if trainable == "head":
            self.network.backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ProductClassifier":
        """Switch training mode on or off; a frozen backbone stays in inference mode, and so does frozen BatchNorm."""
        super().train(mode)
        if self.backbone_is_frozen:
            self.network.backbone.eval()
        elif self.schedule.batch_norm == "frozen":
            for module in self.network.backbone.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether only the head is trained, always or in this epoch."""
        epoch = 0 if self._trainer is None else self.trainer.current_epoch
        return self.trainable == "head" or epoch < self.schedule.head_epochs

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, shape (B, C), of RGB images, float32 (B, 3, H, W) with values 0 to 1."""
        # A frozen backbone keeps no graph for gradients, which would take most of the memory and half of the time.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_is_frozen):
            features = self.network.features(images)
        return self.network.head(features)

    def logits_while_fitting(self, images: Tensor, exact: bool) -> Tensor:
        """Do the same as `forward`, with the frozen backbone's fast pass if the backbone is frozen, compiled if chosen.

        Args:
            images: as in `forward`.
            exact: compute in float32, for measuring. Training steps use the fast precision.
        """
        # If the trainer has another precision (64-true, 16-mixed, ...), the user chose how to compute, so the fast pass
        # is not used. It is used under bf16-mixed, and computes as without, because it chooses bfloat16 by itself.
        device = images.device.type
        mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16
        if self.backbone_is_frozen and images.dtype == torch.float32 and not mixed:
            return self.network.head(self._frozen_backbone.features(images, exact))
        if self.backbone_is_frozen or exact or self._compile != "always":
            return self(images)
        if self._compiled is None:  # the bound method: a compiled module would be a second copy in the state dict
            self._compiled = torch.compile(self.network.forward)
        return self._compiled(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss, a scalar, of images (B, 3, H, W) and labels (B,).

        Raises:
            BadInput: BatchNorm has one value, of which it can take no variance.
        """
        try:
            return self._shared_step(batch, "train")
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            height, width = batch[0].shape[2:]
            raise BadInput(
                f"--data.batch_size: expected more than one photo in every batch of {height} x {width} pixels, since "
                "the backbone leaves one pixel of each and BatchNorm needs several; received a last batch of one. Give "
                "another --data.batch_size, so that more photos are left for it, or a larger --data.image_size."
            ) from error

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do the same as Lightning; with several processes, weight each one's gradients by its share of the photos."""
        weight_of_share = getattr(self.datamodule, "weight_of_share", None)
        if self.trainer.world_size > 1 and weight_of_share is not None:
            loss = loss * weight_of_share(self.trainer.fit_loop.batch_idx)
        super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure images (B, 3, H, W) against labels (B,); the loader's index determines the set."""
        self._shared_step(batch, self.validation_sets[dataloader_idx])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure images (B, 3, H, W) against labels (B,)."""
        self._shared_step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compute probabilities, shape (B, C), of images (B, 3, H, W)."""
        with _unrounded(batch[0]):
            return self(batch[0]).softmax(dim=1)

    def _shared_step(self, batch: tuple[Tensor, Tensor], name: str) -> Tensor:
        images, labels = batch
        taught = None
        # Outside a fit, in validate, test and predict, the network itself is measured and not its fast pass.
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        targets = labels
        if name == "train":
            images, targets = self.mixed(images, labels)
            if self._teachers is not None:
                taught = self._teachers.probabilities(images, self.distillation.temperature)
            images = self.shrunk(images)
        # Lightning would apply bf16-mixed and 16-mixed to measuring, too, and torch lets GPUs convolve in TF32.
        with nullcontext() if name == "train" else _unrounded(images):
            logits = self.logits_while_fitting(images, exact=name != "train") if fitting else self(images)
            loss = nn.functional.cross_entropy(logits, targets, self._class_weights if name == "train" else None)
            if name == "train" and self.learns_unlabelled:  # the mean over photos that have a label
                loss = loss * len(labels) / targets.sum().clamp(min=1)
            if taught is not None:
                loss = loss.lerp(self.distillation.loss(logits, taught), self.distillation.weight)
        self.measure(name, logits, labels, loss)
        return loss

    def training_input(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a training step computes with: the photos as mixed, erased and small as the settings say.

        Args:
            images: shape (B, 3, H, W), 0 to 1; may be changed in place.
            labels: class indices, shape (B,); -1 for none.

        Returns:
            The images, shape (B, 3, *train_shape), and `labels`, or the share of each class, shape (B, C).
        """
        images, targets = self.mixed(images, labels)
        return self.shrunk(images), targets

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Do the first part of `training_input`, at the full size: what a teacher sees, too."""
        if self.regularisation != Regularisation() or self.learns_unlabelled:
            return self._regularise(images, labels)
        return images, labels

    def shrunk(self, images: Tensor) -> Tensor:
        """Do the second part: the photos at the size of training steps."""
        return images if self.train_size is None else shrink(images, self.train_shape)

    @property
    def train_shape(self) -> tuple[int, int]:
        """(height, width) of the photos in training steps: `image_size` scaled to a longer side of `train_size`."""
        height, width = self.hparams["image_size"]
        share = 1.0 if self.train_size is None else self.train_size / max(height, width)
        return max(1, round(share * height)), max(1, round(share * width))

    def configure_optimizers(self) -> Any:
        """Make Adam, as Keras computes it, for the trainable weights, with the schedule's learning rates.

        Raises:
            BadInput: the rates should fall until the last epoch, but no last epoch is set.
        """
        adam = make_adam(self.network, self.trainable, self.hparams["learning_rate"], self.schedule)
        if not self.schedule.changes_rates:
            return adam
        scheduler = make_scheduler(adam, self.schedule, self.trainer)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def load_pretrained_weights(self) -> WeightsReport | None:
        """Read the pretrained weights that the settings ask for, once, and log which tensors were used.

        Returns:
            Which tensors were used, or None if the weights were read before or none are wanted.

        Raises:
            BadInput: the weights are not available or do not fit.
        """
        if self._has_trained_weights:
            return None
        weights = self.hparams["weights"]
        if weights is not None and is_ours(Path(weights)):
            self.take_checkpoint_weights(Path(weights))
            self.weights_report = WeightsReport(str(weights), tuple(self.network.state_dict()), (), ())
        else:
            self.weights_report = load_pretrained(self.network, weights)
        self._has_trained_weights = True
        rank_zero_info(str(self.weights_report))
        return self.weights_report

    def take_checkpoint_weights(self, checkpoint: Path) -> ClassRows:
        """Take a checkpoint's weights, head and all, its classes matched by name, and log how they were.

        Raises:
            BadInput: it is none of this project or of another network, or its classes do not match.
        """
        rows = take_weights(self.network, self.class_names, checkpoint, self._classes)
        self._has_trained_weights = True
        if rows.differ:
            rank_zero_info(str(rows))
        return rows

    def check_fit(self, device: torch.device, datamodule: Any = None) -> None:
        """Refuse what would fail only when all photos have been read.

        Raises:
            BadInput: `frozen_precision` is bfloat16, but this processor cannot convolve in it; a teacher is not there;
                or the data module has `unlabelled` photos, but no teacher is listened to.
        """
        for path in self.teacher_paths:
            if not Path(path).is_file():
                raise BadInput(
                    f"--model.teacher: expected a trained checkpoint, received {path}, which is not there. Train one "
                    "on the same classes with lightning fit, and give its best.ckpt."
                )
        if getattr(datamodule, "unlabelled", None) is not None and not (
            self.teacher_paths and self.distillation.weight
        ):
            raise BadInput(
                "--data.unlabelled: expected a teacher that says what is in photos without a label; received "
                + ("--model.distillation.weight 0." if self.teacher_paths else "none.")
                + " Give a trained checkpoint with --model.teacher, and a weight above 0."
            )
        if self.trainable == "head" or self.schedule.head_epochs:  # else nothing is computed in it
            resolve_precision(self._frozen_backbone.precision, device)

    def on_fit_start(self) -> None:
        """Load the pretrained weights, unless a checkpoint has been loaded before, and the teachers."""
        self.check_fit(self.device, self.datamodule)
        self.load_pretrained_weights()
        if self.teacher_paths and self._teachers is None:
            precision, compile = self._frozen_backbone.precision, self._frozen_backbone.compile
            self._teachers = Teachers(self.teacher_paths, self.class_names, precision, compile)

    def on_train_start(self) -> None:
        """Tell the fast pass how many photos to expect, which is known only now."""
        epochs = self.trainer.max_epochs
        frozen_epochs = math.inf if epochs is None or epochs < 0 else float(epochs)
        if self.trainable == "all":
            frozen_epochs = min(frozen_epochs, self.schedule.head_epochs)
        photos = self.trainer.num_training_batches * getattr(self.datamodule, "batch_size", 1)
        self._frozen_backbone.expect(photos * frozen_epochs, self.device)
        if self._teachers is not None:
            self._teachers.expect(photos * (epochs if epochs and epochs > 0 else math.inf), self.device)

        labels = getattr(self.datamodule, "train_labels", None)
        if self.regularisation.class_weights == "balanced" and labels is not None:
            self._class_weights = balanced_weights(labels, len(self.class_names)).to(self.device)

    def on_train_epoch_start(self) -> None:
        """Set layer modes and learning rates for this epoch: the epochs that train only the head may be over."""
        self.train()
        follow_epochs(self.lr_schedulers(), self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember that weights come from the checkpoint, and refuse a checkpoint of something else.

        Raises:
            BadInput: the checkpoint is of another model, or has other classes.
        """
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        if "class_names" not in saved:
            raise BadInput(
                "Expected a checkpoint of this project's ProductClassifier, received one of another model "
                f"(its hyperparameters are {sorted(saved) or 'missing'}). Train one with `lightning fit`."
            )
        if list(saved["class_names"]) != self.class_names:
            raise BadInput(
                f"The checkpoint was trained on the classes {quoted(saved['class_names'])}, the data has "
                f"{quoted(self.class_names)} ({other_names(saved['class_names'], self.class_names)}). "
                "Give the photos of the same classes with --data.root, or begin anew from its weights, the classes "
                "matched by name, with --model.weights."
            )
        self._has_trained_weights = True


@contextmanager
def _unrounded(images: Tensor) -> Iterator[None]:
    """Compute in the number format of the weights and images, without autocast and without a GPU's TF32."""
    with torch.autocast(images.device.type, enabled=False), without_tf32():
        yield
