"""Arguments that name photos: what each stands for, in which order, and what is refused."""

import csv
import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from datamodule.photo_store import BadPhoto
from datamodule.sources import photo_arguments
from datamodule.sources.photo_arguments import PhotoArguments
from datamodule.split import list_photos
from models.bad_input import BadInput
from models.spreadsheet_text import as_text


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder with photos in folders, and the working folder beside it."""
    for name in ("b.jpg", "a.png", "tv/2.jpg", "tv/10.jpg", "tv-old/1.jpg", "sofa/1.webp", "[odd]/1.jpg"):
        file = tmp_path / "shop" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(b"photo")
    (tmp_path / "shop" / "notes.txt").write_text("no photo")
    monkeypatch.chdir(tmp_path)
    return Path("shop")


def found(*arguments: object, **settings: object) -> list[str]:
    return [str(each) for each in PhotoArguments([str(each) for each in arguments], **settings)]  # type: ignore[arg-type]


def stream(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


def all_in(folder: Path) -> list[str]:
    return [str(each) for each in list_photos(folder, "web")]


def test_arguments_come_in_their_order_and_twice_where_named_twice(shop):
    tv, one = all_in(shop / "tv"), "shop/b.jpg"
    assert found(one, shop / "tv", one) == [one, *tv, one]
    assert found(shop) == all_in(shop)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shop/*.jpg", ["shop/b.jpg"]),
        ("shop/?.*", ["shop/a.png", "shop/b.jpg"]),
        ("shop/tv*/", ["shop/tv/10.jpg", "shop/tv/2.jpg", "shop/tv-old/1.jpg"]),
        ("shop/[st]*", ["shop/sofa/1.webp", "shop/tv/10.jpg", "shop/tv/2.jpg", "shop/tv-old/1.jpg"]),
        ("shop/*/1.jpg", ["shop/[odd]/1.jpg", "shop/tv-old/1.jpg"]),
        ("shop/[odd]", ["shop/[odd]/1.jpg"]),  # it is there, so it is no pattern
        ("sho?/**/1.*", ["shop/[odd]/1.jpg", "shop/sofa/1.webp", "shop/tv-old/1.jpg"]),
    ],
)
def test_patterns(shop, pattern, expected):
    assert found(pattern) == expected
    assert found(Path.cwd() / pattern if not pattern.endswith("/") else f"{Path.cwd()}/{pattern}") == [
        str(Path.cwd() / each) for each in expected
    ]


def test_any_depth_is_every_photo_once_as_in_the_folder(shop):
    for pattern in ("shop/**", "shop/**/*"):
        assert found(pattern) == all_in(shop)
    os.chdir(shop)
    assert found("**") == found("**/*") == found(".")
    assert "b.jpg" in found("**/*.jpg")
    assert found("*.jpg") == ["b.jpg"]


def test_what_programs_leave_is_counted_and_left_out(shop):
    (shop / "__MACOSX").mkdir()
    (shop / "__MACOSX" / "1.jpg").touch()
    for argument in ("shop", "shop/**", "sh*"):
        arguments = PhotoArguments([argument])
        assert len(list(arguments)) == arguments.count() == 7
        assert arguments.junk == {"in __MACOSX": 1}
        assert len(list(arguments)) == 7
        assert arguments.junk == {"in __MACOSX": 1}


LINES = ("shop/tv/2.jpg", "shop/b.jpg", "shop/tv/2.jpg")


@pytest.mark.parametrize(
    "data",
    [
        "\n".join(LINES).encode(),
        "\r\n".join(("", *LINES, "", "")).encode("utf-8-sig"),
        "\r\n".join(LINES).encode("utf-16"),
    ],
    ids=["unix", "windows", "powershell"],
)
def test_lists_and_standard_input(shop, data):
    Path("list.TXT").write_bytes(data)
    assert found("list.TXT") == [*LINES]
    given = stream(data)
    assert found("-", stdin=given) == [*LINES]
    assert not given.closed


def test_list_is_relative_to_the_working_folder_or_else_to_itself_or_to_base(shop, tmp_path):
    (shop / "list.txt").write_text("tv/2.jpg\nb.jpg\nshop/a.png\nnone.jpg\n")
    Path("b.jpg").touch()
    assert found("shop/list.txt") == ["shop/tv/2.jpg", "b.jpg", "shop/a.png", "none.jpg: is not there"]
    assert found("shop/list.txt", base=str(shop))[:2] == ["shop/tv/2.jpg", "shop/b.jpg"]


def test_bytes_that_are_no_utf8_stay(shop):
    Path("list.txt").write_bytes(b"caf\xe9.jpg\n")
    Path(os.fsdecode(b"caf\xe9.jpg")).touch()
    assert [os.fsencode(each) for each in found("list.txt")] == [b"caf\xe9.jpg"]


def tables(columns: dict[str, list[str]]) -> Iterable[str]:
    names, rows = [*columns], [*zip(*columns.values(), strict=True)]
    Path("t.csv").write_text("\n".join(";".join(each) for each in (names, *rows)))
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    return "t.csv", "t.parquet"


def test_tables_keep_their_rows_and_name_what_is_not_there(shop):
    for table in tables({"id": ["1", "2", "3", "4"], "picture": ["tv/2", "none.jpg", "b.jpg", "tv/2"]}):
        here = [*PhotoArguments([table])]
        assert [str(each) for each in here if isinstance(each, Path)] == [
            str(Path.cwd() / "shop" / each) for each in ("tv/2.jpg", "b.jpg", "tv/2.jpg")
        ]
        assert isinstance(here[1], BadPhoto)
        assert (str(here[1].path), here[1].reason) == ("none.jpg", "is not there")
        assert found(table, file_column="picture", base=str(shop)) == found(table)


def test_many_lines_are_not_held(shop, monkeypatch):
    """A list is read as it is needed: what follows a line need not even be readable."""
    Path("list.txt").write_bytes(b"shop/b.jpg\n" * 3 + b"x" * (photo_arguments.LONGEST_LINE + 1))
    each = iter(PhotoArguments(["list.txt"]))
    assert [str(next(each)) for _ in range(3)] == ["shop/b.jpg"] * 3
    with pytest.raises(BadInput, match="a line of more than"):
        next(each)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["shop", "nowhere", "no/where"], {}, r"received 2 of 3 that are not: nowhere, no/where"),
        ([], {}, "received nothing"),
        ([""], {}, "received 1 of 1"),
        (["a\0b"], {}, "received 1 of 1"),
        (["shop/*.gif"], {}, "matches none"),
        (["shop/no*/**"], {}, "matches none"),
        (["shop/*.txt"], {}, "matches none"),
        (["shop/sofa"], {"formats": "keras"}, r"received none \(1 .webp\)"),
        (["-", "-"], {}, "once"),
        (["empty.txt"], {}, "which has none"),
        (["header.csv"], {}, "a header alone"),
        (["empty.csv"], {}, "0 bytes"),
        (["odd.csv"], {}, "Name it with --file_column, and the photos' folder with --base"),
        (["odd.csv"], {"file_column": "photo"}, "file_column: expected a column of odd.csv"),
        (["shop"], {"file_column": "photo"}, "--file_column: expected with a table"),
        (["shop"], {"base": "none"}, "--base: expected a folder"),
    ],
)
def test_refusals(shop, arguments, settings, words):
    Path("empty.txt").write_text("\n  \n")
    Path("header.csv").write_text("file,label\n")
    Path("empty.csv").touch()
    Path("odd.csv").write_text("colour,size\nred,1\n")
    with pytest.raises(BadInput, match=words):
        list(PhotoArguments(arguments, **settings))


def test_empty_standard_input_is_refused_when_it_is_read(shop):
    with pytest.raises(BadInput, match="standard input"):
        found("-", stdin=stream(b"\n"))
    assert isinstance(next(iter(PhotoArguments(["-"], stdin=stream(b"a\0b\n")))), BadPhoto)


def test_a_table_without_options_gets_advice_that_can_be_followed(shop, tmp_path):
    """`lightning parity --photos TABLE` has no option for the column: whole paths in the table are what helps."""
    from lightning_module.commands.options import list_photo_files

    Image.new("RGB", (3, 3)).save("whole.png")
    Path("elsewhere").mkdir()
    Path("elsewhere/t.csv").write_text("colour\nred\n")
    with pytest.raises(BadInput, match="write their whole paths into it"):
        list_photo_files(Path("elsewhere/t.csv"))
    Path("elsewhere/t.csv").write_text(f"colour\n{Path('whole.png').resolve()}\n")
    assert list_photo_files(Path("elsewhere/t.csv")) == [Path("whole.png").resolve()]


def zipped(name: str, folder: Path) -> str:
    with zipfile.ZipFile(name, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent))
    return f"zip://{name}"


def test_an_archive_by_its_path_is_told_its_address(shop, tmp_path):
    address = zipped("my photos.zip", shop)
    with pytest.raises(BadInput, match=r"received the archive my photos.zip. Archives are given so") as caught:
        PhotoArguments(["my photos.zip"], cache=tmp_path / "cache")
    assert str(caught.value).endswith(f"'{address}'")
    assert len(list(PhotoArguments([address], cache=tmp_path / "cache"))) > 0


def test_an_archive_is_a_folder_whose_photos_are_named_by_their_addresses(shop, tmp_path):
    address = zipped("photos.zip", shop)
    listed = PhotoArguments([address, "shop/b.jpg"], cache=tmp_path / "cache")
    photos = list(listed)
    here = [str(each) for each in list_photos(shop, "web")]
    assert [listed.name_of(each) for each in photos] == [*(f"zip://{each}::photos.zip" for each in here), "shop/b.jpg"]
    # such a name leads to the photo
    assert next(iter(PhotoArguments([listed.name_of(photos[0])], cache=tmp_path / "c"))).read_bytes() == b"photo"


def test_a_table_here_and_its_photos_elsewhere(shop, tmp_path):
    zipped("photos.zip", shop)
    Path("t.csv").write_text("file,colour\n2,red\n10,blue\n7,red\n")
    listed = PhotoArguments(["t.csv"], base="zip://shop/tv::photos.zip", cache=tmp_path / "cache")
    names = [listed.name_of(each.path if isinstance(each, BadPhoto) else each) for each in listed]
    assert names == ["zip://shop/tv/2.jpg::photos.zip", "zip://shop/tv/10.jpg::photos.zip", "7"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("zip://none.zip", "photos: expected an address that can be read; received zip://none.zip"),
        ("s3://shop/*.jpg", r"expected an address without \*"),
        ("nosuch://shop/a.jpg", "Protocol not known: nosuch"),
    ],
)
def test_addresses_that_cannot_be_read(shop, tmp_path, address, said):
    with pytest.raises(BadInput, match=said):
        PhotoArguments(["shop/b.jpg", address], cache=tmp_path / "cache")


def test_names_that_were_kept_from_being_formulas(shop):
    """As in our own predictions.csv, which may be labelled again."""
    for name in ("=1.jpg", "-2.jpg", "'=3.jpg"):
        (shop / name).write_bytes(b"photo")
    with Path("p.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file"], *([as_text(name)] for name in ("=1.jpg", "-2.jpg", "'=3.jpg", "b.jpg"))])
    assert [Path(each).name for each in found("p.csv", base=str(shop))] == ["=1.jpg", "-2.jpg", "'=3.jpg", "b.jpg"]
