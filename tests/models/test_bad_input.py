"""No message fills a screen, however many names there are."""

from models.bad_input import other_names, quoted, some_lines_of, some_of

THOUSAND = [f"class{number:04}" for number in range(1000)]


def test_few_names_are_all_there():
    assert some_of(["a", 2]) == "a, 2"
    assert some_of([]) == ""
    assert quoted(["a", "b'"]) == "['a', \"b'\"]"
    assert some_lines_of(["a", "b"]) == "  a\n  b"
    assert other_names(["a", "b"], ["b", "c"]) == "missing: ['a'], foreign: ['c']"


def test_of_many_it_is_said_how_many_more_there_are():
    assert some_of(THOUSAND, 3) == "class0000, class0001, class0002 and 997 more"
    assert some_lines_of(THOUSAND, 2) == "  class0000\n  class0001\n  and 998 more"
    assert len(some_of(["x" * 255] * 1000)) < 2000
    assert len(other_names(THOUSAND, [])) < 500
