import json
import os
from pathlib import Path

import pytest

from datamodule.audit import quarantine
from datamodule.audit.findings import Finding, read_actions, to_csv
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
    assert len(bring_back(aside).moved) == 3
    assert tree(root) == before
    assert tree(aside) == {JOURNAL: b""}
    assert bring_back(aside).moved == []


@pytest.mark.parametrize("when", ["before", "between"])
def test_interrupted_apply_is_undone(root, tmp_path, monkeypatch, when):
    before, aside, calls = tree(root), tmp_path / "quarantine", []
    move_file = quarantine.move_file

    def dies(source, target):
        calls.append(source)
        if len(calls) == 2:
            if when == "between":
                os.link(source, target)
            raise KeyboardInterrupt
        move_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "move_file", dies)
        with pytest.raises(KeyboardInterrupt):
            set_aside(root, list(before), aside)
    with (aside / JOURNAL).open("a") as journal:
        journal.write('{"home": "/to')  # torn
    set_aside(root, ["b/ö,\n'3.jpg"], aside)
    outcome = bring_back(aside)
    assert not outcome.left
    assert tree(root) == before
    assert list(tree(aside)) == [JOURNAL]


def test_nothing_is_overwritten_either_way(root, tmp_path):
    aside = tmp_path / "quarantine"
    set_aside(root, ["a/1.jpg"], aside)
    (root / "a" / "1.jpg").write_text("a new one")
    outcome = set_aside(root, ["a/1.jpg", "a/none.jpg"], aside)
    assert [reason for _, reason in outcome.left] == ["its place is taken by another file", "is not there (any more)"]
    outcome = bring_back(aside)
    assert [move.home.name for move, _ in outcome.left] == ["1.jpg"]
    assert (root / "a" / "1.jpg").read_text() == "a new one"
    assert (aside / "a" / "1.jpg").read_bytes() == b"a/1.jpg" * 100
    (root / "a" / "1.jpg").unlink()
    assert len(bring_back(aside).moved) == 1
    assert (root / "a" / "1.jpg").read_bytes() == b"a/1.jpg" * 100


def test_without_hard_links_and_for_links(root, tmp_path, monkeypatch):
    (root / "a" / "link.jpg").symlink_to("1.jpg")
    before, aside = tree(root), tmp_path / "quarantine"

    def refuses(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    set_aside(root, [*before], aside)
    assert tree(root) == {}
    bring_back(aside)
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
        bring_back(tmp_path)


def test_csv_comes_back_as_written_also_from_a_spreadsheet(tmp_path):
    findings = [Finding('a/ö, "1"\n.jpg', "a", "dark", 0.5, action="quarantine"), Finding("b.jpg", "", "tiny")]
    path = tmp_path / "audit.csv"
    path.write_text(to_csv(findings))
    assert read_actions(path) == {('a/ö, "1"\n.jpg', "dark"): "quarantine", ("b.jpg", "tiny"): ""}
    path.write_text("\ufefffile;class;finding;action\na/1.jpg;a;dark; Quarantine\n")
    assert read_actions(path) == {("a/1.jpg", "dark"): "quarantine"}
    for content in ("file,finding,action\na,dark,delete\n", "name,what\na,b\n", ""):
        path.write_text(content)
        with pytest.raises(BadInput):
            read_actions(path)


def test_journal_says_where_each_file_was(root, tmp_path):
    set_aside(root, ["a/1.jpg"], tmp_path / "q")
    entry = json.loads((tmp_path / "q" / JOURNAL).read_text())
    assert Path(entry["home"]) == (root / "a/1.jpg").resolve()
