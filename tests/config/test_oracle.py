"""Who in a sweep uses what no defender has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.trials.ledger import Ledger
from bdtune.trials.oracle import oracle_knobs, oracle_reads
from bdtune.trials.outcome import result_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HONEST = {"trial": {"dataset": "toy", "defense": "tiny", "holdout": 0.1}, "select": "select_acc"}
SPACE = {"trials": 3, "space": {"defense.beta": {"uniform": [0, 1]}}}


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({}, []),
        ({"scheduler": "asha"}, []),
        ({"search": SPACE, "scheduler": "asha"}, []),
        ({"select": "oracle_asr"}, ["select by oracle_asr"]),
        (
            {"select": "oracle_acc", "scheduler": "median"},
            ["scheduler by oracle_acc", "select by oracle_acc"],
        ),
        (
            {"search": {**SPACE, "metric": "oracle_der"}, "scheduler": "asha"},
            ["search by oracle_der", "scheduler by oracle_der"],
        ),
        (
            {"search": {**SPACE, "metric": ["oracle_acc", "select_acc", "oracle_asr"]}},
            ["search by oracle_acc", "search by oracle_asr"],
        ),
    ],
)
def test_every_rule_that_reads_test_data_is_named(
    write: Callable[[str], str], sections: dict[str, Any], found: list[str]
) -> None:
    spec = load_sweep(write(yaml.safe_dump({**HONEST, **sections})))
    assert [read.text() for read in oracle_reads(spec, ())] == found


GIVEN = {"name": "gssd", "retrain": {"epochs": 3}}


def test_a_knob_set_by_an_oracle_is_found_in_every_trial_that_has_it(write: Callable[[str], str]) -> None:
    trial = {"dataset": "toy", "attack": "badnets", "defense": GIVEN, "holdout": 0.1}
    axes = {"defense.oracle_target": [None, 0, 2]}
    spec = load_sweep(write(yaml.safe_dump({"trial": trial, "grid": axes, "select": "select_acc"})))
    found = [[read.text() for read in oracle_knobs(trial)] for trial in points(spec)]
    assert found == [[], ["defense.oracle_target=0"], ["defense.oracle_target=2"]]
    every = [read for trial in points(spec) for read in oracle_knobs(trial)]
    assert [read.read for read in oracle_reads(spec, every * 2)] == ["0", "2"]


def test_a_trials_record_says_so_and_its_baselines_does_not(write: Callable[[str], str], tmp_path: Path) -> None:
    trial = {"dataset": "digits", "attack": "badnets", "defense": {**GIVEN, "oracle_target": 0}}
    spec = load_sweep(write(yaml.safe_dump({"trial": trial})))
    ledger = Ledger("s", Resolver(Store(tmp_path / "store")))
    entry = ledger.add(spec.trial)
    result = result_of(entry, ledger.resolver, sweep="s", status="failed")
    assert result.to_json()["oracle"] == [{"reader": "defense.oracle_target", "read": "0"}]
    baseline = ledger.baseline(entry)
    assert baseline is not None
    assert result_of(baseline, ledger.resolver, sweep="s", status="failed").oracle == ()
