"""What the owner of foreign weights is told: what was read, what is taken as given and who says so."""

from __future__ import annotations

from export.checkpoint import Checkpoint
from models.bad_input import some_of
from models.foreign.checkpoint_file import ForeignFile
from models.foreign.fitting import Fitted
from models.foreign.networks import Data, ForeignClassifier
from models.foreign.settings import ForeignSettings, Numbers

# What the network gives -> how the Keras file answers.
_OUTPUTS = {
    "logits": "{count} logits, of which the Keras file gives the softmax",
    "one logit": "1 logit, of which the Keras file gives the sigmoid",
    "softmax": "a softmax of {count} classes, which the Keras file gives, too",
    "log_softmax": "a log_softmax of {count} classes, of which the Keras file gives the softmax",
    "sigmoid": "sigmoid ({count}), which the Keras file gives, too",
}


def weights_notes(file: ForeignFile, fitted: Fitted) -> list[str]:
    """What was read from the file, and what was not."""
    stripped = [f"{each}." for each in fitted.wrappers] + [fitted.prefix] * bool(fitted.prefix)
    under = f", without {' and '.join(stripped)} before their names" if stripped else ""
    left = f"left, as not the network's: {some_of(fitted.outside, 5)}" if fitted.outside else "none left over"
    notes = [f"{file.path}: {file.kind}; all {len(fitted.tensors)} tensors of the network read{under}; {left}"]
    if file.averaged:
        notes.append("It has averaged weights, too: --use_ema takes those.")
    return notes


def network_notes(checkpoint: Checkpoint, settings: ForeignSettings, data: Data) -> list[str]:
    """What the Keras file will take and give, and who says so."""
    network = checkpoint.network
    assert isinstance(network, ForeignClassifier)
    height, width = checkpoint.image_size
    stated = {
        "size": (settings.image_size, data.image_size),
        "interpolation": (settings.interpolation, data.interpolation),
        "mean": (settings.mean, data.mean),
        "std": (settings.std, data.std),
    }
    found = [name for name, (own, theirs) in stated.items() if own is None and theirs is not None]
    known = f" ({', '.join(found)} from {data.said_by})" if found else ""
    unsaid = stated["interpolation"] == (None, None)
    resized = checkpoint.interpolation + ", as nobody says how (--interpolation)" * unsaid
    channels = "" if network.channels == 3 else f" x {network.channels} channels"
    normalised = f"mean {numbers_text(network.mean)}, std {numbers_text(network.std)}"
    pixels = normalised if network.mean else "pixels of 0 to 1 as they are"
    count = len(checkpoint.class_names)
    kind = "one logit" if network.output == "logits" and count == 1 else network.output
    names = "as stated" if settings.class_names else f"none stated, so {checkpoint.class_names[0]}"
    names += f" to {checkpoint.class_names[-1]}" if count > 1 and not settings.class_names else ""
    return [
        f"Input: {height} x {width} pixels{channels}, resized with {resized}; {pixels}{known}",
        f"Output: {_OUTPUTS[kind].format(count=count)}; class names: {names}",
    ]


def numbers_text(numbers: Numbers | None) -> str:
    """Numbers as on the command line; none for no numbers."""
    return ",".join(f"{each:g}" for each in numbers) if numbers else "none"
