"""How long a table of photos takes to be listed and split, and how much memory: the numbers in docs/scale.md.

    .venv/bin/python benchmarks/table_rows.py                       # 10 thousand to a million rows; files are created
    .venv/bin/python benchmarks/table_rows.py --unknown 10000000    # a table none of whose files is there

Each table is read in a process of its own. Files are empty: none is opened. Memory is the process's largest resident
set, and of that what it has after its imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLASSES = 100


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--unknown", type=int, help="rows of a table whose files are not there, in place of the others")
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "images").mkdir()
        print(
            "| rows | table | s | of the processor, s | most memory, MB | of that before, MB | bytes a row | outcome |"
        )
        print("|---|---|---|---|---|---|---|---|")
        done = 0
        for rows in [given.unknown] if given.unknown else given.rows:
            for number in range(done, 0 if given.unknown else rows):
                os.close(os.open(folder / "images" / f"{number}.jpg", os.O_CREAT | os.O_WRONLY))
            done = rows
            for write in (write_csv, write_parquet):
                table = write(folder, rows)
                answer = subprocess.run(
                    [sys.executable, __file__, "--read", str(table)],
                    capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                found = json.loads(answer.stdout)
                grown = found["most"] - found["before"]
                print(
                    f"| {rows:,} | {table.suffix} | {found['seconds']:.1f} | {found['cpu']:.1f} "
                    f"| {found['most'] / 1e6:.0f} | {found['before'] / 1e6:.0f} | {grown / rows:.0f} "
                    f"| {found['outcome']} |",
                    flush=True,
                )


def write_csv(folder: Path, rows: int) -> Path:
    """Write a table as a shop might have it: an id without ending, a label, and columns that nobody asks for."""
    table = folder / "catalogue.csv"
    with table.open("w") as file:
        file.write("id,gender,articleType,price,title\n")
        file.writelines(
            f'{number},Unisex,class {number % CLASSES},{number % 90}.99,"Article {number}, as sold"\n'
            for number in range(rows)
        )
    return table


def write_parquet(folder: Path, rows: int) -> Path:
    """Write the same as .parquet."""
    from pyarrow import csv, parquet

    table = folder / "catalogue.parquet"
    parquet.write_table(csv.read_csv(folder / "catalogue.csv"), table)
    return table


def read(table: Path) -> dict[str, float | str]:
    """List and split a table."""
    from pyarrow import csv, parquet  # noqa: F401 - not to be measured

    from datamodule.sources.photo_table import PhotoTable
    from datamodule.split import stratified_split
    from models.bad_input import BadInput

    before, start, busy = most_memory(), time.perf_counter(), time.process_time()
    try:
        photos = PhotoTable(table, table.parent / "images", label_column="articleType")
        training, validation = stratified_split(photos.classes["train"], 0.2, 0)
        outcome = f"{len(training.files):,} + {len(validation.files):,} photos"
    except BadInput as error:
        outcome = f"refused in {len(str(error)):,} characters"
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "cpu": cpu, "most": most_memory(), "before": before, "outcome": outcome}


def most_memory() -> int:
    """Return the most memory that this process has had, in bytes; of Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
