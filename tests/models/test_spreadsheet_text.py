"""Names come back as they were, and none begins as a formula."""

import pytest

from models.spreadsheet_text import as_text, from_text

FORMULAS = ["=1+1.jpg", "+1.jpg", "-1.jpg", "@SUM(A1).jpg", "\t=1.jpg", "\r=1.jpg", "\n=1.jpg"]
OTHERS = ["", "a=1.jpg", "'", "'tis.jpg", "1.jpg", "ö.jpg", "\udcff.jpg"]


@pytest.mark.parametrize("name", [*FORMULAS, *(f"'{each}" for each in FORMULAS), *(f"''{each}" for each in FORMULAS)])
def test_formulas_are_written_as_text_and_come_back(name):
    assert as_text(name) == f"'{name}"
    assert from_text(as_text(name)) == name


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_stay(name):
    assert as_text(name) == from_text(name) == name


@pytest.mark.parametrize("name", FORMULAS)
def test_what_a_spreadsheet_undid_is_read_the_same(name):
    assert from_text(name) == name
