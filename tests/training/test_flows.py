from __future__ import annotations

import numpy as np
import pytest
import torch

from bdtune.engine.key import sample_generator
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.plugins.data import ImageSet
from bdtune.training import flows as module
from bdtune.training._flowbank import LOG_TWO_PI, FlowBank, FlowShape, initial_weights
from bdtune.training.flows import Density, Flows
from tests.doubles import CPU


def bank(features: int, flows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> FlowBank:
    """Flows with random weights everywhere, so that no part of the formula is the identity."""
    generator = torch.Generator().manual_seed(seed)
    shape = FlowShape(features, depth=3)
    draw = {
        name: 0.3 * torch.randn((flows, *size), generator=generator, dtype=dtype)
        for name, size in shape.parameters().items()
    }
    return FlowBank(shape, draw)


def gaussian_classes(counts: list[int], features: int, seed: int = 0) -> tuple[Artefact, ImageSet]:
    """Standardised features: one Gaussian per class, with means far enough apart to tell."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = 2.0 * rng.standard_normal((len(counts), features))
    z = means[labels] + rng.standard_normal((len(labels), features))
    z = ((z - z.mean(0)) / z.std(0, ddof=1)).astype(np.float32)
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return Artefact({"z": z}), ImageSet(images, labels, len(counts), (0.5,), (0.5,))


def fit(knobs: Flows, features: Artefact, data: ImageSet, **ctx: object) -> Artefact:
    return knobs.run(Context(seed=3, numerics=CPU, **ctx), features=features, data=data)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [8, 7])
def test_log_determinant_equals_that_of_the_jacobian(features: int) -> None:
    flows = bank(features, 2)
    x = torch.randn(2, 1, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logdet = flows.forward(x)[1]
    for flow in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda row, flow=flow: flows.forward(x.index_put((torch.tensor(flow), torch.tensor(0)), row))[0][
                flow, 0
            ],
            x[flow, 0],
        )
        assert torch.isclose(torch.linalg.slogdet(jacobian)[1], logdet[flow, 0])


def test_density_at_the_start_is_that_of_a_standard_normal() -> None:
    shape = FlowShape(8)
    flows = FlowBank.from_arrays(shape, initial_weights(shape, 0, [0, 1]), "cpu")
    l_KB = flows.log_density(torch.zeros(1, 1, 8).expand(2, 1, 8))
    assert torch.allclose(l_KB, torch.full((2, 1), -0.5 * LOG_TWO_PI))
    assert l_KB[0, 0].item() == pytest.approx(-0.9189, abs=1e-4)


def test_a_flow_of_the_papers_size_has_396800_parameters() -> None:
    assert sum(np.prod(size) for size in FlowShape(512).parameters().values()) == 396_800


@pytest.mark.parametrize("features", [8, 7])
def test_the_written_gradient_equals_autograds(features: int) -> None:
    flows = bank(features, 2)
    x = torch.randn(2, 5, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.tensor([[0.2] * 5, [0.5, 0.5, 0, 0, 0]], dtype=torch.float64)
    gradients = {name: torch.full_like(value, float("nan")) for name, value in flows.weights.items()}
    loss = flows.loss_and_gradient(x, weight, gradients)
    leaves = {name: value.clone().requires_grad_() for name, value in flows.weights.items()}
    expected = -(FlowBank(flows.shape, leaves).log_density(x) * weight).sum(1)
    expected.sum().backward()
    assert torch.allclose(loss, expected)
    for name, leaf in leaves.items():
        assert torch.allclose(gradients[name], leaf.grad), name  # type: ignore[arg-type]


def test_actnorm_starts_from_the_rows_that_count() -> None:
    shape = FlowShape(6)
    flows = FlowBank.from_arrays(shape, initial_weights(shape, 0, [0, 1]), "cpu")
    x = 3 + 5 * torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(1))
    x[0, :, 2] = 1.0  # a constant feature must not be stretched without limit
    real = torch.ones(2, 10)
    real[1, 4:] = 0
    flows.initialise(x, real, min_std=0.01)
    u = flows.forward(x)[0]
    assert torch.allclose(u[1, :4].mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(u[1, :4].std(0), torch.ones(6), atol=1e-4)
    assert u.isfinite().all()
    assert flows.weights["0.log_scale"][0, 2].item() == pytest.approx(np.log(0.01 + 1e-6), abs=1e-5)


def test_together_equals_one_by_one() -> None:
    """Class sizes differ, with a last batch of one row, so flows leave at different steps."""
    features, data = gaussian_classes([70, 33, 16, 5, 48], 10)
    together = fit(Flows(epochs=4), features, data)
    alone = [reference_flow(features.arrays["z"], data.labels, c, epochs=4, seed=3) for c in range(5)]
    for c, weights in enumerate(alone):
        for name, value in weights.items():
            np.testing.assert_allclose(together.arrays[name][c], value, rtol=1e-3, atol=2e-5, err_msg=name)


def reference_flow(
    z: np.ndarray, labels: np.ndarray, c: int, epochs: int, seed: int
) -> dict[str, np.ndarray]:
    """One class's flow trained as the method says: a loop over its batches, autograd, torch's Adam."""

    shape = FlowShape(z.shape[1])
    flow = FlowBank.from_arrays(shape, initial_weights(shape, seed, [c]), "cpu")
    leaves = {name: value.requires_grad_() for name, value in flow.weights.items()}
    adam = torch.optim.Adam(leaves.values(), lr=1e-3, betas=(0.9, 0.99))
    own = np.flatnonzero(labels == c)
    for epoch in range(epochs):
        order = sample_generator(seed, "order", c, epoch).permutation(own)
        for start in range(0, len(order), 16):
            x = torch.from_numpy(z[order[start : start + 16]])[None]
            if epoch == start == 0:
                with torch.no_grad():
                    flow.initialise(x, torch.ones(1, x.shape[1]), 0.01)
            adam.zero_grad()
            (-flow.log_density(x).mean()).backward()
            adam.step()
    return {name: value.detach().numpy()[0] for name, value in leaves.items()}


class Slot:
    """Keeps every state; `load` gives the one of the chosen epoch."""

    def __init__(self, start: int | None = None) -> None:
        self.start = start
        self.states: dict[int, tuple[dict[str, np.ndarray], dict]] = {}

    def due(self) -> bool:
        return True

    def save(self, arrays: dict[str, np.ndarray], info: dict) -> None:
        self.states[info["done"]] = (arrays, {**info, "curve": list(info["curve"])})

    def load(self) -> tuple[dict[str, np.ndarray], dict] | None:
        return self.states[self.start] if self.start else None


def test_a_resumed_training_ends_with_the_same_bits() -> None:
    features, data = gaussian_classes([40, 20, 9, 33], 6)
    slot = Slot()
    whole = fit(Flows(epochs=5), features, data, checkpoint=slot)
    slot.start = 2
    resumed = fit(Flows(epochs=5), features, data, checkpoint=slot)
    losses = [[row["loss"] for row in each.curve] for each in (resumed, whole)]
    assert losses[0] == losses[1]
    for name, value in whole.arrays.items():
        assert np.array_equal(resumed.arrays[name], value), name


def test_a_tick_after_each_epoch_carries_the_flows_so_far() -> None:
    features, data = gaussian_classes([30, 20], 4)
    ticks = Flows(epochs=3).steps(Context(seed=3, numerics=CPU), features=features, data=data)
    seen = [(tick.epoch, len(tick.artefact().curve)) for tick in ticks]
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_the_loss_falls_and_own_class_is_densest() -> None:
    features, data = gaussian_classes([60, 60, 60], 8)
    fitted = fit(Flows(epochs=20), features, data)
    assert fitted.curve[-1]["loss"] < fitted.curve[0]["loss"]
    L = Density().run(Context(numerics=CPU), features=features, flows=fitted, data=data).arrays["L"]
    assert L.dtype == np.float32
    assert L.shape == (180, 3)
    assert np.mean(L.argmax(1) == data.labels) > 0.98


def test_a_flow_that_has_left_still_counts_in_the_loss() -> None:
    """On digits a bad flow of a small class left after half of the epochs: the loss fell from 58 to 0.5."""
    features, data = gaussian_classes([90, 10], 6)
    z = features.arrays["z"].copy()
    small = np.flatnonzero(data.labels == 1)
    z[small, 0] = 0.0  # constant in the first batch, so its scale starts at min_std
    z[sample_generator(3, "order", 1, 0).permutation(small)[-1], 0] = 1.0
    features = Artefact({"z": z})
    fitted = fit(Flows(epochs=4, batch_size=8, min_std=0.001), features, data)
    L = Density().run(Context(numerics=CPU), features=features, flows=fitted, data=data).arrays["L"]
    means = [-float(L[data.labels == label, label].mean()) for label in (0, 1)]
    assert means[1] > 100 * means[0]
    assert all(row["loss"] > 0.4 * means[1] for row in fitted.curve[1:])


def test_density_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, data = gaussian_classes([30, 20, 25], 5)
    inputs = {"features": features, "data": data, "flows": fit(Flows(epochs=2), features, data)}
    whole = Density().run(Context(numerics=CPU), **inputs).arrays["L"]
    monkeypatch.setattr(module, "DENSITY_ELEMENTS", 100)
    np.testing.assert_allclose(
        Density().run(Context(numerics=CPU), **inputs).arrays["L"], whole, rtol=1e-5, atol=1e-6
    )


def test_a_class_of_fewer_than_two_samples_has_no_density() -> None:
    features, data = gaussian_classes([30, 1, 0, 20], 5)
    fitted = fit(Flows(epochs=2), features, data)
    assert fitted.arrays["count"].tolist() == [30, 1, 0, 20]
    L = Density().run(Context(numerics=CPU), features=features, flows=fitted, data=data).arrays["L"]
    assert np.isneginf(L[:, [1, 2]]).all()
    assert np.isfinite(L[:, [0, 3]]).all()


def test_non_finite_features_end_as_diverged() -> None:
    features, data = gaussian_classes([30, 20], 4)
    features.arrays["z"][3, 1] = np.nan
    with pytest.raises(Diverged, match="epoch 1"):
        fit(Flows(epochs=2), features, data)


def test_one_feature_dimension_cannot_be_split() -> None:
    features, data = gaussian_classes([30, 20], 4)
    with pytest.raises(Diverged, match="at least 2"):
        fit(Flows(epochs=1), Artefact({"z": features.arrays["z"][:, :1]}), data)
