"""What of the numerics torch is told inside a training, and that it is told nothing outside."""

from __future__ import annotations

import pytest
import torch

from bdtune.engine.numerics import Numerics
from bdtune.engine.remarks import heard
from bdtune.training import pgd, session
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


@pytest.mark.parametrize(("has", "said"), [(True, 0), (False, 1)])
def test_a_node_that_emulates_what_the_driver_chose_says_so(monkeypatch, has, said):
    found = []
    monkeypatch.setattr(session, "computes_bf16", lambda device: has)
    with heard(lambda text, info: found.append(text)):
        session.say_if_emulated(Numerics(device="cpu", precision="bf16"))
        session.say_if_emulated(Numerics(device="cpu", precision="fp32"))
    assert len(found) == said
    assert all("bf16 is emulated on this device" in text for text in found)


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
