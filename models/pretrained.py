"""Load pretrained weights into the backbone, from a file or from timm's hub, with a report on every tensor."""

from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch
from timm.models import load_state_dict
from torch import Tensor

from models.bad_input import BadInput
from models.timm_mobilenetv2 import TimmClassifier

HUB_ANSWER_SECONDS = 5.0
"""How long to wait for the hub's first answer. Without a connection its own client retries for most of a minute."""


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors were used and which were not; names are timm's, as in the file.

    Attributes:
        source: the file, or the hub's name of the weights.
        used: tensors copied into the backbone.
        unused: tensors of the file that the backbone has no place for (usually the ImageNet classifier).
        missing: tensors of the backbone that the file lacks. Only BatchNorm's batch counters may be missing, because
            they have no effect on the output.
    """

    source: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """Return the report as one line."""
        unused = f"; not used: {_some(self.unused)}" if self.unused else "; none left over"
        missing = f"; kept from the start: {_some(self.missing)}" if self.missing else ""
        return f"Weights {self.source}: {len(self.used)} tensors used{unused}{missing}."


def load_pretrained(network: TimmClassifier, weights: str | Path | None = None) -> WeightsReport:
    """Load pretrained weights into `network.backbone`; the head is not changed.

    Args:
        network: changed in place, after everything has been checked.
        weights: a `.safetensors` or `.pth` file in timm naming; None downloads from timm's hub.

    Returns:
        Which tensors were used and which were not.

    Raises:
        BadInput: no such file, not a file of weights, weights of another width or model, or the hub cannot be reached.
    """
    source = timm_source_name(network.backbone_name) if weights is None else str(weights)
    tensors = _download(network.backbone_name) if weights is None else _read(Path(weights))
    own: dict[str, Tensor] = network.backbone.state_dict()
    used = [name for name in own if name in tensors]
    report = WeightsReport(
        source=source,
        used=tuple(used),
        unused=tuple(name for name in tensors if name not in own),
        missing=tuple(name for name in own if name not in tensors),
    )
    _check_fit(network.backbone_name, own, tensors, report)
    network.backbone.load_state_dict({name: tensors[name] for name in used}, strict=False)
    return report


def timm_source_name(backbone: str) -> str:
    """Return the hub's name of a backbone's weights, such as "timm/mobilenetv2_100.ra_in1k"."""
    config = timm.get_pretrained_cfg(backbone)
    return str((config and (config.hf_hub_id or config.url)) or backbone)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(
            f"--model.weights: expected a .safetensors or .pth file, received {str(path)!r}, which is "
            f"{'a folder' if path.is_dir() else 'not there'}. Give the path of the weights file."
        )
    try:
        # timm's reader: both formats, unwraps {"state_dict": ...}, and never unpickles objects (weights_only)
        tensors = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything; in each case the file is at fault
        raise BadInput(
            f"--model.weights: {path} is not a readable .safetensors or .pth file of weights "
            f"({type(error).__name__}: {str(error)[:200]}). Copy or download it again."
        ) from error
    not_tensors = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or not_tensors:
        raise BadInput(
            f"--model.weights: expected a state dict of tensors in {path}, received "
            f"{'other things under ' + _some(not_tensors) if not_tensors else 'nothing'}. "
            "Save it with torch.save(model.state_dict(), ...) or as .safetensors."
        )
    return tensors


def _download(backbone: str) -> dict[str, Tensor]:
    """Download the weights with timm's own function, called only if the hub answers or its cache has the file."""
    config = timm.get_pretrained_cfg(backbone)
    way_out = (
        "Give a local file in timm naming with --model.weights FILE (.safetensors or .pth), fetched on a machine that "
        "has a connection (those trained with TensorFlow also want --model.pad_type same and --model.bn_eps 0.001, see "
        "docs/training.md), or start untrained with --model.pretrained false."
    )
    if config is None or not config.has_weights:
        raise BadInput(f"--model.pretrained: timm has no pretrained weights for {backbone!r}. {way_out}")
    cached = _cached_file(config.hf_hub_id, config.hf_hub_filename) if config.hf_hub_id else None
    if cached is None and config.hf_hub_id:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_ANSWER_SECONDS)
        except Exception as error:  # the exception classes differ between hub versions; all of them mean "no answer"
            raise BadInput(
                f"The hub could not be reached for the pretrained weights {timm_source_name(backbone)} "
                f"({type(error).__name__}: {str(error)[:200]}). {way_out}"
            ) from error
    try:
        overlay = {"file": cached} if cached else None
        pretrained = timm.create_model(backbone, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"The pretrained weights {timm_source_name(backbone)} could not be fetched "
            f"({type(error).__name__}: {str(error)[:200]}). {way_out}"
        ) from error
    return pretrained.state_dict()


def _cached_file(hub_id: str, filename: str | None) -> str | None:
    for name in filter(None, (filename, "model.safetensors", "pytorch_model.bin")):
        found = huggingface_hub.try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            return found
    return None


def _check_fit(backbone: str, own: dict[str, Tensor], tensors: dict[str, Tensor], report: WeightsReport) -> None:
    misfits = [
        f"{name} is {tuple(tensors[name].shape)}, wanted {tuple(own[name].shape)}"
        for name in report.used
        if tensors[name].shape != own[name].shape
    ]
    if misfits:
        raise BadInput(
            f"--model.weights: {report.source} does not fit {backbone}: {len(misfits)} tensors have another shape: "
            f"{_some(misfits, '; ')}. The file is of another width or model; choose the --model.backbone it was "
            "trained as, or the file of this backbone."
        )
    absent = [name for name in report.missing if not name.endswith("num_batches_tracked")]
    if absent:
        raise BadInput(
            f"--model.weights: {report.source} lacks {len(absent)} of the {len(own)} tensors of {backbone}: "
            f"{_some(absent)}. It has {len(tensors)}: {_some(list(tensors))}. Expected timm naming and the same "
            "--model.backbone."
        )
    broken = [name for name in report.used if not torch.isfinite(tensors[name]).all()]
    if broken:
        raise BadInput(f"--model.weights: {report.source} has NaN or infinity in {_some(broken)}. Use a sound file.")


def _some(names: list[str] | tuple[str, ...], between: str = ", ") -> str:
    shown = between.join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
