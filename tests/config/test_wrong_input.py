"""What a user may get wrong, and what is said: place, path, what was expected, what was got, nearest name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bdtune.config.load import load_sweep, load_trial
from bdtune.errors import UserError
from bdtune.plugins import registry
from bdtune.plugins.presets import presets
from tests.config.wrong_sweeps import AXES, COMMAND_LINE, SEARCH
from tests.config.wrong_trials import FORM, HEAD, TRIAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.config.wrong_trials import Wrong

EVERYTHING = [*FORM, *TRIAL, *AXES, *SEARCH, *COMMAND_LINE]


@pytest.mark.parametrize("case", EVERYTHING, ids=lambda case: case.name)
def test_what_is_said(case: Wrong, write: Callable[[str], str], own_folder: Path) -> None:
    file = write(case.text)
    before = sorted(own_folder.iterdir())
    with pytest.raises(UserError) as caught:
        load_sweep(file, case.words)
    lists = {kind: ", ".join(registry.names(kind)) for kind in registry.KINDS}
    papers = dict.fromkeys(name.partition("/")[0] for name in presets("attacks"))
    lists |= {"presets": ", ".join(name for name in presets("attacks") if name.startswith("abl/"))}
    lists |= {"papers": ", ".join(papers), "cwd": str(own_folder)}
    papers = dict.fromkeys(name.partition("/")[0] for name in presets("defenses"))
    lists |= {"defense_papers": ", ".join(papers)}
    expected = "\n".join(case.messages)
    for key, value in lists.items():
        expected = expected.replace(f"{{{key}}}", value)
    assert str(caught.value) == expected
    assert sorted(own_folder.iterdir()) == before


def test_there_are_enough_cases() -> None:
    assert len(EVERYTHING) >= 25
    assert len({case.name for case in EVERYTHING}) == len(EVERYTHING)


def test_one_trial_takes_no_comma(write: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as caught:
        load_trial(write(HEAD), ["seed=0,1", "grid.seed=[0, 1]"])
    assert str(caught.value).splitlines() == [
        "command line: seed=0,1: seed: expected one value for one trial, got [0, 1]. 'bdtune sweep' takes it",
        "command line: grid.seed=[0, 1]: grid.seed: expected a setting of one trial, got 'grid', which is a "
        "sweep's. 'bdtune sweep' takes it",
    ]


def test_a_file_that_is_not_there(write: Callable[[str], str]) -> None:
    write(HEAD, "mine.yaml")
    with pytest.raises(UserError, match=r"got 'mien'\. Did you mean 'mine'\?$"):
        load_sweep("mien")
    with pytest.raises(
        UserError, match=r"^no file 'runs/x\.yaml': expected a YAML file or one of the search spaces"
    ):
        load_sweep("runs/x.yaml")
    with pytest.raises(UserError, match=r"^no file"):
        load_sweep("x" * 5000)
    with pytest.raises(
        UserError, match=r"one of the search spaces: .*gssd.*, got 'gsd'\. Did you mean 'gssd'\?$"
    ):
        load_sweep("gsd")


def test_text_that_is_no_text(own_folder: Path) -> None:
    (own_folder / "s.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError) as caught:
        load_sweep("s.yaml")
    assert str(caught.value) == "s.yaml: expected text in UTF-8"


def test_more_poison_than_images(write: Callable[[str], str]) -> None:
    with pytest.raises(
        UserError, match=r"^command line: attack=.*: attack\.rate: expected at most the 40 images"
    ):
        load_sweep(write(HEAD), ["attack={name: badnets, rate: 0.7}"])
