"""`model_card.md`: what the run is, in the form of the hub's model cards, made of the run's own files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from export.checkpoint import read_content
from export.fitted_temperature import FEW_MISTAKES
from lightning_module.evaluation.figures import CONFIDENCE
from lightning_module.evaluation.report import chosen_without_photos
from lightning_module.publishing.loading_code import loading_code
from lightning_module.run.run_folder import RunFolder, read_environment, read_json
from models.atomic_write import write_text
from models.bad_input import BadInput, some_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TEMPLATE = Path(__file__).with_name("model_card.md")
SETS = {"test": "test", "final": "validation"}
"""Entries of metrics.json -> what their photos are called; what is honest first."""
FEW_PHOTOS = 30
"""With fewer of a class measured, its own figures are named as uncertain."""
MADE_WITH = ("torch", "timm", "lightning", "keras", "tensorflow")


def write_model_card(run: RunFolder) -> Path:
    """Write the card of a finished run.

    Raises:
        BadInput: the run has no figures, or the file cannot be written.
    """
    write_text(run.model_card, str(model_card(run)) + "\n")
    return run.model_card


def model_card(run: RunFolder, license: str | None = None) -> "ModelCard":
    """Make the card of a finished run.

    What a file of the run would say, and the file is not there, is said to be unknown.

    Args:
        run: its folder, with metrics.json at least.
        license: of the network, as the hub names it, such as `apache-2.0`; left out of the card if None.

    Raises:
        BadInput: there is no metrics.json, or it has no evaluation.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metrics = read_json(run.metrics)
    measured = {name: metrics[name] for name in SETS if isinstance(metrics.get(name), dict)}
    if not measured:
        raise BadInput(
            f"expected the folder of a finished run, with figures in metrics.json, received {run.path}. Give the "
            "folder that `lightning fit` wrote (--trainer.default_root_dir)."
        )
    labels, parity, environment = read_json(run.labels), read_json(run.parity), read_environment(run)
    settings = _settings(run.config)
    backbone = str(settings.get("model", {}).get("backbone", "unknown"))
    first = next(iter(measured.values()))
    names = list(labels.get("class_names") or first["per_class"])
    data = environment.get("data", {})
    card_data = ModelCardData(
        library_name="keras",
        license=license,
        pipeline_tag="image-classification",
        tags=["image-classification", "shelftwin", "timm", "pytorch", "keras"],
        metrics=["accuracy", "f1"],
        model_name=_name_of(run),
        eval_results=[result for name, figures in measured.items() for result in _results(name, figures, data)] or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=plain(_name_of(run)),
        class_count=len(names),
        classes=plain(some_of(names, 50)),
        backbone=backbone,
        origin=_origin(settings, environment),
        twin=_twin_sentence(run, parity),
        figures=_figures(measured),
        judged_by=_judged_by(run, measured),
        per_class="\n".join(_class_row(name, row) for name, row in first["per_class"].items()),
        calibration=_calibration(measured, run.calibrated_checkpoint.is_file()),
        parity=_parity(parity),
        data=_data_rows(data),
        contract=_contract(labels),
        loading=loading_code(labels) if labels else "Nothing was handed over: `lightning export` writes `model.h5`.",
        limits=_limits(measured, names),
        made=_made(run, parity, environment),
    )


