"""A network as a knob of something else: written like the trial's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

import bdtune
from bdtune.config.document import assign
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict, to_params
from bdtune.knobs import Knobs
from bdtune.plugins.model import ModelKnob


class Owner(Knobs):
    model: ModelKnob = "resnet_s"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("vgg_s", bdtune.model("vgg_s")),
        ({"name": "resnet_s", "stem_width": 2}, bdtune.model("resnet_s", stem_width=2)),
        (bdtune.model("lenet_s"), bdtune.model("lenet_s")),
    ],
)
def test_a_name_a_mapping_or_a_model(written: Any, meant: Any) -> None:
    owner = Owner(model=written)
    assert owner.model == meant
    assert type(owner.model) is type(meant)
    again = Owner.model_validate_json(json.dumps(owner.model_dump(mode="json")), strict=True)
    assert again == owner
    assert hash(again) == hash(owner)


def test_its_knobs_are_part_of_the_identity() -> None:
    assert Owner().identity() == {"model": bdtune.model("resnet_s").identity()}
    assert Owner(model={"name": "resnet_s", "stem_width": 2}).identity() != Owner().identity()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("resnet_z", "Did you mean 'resnet_s'"),
        ({"name": "resnet_s", "stem_width": 0}, "stem_width: expected an integer"),
        ({"name": "resnet_s", "stem_width": "2"}, "stem_width: .*integer"),
        ({"name": "resnet_s", "stemwidth": 2}, "stemwidth: expected a knob of resnet_s"),
        ({"stem_width": 2}, "expected a name, or a mapping"),
        (3, "expected a name, or a mapping"),
    ],
)
def test_what_is_wrong_is_said(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Owner(model=written)


def test_a_trials_settings_reach_it() -> None:
    raw: dict[str, Any] = {"dataset": "digits", "attack": "badnets", "defense": "lfd"}
    raw = assign(raw, "defense.teacher.model", "resnet_s1")
    raw = assign(raw, "defense.teacher.model.stem_width", 4)
    spec, faults = parse_trial(raw)
    assert not faults
    assert spec is not None
    params = to_params(spec)
    assert params["defense.teacher.model"] == "resnet_s1"
    assert params["defense.teacher.model.stem_width"] == 4
    assert "defense.teacher.model.name" not in params
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


def test_a_wrong_name_is_reported_at_its_path() -> None:
    _, faults = parse_trial(
        {"dataset": "digits", "defense": {"name": "lfd", "teacher": {"model": "rsnet_s"}}}
    )
    assert [fault.path for fault in faults] == ["defense.teacher.model"]
    assert "resnet_s" in faults[0].expected
