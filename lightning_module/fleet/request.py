"""What a data set was begun with; what goes on with it must be the same."""

import hashlib
import json
from dataclasses import asdict, dataclass

OPTIONS = {
    "photos": "the photos",
    "listing_sha256": "which photos, and their order",
    "photos_per_part": "--photos_per_part",
    "model_sha256": "the model's file",
    "labels_sha256": "the file of --labels",
    "top": "--top",
    "min_probability": "--min_probability",
    "temperature": "the temperature",
    "pillow": "Pillow, which decodes the photos",
}
"""Field of a request -> what it is called in messages."""


@dataclass(frozen=True)
class Request:
    """All that the rows of a data set depend on.

    What is not here changes no row: the engine, workers, threads, device and batch size.

    Attributes:
        photos: how many.
        listing_sha256: of their names, in order, as they were given.
        photos_per_part: rows of a file.
        model_sha256: of the checkpoint's or the Keras file.
        labels_sha256: of the file that says what a foreign Keras file takes and gives; None without one.
        top: labels of each photo.
        min_probability: as in `Labelling`.
        temperature: the logits are divided by it.
        pillow: versions of Pillow and of the library in it that decodes JPEG.
    """

    photos: int
    listing_sha256: str
    photos_per_part: int
    model_sha256: str
    labels_sha256: str | None
    top: int
    min_probability: float | None
    temperature: float
    pillow: dict[str, str]

    def __post_init__(self) -> None:
        assert asdict(self).keys() == OPTIONS.keys()

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of `text`, hexadecimal, which every file of the data set carries."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def differences(self, before: dict[str, object]) -> list[str]:
        """Return in what it differs from one that was read from JSON, in words; empty where it does not."""
        now = json.loads(self.text)
        differing = [name for name in OPTIONS if before.get(name) != now[name]]
        return [f"{OPTIONS[name]} ({_short(before.get(name))} then, {_short(now[name])} now)" for name in differing]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:8]}..." if len(text) == 64 else text[:80]
