"""Knobs: values that one class hands to another."""

from __future__ import annotations

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
