"""Photos from a Kaggle dataset: kagglehub downloads it into its cache, and the class folders are found in it."""

import os
from pathlib import Path

from datamodule.layout import clean_class_names
from datamodule.split import find_class_names, is_junk_folder
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS

SECONDS_TO_ANSWER = 10
"""How long to wait for Kaggle's first answer. kagglehub sets no limit: behind a firewall that drops packets it would
wait for minutes."""


def download_photos(handle: str) -> Path:
    """Download a dataset, unless it is in kagglehub's cache, and find the folder that contains the class folders.

    If the handle has no version, kagglehub asks for the newest one; if Kaggle cannot be reached, the newest version in
    the cache is used.

    Args:
        handle: owner/dataset, or owner/dataset/versions/N.

    Returns:
        The folder with one folder of photos per class.

    Raises:
        BadInput: kagglehub is not installed, Kaggle cannot be reached or refuses, or there are no class folders inside.
    """
    try:
        import kagglehub
        import requests
        from kagglehub.handle import parse_dataset_handle
    except ImportError as error:
        raise BadInput(
            f"kaggle: expected the package kagglehub; received: {error}. Install it with pip install kagglehub. "
            f"{by_hand(handle)}"
        ) from error
    try:
        parse_dataset_handle(handle)
    except ValueError:
        raise BadInput(
            f"kaggle: expected owner/dataset, as in sunnykusawa/ecommerce-products-image-dataset; received {handle!r}. "
            "Take it from the dataset's address, after /datasets/."
        ) from None
    try:
        folder = newest_in_cache(handle)
        if folder is None or not parse_dataset_handle(handle).is_versioned():
            try:
                ask_kaggle()
                folder = Path(kagglehub.dataset_download(handle))
            except requests.ConnectionError:
                if folder is None:
                    raise
    # kagglehub raises several classes when Kaggle refuses, zipfile's for a broken archive, and OSError for a full disk
    # (requests' own errors are OSErrors, too). All of them mean that the photos are not available.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"kaggle: expected to download {handle}; received: {reason[0]} {by_hand(handle)}") from error
    return find_class_folders(folder)


def by_hand(handle: str) -> str:
    """Return instructions for getting the photos without kagglehub."""
    return (
        f"By hand: download the ZIP from https://www.kaggle.com/datasets/{handle} with a browser, unpack it, and give "
        "the folder that has the class folders with --data.root FOLDER in place of --data.kaggle."
    )


def ask_kaggle() -> None:
    """Check that Kaggle answers at all.

    Raises:
        requests.ConnectionError: there was no answer within `SECONDS_TO_ANSWER`.
    """
    import requests
    from kagglesdk.kaggle_env import get_endpoint, get_env

    try:
        requests.head(get_endpoint(get_env()), timeout=SECONDS_TO_ANSWER)
    except requests.RequestException as error:
        raise requests.ConnectionError("Kaggle cannot be reached from this machine.") from error


def newest_in_cache(handle: str) -> Path | None:
    """Find a dataset that was downloaded completely before: the requested version, or else the newest."""
    from kagglehub.cache import Cache, get_cached_path
    from kagglehub.handle import parse_dataset_handle

    dataset = parse_dataset_handle(handle)
    versions = Path(get_cached_path(dataset.with_version(1))).parent
    numbers = [int(entry.name) for entry in versions.glob("*") if entry.name.isdecimal()]
    for number in [dataset.version] if dataset.is_versioned() else sorted(numbers, reverse=True):
        if found := Cache().load_from_cache(dataset.with_version(number)):
            return Path(found)
    return None


def find_class_folders(folder: Path) -> Path:
    """Find the topmost folder that has two or more folders with photos in them, at any depth.

    Folders that programs leave are ignored, such as `__MACOSX` in archives from a Mac.

    Raises:
        BadInput: there is none, or the archive has the class folders twice, one copy inside the other.
    """
    level = folder
    while True:
        inner = [level / name for name in clean_class_names(level)]
        inner = [entry for entry in inner if has_photos(entry)]
        if len(inner) != 1:
            break
        level = inner[0]
    if not inner:
        raise BadInput(
            f"kaggle: expected one folder of photos per class somewhere in {folder}; received none. "
            "Look into it, and give the right folder with --data.root."
        )
    names = {entry.name for entry in inner}
    for entry in inner:
        if len(twice := names & set(find_class_names(entry))) > 1:
            raise BadInput(
                f"kaggle: expected the class folders once in {folder}; received {', '.join(sorted(twice))} in {level} "
                f"and again in {entry}. Give the one to use with --data.root {entry}, or a copy without it."
            )
    return level


def has_photos(folder: Path) -> bool:
    """Return whether there is a photo in a folder or below it, except in folders that programs leave."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk_folder(name)]
        if any(name.lower().endswith(FORMAT_ENDINGS["all"]) for name in names):
            return True
    return False
