"""Markers on knobs decide alone what enters a key: held to for every plugin, stage and setting there is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Annotated

import pytest

import bdtune
from bdtune.effects import ByContent, NoEffect, Only, OnlyIf, TrainOnly, Whether, effects_of, no_effect
from bdtune.engine.stage import Stage
from bdtune.knobs import Knobs
from bdtune.plugins.registry import Plugin

for found in pkgutil.walk_packages(bdtune.__path__, "bdtune."):
    if found.name.split(".")[1] in {
        "plugins",
        "training",
        "poisoning",
        "config",
        *bdtune.plugins.registry.KINDS,
    }:
        importlib.import_module(found.name)


def below(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *below(child))]


ALL = sorted({cls for cls in below(Knobs) if cls.__module__.startswith("bdtune.")}, key=str)
WHOLE = [cls for cls in ALL if not inspect.isabstract(cls)]
MARKED = [(cls, knob) for cls in WHOLE for knob, marks in effects_of(cls).items() if marks]
VIEWS = {
    view for cls, knob in MARKED for mark in effects_of(cls)[knob] for view in getattr(mark, "views", ())
}


def ids(value: object) -> str:
    return value.__qualname__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("cls", ALL, ids=ids)
def test_no_class_makes_an_identity_of_its_own(cls):
    assert cls.identity is Knobs.identity
    assert cls.with_name in {Knobs.with_name, Stage.with_name, Plugin.with_name}


@pytest.mark.parametrize("cls", ALL, ids=ids)
def test_a_knob_that_is_declared_anew_keeps_its_markers(cls):
    for parent in cls.__mro__[1:]:
        if issubclass(parent, Knobs):
            for knob, marks in effects_of(parent).items():
                assert set(marks) <= set(effects_of(cls)[knob]), f"{knob} of {parent}"


@pytest.fixture
def owner_of(monkeypatch):
    """Make an object of a class without values, whose conditions on properties hold."""
    monkeypatch.setattr(Stage, "name", "stage", raising=False)
    for effect in (ByContent, Whether):
        monkeypatch.setattr(effect, "seen", lambda self, value, knob: value)

    def made(cls: type[Knobs]) -> Knobs:
        for name, values in conditions(cls).items():
            if name not in cls.model_fields:
                monkeypatch.setattr(cls, name, values[0])
        return cls.model_construct(**dict.fromkeys(cls.model_fields))

    return made


def conditions(cls: type[Knobs], *knobs: str) -> dict[str, tuple]:
    """Return what the markers of some knobs, or of all, ask of other attributes."""
    marks = [mark for knob in knobs or cls.model_fields for mark in effects_of(cls)[knob]]
    return dict(condition for mark in marks if isinstance(mark, OnlyIf) for condition in mark.conditions)


def changed(of: Knobs, knob: str) -> set[str | None]:
    """Return the views of the identity, None for the whole, that another value of a knob changes."""
    one, other = (of.model_copy(update={knob: value}) for value in ("one", "other"))
    return {view for view in {*VIEWS, None} if one.identity(view) != other.identity(view)}


@pytest.mark.parametrize(("cls", "knob"), MARKED, ids=ids)
def test_a_knob_changes_its_views_and_no_other(cls, knob, owner_of, monkeypatch):
    only = [mark for mark in effects_of(cls)[knob] if isinstance(mark, Only)]
    views = {view for view in {*VIEWS, None} if all(mark.enters(None, view) for mark in only)}
    asked = conditions(cls, knob)
    fields = {name: values[0] for name, values in asked.items() if name in cls.model_fields}
    owner = owner_of(cls).model_copy(update=fields)
    if knob in asked:  # one of its own values
        assert changed(owner, knob) == set()
        return
    assert changed(owner, knob) == views
    for name in asked:
        if name in fields:
            assert changed(owner.model_copy(update={name: "else"}), knob) == set()
        else:
            monkeypatch.setattr(cls, name, "else")
            assert changed(owner, knob) == set()


@pytest.mark.parametrize("cls", WHOLE, ids=ids)
def test_a_knob_without_a_marker_changes_everything(cls, owner_of):
    owner = owner_of(cls)
    for knob, marks in effects_of(cls).items():
        if not marks and knob not in conditions(cls):
            assert changed(owner, knob) == {*VIEWS, None}


def test_conditions_name_attributes_of_their_owner():
    for cls in ALL:
        assert all(name in cls.model_fields or hasattr(cls, name) for name in conditions(cls)), cls


class Inner(Knobs):
    depth: Annotated[int, TrainOnly] = 1
    workers: Annotated[int, NoEffect] = 1


class Outer(Knobs):
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)


def test_inner_knobs_have_effects_too():
    assert Outer().identity() == {"inner": {"depth": 1}, "several": [{"depth": 1}]}
    assert Outer().identity("test") == {"inner": {}, "several": [{}]}
    assert no_effect(Inner) == {"workers"}


def test_all_markers_of_a_knob_must_agree():
    class Picky(Knobs):
        how: str = "sgd"
        rate: Annotated[float, TrainOnly, OnlyIf(how=("sgd", "adam"))] = 0.5

    assert "rate" in Picky().identity("train")
    assert "rate" in Picky(how="adam").identity()
    assert "rate" not in Picky(how="none").identity("train")
    assert "rate" not in Picky().identity("test")


def test_a_file_enters_by_its_content(tmp_path):
    class Reader(Knobs):
        path: Annotated[Path | None, ByContent(lambda path, knob: f"{knob} {path.read_text()}")] = None

    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    assert Reader(path=tmp_path / "a").identity() == {"path": "path same"}
    assert Reader(path=tmp_path / "b").identity() == {"path": "path same"}
    assert Reader().identity() == {"path": None}
