"""Whatever a user writes: a plan or problems, soon, within a bounded memory, and never a traceback."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import pytest

from bdtune.config.load import load_sweep
from bdtune.errors import SHOWN, UserError
from bdtune.verbs.sweep import plan
from tests.config.fuzzing import Case, cases

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONGEST_S = 20.0
MOST_BYTES = 500e6


def planned(case: Case, folder: Path) -> None:
    """Plan a case; an error that is none of the user's goes on to the test."""
    file = folder / "fuzz.yaml"
    if case.text is not None:
        file.write_bytes(case.text.encode("utf-8", "surrogateescape"))
    try:
        plan(None if case.text is None else file.name, case.words, folder / "runs")
    except UserError as error:
        if not 0 < len(str(error)) < 200_000:
            raise ValueError("an error that nobody can read") from error


@pytest.mark.parametrize("seed", range(4))
def test_no_input_gives_a_traceback(seed: int, own_folder: Path) -> None:
    for number, case in enumerate(cases(seed, 100)):
        before = time.process_time()
        try:
            planned(case, own_folder)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed}: {case}") from error
        assert time.process_time() - before < LONGEST_S, case
    assert not (own_folder / "runs").exists()


HEAD = "trial: {dataset: toy, defense: tiny}\n"
MANY = range(1, 60_000)
LARGE = {
    "unknown keys": "".join(f"k{i}: 1\n" for i in MANY),
    "fewer unknown keys": "".join(f"k{i}: 1\n" for i in MANY[:20_000]),
    "unknown knobs": "trial:\n  dataset: toy\n  defense:\n    name: tiny\n"
    + "".join(f"    k{i}: 1\n" for i in MANY[:20_000]),
    "unknown settings in a grid": HEAD + "grid:\n" + "".join(f"  k{i}: [1, 2]\n" for i in MANY[:15_000]),
    "knobs in a grid": HEAD + "grid:\n" + "".join(f"  defense.k{i}: [1, 2]\n" for i in MANY[:15_000]),
    "wrong values": HEAD + f"grid: {{defense.alpha_c: {[2 + i for i in MANY[:20_000]]}}}\n",
    "exclude": HEAD + f"exclude: {[{f'defense.k{i}': 1} for i in MANY[:15_000]]}\n",
    "some conditions and many points": HEAD
    + f"grid: {{seed: {[*MANY[:15_000]]}}}\nexclude: {[{'defense.steps': i} for i in MANY[:900]]}\n",
    "when that multiplies": HEAD
    + "grid: {defense.beta: [1, 2]}\nwhen:\n"
    + f"- {{if: {{defense: tiny}}, grid: {{seed: {[*MANY[:400]]}, defense.steps: {[*MANY[:400]]}}}}}\n",
    "a name": f"{'k' * 1_000_000}: {{{', '.join(f'k{i}: 1' for i in MANY[:5_000])}}}\n",
    "a text": f"name: {'k' * 1_000_000}\n",
    "aliases of a text": f"a: &a {'k' * 9_000}\nb: [{', '.join(['*a'] * 40_000)}]\n",
    "aliases of aliases": "a: &a [1, 1]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 30)),
    "digits": f"seed: {'9' * 100_000}\n",
    "choices": HEAD + f"search: {{trials: 3, space: {{seed: {{choice: {[*MANY[:40_000]]}}}}}}}\n",
    "metrics": HEAD
    + f"published: [{{source: a, metrics: {{{', '.join(f'k{i}: 1' for i in MANY[:20_000])}}}}}]\n",
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_too_much_is_told_soon(what: str, write: Callable[[str], str]) -> None:
    file = write(LARGE[what])
    before, bytes_before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with pytest.raises(UserError) as caught:
        load_sweep(file)
    assert time.process_time() - before < LONGEST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - bytes_before < MOST_BYTES
    assert len(str(caught.value).splitlines()) <= SHOWN + 1
    assert len(str(caught.value)) < 100_000


def test_a_count_stands_for_the_problems_that_are_not_shown(write: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(write(HEAD + "".join(f"k{i}: 1\n" for i in range(70))))
    lines = str(caught.value).splitlines()
    assert lines[-1] == f"and {70 - SHOWN} more problems"
    assert len(lines) == SHOWN + 1


def test_many_words_are_not_read() -> None:
    with pytest.raises(UserError, match="at most 1,000 settings"):
        load_sweep(None, ["seed=1"] * 100_000)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("data_root=~nouser/x", "data_root: expected a path, or the home of a user that exists"),
        (f"data_root={'x' * 5000}", "data_root: expected a path of names"),
        ('data_root="\\ud800"', "data_root: expected a value as in YAML"),
        (f"seed=0x{'f' * 400}", "seed: expected a value as in YAML"),
        (f"seed={'9' * 5000}", "seed: expected a value as in YAML"),
        ("seed=1e308", "seed: expected an integer"),
        ("search.space.attack.rate={uniform: [0, 1e400]}", "search"),
    ],
)
def test_values_that_python_cannot_hold(word: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(None, ["dataset=toy", "defense=tiny", "attack=badnets", word])
    assert part in str(caught.value)


def test_values_of_a_search_on_the_command_line_are_a_choice() -> None:
    words = [
        "dataset=toy",
        "defense=tiny",
        "attack=badnets",
        "search.trials=3",
        "search.space.attack.rate=0.1,0.2",
    ]
    spec = load_sweep(None, words)
    assert spec.search is not None
    assert spec.search.space["attack.rate"].kind == "choice"
    assert spec.search.space["attack.rate"].values == (0.1, 0.2)
