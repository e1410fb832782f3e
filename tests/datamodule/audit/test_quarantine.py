import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from datamodule.audit import moving
from datamodule.audit.audited_folder import RECORD, check_same_folder, write_record
from datamodule.audit.findings import Finding, keep_decisions, read_actions, write_findings
from datamodule.audit.quarantine import JOURNAL, bring_back, set_aside
from models.bad_input import BadInput


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for name in ("a/1.jpg", "a/deep/2.jpg", "b/ö,\n'3.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 100)
    return root


def test_round_trip(root, tmp_path):
    before, aside = tree(root), tmp_path / "out" / "quarantine"
    names = list(before)
    outcome = set_aside(root, names[:2], aside)
    assert len(outcome.moved) == 2
    assert not outcome.left
    assert list(tree(root)) == names[2:]
    assert {name: content for name, content in tree(aside).items() if name != JOURNAL} == {
        name: before[name] for name in names[:2]
    }
    set_aside(root, names[2:], aside)
    assert tree(root) == {}
    assert len(bring_back(root, aside).moved) == 3
    assert tree(root) == before
    assert tree(aside) == {JOURNAL: b""}
    assert bring_back(root, aside).moved == []


@pytest.mark.parametrize("when", ["before", "between"])
def test_interrupted_apply_is_undone(root, tmp_path, monkeypatch, when):
    before, aside, calls = tree(root), tmp_path / "quarantine", []
    move_file = moving.move_file

    def dies(source, target):
        calls.append(source)
        if len(calls) == 2:
            if when == "between":
                os.link(source, target)
            raise KeyboardInterrupt
        move_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(moving, "move_file", dies)
        with pytest.raises(KeyboardInterrupt):
            set_aside(root, list(before), aside)
    with (aside / JOURNAL).open("a") as journal:
        journal.write('{"file": "a/to')  # torn
    set_aside(root, ["b/ö,\n'3.jpg"], aside)
    outcome = bring_back(root, aside)
    assert not outcome.left
    assert tree(root) == before
    assert list(tree(aside)) == [JOURNAL]


def test_nothing_is_overwritten_either_way(root, tmp_path):
    aside = tmp_path / "quarantine"
    set_aside(root, ["a/1.jpg"], aside)
    (root / "a" / "1.jpg").write_text("a new one")
    outcome = set_aside(root, ["a/1.jpg", "a/none.jpg"], aside)
    assert [reason for _, reason in outcome.left] == ["its place is taken by another file", "is not there (any more)"]
    outcome = bring_back(root, aside)
    assert [move.home.name for move, _ in outcome.left] == ["1.jpg"]
    assert (root / "a" / "1.jpg").read_text() == "a new one"
    assert (aside / "a" / "1.jpg").read_bytes() == b"a/1.jpg" * 100
    (root / "a" / "1.jpg").unlink()
    assert len(bring_back(root, aside).moved) == 1
    assert (root / "a" / "1.jpg").read_bytes() == b"a/1.jpg" * 100


def test_without_hard_links_and_for_links(root, tmp_path, monkeypatch):
    (root / "a" / "link.jpg").symlink_to("1.jpg")
    before, aside = tree(root), tmp_path / "quarantine"

    def refuses(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    set_aside(root, [*before], aside)
    assert tree(root) == {}
    bring_back(root, aside)
    assert tree(root) == before
    assert (root / "a" / "link.jpg").readlink() == Path("1.jpg")


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/passwd", "", "a/../../x"])
def test_paths_out_of_the_folder_are_refused_before_any_move(root, tmp_path, name):
    before = tree(root)
    with pytest.raises(BadInput, match="below"):
        set_aside(root, ["a/1.jpg", name], tmp_path / "quarantine")
    assert tree(root) == before


def test_undo_without_journal_is_refused(tmp_path):
    with pytest.raises(BadInput, match="journal"):
        bring_back(tmp_path, tmp_path)


def test_csv_comes_back_as_written_also_from_a_spreadsheet(tmp_path):
    findings = [Finding('a/ö, "1"\n.jpg', "a", "dark", 0.5, action="quarantine"), Finding("b\udcff.jpg", "", "tiny")]
    path = tmp_path / "audit.csv"
    write_findings(path, findings)
    assert read_actions(path) == {('a/ö, "1"\n.jpg', "dark"): "quarantine", ("b\udcff.jpg", "tiny"): ""}
    # what spreadsheets take for UTF-8; and the name's own byte
    assert path.read_bytes().startswith(b"\xef\xbb\xbffile,")
    assert b"\nb\xff.jpg," in path.read_bytes()
    path.write_text("\ufefffile;class;finding;action\na/1.jpg;a;dark; Quarantine\n")
    assert read_actions(path) == {("a/1.jpg", "dark"): "quarantine"}
    for content in ("file,finding,action\na,dark,delete\n", "name,what\na,b\n", ""):
        path.write_text(content)
        with pytest.raises(BadInput):
            read_actions(path)


def test_names_that_are_formulas_are_text_to_a_spreadsheet_and_come_back(tmp_path):
    names = ["=1+1/2.jpg", "+a.jpg", "-a.jpg", "@a.jpg", "\ta.jpg", "'=a.jpg", "'a.jpg"]
    findings = [Finding(name, "=cmd", "exact_duplicate", 1.0, "@b", "-c.jpg", "-d", "quarantine") for name in names]
    path = tmp_path / "audit.csv"
    write_findings(path, findings)
    rows = list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@", "\t")]
    assert [row["file"] for row in rows] == [*(f"'{name}" for name in names[:-1]), "'a.jpg"]
    assert [rows[0][column] for column in ("class", "suggestion", "related_file")] == ["'=cmd", "'@b", "'-c.jpg"]
    assert list(read_actions(path)) == [(name, "exact_duplicate") for name in names]


def test_a_spreadsheet_s_own_encoding_is_refused_and_not_garbled(tmp_path):
    path = tmp_path / "audit.csv"
    path.write_bytes("file,finding,action\na/1.jpg,dark,\na/für.jpg,dark,quarantine\n".encode("cp1252"))
    with pytest.raises(BadInput, match=r"UTF-8.*line 3.*CSV UTF-8"):
        read_actions(path)


def test_of_two_rows_of_one_file_and_finding_the_marked_one_counts(tmp_path):
    path = tmp_path / "audit.csv"
    path.write_text("file,finding,action\na,dark,quarantine\na,dark,\nb,dark,\nb,dark,quarantine\n")
    assert read_actions(path) == {("a", "dark"): "quarantine", ("b", "dark"): "quarantine"}


def test_a_mark_stays_while_its_file_does(root):
    decided = {("a/1.jpg", "suspect"): "quarantine", ("a/gone.jpg", "suspect"): "quarantine", ("a/1.jpg", "dark"): ""}
    kept = keep_decisions([Finding("a/deep/2.jpg", "a", "dark")], decided, root)
    assert [(each.file, each.kind, each.action) for each in kept] == [
        ("a/1.jpg", "suspect", "quarantine"),
        ("a/deep/2.jpg", "dark", ""),
    ]


def test_folders_that_were_renamed_since_are_undone(root, tmp_path):
    before, names = tree(root), list(tree(root))
    set_aside(root, names, tmp_path / "out" / "q")
    root, aside = root.rename(tmp_path / "other photos"), (tmp_path / "out").rename(tmp_path / "other out") / "q"
    assert len(bring_back(root, aside).moved) == len(names)
    assert tree(root) == before


class TestCopyToAnotherDisk:
    @pytest.fixture(autouse=True)
    def no_hard_links(self, monkeypatch):
        def refuses(*_, **__):
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuses)

    def test_half_a_copy_never_has_the_file_s_name(self, root, tmp_path, monkeypatch):
        before, aside = tree(root), tmp_path / "q"

        def dies(reading, writing):
            writing.write(reading.read(10))
            writing.flush()
            assert not (aside / "a" / "1.jpg").exists()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(moving.shutil, "copyfileobj", dies)
            with pytest.raises(KeyboardInterrupt):
                set_aside(root, ["a/1.jpg"], aside)
        assert tree(root) == before
        assert not bring_back(root, aside).left
        assert len(set_aside(root, ["a/1.jpg"], aside).moved) == 1
        assert not bring_back(root, aside).left
        assert tree(root) == before
        assert list(tree(aside)) == [JOURNAL]

    @pytest.mark.parametrize("where", ["home", "aside"])
    def test_what_a_killed_copy_leaves_is_in_nobody_s_way(self, root, tmp_path, where):
        before, aside = tree(root), tmp_path / "q"
        folder = {"home": root, "aside": aside}[where] / "a"
        folder.mkdir(parents=True, exist_ok=True)
        leftover = moving.half_copy_of(folder / "1.jpg")
        leftover.write_bytes(b"half")
        assert len(set_aside(root, ["a/1.jpg"], aside).moved) == 1
        leftover.write_bytes(b"half")
        assert not bring_back(root, aside).left
        assert tree(root) == before
        assert list(tree(aside)) == [JOURNAL]

    def test_the_second_of_two_whole_copies_is_left(self, root, tmp_path):
        aside = tmp_path / "q"
        set_aside(root, ["a/1.jpg"], aside)
        content = (aside / "a" / "1.jpg").read_bytes()
        (root / "a" / "1.jpg").write_bytes(content)
        outcome = bring_back(root, aside)
        assert ["both places" in reason for _, reason in outcome.left] == [True]
        assert (aside / "a" / "1.jpg").read_bytes() == content  # nothing is deleted

    def test_a_file_that_came_in_between_is_not_overwritten(self, root, tmp_path, monkeypatch):
        aside, copystat = tmp_path / "q", moving.shutil.copystat

        def slow(source, target):
            copystat(source, target)
            (aside / "a" / "1.jpg").write_text("another's")

        monkeypatch.setattr(moving.shutil, "copystat", slow)
        outcome = set_aside(root, ["a/1.jpg"], aside)
        assert len(outcome.left) == 1
        assert (aside / "a" / "1.jpg").read_text() == "another's"
        assert (root / "a" / "1.jpg").exists()


def test_one_move_that_fails_does_not_keep_the_others(root, tmp_path):
    aside, names = tmp_path / "q", list(tree(root))
    set_aside(root, names, aside)
    (root / "a" / "deep").rmdir()
    (root / "a").rmdir()
    (root / "a").write_text("a file now")
    outcome = bring_back(root, aside)
    assert [move.file for move in outcome.moved] == ["b/ö,\n'3.jpg"]
    assert {move.file for move, _ in outcome.left} == {"a/1.jpg", "a/deep/2.jpg"}
    (root / "a").unlink()
    assert len(bring_back(root, aside).moved) == 2
    assert set(tree(root)) == set(names)


def test_a_damaged_journal_is_no_crash_and_no_file_is_forgotten(root, tmp_path):
    aside, names = tmp_path / "q", list(tree(root))
    set_aside(root, names, aside)
    lines = (aside / JOURNAL).read_bytes().splitlines(keepends=True)
    (aside / JOURNAL).write_bytes(lines[0].replace(b"1.jpg", b"\xff.jpg") + b"\xfe\xff\n" + b"".join(lines[2:]))
    outcome = bring_back(root, aside)
    assert [move.file for move in outcome.moved] == names[2:]
    reasons = {move.file: reason for move, reason in outcome.left}
    assert "neither place" in reasons.pop("a/\ufffd.jpg")
    assert set(reasons) == set(names[:2])
    assert all("by hand" in reason for reason in reasons.values())


@pytest.mark.parametrize("entry", [{"home": "/photos/a/1.jpg", "aside": "/q/a/1.jpg"}, {"file": "../x"}, ["a/1.jpg"]])
def test_a_journal_that_is_not_ours_is_refused_before_any_move(root, tmp_path, entry):
    aside = tmp_path / "q"
    set_aside(root, ["a/1.jpg"], aside)
    with (aside / JOURNAL).open("a") as journal:
        journal.write(json.dumps(entry) + "\n")
    with pytest.raises(BadInput, match="Nothing was moved"):
        bring_back(root, aside)
    assert (aside / "a" / "1.jpg").is_file()


def test_what_was_set_aside_before_is_said_to_be(root, tmp_path):
    set_aside(root, ["a/1.jpg"], tmp_path / "q")
    outcome = set_aside(root, ["a/1.jpg", "a/deep/2.jpg"], tmp_path / "q")
    assert [move.file for move in outcome.done_before] == ["a/1.jpg"]
    assert [move.file for move in outcome.moved] == ["a/deep/2.jpg"]
    assert not outcome.left


def test_an_apply_that_stopped_between_two_names_is_finished_by_the_next(root, tmp_path):
    aside = tmp_path / "q" / "a" / "1.jpg"
    aside.parent.mkdir(parents=True)
    os.link(root / "a" / "1.jpg", aside)
    (tmp_path / "q" / JOURNAL).write_text('{"file": "a/1.jpg"}\n')
    assert len(set_aside(root, ["a/1.jpg"], tmp_path / "q").moved) == 1
    assert not (root / "a" / "1.jpg").exists()
    assert aside.read_bytes() == b"a/1.jpg" * 100
    assert len(bring_back(root, tmp_path / "q").moved) == 1


def test_a_quarantine_that_is_the_photos_folder_loses_nothing(root, tmp_path):
    (tmp_path / "q").symlink_to(root)
    os.link(root / "a" / "1.jpg", tmp_path / "third name")
    before = tree(root)
    assert not set_aside(root, ["a/1.jpg"], tmp_path / "q").moved
    assert not bring_back(root, tmp_path / "q").moved
    assert {name: content for name, content in tree(root).items() if name != JOURNAL} == before


def test_journal_says_which_file_and_not_where(root, tmp_path):
    set_aside(root, ["a/1.jpg"], tmp_path / "q")
    assert json.loads((tmp_path / "q" / JOURNAL).read_text()) == {"file": "a/1.jpg"}


class TestAuditedFolder:
    @pytest.fixture
    def out(self, root, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        check_same_folder(out, root)
        write_record(out, root, ["a", "b"])
        return out

    def test_the_same_renamed_and_moved_folder_pass(self, root, out, tmp_path):
        check_same_folder(out, root)
        renamed = root.rename(tmp_path / "renamed")
        check_same_folder(out, renamed)
        root.mkdir()  # another one at the old place
        check_same_folder(out, renamed)
        root.rmdir()
        copied = Path(shutil.copytree(renamed, tmp_path / "other disk"))
        check_same_folder(out, copied)

    def test_another_folder_is_refused(self, root, out, tmp_path):
        copied = Path(shutil.copytree(root, tmp_path / "copy"))
        with pytest.raises(BadInput, match=r"another --out"):
            check_same_folder(out, copied)
        shutil.rmtree(root)
        check_same_folder(out, copied)
        (copied / "b").rename(copied / "c")
        with pytest.raises(BadInput, match=r"another --out"):
            check_same_folder(out, copied)

    def test_a_record_that_cannot_be_read(self, root, out):
        (out / RECORD).write_text("{}")
        with pytest.raises(BadInput, match="new --out"):
            check_same_folder(out, root)
