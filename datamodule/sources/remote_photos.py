"""Photos behind an address, listed and read one by one where they are computed, and copied to no disk.

`addresses.fetch` copies all of a source into the cache, for training, which reads every photo many times.
"""

import time
from collections import Counter
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from datamodule.photo_store import BadPhoto
from datamodule.sources.addresses import _open
from datamodule.split import is_junk_folder
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS, MOST_PHOTO_BYTES, Formats

TRIES, SECONDS_BETWEEN = 3, 1.0
"""How often a photo is asked for before the run gives up: what cannot be reached now is no bad photo."""


class Address(str):
    """A photo's address, such as s3://bucket/shop/a.jpg."""


def list_addresses(folder: str, formats: Formats, junk: Counter[str]) -> list[Address]:
    """Return the addresses of the photos in a folder, at any depth: folder by folder, by name within each.

    Args:
        folder: as fsspec takes it, but no archive; or that of one photo.
        formats: which names are photos'.
        junk: counts what is left out, by kind.

    Raises:
        BadInput: it cannot be reached, or has no photos.
    """
    if folder.lower().startswith(("zip:", "tar:")) or "::" in folder:
        raise BadInput(
            f"expected the address of a folder of photos, received {folder}, an archive. Unpack it, and give the "
            "folder."
        )
    try:
        system, base = _open(folder)
        found = [name for name, each in system.find(base, detail=True).items() if each.get("type") == "file"]
        if not found:
            system.ls(base)  # unlike `find`, it says what is wrong
    except ImportError as error:
        raise BadInput(f"expected an address that can be read here; received {folder}: {error}.") from error
    # fsspec has a backend for each kind of address, and each raises errors of its own; all mean that it cannot be read
    except Exception as error:
        raise _unreachable(folder, error) from error
    if found == [base] and base.lower().endswith(FORMAT_ENDINGS[formats]):
        return [Address(folder)]
    kept: list[tuple[str, str]] = []
    for name in found:
        inside = PurePosixPath(name[len(base) :].lstrip("/"))
        hidden = next((part for part in inside.parts[:-1] if is_junk_folder(part)), None)
        if not name.lower().endswith(FORMAT_ENDINGS[formats]):
            continue
        if hidden or inside.name.startswith("._"):
            junk[f"in {hidden}" if hidden else "that a Mac adds (._*)"] += 1
            continue
        kept.append((str(inside.parent), str(inside)))
    if not kept:
        raise BadInput(
            f"expected photos (.{', .'.join(FORMAT_ENDINGS[formats])}) at {folder}, received {len(found)} other files. "
            "Check the address, down to the folder."
        )
    return [Address(f"{folder.rstrip('/')}/{inside}") for _, inside in sorted(kept)]


def read_address(address: Address) -> bytes:
    """Return the whole content of a photo.

    Raises:
        BadPhoto: it is not there, empty or too large.
        BadInput: it cannot be reached, however often it is asked for.
    """
    folder, _, name = address.rpartition("/")
    for remaining in reversed(range(TRIES)):
        try:
            system, base = _opened(folder)
            with system.open(f"{base.rstrip('/')}/{name}", "rb") as file:
                content: bytes = file.read(MOST_PHOTO_BYTES + 1)
            break
        except FileNotFoundError:
            raise BadPhoto(address, "is not there") from None
        except Exception as error:  # each of fsspec's backends raises errors of its own
            if not remaining:
                raise _unreachable(address, error) from error
            time.sleep(SECONDS_BETWEEN)
    if not content:
        raise BadPhoto(address, "is empty (0 bytes)")
    if len(content) > MOST_PHOTO_BYTES:
        raise BadPhoto(address, f"is too large, make it smaller: at most {MOST_PHOTO_BYTES >> 20} MiB are read")
    return content


@lru_cache(maxsize=256)
def _opened(folder: str) -> tuple[Any, str]:
    return _open(folder)


def _unreachable(address: str, error: Exception) -> BadInput:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BadInput(
        f"expected an address that can be read; received {address}: {reason[:300]}. Check it, the connection, and the "
        "rights that the environment gives, on every machine (for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_ENDPOINT_URL)."
    )
