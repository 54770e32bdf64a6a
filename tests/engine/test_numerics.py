"""What of the numerics enters a key, and what is refused."""

from __future__ import annotations

import pytest

from bdtune.config.trial import parse_trial, trial_id
from bdtune.engine.numerics import Numerics

BEFORE = {"device": "cuda", "precision": "bf16", "deterministic": True}
"""The tag before there were further settings."""


def gpu(**knobs):
    return Numerics(device="cuda", precision="bf16", **knobs)


@pytest.mark.parametrize("knobs", [{}, {"tf32": False}, {"cudnn_benchmark": False}, {"compile": False}])
def test_what_is_as_it_always_was_changes_no_key(knobs):
    assert gpu(**knobs).tag() == BEFORE
    assert gpu(**knobs).resolved().identity() == gpu().identity()


@pytest.mark.parametrize("knobs", [{"tf32": True}, {"compile": True}, {"micro_batch": 32}])
def test_what_is_not_enters_the_key(knobs):
    assert gpu(**knobs).tag() == {**BEFORE, **knobs}
    assert gpu(**knobs).identity() == {**gpu().identity(), **knobs}


@pytest.mark.parametrize(("asked", "entered"), [(None, {}), (True, {}), (False, {"cudnn_benchmark": False})])
def test_without_determinism_cudnn_takes_the_fastest_unless_told_not_to(asked, entered):
    numerics = gpu(deterministic=False, cudnn_benchmark=asked)
    assert numerics.tag() == {**BEFORE, "deterministic": False, **entered}


def test_settings_of_gpus_are_in_no_key_of_a_cpu():
    plain = Numerics(device="cpu", precision="fp32", deterministic=False)
    gpus = plain.model_copy(update={"tf32": True, "cudnn_benchmark": False})
    assert gpus.tag() == plain.tag()
    assert gpus.resolved().identity() == plain.identity()


def test_what_is_counted_is_computed_in_full_and_as_it_is_written():
    exact = gpu(tf32=True, compile=True, micro_batch=8).exact()
    assert (exact.precision, exact.tf32, exact.compile, exact.micro_batch) == ("fp32", False, False, 8)


def test_timed_algorithms_contradict_determinism():
    raw = {"dataset": "digits", "numerics": {"device": "cuda", "cudnn_benchmark": True}}
    spec, problems = parse_trial(raw, check_data=False)
    assert spec is None
    assert "cudnn_benchmark true needs deterministic false" in str(problems[0])
    assert problems[0].path == "numerics"


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_micro_batch_has_an_image(wrong):
    _, problems = parse_trial({"dataset": "digits", "numerics": {"micro_batch": wrong}}, check_data=False)
    assert [problem.path for problem in problems] == ["numerics.micro_batch"]


def test_a_trial_keeps_its_id_unless_a_setting_is_another():
    def named(**knobs):
        raw = {"dataset": "digits", "numerics": {"device": "cuda", "precision": "bf16", **knobs}}
        return trial_id(parse_trial(raw, check_data=False)[0])

    assert named() == named(tf32=False) == named(compile=False, micro_batch=None)
    assert len({named(), named(tf32=True), named(compile=True), named(micro_batch=4)}) == 4
