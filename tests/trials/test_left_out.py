"""What a budget left out is written down, and read by the start that goes on."""

from __future__ import annotations

from bdtune.trials import left_out
from bdtune.trials.left_out import LeftOut


def test_it_is_read_again_where_it_is_about_the_same(tmp_path):
    found = LeftOut({"a" * 16: "badnets beta=1", "b" * 16: "blend beta=1"}, ("c" * 16,))
    found.write(tmp_path, "key")
    assert left_out.read(tmp_path, "key") == found
    assert left_out.read(tmp_path) == found
    assert left_out.read(tmp_path, "another budget") is None
    assert list(found.ids) == ["a" * 16, "b" * 16, "c" * 16]


def test_without_a_file_or_with_a_broken_one_nothing_is_known(tmp_path):
    assert left_out.read(tmp_path) is None
    for text in ("{", "[]", '{"about": "key"}'):
        (tmp_path / left_out.FILE).write_text(text)
        assert left_out.read(tmp_path) is None


def test_it_names_the_first_ones_and_counts_the_others():
    assert LeftOut().lines() == []
    assert not LeftOut()
    assert LeftOut({"a": "x"}).lines()[0] == "1 trial left out, which does not fit the budget:"
    lines = LeftOut({str(i): f"beta={i}" for i in range(12)}).lines()
    assert lines[0].startswith("12 trials left out")
    assert (lines[1], lines[-1], len(lines)) == ("  beta=0", "  and 2 more", 12)
