"""Compiled trainings end where others do, up to rounding, and whatever is counted passes as it is written."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch._inductor import cpp_builder, exc

import bdtune
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.plugins.network import uncompiled
from bdtune.training import weights
from bdtune.training.predict import predict_logits, trained_network
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised
from tests.doubles import CPU

COMPILED = CPU.model_copy(update={"compile": True})
TOLERANCE = 1e-4
"""Of weights after twelve steps; they move by some hundredths."""


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def lenet():
    return bdtune.model("lenet_s")


@pytest.fixture
def counted(monkeypatch):
    """Compile to code that counts its passes, which costs no compiler's time."""
    passes = []

    def backend(graph, _inputs):
        return lambda *inputs: passes.append(len(inputs)) or graph(*inputs)

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: plain(self, backend=backend))
    return passes


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lenet", "tiny"], ids=["linear layers", "batch norm"])
def test_a_compiled_training_ends_where_another_does(make_set, everything, request, network):
    data, stage = make_set(), Supervised(epochs=4, batch_size=32, lr=0.02)
    inputs = {"data": data, "subset": everything(data), "model": request.getfixturevalue(network)}
    plain = stage.run(Context(seed=5, numerics=CPU), **inputs)
    torch._dynamo.utils.counters.clear()
    found = stage.run(Context(seed=5, numerics=COMPILED), **inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert plain.arrays.keys() == found.arrays.keys()
    for name, values in plain.arrays.items():
        np.testing.assert_allclose(found.arrays[name], values, atol=TOLERANCE, err_msg=name)
    assert found.curve[-1]["loss"] == pytest.approx(plain.curve[-1]["loss"], abs=1e-4)


def test_trainings_pass_compiled_code_and_predictions_do_not(make_set, everything, tiny, counted):
    data, ctx = make_set(), Context(seed=5, numerics=COMPILED)
    trained = Supervised(epochs=1, batch_size=32).run(ctx, data=data, subset=everything(data), model=tiny)
    assert len(counted) == 3, "one of each step"
    predict_logits(trained_network(tiny, data, trained, COMPILED), data, COMPILED)
    network = weights.new_network(tiny, data, 0, COMPILED, trained)
    predict_logits(network, data, COMPILED)
    with torch.no_grad():
        network.with_maps(torch.zeros(2, 3, 16, 16))
        copy.deepcopy(network)(torch.zeros(2, 3, 16, 16))
    assert len(counted) == 3
    with torch.no_grad():
        network(torch.zeros(2, 3, 16, 16))
    assert len(counted) == 4


def test_encoders_pass_compiled_code_too(make_set, tiny, counted):
    SimCLR(epochs=1, batch_size=32).run(Context(seed=5, numerics=COMPILED), data=make_set(), model=tiny)
    assert len(counted) == 3


def test_each_training_of_a_process_is_compiled(make_set, everything, counted):
    """Torch gives up on code that it has compiled eight times, and the networks' code is shared."""
    data = make_set()
    for width in range(2, 12):
        model = bdtune.model("resnet_s", stem_width=width)
        Supervised(epochs=1, batch_size=48).run(
            Context(seed=5, numerics=COMPILED), data=data, subset=everything(data), model=model
        )
    assert len(counted) == 10 * 2


def test_a_network_is_uncompiled_for_a_while(tiny, counted):
    network = tiny.build(3, (16, 16, 3))
    network.body.compile()
    before = network.body._compiled_call_impl
    with uncompiled(network):
        assert network.body._compiled_call_impl is None
    assert network.body._compiled_call_impl is before


def test_without_a_compiler_the_setting_is_refused(make_set, everything, lenet, monkeypatch):
    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    data = make_set()
    with pytest.raises(UserError) as caught:
        Supervised(epochs=1).run(Context(numerics=COMPILED), data=data, subset=everything(data), model=lenet)
    [problem] = caught.value.problems
    assert problem.path == "numerics.compile"
    assert "expected a C++ compiler" in problem.expected


def test_without_triton_a_gpu_is_refused(monkeypatch):
    from bdtune.training import compiled

    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"numerics\.compile: expected triton"):
        compiled.begin(CPU.model_copy(update={"compile": True, "device": "cuda"}))
