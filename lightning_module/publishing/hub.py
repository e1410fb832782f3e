"""Puts a run's files and its card into a repository of a model hub, in one commit."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_module.publishing.model_card import model_card
from lightning_module.run.run_folder import RunFolder
from models.bad_input import BadInput

HANDED_OVER = ("model.h5", "labels.json", "metrics.json")
"""What is published of every run. The report and the proof are not: they show photos, and name their folders."""
OTHER_FORMATS = ("*.onnx", "*.tflite", "*_saved_model/**/*")
"""What `lightning export` may have written beside them."""
CARD = "README.md"
"""What a hub shows first."""


@dataclass(frozen=True)
class Upload:
    """What is to be published.

    Attributes:
        repository: `owner/name`.
        card: text of its README.md.
        files: name in the repository -> file.
    """

    repository: str
    card: str
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return len(self.card.encode()) + sum(file.stat().st_size for file in self.files.values())


def upload_of(run: RunFolder, repository: str, also: Sequence[str] = (), license: str | None = None) -> Upload:
    """Collect what is published of a run, and make its card anew.

    Args:
        run: its folder.
        repository: `owner/name`.
        also: names of further files in it.
        license: of the network, as the hub names it.

    Raises:
        BadInput: the name is not one that a hub takes, or a file is missing.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise BadInput(f"expected a repository as owner/name, received {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise BadInput(f"expected a repository as owner/name, received {repository!r}. Name its owner, too.")
    if not run.path.is_dir():
        raise BadInput(f"expected a run's folder, received {run.path}, which is none. `lightning fit` writes one.")
    for name in (*HANDED_OVER, *also):
        if not (run.path / name).is_file():
            way_out = "Give the folder of a finished `lightning fit` with its twin."
            if name in also:
                way_out = "Leave it out of --also, or name a file that is there."
            raise BadInput(f"expected {name} in {run.path}, received none. {way_out}")
    found = [file for pattern in OTHER_FORMATS for file in sorted(run.path.glob(pattern)) if file.is_file()]
    files = {name: run.path / name for name in (*HANDED_OVER, *also)}
    files |= {file.relative_to(run.path).as_posix(): file for file in found}
    return Upload(repository, f"{model_card(run, license)}\n", files)


def publish_upload(upload: Upload, private: bool) -> str:
    """Make the repository where there is none, and put everything into it, in one commit.

    Returns:
        The commit's address.

    Raises:
        BadInput: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi(library_name="shelftwin")
    contents: dict[str, bytes | str] = {CARD: upload.card.encode()}
    contents |= {name: str(file) for name, file in upload.files.items()}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in contents.items()]
    try:
        hub.create_repo(upload.repository, private=private, exist_ok=True)
        done = hub.create_commit(upload.repository, operations, commit_message="lightning publish")
    except LocalTokenNotFoundError as error:
        raise BadInput(f"expected to be logged in to {constants.ENDPOINT}, received no token. {_LOGIN}") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        way_out = _LOGIN if code in (401, 403) else "Look at its message."
        raise BadInput(
            f"expected {constants.ENDPOINT} to take {upload.repository}, received {str(error).strip()} {way_out}"
        ) from error
    except _transport_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"expected to reach {constants.ENDPOINT}, received: {reason}. Nothing was published. Without a network, "
            "`--folder DIR` writes what would be published; `hf upload "
            f"{upload.repository} DIR{' --private' if private else ''}` does it from a machine that has one."
        ) from error
    return done.commit_url


_LOGIN = "Run `hf auth login` with a token that may write to it, or set HF_TOKEN."


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where nobody answers, whichever library it sends with."""
    known = {"httpx2": "TransportError", "httpx": "TransportError", "requests": "RequestException"}
    loaded = [getattr(sys.modules[module], name) for module, name in known.items() if module in sys.modules]
    return (OSError, *loaded)
