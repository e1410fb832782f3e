"""Photos and tables behind an address (s3://, gs://, hf://, zip://): fetched into the cache, then read as files."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from datamodule.sources.table_file import TABLE_ENDINGS
from models.atomic_write import replacing, write_text
from models.bad_input import BadInput, some_of
from models.choices import FORMAT_ENDINGS, MOST_PHOTO_BYTES

CONNECTIONS = 16
"""How many files are fetched at once."""
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 10, 60
LARGEST_TABLE = 1 << 34
"""Bytes of a table at most."""
MANIFEST = "fetched.json"


def is_address(text: str) -> bool:
    """Return whether a path is an address, such as s3://bucket/photos."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def is_mangled_address(path: Path) -> bool:
    """Return whether a path was an address before it became a path, as `s3:/bucket/photos` was."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path.as_posix()) is not None and not path.exists()


def address_of(address: str, place: PurePosixPath) -> str:
    """Return the address of a file in a folder or an archive that has an address.

    Args:
        address: of the folder or the archive.
        place: the file's path in it.
    """
    folder, chain, archive = address.partition("::")
    scheme, _, path = folder.partition("://")
    if scheme.lower() in ("zip", "tar") and not chain:  # the whole archive, by our short form
        folder, chain, archive = f"{scheme}://", "::", path
    return f"{folder}{'' if folder.endswith('/') else '/'}{place}{chain}{archive}"


def fetch(setting: str, address: str, cache: Path, progress: Callable[[Iterable, int], Iterable] | None = None) -> Path:
    """Fetch a folder of photos, or one table, unless they are in the cache as they are at the address.

    Args:
        setting: named in messages.
        address: as fsspec takes it; `zip://FILE.zip` is the whole of an archive.
        cache: folder; every address has one of its own inside, which has what the address has, and no more.
        progress: wraps the iteration over files to show progress; called with it and their number.

    Returns:
        The folder, or the table's file.

    Raises:
        BadInput: it cannot be reached or read, has nothing to read, or is too large.
    """
    home = cache / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_suffix(".lock")):  # several processes of one training ask for the same
            return _fetch(setting, address, home, progress)
    except BadInput:
        raise
    except ImportError as error:
        raise BadInput(
            f"{setting}: expected an address that can be read here; received {address}: {error}. Or copy the photos "
            "to a disk and give their folder."
        ) from error
    # fsspec has a backend for each kind of address, and each raises errors of its own; all mean that it cannot be read
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, FileNotFoundError) and " " not in reason:
            reason = f"there is no {reason}"
        reason = re.sub(r"\s*\(Request ID: [^)]*\)", "", reason).rstrip(".")
        remedy = (
            "Check it, the connection, and the rights that the environment gives (for s3:// AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
        if isinstance(error, zipfile.BadZipFile):
            remedy = "Fetch the archive again, or unpack it and give its folder"
        raise BadInput(
            f"{setting}: expected an address that can be read; received {address}: {reason[:300]}. {remedy}."
        ) from error


def _fetch(setting: str, address: str, home: Path, progress: Callable[[Iterable, int], Iterable] | None) -> Path:
    system, base = _open(address)
    found = {name: each for name, each in system.find(base, detail=True).items() if each.get("type") == "file"}
    wanted = {name: each for name, each in found.items() if _is_wanted(name)}
    if not found:
        system.ls(base)  # unlike `find`, it says what is wrong
    if not wanted:
        what = f"{len(found)} other files there" if found else "nothing there"
        raise BadInput(
            f"{setting}: expected photos or a table at {address}; received {what}. Check the address, down to "
            "the folder."
        )
    alone = [*found] == [base] or base in found
    start = len(PurePosixPath(base).parent.parts if alone else PurePosixPath(base).parts)
    places = {name: _place(setting, address, name, start) for name in wanted}
    for name, each in wanted.items():
        most = LARGEST_TABLE if name.lower().endswith(TABLE_ENDINGS) else MOST_PHOTO_BYTES
        if (each.get("size") or 0) > most:
            raise BadInput(
                f"{setting}: expected files of at most {most >> 20} MiB at {address}; received {name} of "
                f"{each['size'] >> 20}. Remove it, or make it smaller."
            )
    marks = {str(places[name]): _mark(each) for name, each in wanted.items()}
    manifest = home / MANIFEST
    before = json.loads(manifest.read_text()) if manifest.is_file() else {}
    files = home / "files"
    missing = [
        name for name, place in places.items()
        if before.get(str(place)) != marks[str(place)] or not (files / place).is_file()
    ]  # fmt: skip
    needed = sum(wanted[name].get("size") or 0 for name in missing)
    if needed > (free := shutil.disk_usage(home).free):
        raise BadInput(
            f"{setting}: expected room for {needed / 1e9:.1f} GB of {address}; received {home} with {free / 1e9:.1f} "
            "GB free. Make room, or give another folder with --data.store_dir."
        )

    def get(name: str) -> None:
        target = files / places[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        size = wanted[name].get("size")
        left = LARGEST_TABLE if size is None else size
        with replacing(target) as temporary, temporary.open("wb") as copy:
            for block in _blocks(system, name):
                left -= len(block)
                if left < 0:  # an archive that says less than it holds
                    raise BadInput(f"{setting}: expected {size} bytes of {name} at {address}; received more.")
                copy.write(block)

    # an archive is one file with one place to read at
    with ThreadPoolExecutor(1 if address.startswith(("zip", "tar")) else CONNECTIONS) as pool:
        for _ in progress(pool.map(get, missing), len(missing)) if progress else pool.map(get, missing):
            pass
    for place in before.keys() - marks.keys():
        (files / place).unlink(missing_ok=True)
    write_text(manifest, json.dumps(marks))
    return files / places[base] if alone else files


class Unreadable(Exception):
    """A file at an address cannot be read; an OSError would be taken for one of the place that it is copied to."""


def _blocks(system: Any, name: str) -> Iterator[bytes]:
    try:
        with system.open(name, "rb") as source:
            while block := source.read(1 << 20):
                yield block
    except OSError as error:
        raise Unreadable(str(error) or type(error).__name__) from error


def _open(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    scheme = address.partition("://")[0].lower()
    if scheme in ("zip", "tar") and "::" not in address:
        archive = address.partition("://")[2]
        if not Path(archive).is_file():
            raise FileNotFoundError(f"there is no file {archive}")
        address = f"{scheme}://::{archive}"
    try:
        system, path = url_to_fs(address)
    except ImportError:
        if scheme not in ("s3", "gs"):
            raise
        system, path = _of_arrow(scheme, address)
    return system, path


def _of_arrow(scheme: str, address: str) -> tuple[Any, str]:
    """Open a bucket by pyarrow, which is here, in place of s3fs or gcsfs, which may not be."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    if scheme == "gs":
        system, path = fs.FileSystem.from_uri(address)
        return ArrowFSWrapper(system), path
    parts = urlsplit(address)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings: dict[str, Any] = {"connect_timeout": SECONDS_TO_CONNECT, "request_timeout": SECONDS_TO_ANSWER}
    settings["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=2)
    if endpoint:
        settings["endpoint_override"] = endpoint
    if not endpoint and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        settings["region"] = fs.resolve_s3_region(parts.netloc)
    system = fs.S3FileSystem(**settings)
    return ArrowFSWrapper(system), f"{parts.netloc}{parts.path}".rstrip("/")


def _is_wanted(name: str) -> bool:
    last = PurePosixPath(name).name.lower()
    return last.endswith((*FORMAT_ENDINGS["all"], *TABLE_ENDINGS)) or "." not in last


def _place(setting: str, address: str, name: str, start: int) -> PurePosixPath:
    """Return where a file belongs below the folder, and nowhere else, whatever its name."""
    parts = PurePosixPath(name).parts[start:]
    if not parts or any(part in ("..", "/", "") or "\\" in part or "\0" in part for part in parts):
        raise BadInput(
            f"{setting}: expected files inside of {address}; received one called {some_of([name])}, which leads "
            "out of it. Do not use this source."
        )
    return PurePosixPath(*parts)


def _mark(info: dict[str, Any]) -> list[str]:
    """Return what differs where a file at the address has changed."""
    known = ("size", "ETag", "etag", "CRC", "md5", "mtime", "last_modified", "LastModified", "date_time", "created")
    return [f"{key}={info[key]}" for key in known if info.get(key) is not None]
