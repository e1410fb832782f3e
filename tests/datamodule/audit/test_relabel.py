"""Wrong labels are moved to their class, and every move is undone."""

import json
import os
from pathlib import Path

import pytest

from datamodule.audit import moving
from datamodule.audit.findings import MOVE, Finding, decisions_of, keep_decisions, read_actions
from datamodule.audit.quarantine import JOURNAL, bring_back, relabel, set_aside
from models.bad_input import BadInput
from tests.datamodule.audit.test_quarantine import tree


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "photos"
    for name in ("hat/1.jpg", "hat/2.jpg", "tv/1.jpg", "tv/2.jpg", "tv/deep/3.jpg", "sofa/1.jpg", "stray.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 100)
    return root


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "out" / "quarantine"


def test_files_are_moved_and_brought_back(root, journal):
    before = tree(root)
    classes = {"tv/1.jpg": "hat", "tv/deep/3.jpg": "hat", "sofa/1.jpg": "hat", "stray.jpg": "tv"}
    outcome = relabel(root, classes, journal)
    assert [move.to for move in outcome.moved] == [
        "hat/1_from_tv.jpg", "hat/deep/3.jpg", "hat/1_from_sofa.jpg", "tv/stray.jpg",
    ]  # fmt: skip
    after = tree(root)
    assert after["hat/1.jpg"] == before["hat/1.jpg"]
    assert after["hat/1_from_tv.jpg"] == before["tv/1.jpg"]
    assert sorted(after.values()) == sorted(before.values())
    again = relabel(root, classes, journal)
    assert (again.moved, again.left, len(again.done_before)) == ([], [], 4)
    assert not bring_back(root, journal).left
    assert tree(root) == before
    assert not (root / "hat" / "deep").exists()
    assert tree(journal) == {JOURNAL: b""}


def test_both_at_once_and_again_and_undone(root, journal):
    """Two photos change places, and a third is set aside; the same CSV applied again does nothing."""
    before, classes, aside = tree(root), {"tv/2.jpg": "hat", "hat/2.jpg": "tv"}, ["hat/1.jpg"]
    for moved in (2, 0):
        assert len(relabel(root, classes, journal, kept=aside).moved) == moved
        assert set_aside(root, aside, journal).left == []
    assert set(tree(root)) == {*before} - {*classes, *aside} | {"hat/2_from_tv.jpg", "tv/2_from_hat.jpg"}
    assert not bring_back(root, journal).left
    assert tree(root) == before


def test_a_photo_that_is_moved_on_comes_all_the_way_back(root, journal):
    before = tree(root)
    relabel(root, {"tv/2.jpg": "sofa"}, journal)
    relabel(root, {"sofa/2.jpg": "tv"}, journal)
    assert "tv/2_from_sofa.jpg" in tree(root)
    relabel(root, {"tv/2_from_sofa.jpg": "hat"}, journal)
    set_aside(root, ["hat/2_from_sofa.jpg"], journal)
    assert len(bring_back(root, journal).moved) == 4
    assert tree(root) == before


def test_nothing_is_overwritten(root, journal):
    (root / "sofa" / "2.jpg").write_bytes((root / "tv" / "2.jpg").read_bytes())
    outcome = relabel(root, {"tv/2.jpg": "sofa", "tv/1.jpg": "sofa"}, journal)
    assert [reason for _, reason in outcome.left] == ["the same photo is there already, sofa/2.jpg; set this one aside"]
    (root / "tv" / "1.jpg").write_text("a new one")
    assert [reason for _, reason in relabel(root, {"tv/1.jpg": "sofa"}, journal).left] == [
        "its place is taken by another file"
    ]
    outcome = bring_back(root, journal)
    assert [reason for _, reason in outcome.left] == ["its place is taken by another file"]
    assert (root / "sofa" / "1_from_tv.jpg").read_bytes() == b"tv/1.jpg" * 100
    (root / "tv" / "1.jpg").unlink()
    assert len(bring_back(root, journal).moved) == 1


def test_a_later_move_that_cannot_be_undone_keeps_the_earlier_ones(root, journal):
    """Or another photo would be taken for the one that was moved first."""
    relabel(root, {"tv/2.jpg": "sofa"}, journal)
    set_aside(root, ["sofa/2.jpg"], journal)
    (root / "sofa" / "2.jpg").write_text("another")
    outcome = bring_back(root, journal)
    assert [move.file for move, _ in outcome.left] == ["sofa/2.jpg", "tv/2.jpg"]
    assert not (root / "tv" / "2.jpg").exists()
    (root / "sofa" / "2.jpg").unlink()
    assert len(bring_back(root, journal).moved) == 2
    assert (root / "tv" / "2.jpg").read_bytes() == b"tv/2.jpg" * 100


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_interrupted(root, journal, monkeypatch, when):
    before, move_file = tree(root), moving.move_file

    def dies(source, target):
        if when == "between":
            os.link(source, target)
        if when == "after":
            move_file(source, target)
        raise KeyboardInterrupt

    for finish in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(moving, "move_file", dies)
            with pytest.raises(KeyboardInterrupt):
                relabel(root, {"tv/1.jpg": "hat"}, journal)
        if finish:
            assert not relabel(root, {"tv/1.jpg": "hat"}, journal).left
            assert not (root / "tv" / "1.jpg").exists()
            assert (root / "hat" / "1_from_tv.jpg").read_bytes() == before["tv/1.jpg"]
        assert not bring_back(root, journal).left
        assert tree(root) == before


def test_sets_stay_sets(tmp_path, journal):
    root = tmp_path / "shop"
    for name in ("train/hat/1.jpg", "train/tv/1.jpg", "a/valid/hat/1.jpg", "a/valid/hat/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    before = tree(root)
    outcome = relabel(root, {"train/tv/1.jpg": "hat", "a/valid/hat/2.jpg": "tv"}, journal, ["train/", "a/valid/"])
    assert [move.to for move in outcome.moved] == ["train/hat/1_from_tv.jpg", "a/valid/tv/2.jpg"]
    assert not bring_back(root, journal).left
    assert tree(root) == before


def test_links_that_would_lead_elsewhere_stay(root, journal):
    (root / "tv" / "beside.jpg").symlink_to("2.jpg")
    (root / "tv" / "deep" / "up.jpg").symlink_to("../../hat/1.jpg")
    outcome = relabel(root, {"tv/beside.jpg": "sofa", "tv/deep/up.jpg": "sofa"}, journal)
    assert [move.to for move in outcome.moved] == ["sofa/deep/up.jpg"]
    assert "would lead elsewhere" in outcome.left[0][1]


@pytest.mark.parametrize("name", ["hats", "", "../hat", "hat/deep", "stray.jpg"])
def test_a_class_that_is_not_there_is_refused_before_any_move(root, journal, name):
    before = tree(root)
    with pytest.raises(BadInput, match=r"\['hat', 'sofa', 'tv'\].*Nothing was moved"):
        relabel(root, {"tv/1.jpg": "hat", "tv/2.jpg": name}, journal)
    assert tree(root) == before


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/passwd"])
def test_a_journal_that_leads_out_is_refused(root, journal, name):
    relabel(root, {"tv/1.jpg": "hat"}, journal)
    (journal / JOURNAL).write_text(json.dumps({"file": "tv/1.jpg", "to": name}))
    with pytest.raises(BadInput, match="Nothing was moved"):
        bring_back(root, journal)


def written(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["file,class,finding,suggestion,action", *rows]))
    return path


def test_actions_as_people_write_them(tmp_path):
    path = written(
        tmp_path / "audit.csv",
        "tv/1.jpg,tv,suspect,hat,move",
        "tv/2.jpg,tv,suspect,hat,Move to T-Shirt",
        "tv/2.jpg,tv,dark,,",
        "tv/3.jpg,tv,suspect,hat,move to hat",
        "tv/3.jpg,tv,blurry,,quarantine",
        "tv/4.jpg,tv,suspect,hat,keep",
        "tv/5.jpg,tv,suspect,'=hat,move",
        "tv/6.jpg,tv,suspect,hat,move to  hat ",
    )
    decisions = decisions_of(read_actions(path), ["hat", "T-Shirt", "=hat"])
    assert decisions.aside == ["tv/3.jpg"]
    assert decisions.classes == {"tv/1.jpg": "hat", "tv/2.jpg": "T-Shirt", "tv/5.jpg": "=hat", "tv/6.jpg": "hat"}


@pytest.mark.parametrize(
    ("action", "said"), [("move", "there is no suggestion"), ("move to", "no suggestion"), ("moved", "'moved'")]
)
def test_actions_that_say_no_class(tmp_path, action, said):
    with pytest.raises(BadInput, match=f"row 2: expected .* move to CLASS, received .*{said}"):
        read_actions(written(tmp_path / "audit.csv", f"tv/1.jpg,tv,suspect,,{action}"))


def test_two_classes_for_a_photo(tmp_path):
    path = written(tmp_path / "audit.csv", "a.jpg,,suspect,,move to hat", "a.jpg,,dark,,move to tv")
    with pytest.raises(BadInput, match=r"one class to move a.jpg to .* \['hat', 'tv'\]"):
        decisions_of(read_actions(path), ["hat", "tv"])


def test_a_decision_to_move_stays_while_its_file_does(root):
    decided = {("tv/1.jpg", "suspect"): f"{MOVE}hat", ("tv/gone.jpg", "suspect"): f"{MOVE}hat"}
    assert keep_decisions([], decided, root) == [
        Finding("tv/1.jpg", "tv", "suspect", 0.0, detail="marked earlier", action="move to hat")
    ]
