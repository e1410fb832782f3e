"""The shapes of the answers, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from lightning_module.serving.uploads import JSON, MULTIPART


class LabelAnswer(BaseModel):
    """A label and its probability."""

    label: str
    probability: float = Field(description="0 to 1, three decimals, as `lightning predict` prints it")


class TwinAnswer(BaseModel):
    """What one twin says."""

    labels: list[LabelAnswer] = Field(description="the likeliest first")


class PhotoAnswer(BaseModel):
    """What is said of one photo."""

    name: str
    label: str = Field(description="the likeliest label; `unsure` if it is below --min_probability")
    labels: list[LabelAnswer] = Field(description="the likeliest first; torch's where both twins are served")
    twins: dict[str, TwinAnswer] = Field(description="by `torch` and `keras`")
    difference: float | None = Field(
        None, description="largest difference of the twins' probabilities, before rounding"
    )
    agree: bool | None = Field(None, description="whether the twins' labels and printed probabilities are the same")


class PredictAnswer(BaseModel):
    """Answer of /predict."""

    model: str = Field(description="SHA-256 of the checkpoint, or of a .h5 that does not state one")
    milliseconds: float = Field(description="from the request's arrival to this answer")
    photos: list[PhotoAnswer] = Field(description="in the order of the request")


class CoveredAnswer(BaseModel):
    """What is said where the most important part is covered."""

    probability: float
    likeliest: str


class ExplainAnswer(BaseModel):
    """Answer of /explain."""

    name: str
    twin: Literal["torch", "keras"]
    label: str
    probability: float
    unsure: bool
    saliency: list[list[float]] = Field(description="8 rows of 8 numbers, 0 to 1, over the whole photo")
    covered: CoveredAnswer
    reasons: list[dict[str, Any]] = Field(description="each has a `code` and the values of its sentence")
    milliseconds: float


class BadPhotoAnswer(BaseModel):
    """A photo that is to blame."""

    index: int
    name: str
    reason: str


class ErrorContent(BaseModel):
    """Why there is no answer."""

    code: str
    message: str = Field(description="what was expected, what was received, what to do")
    photos: list[BadPhotoAnswer] | None = None


class ErrorAnswer(BaseModel):
    """Body of every answer that is no success."""

    error: ErrorContent


class HealthAnswer(BaseModel):
    """Answer of /healthz."""

    status: Literal["ready", "down", "draining"]
    twins: dict[str, str] = Field(description="`ready`, or why not")


class Accuracy(BaseModel):
    """Share of photos that are right, with its 95% interval."""

    value: float
    low: float | None
    high: float | None
    photos: int | None
    set: str


class Parity(BaseModel):
    """Verdict of the proof."""

    verdict: str
    passed: int
    checks: int


class ModelAnswer(BaseModel):
    """Answer of /model."""

    name: str
    checkpoint_sha256: str | None
    class_names: list[str]
    image_size: list[int] = Field(description="height and width in pixels")
    interpolation: str
    background: str | None
    deep_grey: str
    twins: dict[str, dict[str, Any]]
    accuracy: Accuracy | None = Field(description="from the run's metrics.json; null if it is of another checkpoint")
    parity: Parity | None = Field(description="from the run's parity.json; null if it is of other files")
    top: int
    temperature: float
    min_probability: float | None
    version: str


PHOTOS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "properties": {"photos": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["photos"],
                    "properties": {
                        "photos": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["base64"],
                                "properties": {"name": {"type": "string"}, "base64": {"type": "string"}},
                            },
                        }
                    },
                }
            },
        },
    }
}
"""How photos are sent; FastAPI cannot know it, because the body is read by hand, within limits."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "the body is not what its type says",
        408: "the request took too long to arrive",
        413: "too many bytes, pixels or photos",
        415: "another Content-Type",
        422: "no photo, with the reason",
        429: "too much at once; Retry-After says when to come again",
        503: "a twin is down and is started again",
    }.items()
}
