"""Photos as a command line names them: each argument a photo, a folder, a glob, a table, a list, or `-`."""

import codecs
import glob
import os
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from io import BufferedReader, TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datamodule.layout import kind_of_junk, what_else
from datamodule.photo_store import BadPhoto
from datamodule.sources.addresses import address_of, fetch, is_address
from datamodule.sources.photo_table import each_photo_of
from datamodule.sources.table_file import is_table
from datamodule.split import each_photo, is_listed
from models.bad_input import BadInput, some_of
from models.choices import FORMAT_ENDINGS, Formats

STDIN = "-"
LIST_ENDING = ".txt"
LONGEST_LINE = 1 << 16
"""Bytes of a line in a list at most: no path is that long."""

NOT_THERE = "is not there"
WHY = {
    "photos that are not there": NOT_THERE,
    "files that are not listed as photos (see formats)": "is not named as a photo is (see --formats)",
    "photos of which there are several with different endings": "is there with several endings",
}
"""How a table's reader speaks of many photos -> what is said of one."""

Found = Path | BadPhoto
Junk = Counter[str]


class _Source(NamedTuple):
    """One argument.

    Attributes:
        name: as given.
        each: yields its photos anew with every call, and counts what it leaves out.
        is_counted: whether they can be counted without reading all of a list.
        none: what is wrong if there are none.
    """

    name: str
    each: Callable[[Junk], Iterator[Found]]
    is_counted: bool
    none: Callable[[], str]


