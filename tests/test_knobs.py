"""Knobs: values that one class hands to another."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from bdtune.knobs import Knobs


class Long(Knobs):
    epochs: int = 5
    lr: float = 0.1
    decay: float = 0.0


class Short(Knobs):
    epochs: int = 1
    lr: float = 1.0
    start: str = ""


def test_another_class_gets_the_shared_values_and_what_is_given() -> None:
    assert Long(epochs=7).to(Short, lr=0.5, start="here") == Short(epochs=7, lr=0.5, start="here")
    assert Short().to(Long) == Long(epochs=1, lr=1.0)


class Ranged(Knobs):
    epochs: int = Field(5, ge=1)
    rate: float = 0.1


class Brief(Ranged, defaults={"epochs": 2}):
    pass


class Briefest(Brief, defaults={"epochs": 1}):
    own: int = 0


def test_a_subclass_has_other_defaults_for_inherited_knobs_and_the_same_ranges() -> None:
    assert Brief() == Brief(epochs=2, rate=0.1)
    assert [cls().epochs for cls in (Ranged, Brief, Briefest)] == [5, 2, 1]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Brief(epochs=0)


def test_a_default_of_a_knob_that_is_not_there_or_out_of_its_range_is_an_error() -> None:
    with pytest.raises(TypeError, match="no inherited knob"):
        type("Wrong", (Ranged,), {}, defaults={"epoch": 2})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        type("Low", (Ranged,), {}, defaults={"epochs": 0})()
