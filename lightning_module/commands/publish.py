"""`lightning publish`: puts a run's network and its model card into a repository of a model hub."""

import shlex
import shutil
from pathlib import Path

from lightning_module.commands.cli import EXIT_BAD_INPUT, EXIT_UNEXPECTED
from lightning_module.commands.options import parse_options
from models.atomic_write import replacing_folder
from models.bad_input import BadInput


def run(argv: list[str]) -> None:
    """Parse `publish RUN OWNER/NAME [--dry_run] [...]` and run it.

    Raises:
        BadInput: some input cannot be used, or the hub cannot be reached or refuses.
    """
    codes = f"Exit codes: 0 done; {EXIT_BAD_INPUT} bad input, or the hub cannot be reached or refuses; "
    codes += f"{EXIT_UNEXPECTED} an error in the program."
    publish(**parse_options("publish", publish, argv, exit_codes=codes))


def publish(
    run: Path,
    repository: str,
    dry_run: bool = False,
    folder: Path | None = None,
    also: str = "",
    license: str | None = None,
    private: bool = False,
) -> None:
    """Publish a run's model.h5, labels.json, metrics.json, other formats beside them, and its card as README.md.

    The report and the proof are not published unless --also names them: they show photos and name their folders.

    Args:
        run: folder of a finished `lightning fit`.
        repository: owner/name; it is made if there is none.
        dry_run: only print what would be published.
        folder: write what would be published into this folder, which must not exist, and publish nothing.
        also: further files of the run, separated by commas, such as best.ckpt.
        license: of the network, as the hub names it, such as apache-2.0.
        private: make a new repository private.
    """
    from lightning_module.publishing.hub import CARD, publish_upload, upload_of
    from lightning_module.run.run_folder import RunFolder

    names = [name.strip() for name in also.split(",") if name.strip()]
    upload = upload_of(RunFolder(run), repository, names, license)
    for name, size in ((CARD, len(upload.card.encode())), *((n, f.stat().st_size) for n, f in upload.files.items())):
        print(f"{size:>12,} bytes  {name}")
    if dry_run:
        print(f"dry run: {upload.size:,} bytes would be published as {repository}; nothing was")
        return
    if folder is not None:
        if folder.exists():
            raise BadInput(f"--folder: expected a folder that is not there yet, received {folder}. Name another.")
        with replacing_folder(folder) as temporary:
            temporary.mkdir(parents=True)
            for name, file in upload.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, temporary / name)
            (temporary / CARD).write_text(upload.card, encoding="utf-8")
        command = ["hf", "upload", repository, str(folder), *(["--private"] if private else [])]
        print(f"{folder}: `{shlex.join(command)}` publishes it, from any machine")
        return
    print(f"published: {publish_upload(upload, private)}")
