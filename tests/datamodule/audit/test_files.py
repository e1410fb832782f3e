import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from datamodule.audit.duplicates import find_pairs, find_straddling, group_rows
from datamodule.audit.inspection import inspect, inspect_all
from datamodule.audit.survey import survey
from datamodule.demo_photos import draw_photo
from datamodule.layout import APPLE_DOUBLE
from models.bad_input import BadInput
from tests.datamodule.odd_photos import draw_bad_photos, draw_odd_photos


def plain_progress(items, total):
    return items


def drawn(seed: int, name: str = "sofa", size: int = 256) -> Image.Image:
    return draw_photo(name, np.random.default_rng(seed), size)


def no_features(photos):
    """Features that say nothing: another direction for every photo, the same for the same content."""
    return np.stack([np.random.default_rng(int(photo.digest[:8], 16)).random(16) ** 4 for photo in photos])


def small_features(photos):
    """What a photo looks like from afar."""
    return np.stack(
        [np.asarray(Image.open(photo.path).convert("L").resize((12, 12)), float).ravel() / 255 for photo in photos]
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes of eight photos each, and one of every defect."""
    root = tmp_path_factory.mktemp("audit") / "photos"
    for name in ("sofa", "tv"):
        (root / name).mkdir(parents=True)
        for seed in range(8):
            drawn(seed, name).save(root / name / f"{seed}.png")
    photo = drawn(100)
    dark = ImageEnhance.Brightness(drawn(101)).enhance(0.1)
    defects = {"dark.png": dark, "blurry.png": drawn(102).filter(ImageFilter.GaussianBlur(4))}
    defects |= {"tiny.png": drawn(103).resize((24, 24)), "blank.png": Image.new("RGB", (200, 200), (240, 240, 250))}
    for name, defect in defects.items():
        defect.save(root / "sofa" / name)
    photo.save(root / "tv" / "lies.jpg", format="PNG")
    draw_bad_photos(root / "tv")
    (root / "tv" / "notes.txt").write_text("not a photo")
    photo.save(root / "tv" / "modern.webp")
    photo.save(root / "stray.png")
    shutil.copy(root / "tv" / "0.png", root / "tv" / "z_copy.png")
    shutil.copy(root / "tv" / "1.png", root / "sofa" / "z_other_label.png")
    return root


@pytest.fixture(scope="module")
def found(root):
    return survey(root, no_features, 96, 0.2, 0, plain_progress)


def files(found, kind):
    return {finding.file for finding in found.findings if finding.kind == kind}


def test_each_defect_is_found_and_only_there(found):
    assert files(found, "dark") == {"sofa/dark.png"}
    assert files(found, "blurry") == {"sofa/blurry.png"}
    assert files(found, "tiny") == {"sofa/tiny.png"}
    assert files(found, "blank") == {"sofa/blank.png"}
    assert files(found, "odd_file") == {"tv/lies.jpg"}
    bad = {"truncated.jpg", "only_header.jpg", "zero_bytes.jpg", "text.jpg", "gone.jpg", "bomb.png"}
    assert files(found, "unreadable") == {f"tv/{name}" for name in bad}
    assert files(found, "not_listed") == {"stray.png", "tv/modern.webp", "tv/notes.txt"}


def test_what_programs_leave_is_looked_at_by_nobody(tmp_path):
    for name in ("sofa", "tv"):
        for seed in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            drawn(seed, name).save(tmp_path / name / f"{seed}.png")
    for folder in (".ipynb_checkpoints", "__MACOSX", "tv/@eaDir"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "tv" / "0.png", tmp_path / folder / "0.png")
        (tmp_path / folder / "notes.txt").touch()
    (tmp_path / "tv" / "._0.png").write_bytes(APPLE_DOUBLE)
    found = survey(tmp_path, no_features, 96, 0.2, 0, plain_progress)
    assert found.class_names == ["sofa", "tv"]
    assert found.photos == 6
    assert not {each.kind for each in found.findings} & {"unreadable", "exact_duplicate", "not_listed"}
    (note,) = (note for note in found.notes if note.startswith("Left out"))
    for kind in ("in .ipynb_checkpoints", "in __MACOSX", "in @eaDir", "that a Mac adds"):
        assert f"1 file {kind}" in note


def test_a_second_copy_is_marked_for_quarantine_unless_the_labels_differ(found):
    duplicates = {finding.file: finding for finding in found.findings if finding.kind == "exact_duplicate"}
    assert {file: each.related_file for file, each in duplicates.items()} == {
        "tv/z_copy.png": "tv/0.png",
        "tv/1.png": "sofa/z_other_label.png",
    }
    assert duplicates["tv/z_copy.png"].action == "quarantine"
    assert "one is trained on, the other validates" in duplicates["tv/z_copy.png"].detail
    assert duplicates["tv/1.png"].action == ""
    assert "in two classes: sofa too" in duplicates["tv/1.png"].detail
    marked = {finding.kind for finding in found.findings if finding.action}
    assert marked == {"unreadable", "exact_duplicate"}


def test_what_lies_in_a_class_folder_is_of_that_class(found):
    classes = {finding.file: finding.class_name for finding in found.findings if finding.kind == "not_listed"}
    assert classes == {"stray.png": "", "tv/modern.webp": "tv", "tv/notes.txt": "tv"}


class TestLinks:
    """What a link leads to is not marked by itself: once it is moved the link dangles."""

    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "photos"
        for name in ("pants", "shirts"):
            (root / name).mkdir(parents=True)
            for seed in range(3):
                drawn(seed, "sofa" if name == "pants" else "tv").save(root / name / f"{seed}.png")
        return root

    def duplicates(self, root):
        rows = survey(root, no_features, 96, 0.2, 0, plain_progress).findings
        return {row.file: row for row in rows if row.kind == "exact_duplicate"}

    def test_link_beside_its_file(self, root):
        (root / "pants" / "00link.png").symlink_to("1.png")
        found = self.duplicates(root)
        assert set(found) == {"pants/1.png"}
        assert found["pants/1.png"].action == ""
        assert "the same file by a link" in found["pants/1.png"].detail

    def test_link_after_its_file(self, root):
        (root / "pants" / "zlink.png").symlink_to("1.png")
        found = self.duplicates(root)
        assert found["pants/zlink.png"].action == ""
        assert "the same file by a link" in found["pants/zlink.png"].detail

    def test_class_folder_that_is_a_link(self, root):
        (root / "trousers").symlink_to("pants")
        shutil.copy(root / "pants" / "1.png", root / "pants" / "z_copy.png")
        found = self.duplicates(root)
        assert {each.action for each in found.values()} == {""}
        assert "the same file by a link" in found["trousers/0.png"].detail
        assert "a link leads to this file" in found["pants/z_copy.png"].detail

    def test_copy_to_which_another_class_has_a_link(self, root):
        shutil.copy(root / "pants" / "1.png", root / "pants" / "z_copy.png")
        assert self.duplicates(root)["pants/z_copy.png"].action == "quarantine"
        (root / "shirts" / "link.png").symlink_to("../pants/z_copy.png")
        found = self.duplicates(root)
        assert {each.action for each in found.values()} == {""}

    def test_root_that_is_a_link_is_none_of_its_files(self, root, tmp_path):
        shutil.copy(root / "pants" / "1.png", root / "pants" / "z_copy.png")
        (tmp_path / "link").symlink_to(root)
        assert self.duplicates(tmp_path / "link")["pants/z_copy.png"].action == "quarantine"


def test_empty_classes_and_linked_folders_are_named(tmp_path):
    for name in ("sofa", "tv"):
        (tmp_path / name).mkdir()
        drawn(1, name).save(tmp_path / name / "1.png")
    assert not any("Classes without" in note or "Links" in note for note in survey_notes(tmp_path))
    (tmp_path / "lamp").mkdir()
    (tmp_path / "tv" / "more").symlink_to(tmp_path / "sofa")
    (tmp_path / "linked_class").symlink_to(tmp_path / "sofa")
    notes = survey_notes(tmp_path)
    assert any("Classes without a photo" in note and "lamp" in note and "tv" not in note for note in notes)
    (links,) = [note for note in notes if "Links to folders" in note]
    assert "tv/more" in links
    assert "linked_class" not in links


def survey_notes(root):
    return survey(root, no_features, 96, 0.2, 0, plain_progress).notes


def test_clean_photos_have_no_finding_but_their_group(tmp_path):
    for name in ("sofa", "tv"):
        (tmp_path / name).mkdir()
        for seed in range(20, 28):
            drawn(seed, name).save(tmp_path / name / f"{seed}.png")
    rows = survey(tmp_path, small_features, 96, 0.2, 0, plain_progress).findings
    assert {row.kind for row in rows} <= {"suspect"}


def test_every_oddity_is_said(tmp_path):
    photos = draw_odd_photos(tmp_path)
    said = {name: inspect(path).oddities for name, path in photos.items()}
    for name, word in {
        "cmyk": "CMYK",
        "bits16": "more than 8 bits",
        "palette": "palette",
        "alpha": "transparent",
        "one_bit": "black and white",
        "exif_rotated": "EXIF",
        "wide": "squeezed",
        "png_named_jpg": "is PNG",
    }.items():
        assert any(word in oddity for oddity in said[name]), (name, said[name])
    for name in ("plain", "grey", "right_size"):
        assert not said[name]


def edited(name, photo):
    height, width = photo.height, photo.width
    return {
        "compressed": photo,
        "smaller": photo.resize((width // 2, height // 2)),
        "mirrored": ImageOps.mirror(photo),
        "brighter": ImageEnhance.Brightness(photo).enhance(1.1),
    }[name]


@pytest.mark.parametrize("name", ["compressed", "smaller", "mirrored", "brighter"])
def test_near_duplicates_are_paired_and_others_are_not(tmp_path, name):
    for seed in range(12):
        drawn(seed, "sofa" if seed % 2 else "tv").save(tmp_path / f"a{seed:02d}.png")
    edited(name, drawn(4, "tv")).save(tmp_path / "b.jpg", quality=70)
    photos, _ = inspect_all(sorted(tmp_path.iterdir()), plain_progress)

    def features(photos):
        rows = small_features(photos).reshape(-1, 12, 12)
        return ((rows + rows[:, :, ::-1]) / 2).reshape(len(rows), -1)

    pairs = find_pairs(photos, features(photos))
    (pair,) = [pair for pair in pairs if pair.second == 12]
    assert (photos[pair.first].path.name, pair.exact, pair.mirrored) == ("a04.png", False, name == "mirrored")
    assert len(pairs) == 1
    assert find_pairs(photos[:12], features(photos[:12])) == []
    # features of another photo, and the hash is not believed
    assert not find_pairs(photos, no_features(photos))


def test_groups_and_the_split():
    from datamodule.audit.duplicates import Pair

    groups = group_rows([Pair(0, 2, True, 1.0, False), Pair(2, 4, False, 0.9, False)], 6)
    assert groups[0] == groups[2] == groups[4]
    assert len(set(groups.tolist())) == 4
    straddling = find_straddling(groups, np.array([1, 0, 1, 0, 0, 0], bool))
    assert straddling.tolist() == [True, False, True, False, True, False]


def test_folder_without_classes_or_photos_is_refused(tmp_path):
    drawn(0).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="one folder of photos per class"):
        survey(tmp_path, no_features, 96, 0.2, 0, plain_progress)
