"""Scalars, lines, and documents that are no plain data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
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


MERGES = """
base: &base {name: gssd, alpha_c: 0.3, simclr: {epochs: 5}}
other: &other
  alpha_c: 0.1
  beta_d: 2
one: {<<: *base, alpha_c: 0.2}
several:
  alpha_p: 0.5
  <<: [*base, *other]
chained: &chained {<<: *other, alpha_p: 0.4}
twice: {<<: *chained}
"""


def test_merge_keys_add_the_entries_of_other_mappings() -> None:
    read = parse_yaml(MERGES, "f.yaml")
    assert not read.problems
    base = {"name": "gssd", "alpha_c": 0.3, "simclr": {"epochs": 5}}
    assert read.data["one"] == {**base, "alpha_c": 0.2}
    assert read.data["several"] == {**base, "beta_d": 2, "alpha_p": 0.5}
    assert read.data["twice"] == {"alpha_c": 0.1, "beta_d": 2, "alpha_p": 0.4}
    expected = yaml.safe_load(MERGES)
    assert {name: read.data[name] for name in expected} == expected


def test_a_merge_key_in_quotes_is_a_key() -> None:
    assert parse_yaml('{"<<": 1}', "f.yaml").data == {"<<": 1}


def test_a_merged_value_lies_where_it_is_written() -> None:
    lines = parse_yaml(MERGES, "f.yaml").lines
    assert (lines["one.name"], lines["one.simclr.epochs"], lines["one.alpha_c"]) == (2, 2, 6)
    assert (lines["several.beta_d"], lines["several.alpha_p"]) == (5, 8)


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("a: {<<: 5}", "f.yaml:1", "expected a mapping, or a list of mappings, after '<<:'"),
        ("x: &x [1]\na:\n  <<: *x", "f.yaml:1", "expected a mapping, or a list of mappings, after '<<:'"),
        ("x: &x {b: 1}\na:\n  <<: *x\n  <<: *x", "f.yaml:4", "expected each key once"),
        ("a: &a {<<: *a}", "f.yaml:1", "expected at most"),
    ],
)
def test_what_is_wrong_with_a_merge_is_said(text: str, where: str, expected: str) -> None:
    (problem,) = parse_yaml(text, "f.yaml").problems
    assert problem.where == where
    assert problem.expected.startswith(expected)


def test_merges_of_merges_end_soon() -> None:
    lines = ["m0: &m0 {a: 1}"]
    lines += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 20)]
    (problem,) = parse_yaml("\n".join(lines), "f.yaml").problems
    assert problem.expected.startswith("expected at most")
