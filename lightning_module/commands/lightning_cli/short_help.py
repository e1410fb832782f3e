"""`lightning fit --help`, `validate --help` and `test --help`: the settings that people need, one line each.

The real parser would first import torch and Lightning, and then print eight hundred lines; `--help_all` does that. A
test compares this table with it: every setting of this project is here, with its default.
"""

from pathlib import Path
from typing import NamedTuple

from lightning_module.commands.cli import COMMANDS, EXIT_CODES

FIT, ALL = ("fit",), ("fit", "validate", "test")
WIDTH = 120
_COLUMN = 46


class Group(NamedTuple):
    """Settings that belong together.

    Attributes:
        title: printed above them.
        prefix: prefix of their names, including its dot.
        commands: commands that have these settings.
        settings: (name, default as written on the command line, meaning).
    """

    title: str
    prefix: str
    commands: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]


GROUPS = (
    Group("Photos", "data.", ALL, (
        ("root", "null", "folder with one folder of photos per class"),
        ("val_root", "null", "the same for validation; else a share of root is held out"),
        ("test_root", "null", "the same for testing"),
        ("image_size", "244", "pixels: one number, or h,w; the aspect ratio is not kept"),
        ("interpolation", "nearest", "nearest, bilinear, bicubic, hamming, box, lanczos"),
        ("background", "null", "colour that transparent photos are composed on; null shows what is hidden"),
        ("deep_grey", "clip", "grey photos of 16 bits: clip, as Keras does, or scale"),
        ("batch_size", "32", "photos per step and process"),
        ("validation_split", "0.2", "share of every class that is held out"),
        ("split", "keras", "keras (first files of a class), stratified, grouped (copies together)"),
        ("seed", "0", "of the order, the random changes and the splits that are drawn"),
        ("epoch_photos", "null", "photos of an epoch at least: a small catalogue is gone through again"),
        ("augment_validation", "false", "change the validation photos, too, as the old generator did"),
        ("listing", "checked", "checked, or keras: hidden folders and the like are classes, too"),
        ("formats", "keras", "which files are photos: keras, web (WebP, GIF and the like, too), all"),
        ("on_bad_photo", "stop", "stop, or skip: photos that cannot be read"),
        ("foreign_classes", "stop", "stop, or skip: photos to measure of classes that are not trained on"),
        ("on_copies", "stop", "stop, or warn: many validation photos are training photos, too"),
        ("store_ram_share", "0.5", "share of the memory for decoded photos; more go to a file"),
        ("store_dir", "null", "folder of that file; null for the user's cache"),
        ("table", "null", "table with the labels (.csv, .tsv, .parquet, .jsonl), in place of root"),
        ("photos", "null", "folder that its file names are relative to; null looks for it"),
        ("file_column", "null", "its column of files, whose endings may be missing; null looks for it"),
        ("label_column", "null", "its column of labels; null where only one can be"),
        ("set_column", "null", "its column of sets; null looks for it, '' for none"),
        ("unlabelled", "null", "folder of more photos, without labels, of which the teachers teach"),
        ("num_workers", "0", "processes that put batches together; 0 is best"),
        ("kaggle", "null", "owner/dataset on Kaggle, in place of root"),
        ("class_names", "null", "classes in the order of the outputs; null for root's, sorted"),
        ("demo", "false", "draw a small catalogue and use that"),
    )),
    Group("Random changes of training photos, as ImageDataGenerator's", "data.augmentation.", FIT, (
        ("rotation_range", "0.0", "degrees, either way"),
        ("width_shift_range", "0.0", "below 1: share of the width; else pixels"),
        ("height_shift_range", "0.0", "likewise of the height"),
        ("shear_range", "0.0", "degrees, either way"),
        ("zoom_range", "0.0", "0.2 for 0.8 to 1.2; or [lower,upper]"),
        ("horizontal_flip", "false", "mirror half of the photos left to right"),
        ("vertical_flip", "false", "mirror half of the photos top to bottom"),
        ("brightness_range", "null", "factors [lower,upper]"),
        ("channel_shift_range", "0.0", "of 255, either way, the same for all channels"),
        ("fill_mode", "nearest", "what lies outside: nearest, constant, reflect, wrap"),
        ("cval", "0.0", "value outside for constant, 0 to 255"),
        ("interpolation_order", "1", "how moved pixels are read: 1 blends four, 0 takes the nearest"),
    )),
    Group("Network", "model.", FIT, (
        ("backbone", "mobilenetv2_100", "timm's name of a CNN: see docs/families.md"),
        ("pretrained", "true", "false starts untrained"),
        ("weights", "null", "file with pretrained weights, or a checkpoint; null downloads timm's"),
        ("classes", "match", "match a checkpoint's classes by name, or strict: they are the same"),
        ("trainable", "head", "head, or all: fine-tune everything"),
        ("hidden", "[128]", "widths of the dense layers before the predictions; [] for none"),
        ("dropout", "0.0", "after each hidden layer, 0 to below 1"),
        ("learning_rate", "0.001", "of Adam"),
        ("train_size", "null", "pixels of a side in training steps, where smaller than image_size"),
        ("pad_type", "null", "same for weights trained with TensorFlow; null for timm's own"),
        ("bn_eps", "null", "BatchNorm's epsilon: 0.001 for those; null for timm's own"),
        ("mean", "null", "subtracted from pixels of 0 to 1, one number or three; null for timm's"),
        ("std", "null", "divides what is left; null for timm's"),
        ("frozen_precision", "auto", "of a frozen backbone's pass: auto, float32, bfloat16"),
        ("compile", "auto", "use torch.compile: auto, never, always"),
    )),
    Group("How it learns", "model.", FIT, (
        ("teacher", "null", "checkpoints whose probabilities it learns, too; [a,b] for several"),
        ("distillation.temperature", "1.0", "divides the logits of teacher and student"),
        ("distillation.weight", "1.0", "the teachers' share of the loss; the labels have the rest"),
    )),
    Group("", "model.schedule.", FIT, (
        ("head_epochs", "0", "first epochs, in which the head learns alone"),
        ("warmup_epochs", "0.0", "epochs after those, in which the rates rise from zero"),
        ("cosine", "false", "let the rates fall to zero by the last epoch"),
        ("backbone_factor", "1.0", "the backbone's rate as a share of the head's"),
        ("batch_norm", "train", "train, or frozen: the pretrained statistics stay"),
    )),
    Group("", "model.regularisation.", FIT, (
        ("label_smoothing", "0.0", "share of the probability that goes to all classes alike"),
        ("mixup", "0.0", "blend photos in pairs; alpha of the Beta distribution, 0 for none"),
        ("cutmix", "0.0", "paste a part of one photo into another; alpha likewise"),
        ("mix_share", "1.0", "share of the batches that are mixed at all"),
        ("random_erasing", "0.0", "share of the photos in which a rectangle is put out"),
        ("class_weights", "none", "none, or balanced: rare classes weigh more"),
    )),
    Group("Training", "", ALL, (
        ("trainer.default_root_dir", "runs/latest", "folder for all that the run writes"),
        ("trainer.accelerator", "auto", "cpu, gpu, mps, ..."),
        ("trainer.devices", "auto", "how many of them, or which"),
        ("trainer.precision", "null", "of training steps; bf16-mixed suits GPUs"),
        ("trainer.deterministic", "null", "true: the same numbers every time, even on a GPU"),
        ("num_threads", "null", "CPU threads; null: all cores, in validate and test the free ones"),
        ("seed_everything", "0", "seed of the network's random weights and dropout"),
    )),
    Group("", "", FIT, (
        ("trainer.max_epochs", "30", "epochs at most"),
        ("trainer.gradient_clip_val", "null", "largest norm of the gradients"),
        ("find_lr", "false", "look for the learning rate first, and use it"),
        ("find_batch_size", "false", "look for the largest batch that fits into memory, and use it"),
        ("resume", "false", "go on with the run in trainer.default_root_dir, if there is one"),
    )),
    Group("When to stop, and which epoch is kept", "", FIT, (
        ("early_stopping.monitor", "val/loss", "figure that must improve"),
        ("early_stopping.patience", "5", "epochs without an improvement, after which training stops"),
        ("early_stopping.mode", "min", "min or max: which way is better"),
        ("checkpoint.monitor", "val/loss", "figure that chooses the epoch; epoch with mode max keeps the last"),
        ("checkpoint.mode", "min", "min or max: which way is better"),
        ("last_checkpoint.minutes", "5.0", "between two checkpoints within an epoch"),
    )),
    Group("The Keras file and its proof", "hand_over.", FIT, (
        ("enabled", "true", "false trains only; lightning export and parity do it later"),
        ("input_range", "unit", "what the file takes: unit (0 to 1) or raw (0 to 255)"),
        ("max_photos", "1000", "validation photos that go through both networks, at most"),
        ("temperature", "none", "none, or fitted: the file gives calibrated probabilities"),
        ("keras_python", "null", "interpreter whose Keras judges; null for this environment's"),
    )),
    Group("This command", "", ALL, (
        ("config", "", "file, or one of {configs}; later ones win"),
        ("ckpt_path", "null", "checkpoint to go on from, or to measure"),
        ("print_config", "", "print all settings as YAML"),
        ("help_all", "", "list all settings, Lightning's too"),
    )),
)  # fmt: skip
"""A group without a title continues the one above."""


def short_help(command: str) -> str:
    """Return what `lightning COMMAND --help` prints: at most 120 lines of at most `WIDTH` characters.

    Args:
        command: `fit`, `validate` or `test`.
    """
    lines = [
        f"usage: lightning {command} [--config FILE] [--SETTING VALUE ...]",
        "",
        f"{COMMANDS[command].summary} Settings and their defaults:",
    ]
    for group in GROUPS:
        if command in group.commands:
            lines += ["", group.title] if group.title else []
            lines += [_line(group.prefix + name, *rest) for name, *rest in group.settings]
    return "\n".join([*lines, "", EXIT_CODES])


def _line(name: str, default: str, meaning: str) -> str:
    start = f"  --{name} {default}".ljust(_COLUMN)
    return f"{start} {meaning.format(configs=', '.join(shipped_configs()))}".rstrip()


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the project: name -> file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))}
