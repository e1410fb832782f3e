"""The photos of a data set: arguments as `lightning predict` takes them, and folders behind an address."""

from collections import Counter
from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import groupby
from pathlib import Path

from datamodule.sources.addresses import is_address
from datamodule.sources.photo_arguments import PhotoArguments
from datamodule.sources.remote_photos import list_addresses
from datamodule.sources.table_file import is_table
from lightning_module.evaluation.decoding import Found
from models.bad_input import BadInput
from models.choices import Formats


class Sources:
    """The photos of all arguments, one after the other; of an address, they are read where they are computed.

    Args:
        arguments: as for `PhotoArguments`; or the address of a folder.
        formats: as for `PhotoArguments`; likewise `file_column`, `base` and `stdin`.

    Attributes:
        folders: the arguments that are folders here.
        junk: how many files were left out, by kind; known once all photos have been yielded.

    Raises:
        BadInput: an argument is not there, or has no photos.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        formats: Formats,
        file_column: str | None,
        base: str | None,
        stdin: BufferedReader | None,
    ) -> None:
        self.formats = formats
        if base is not None and is_address(base):
            raise BadInput(
                f"--base: expected a folder for a data set, received {base}. Give the photos' address itself."
            )
        self._groups: list[str | PhotoArguments] = []
        for remote, group in groupby(arguments, is_address):
            given = [*group]
            if not remote:
                tables = any(is_table(Path(each)) for each in given) or len(given) == len(arguments)
                column = file_column if tables else None
                self._groups.append(PhotoArguments(given, formats, column, base, stdin))
                continue
            if named := next((each for each in given if is_table(Path(each))), None):
                raise BadInput(
                    f"expected the address of a folder of photos, received {named}, a table. Fetch the table, and name "
                    "the photos' addresses by their folder."
                )
            self._groups += given

    @property
    def folders(self) -> list[Path]:
        """The arguments that are folders here."""
        return [each for group in self._groups if isinstance(group, PhotoArguments) for each in group.folders]

    def __iter__(self) -> Iterator[Found]:
        """Yield paths and addresses, and in their place what is named but cannot be one.

        Raises:
            BadInput: a source cannot be reached, or turns out to be damaged.
        """
        self.junk: Counter[str] = Counter()
        for group in self._groups:
            if isinstance(group, PhotoArguments):
                yield from group
                self.junk += group.junk
            else:
                yield from list_addresses(group, self.formats, self.junk)
