"""What of the numerics torch is told inside a training, and that it is told nothing outside."""

from __future__ import annotations

import pytest
import torch

from bdtune.engine.numerics import Numerics
from bdtune.training import pgd
from bdtune.training.adversarial import PGD
from bdtune.training.session import deterministic, full_float32


def told():
    """Return what torch does now: whether convolutions round to TF32, what products do, whether it times."""
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark


@pytest.fixture(autouse=True)
def workspace(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # left as it is found


@pytest.mark.parametrize(
    ("knobs", "inside"),
    [
        ({}, (False, "highest", False)),
        ({"tf32": True}, (True, "high", False)),
        ({"deterministic": False}, (False, "highest", True)),
        ({"deterministic": False, "cudnn_benchmark": False}, (False, "highest", False)),
        ({"deterministic": False, "cudnn_benchmark": True, "tf32": True}, (True, "high", True)),
    ],
)
def test_torch_does_what_the_numerics_say_and_then_what_it_did(knobs, inside):
    before = told()
    with deterministic(Numerics(device="cuda", precision="fp32", **knobs)):
        assert told() == inside
        with full_float32():  # what is counted within a training
            assert told()[:2] == (False, "highest")
        assert told() == inside
    assert told() == before


def test_a_cpu_rounds_nothing_off():
    with deterministic(Numerics(device="cpu", precision="fp32", tf32=True)):
        assert told()[:2] == (False, "highest")


def test_an_attack_that_measures_is_exact(make_set, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(pgd.Ascent, "__call__", lambda self, pixels, *_: seen.append(told()[:2]) or pixels)
    data = make_set(count=4)
    network = tiny.build(3, data.image_shape)
    monkeypatch.setattr(pgd, "device_of", lambda numerics: torch.device("cpu"))
    numerics = Numerics(device="cuda", precision="bf16", tf32=True)
    pgd.robust_predictions(network, data, PGD(steps=1), 0, numerics)
    assert seen == [(False, "highest")]
