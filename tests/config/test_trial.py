"""A trial's settings: defaults, types, parameters, identity, and the way through JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdtune.config.expand import with_values
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict, to_params, trial_id
from bdtune.errors import ConfigError

RAW: dict[str, Any] = {"dataset": "toy", "attack": "badnets", "defense": {"name": "tiny", "beta": 0.5}}


def spec(**settings: Any) -> Any:
    found, faults = parse_trial({**RAW, **settings})
    assert not faults
    return found


def test_a_spec_survives_json() -> None:
    trial = spec(model={"name": "resnet18", "width": 16}, seed=3, holdout=0.1, data_root="/data")
    again = spec_from_dict(json.loads(json.dumps(spec_to_dict(trial))))
    assert again == trial
    assert trial_id(again) == trial_id(trial)
    assert to_params(again) == to_params(trial)


def test_no_attack_in_three_spellings() -> None:
    assert spec(attack=None).attack is None
    assert spec(attack="none").attack is None
    assert spec(attack={"name": "none"}).attack is None
    assert spec_from_dict(spec_to_dict(spec(attack=None))).attack is None


def test_a_whole_float_may_stand_for_an_integer_and_nothing_else() -> None:
    assert spec(defense={"name": "tiny", "steps": 1e4, "limit": 2.0}).defense.steps == 10000
    for value in (1.5, "3", True):
        _, faults = parse_trial({**RAW, "seed": value})
        assert [fault.path for fault in faults] == ["seed"]


def test_a_preset_is_where_the_knobs_start() -> None:
    attack = spec(attack={"preset": "abl/badnets", "rate": 0.3, "target": 2}).attack
    assert (attack.pattern, attack.rate, attack.target) == ("grid", 0.3, 2)


def test_params_hold_every_knob_flat_and_no_place() -> None:
    params = to_params(spec(data_root="/data"))
    assert params["dataset"] == "toy"
    assert params["defense"] == "tiny"
    assert params["defense.warmup.epochs"] == 5
    assert params["defense.milestones"] == "[0.5, 0.75]"
    assert params["defense.limit"] is None
    assert params["numerics.precision"] == "auto"
    assert "data_root" not in params
    assert all(value is None or isinstance(value, str | int | float) for value in params.values())


def test_the_id_follows_what_can_change_the_result() -> None:
    base = trial_id(spec())
    assert len(base) == 16
    assert trial_id(spec(data_root="/elsewhere")) == base
    assert trial_id(spec(pipeline="stream")) != base
    assert trial_id(spec(defense={"name": "tiny", "beta": 5e-1, "steps": 10})) == base
    changed = [
        spec(seed=1),
        spec(holdout=0.1),
        spec(attack=None),
        spec(defense="tiny"),
        spec(model="resnet34"),
    ]
    assert len({base, *map(trial_id, changed)}) == 6


def test_the_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDTUNE_DATA", "pictures")
    assert spec().data_root == Path.cwd() / "pictures"
    assert spec(data_root="other").data_root == Path.cwd() / "other"
    assert spec(data_root=None).data_root is None


def test_with_values_changes_a_trial_by_dotted_paths() -> None:
    changed = with_values(
        spec(), {"defense.warmup.lr": 0.5, "attack": "blend", "attack.rate": 0.4, "seed": 9}
    )
    assert changed.defense.warmup.lr == 0.5
    assert changed.defense.beta == 0.5
    assert (changed.attack.plugin_name(), changed.attack.rate, changed.seed) == ("blend", 0.4, 9)
    with pytest.raises(ConfigError, match=r"defense\.warmup\.lr: expected a number above 0, got 0"):
        with_values(spec(), {"defense.warmup.lr": 0})


def test_reading_a_configuration_loads_no_torch() -> None:
    code = "import sys; from bdtune.config.load import search_spaces, load_sweep; search_spaces(); "
    code += "load_sweep('gssd'); print({'torch', 'ray', 'mlflow'} & sys.modules.keys())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
