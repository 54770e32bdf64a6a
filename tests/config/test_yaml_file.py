"""Scalars, lines, and documents that are no plain data."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdtune.config.yaml_file import LARGEST_INTEGER, MAX_BYTES, parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("10_000", 10000),
        ("0x1F", 31),
        ("0o17", 15),
        ("007", 7),
        ("-3", -3),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("none", "none"),
        ("~", None),
        ("null", None),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("'1e-3'", "1e-3"),
        ("~/data", "~/data"),
        ("../shared/data", "../shared/data"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", "f.yaml").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml("a: .nan", "f.yaml").data["a"])


INTEGERS = st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)


@given(st.floats(allow_nan=False, allow_infinity=False) | INTEGERS)
def test_what_python_prints_is_read_back(number: float) -> None:
    assert parse_value(repr(number)) == [number]


@given(st.lists(INTEGERS | st.booleans() | st.text("abcxyz", min_size=1, max_size=4), min_size=1))
def test_commas_outside_brackets_separate(values: list[Any]) -> None:
    words = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    assert parse_value(",".join(words)) == values
    assert parse_value(f"[{','.join(words)}]") == [values]


def test_lines_of_dotted_paths() -> None:
    lines = parse_yaml("a:\n  b.c: 1\n  d:\n  - 2\n  - e: 3\n", "f.yaml").lines
    assert lines["a"] == 1
    assert lines["a.b.c"] == 2
    assert lines["a.d[0]"] == 4
    assert lines["a.d[1].e"] == 5


def test_an_alias_stands_for_its_value() -> None:
    text = parse_yaml("a: &x [1, 2]\nb: *x\n", "f.yaml")
    assert text.data == {"a": [1, 2], "b": [1, 2]}
    assert not text.problems


@pytest.mark.parametrize("text", ["a: &a [*a]", "{a: " * 500, "a: &a {b: *a}"])
def test_endless_nesting_ends(text: str) -> None:
    assert "40 levels" in str(parse_yaml(text, "f.yaml").problems[0])


def test_a_key_must_be_a_name() -> None:
    (problem,) = parse_yaml("? [1, 2]\n: 3\n", "f.yaml").problems
    assert str(problem) == "f.yaml:1: expected a name before ':'"


def test_a_huge_file_is_not_read(tmp_path: Any) -> None:
    file = tmp_path / "huge.yaml"
    file.write_bytes(b" " * (MAX_BYTES + 1))
    assert "at most 4,000,000 bytes" in str(read_yaml(file).problems[0])


@pytest.mark.parametrize("text", ["1], [2", "a]", "*x", "[1", "'a"])
def test_values_that_are_no_yaml(text: str) -> None:
    with pytest.raises(ValueError):
        parse_value(text)
