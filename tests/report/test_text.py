"""Foreign text as a reader sees them."""

from imatrix_lab.report import text


def test_what_hides_is_named_and_what_scripts_need_stays():
    assert text.visible("a\u202eb\x00\ud800") == "a‹U+202E›b‹U+0000›‹U+D800›"
    joined = "ന്\u200d \u200c\n\t"
    assert text.visible(joined) == joined
    assert text.visible(3) == 3


def test_a_cut_says_how_much_there_was():
    assert text.cut("x" * 10, 10) == "x" * 10
    assert "1,000,000 characters" in text.cut("x" * 1_000_000, 10)


def test_nested_tables_become_one():
    assert text.flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None, "g": True}) == {
        "a.b": "1", "d": "1, {'e': '2'}", "f": "", "g": "yes"
    }  # fmt: skip