def plain(text: str) -> str:
    """Return a text as Markdown that shows just that, in one line; a class may have any name."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", " ".join(text.split()))


def _name_of(run: RunFolder) -> str:
    return run.path.resolve().name or "model"


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _results(name: str, figures: Mapping[str, Any], data: Mapping[str, Any]) -> "list[EvalResult]":
    """Return a set's accuracy and macro F1, for the card's front matter."""
    from huggingface_hub import EvalResult

    split = SETS[name]
    digest = data.get({"validation": "val"}.get(split, split), {}).get("sha256")
    common: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": "imagefolder",
        "dataset_name": f"{figures['photos']} {split} photos",
        "dataset_split": split,
        "dataset_revision": digest,
    }
    return [
        EvalResult(metric_type=metric, metric_name=title, metric_value=figures[key], **common)
        for metric, title, key in (("accuracy", "accuracy", "accuracy"), ("f1", "macro F1", "f1_macro"))
        if figures.get(key) is not None
    ]


def _origin(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    model = settings.get("model", {})
    if weights := environment.get("weights"):
        return f", beginning from weights with SHA-256 `{weights.get('sha256')}`"
    return ", beginning from timm's pretrained weights" if model.get("pretrained", True) and model else ""


def _twin_sentence(run: RunFolder, parity: Mapping[str, Any]) -> str:
    if not run.model_h5.is_file():
        return "It has no Keras twin."
    proved = {"PASS": "proved to be the same network", "FAIL": "**which differs from it**"}
    verdict = proved.get(str(parity.get("verdict")), "which was not compared with it")
    return f"`model.h5` is its Keras twin, {verdict}."


def _interval(figures: Mapping[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "not known"


def _figures(measured: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| photos | count | accuracy | {CONFIDENCE:.0%} interval | macro F1 | {CONFIDENCE:.0%} interval |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in measured.items():
        cells = (SETS[name], each["photos"], _number(each["accuracy"]), _interval(each, "accuracy"))
        rows.append(_row(*cells, _number(each["f1_macro"]), _interval(each, "f1_macro")))
    return "\n".join(rows)


def _judged_by(run: RunFolder, measured: Mapping[str, Any]) -> str:
    if "test" in measured:
        return "The test photos had no part in training, and chose nothing: quote those. Every class on them:"
    try:
        kept_by_plan = chosen_without_photos(read_content(run.best_checkpoint))
    except BadInput:  # the checkpoint is elsewhere: what is not known is not said in its favour
        kept_by_plan = False
    if kept_by_plan:
        return "The validation photos chose neither the epoch nor the end of training. Every class on them:"
    return (
        "The validation photos also chose the epoch that was kept, so these figures are a little too good. "
        "Every class on them:"
    )


def _class_row(name: str, row: Mapping[str, Any]) -> str:
    return _row(plain(name), *(_number(row[each]) for each in ("precision", "recall", "f1")), row["support"])


def _calibration(measured: Mapping[str, Mapping[str, Any]], is_calibrated: bool) -> str:
    lines = []
    if is_calibrated:
        lines.append(
            "- `model.h5` has the temperature in its last layer: it gives the probabilities after the division."
        )
    for name, each in measured.items():
        if each.get("ece") is None:
            continue
        lines.append(
            f"- {SETS[name]}: expected calibration error {each['ece']:.4f} (15 bins); {each['ece_scaled']:.4f} after "
            f"the logits are divided by {each['temperature']:.4f}, which was fitted on the "
            f"{each['temperature_fitted_on']} photos."
        )
        if each["temperature_mistakes"] < FEW_MISTAKES:
            lines.append(f"  That rests on {each['temperature_mistakes']} mistakes, which is too few to say much.")
    return "\n".join(lines) or "Not measured."


def _parity(parity: Mapping[str, Any]) -> str:
    reports = parity.get("reports") or []
    if not reports:
        return "Not compared."
    rows = ["| check | figure | threshold | |", "|---|---|---|---|"]
    for check in reports[0]["rungs"]:
        sign = ">=" if check["larger_is_better"] else "<="
        figure = check["figure"] if isinstance(check["figure"], str) else f"{check['figure']:.3g}"
        verdict = "pass" if check["passed"] else "**FAIL**"
        rows.append(_row(check["name"], f"{figure} {check['unit']}", f"{sign} {check['threshold']:g}", verdict))
    return f"**{parity['verdict']}**\n\n" + "\n".join(rows)


def _data_rows(data: Mapping[str, Any]) -> str:
    known = {"train": "training", "val": "validation", "test": "test"}
    rows = [_row(known[name], each["photos"], f"`{each['sha256']}`") for name, each in data.items() if name in known]
    return "\n".join(rows) or "| not known | | |"


def _contract(labels: Mapping[str, Any]) -> str:
    if not labels:
        return "See the checkpoint: `labels.json` was not written."
    height, width = labels["image_size"]
    values = {"unit": "0 to 1", "raw": "0 to 255"}[labels["input_range"]]
    background = labels.get("background")
    under = f" Transparent photos are put on {background}." if background else ""
    return (
        f"- In: RGB, float32, {values}, shape (N, {height}, {width}, 3). Photos are resized to exactly that with "
        f"Pillow's `{labels['interpolation']}`; the aspect ratio is not kept, and EXIF orientation is ignored, as in "
        f"`keras.utils.load_img`.{under}\n"
        "- Out: a probability for each class, in the order of `class_names` in `labels.json`. The same facts are in "
        "the `.h5`, in its attribute `shelftwin`."
    )


def _limits(measured: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    first = next(iter(measured.values()))
    lines = [
        f"- It knows these {len(names)} classes alone, and gives one of them to a photo of anything else, too.",
        "- The figures hold for photos like those that were measured: other cameras, backgrounds or products are not.",
    ]
    few = [f"{plain(name)} {row['support']}" for name, row in first["per_class"].items() if row["support"] < FEW_PHOTOS]
    if few:
        lines.append(f"- Fewer than {FEW_PHOTOS} photos were measured of: {some_of(few, 20)}.")
    seen = {name: row["recall"] for name, row in first["per_class"].items() if row["support"]}
    worst = min(seen, key=lambda name: seen[name], default=None)
    if worst is not None and seen[worst] < 1:
        lines.append(f"- Of its classes, {plain(worst)} is recognised least often: {seen[worst]:.1%} of its photos.")
    return "\n".join(lines)


def _made(run: RunFolder, parity: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    versions: dict[str, str] = {}
    for report in (parity.get("reports") or [])[:1]:
        for side in report["versions"].values():
            versions = side | versions
    versions = versions or environment.get("packages", {})
    lines = ["- " + (", ".join(f"{name} {versions[name]}" for name in MADE_WITH if name in versions) or "unknown")]
    for title, name in (("device", "device"), ("begun", "started")):
        lines += [f"- {title}: {plain(str(environment[name]))}"] if environment.get(name) else []
    digest = next((each["checkpoint"].get("sha256") for each in parity.get("reports") or []), None)
    lines += [f"- checkpoint's SHA-256: `{digest}`"] if digest else []
    return "\n".join(lines)


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