class PhotoArguments:
    """The photos of all arguments, one after the other; a photo that is named twice comes twice.

    Only one folder's names, or one piece of a table, is in memory at a time.

    Args:
        arguments: each a photo, a folder (searched at any depth), a pattern with `*`, `?` or `[`, a table
            (`TABLE_ENDINGS`), a .txt with a path in each line, or `-` for paths from `stdin`. A photo, a folder or a
            table may be behind an address.
        formats: which files in folders, and of patterns and tables, are photos.
        file_column: the column of tables that names the files; None looks for it.
        base: folder that names in tables and lists are relative to. By default a table's own or one beside it, and
            for lists the working folder, or else the list's own.
        stdin: where `-` reads from, in bytes.
        cache: folder that photos, tables and lists behind an address (s3://, zip://, ...) are fetched into.
        progress: as `addresses.fetch` takes it.

    Attributes:
        folders: the arguments that are folders.
        junk: how many files were left out, by kind; known once all photos have been yielded.

    Raises:
        BadInput: an argument is not there, or has no photos.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        formats: Formats = "web",
        file_column: str | None = None,
        base: str | None = None,
        stdin: BufferedReader | None = None,
        cache: Path | None = None,
        progress: Callable[[Iterable, int], Iterable] | None = None,
    ) -> None:
        self.formats, self.file_column, self.stdin = formats, file_column, stdin
        self._cache, self._progress = cache, progress
        self._fetched: list[tuple[Path, str]] = []
        self.folders: list[Path] = []
        self.junk: Junk = Counter()
        self.base = None if base is None else Path(self._here("--base", base))
        arguments = [self._here("photos", each) for each in arguments]
        if self.base is not None and not self.base.is_dir():
            raise BadInput(f"--base: expected a folder, received {base}, which is none. Check the path.")
        missing = [each for each in arguments if each != STDIN and not _is_there(each) and not glob.has_magic(each)]
        if missing or not arguments:
            received = f"{len(missing)} of {len(arguments)} that are not: {some_of(missing)}" if missing else "nothing"
            raise BadInput(
                "expected photos, folders with photos, tables or lists that are there, or - for paths from standard "
                f"input; received {received}. Check the paths."
            )
        if arguments.count(STDIN) > 1:
            raise BadInput("expected - for standard input once, received it again. It can be read only once.")
        self._sources = [self._source(each) for each in arguments]
        has_tables = any(_is_there(each) and is_table(Path(each)) for each in arguments)
        if file_column is not None and not has_tables:
            raise BadInput(f"--file_column: expected with a table, received {file_column!r} without one. Leave it out.")
        for source in self._sources:
            if source.name != STDIN and next(source.each(Counter()), None) is None:
                raise BadInput(source.none())

    def __iter__(self) -> Iterator[Found]:
        """Yield paths, and in their place what is named but cannot be one.

        Raises:
            BadInput: a table or a list turns out to be damaged, or standard input is empty.
        """
        self.junk.clear()
        for source in self._sources:
            count = 0
            for found in source.each(self.junk):
                count += 1
                yield found
            if not count and source.name == STDIN:
                raise BadInput(source.none())

    def name_of(self, photo: Path) -> str:
        """Return what a photo is called in the output: its path, or its address if it was fetched."""
        for here, address in self._fetched:
            if photo == here:
                return address
            if photo.is_relative_to(here):
                return address_of(address, PurePosixPath(photo.relative_to(here).as_posix()))
        return str(photo)

    def _here(self, setting: str, argument: str) -> str:
        """Return where an argument is on this machine; fetch what is behind an address."""
        if not is_address(argument) or _is_there(argument):
            if argument.lower().endswith(".zip") and zipfile.is_zipfile(argument):
                raise BadInput(
                    f"{setting}: expected photos or a folder, received the archive {argument}. "
                    f"Archives are given so: {shlex.quote(f'zip://{argument}')}"
                )
            return argument
        if glob.has_magic(argument.partition("?")[0]):
            raise BadInput(
                f"{setting}: expected an address without *, ? and [, received {argument}. Name the folder; "
                "all photos in it are taken."
            )
        assert self._cache is not None
        here = fetch(setting, argument, self._cache, self._progress)
        self._fetched.append((here, argument))
        return str(here)

    def count(self) -> int | None:
        """Return how many photos there are; None if a table or a list would have to be read for that."""
        if not all(source.is_counted for source in self._sources):
            return None
        return sum(1 for source in self._sources for _ in source.each(Counter()))

    def _source(self, name: str) -> _Source:
        if name == STDIN:
            stdin = self.stdin
            assert stdin is not None
            where = "standard input"
            return _Source(
                name,
                lambda _: self._of_lines(stdin, where, Path()),
                False,
                lambda: (
                    "expected paths of photos from standard input, one in each line, received none. Give them, as "
                    "in find SHOP -name '*.jpg' | lightning predict RUN/best.ckpt -"
                ),
            )
        path = Path(name)
        if not _is_there(name):
            return _Source(
                name,
                lambda junk: _of_pattern(name, self.formats, junk),
                True,
                lambda: (
                    f"expected a photo or a pattern that matches some, received {name!r}, which matches none. "
                    "Check the path; ** is any depth, as in 'SHOP/**/*.jpg'."
                ),
            )
        if path.is_dir():
            self.folders.append(path)
            endings = ", .".join(FORMAT_ENDINGS[self.formats])
            return _Source(
                name,
                lambda junk: _of_folder(path, self.formats, junk),
                True,
                lambda: (
                    f"expected photos (.{endings}) in {path}, received none{what_else(path, self.formats)}. Name "
                    "the folder that has them, or convert photos with other endings."
                ),
            )
        if is_table(path):
            none = f"{path}: expected a row for each photo, received none. Add them."
            return _Source(name, lambda _: self._of_table(path), False, lambda: none)
        if path.suffix.lower() == LIST_ENDING:
            none = f"expected a list with a path in each line, received {path}, which has none. Add them."
            return _Source(name, lambda _: self._of_list(path), False, lambda: none)
        return _Source(name, lambda _: iter([path]), True, str)

    def _of_table(self, table: Path) -> Iterator[Found]:
        for name, why in each_photo_of(table, self.base, self.file_column, self.formats, ("--file_column", "--base")):
            yield BadPhoto(Path(_printable(name)), WHY.get(why, why)) if why else Path(name)

    def _of_list(self, file: Path) -> Iterator[Found]:
        try:
            with file.open("rb") as lines:
                yield from self._of_lines(lines, str(file), file.parent)
        except OSError as error:
            raise BadInput(f"expected a list that can be read, received {file}: {error.strerror}. Mend it.") from error

    def _of_lines(self, lines: BufferedReader, where: str, beside: Path) -> Iterator[Found]:
        for line in _text_lines(lines, where):
            if not line.strip():
                continue
            if "\0" in line:
                yield BadPhoto(Path(_printable(line)), "has a NUL in its name")
                continue
            places = [Path(), beside] if self.base is None else [self.base]
            here = next((place / line for place in places if os.path.lexists(place / line)), None)
            yield here or BadPhoto(Path(line), NOT_THERE)


def _is_there(argument: str) -> bool:
    return "\0" not in argument and argument != "" and os.path.lexists(argument)


def _printable(name: str) -> str:
    return name.replace("\0", "\\0")


def _of_folder(folder: Path, formats: Formats, junk: Junk) -> Iterator[Found]:
    for file in each_photo(folder, formats):
        if kind := kind_of_junk(file, folder):
            junk[kind] += 1
        else:
            yield file


def _of_pattern(pattern: str, formats: Formats, junk: Junk) -> Iterator[Found]:
    """Yield the photos that match, in the order of `each_photo`: folder by folder, files by name within each.

    A folder that matches stands for all photos in it, unless the pattern goes to any depth by itself.
    """
    head, last = os.path.split(pattern)
    deep = "**" in Path(pattern).parts
    if last == "**":
        head, last = pattern, "*"
    folders_only = not last  # SHOP/tv*/
    if folders_only:
        head, last = os.path.split(head)
    plain = head.split("*")[0].split("?")[0].split("[")[0]
    # what stands before the pattern may be called anything
    start = Path(head if plain == head else plain.rpartition("/")[0] or ("/" if plain.startswith("/") else "."))
    parents = [head]
    if glob.has_magic(head):  # Path.glob does not take a whole path
        found = glob.iglob(head + "/" if start.is_absolute() else f"./{head}/", recursive=True)  # noqa: PTH207
        parents = sorted({str(Path(each)) for each in found})
    for parent in parents:
        try:
            names = sorted(each.name for each in Path(parent).iterdir())
        except OSError:  # it was deleted meanwhile, or is no folder
            continue
        for name in names:
            if not fnmatchcase(name, last) or (name.startswith(".") and not last.startswith(".")):
                continue
            path = Path(parent, name)
            if path.is_dir():
                if not deep:
                    yield from _of_folder(path, formats, junk)
            elif folders_only or not is_listed(parent, name, formats):
                continue
            elif kind := kind_of_junk(path, start):
                junk[kind] += 1
            else:
                yield path


def _text_lines(file: BufferedReader, where: str) -> Iterator[str]:
    """Yield lines without their ends; what is not UTF-8 keeps its bytes, as file names may be of any."""
    start = file.peek(len(codecs.BOM_UTF8))
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows's shell writes lists
        text = TextIOWrapper(file, encoding="utf-16")
        try:
            while decoded := text.readline(LONGEST_LINE):
                yield decoded.rstrip("\r\n")
        except UnicodeError as error:
            raise BadInput(f"{where}: expected text, received {error}. Save the list again in UTF-8.") from error
        finally:
            text.detach()  # or it would close the file, which is somebody else's
        return
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise BadInput(
                f"{where}: expected a path in each line, received a line of more than {LONGEST_LINE} bytes. Give a "
                "text file."
            )
        yield os.fsdecode(line.rstrip(b"\r\n"))
