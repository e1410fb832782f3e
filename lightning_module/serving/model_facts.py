"""What is known of the served model: from its files, and from the run that they are in."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from lightning_module.evaluation.labellers import Labeller
from lightning_module.evaluation.labelling import Labelling
from lightning_module.run.run_folder import RunFolder, read_json
from lightning_module.serving.served_files import ServedFiles, facts_of
from models.digests import file_digest

SETS = {"val": "validation", "test": "test"}
"""As `metrics.json` names them -> as people do."""


class Confusion(NamedTuple):
    """Counts of a measured set, by true class and predicted class.

    Attributes:
        set: its name.
        counts: [true][predicted].
    """

    set: str
    counts: list[list[int]]


class ModelFacts(NamedTuple):
    """What `/model` says.

    Attributes:
        content: for JSON.
        digest: SHA-256 that stands for the model: the checkpoint's, or else the `.h5`'s.
        confusion: of the run's measured photos; None if there are none.
    """

    content: dict[str, Any]
    digest: str
    confusion: Confusion | None


def model_facts(files: ServedFiles, labellers: Mapping[str, Labeller], labelling: Labelling) -> ModelFacts:
    """Gather what is known; figures of another checkpoint than the served one count as unknown.

    Args:
        files: that are served.
        labellers: of them, by the twin's name.
        labelling: what is said of each photo.
    """
    run = RunFolder(files.first.resolve().parent)
    twins: dict[str, dict[str, Any]] = {}
    first = next(iter(labellers.values()))
    if "torch" in labellers:
        digest = labellers["torch"].checkpoint_digest or ""
        name = next((each.name for each in files.checkpoints if file_digest(each) == digest), files.first.name)
        twins["torch"] = {"file": name, "sha256": digest}
    if files.h5 is not None and "keras" in labellers:
        twins["keras"] = {
            "file": files.h5.name,
            "sha256": file_digest(files.h5),
            "checkpoint_sha256": labellers["keras"].checkpoint_digest,
        }
    checkpoint = first.checkpoint_digest
    accepted = {checkpoint} - {None}
    if accepted and run.calibrated_checkpoint.is_file() and run.best_checkpoint.is_file():
        accepted.add(file_digest(run.best_checkpoint))  # the same labels, only otherwise sure
    final = read_json(run.metrics).get("final")
    measured = isinstance(final, dict) and final.get("checkpoint_sha256") in accepted
    content = {
        "name": run.path.name,
        "checkpoint_sha256": checkpoint,
        **facts_of(first),
        "twins": twins,
        "accuracy": _accuracy(final) if measured and isinstance(final, dict) else None,
        "parity": _parity(read_json(run.parity), checkpoint, twins.get("keras", {}).get("sha256")),
        "top": labelling.top,
        "temperature": labelling.temperature,
        "min_probability": labelling.min_probability,
        "version": version("shelftwin"),
    }
    digest = checkpoint or twins["keras"]["sha256"]
    return ModelFacts(
        content, digest, _confusion(final, len(first.class_names)) if measured and isinstance(final, dict) else None
    )


def _accuracy(final: dict[str, Any]) -> dict[str, Any] | None:
    interval = final.get("accuracy_interval") or [None, None]
    if not isinstance(final.get("accuracy"), float):
        return None
    return {
        "value": final["accuracy"],
        "low": interval[0],
        "high": interval[1],
        "photos": final.get("photos"),
        "set": SETS.get(str(final.get("set")), str(final.get("set"))),
    }


def _confusion(final: dict[str, Any], classes: int) -> Confusion | None:
    counts = (final.get("confusion_matrix") or {}).get("counts")
    if not isinstance(counts, list) or len(counts) != classes:
        return None
    return Confusion(SETS.get(str(final.get("set")), str(final.get("set"))), counts)


def _parity(content: dict[str, Any], checkpoint: str | None, h5: str | None) -> dict[str, Any] | None:
    """The verdict of the proof of exactly these two files; of one alone if only that is served."""
    for report in content.get("reports", []):
        proved = report["checkpoint"]["sha256"], report["model"]["sha256"]
        if proved[0] == checkpoint and h5 in (proved[1], None):
            passed = [each["passed"] for each in report["rungs"]]
            return {"verdict": content["verdict"], "passed": sum(passed), "checks": len(passed)}
    return None
