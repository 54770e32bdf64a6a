from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import UserError
from bdtune.training.augment import Augmentation
from bdtune.training.batches import Batch
from bdtune.training.nt_xent import nt_xent
from bdtune.training.sup_con import SupCon
from bdtune.training.sup_con_loss import sup_con
from tests.doubles import CPU

if TYPE_CHECKING:
    from bdtune.training.sup_con import Positives

CTX = Context(seed=4, numerics=CPU)
LABELS = torch.tensor([0, 1, 0, 2, 0, 1])
KNOWN = torch.tensor([True, True, True, False, False, False])
PROJECTIONS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def partners(positives: Positives) -> torch.Tensor:
    batch = Batch(torch.zeros(6, 4, 4, 3), LABELS, torch.arange(6))
    return SupCon(positives=positives).partners(batch, KNOWN)


def slow(projections: np.ndarray, mask: np.ndarray, temperature: float, base: float) -> float:
    """Equation 2 of the paper, one anchor and one positive at a time."""
    count = len(projections) // 2
    unit = projections / np.linalg.norm(projections, axis=1, keepdims=True)
    losses = []
    for anchor in range(2 * count):
        others = [k for k in range(2 * count) if k != anchor]
        whole = sum(np.exp(unit[anchor] @ unit[k] / temperature) for k in others)
        own = [
            np.log(np.exp(unit[anchor] @ unit[k] / temperature) / whole)
            for k in others
            if k % count == anchor % count or mask[anchor % count, k % count]
        ]
        losses.append(-temperature / base * np.mean(own))
    return float(np.mean(losses))


@pytest.mark.parametrize("positives", ["trusted", "any_label", "all", "none"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_the_papers(positives: Positives, temperature: float) -> None:
    mask = partners(positives)
    found = sup_con(PROJECTIONS, mask, temperature, 0.07)
    expected = slow(PROJECTIONS.double().numpy(), mask.numpy(), temperature, 0.07)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_without_partners_it_is_simclrs_loss() -> None:
    found = sup_con(PROJECTIONS, partners("none"), 0.5, 0.5)
    torch.testing.assert_close(found, nt_xent(PROJECTIONS, 0.5))


def test_gradients_are_finite_and_those_of_the_slow_form() -> None:
    rows = PROJECTIONS.double().requires_grad_()
    mask = partners("trusted")
    (found,) = torch.autograd.grad(sup_con(rows, mask, 0.3, 0.07), rows)
    step = np.zeros((12, 5))
    step[3, 2] = 1e-3
    ends = [slow(rows.detach().numpy() + sign * step, mask.numpy(), 0.3, 0.07) for sign in (1, -1)]
    assert found.isfinite().all()
    assert found[3, 2].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_who_is_whose_partner() -> None:
    def pairs(positives: Positives) -> set[tuple[int, int]]:
        return {(i, j) for i, j in partners(positives).nonzero().tolist() if i != j}

    assert pairs("trusted") == {(0, 2), (2, 0)}  # two trusted images of one label
    assert pairs("any_label") == {(0, 2), (0, 4), (2, 0), (2, 4), (1, 5)}  # only the anchor need be trusted
    assert pairs("all") == {(0, 2), (2, 0), (0, 4), (4, 0), (2, 4), (4, 2), (1, 5), (5, 1)}
    assert not pairs("none")


def test_the_rate_rises_and_then_follows_a_cosine() -> None:
    stage = SupCon(epochs=40, warmup=4, lr=0.8)
    cosine = [0.4 * (1 + np.cos(np.pi * done / 40)) for done in range(40)]
    np.testing.assert_allclose([stage.rate(done) for done in range(4, 40)], cosine[4:])
    np.testing.assert_allclose([stage.rate(done) / cosine[done] for done in range(4)], [0.25, 0.5, 0.75, 1.0])
    assert SupCon(warmup=0).rate(0) == 0.5


SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 20, "lr": 0.05, "warmup": 1, "projection": 8}


def trusted(ids: Any) -> Artefact:
    return Artefact({"ids": np.asarray(ids, np.int64)})


def test_only_trusted_labels_count(make_set: Any, tiny: Any) -> None:
    """A label of another image can be anything; which ones are trusted does count."""
    data = make_set(48)
    ids = np.arange(0, 48, 2)
    labels = data.labels.copy()
    labels[1::2] = (labels[1::2] + 1) % 3
    found = [
        digest_of(
            SupCon(**SMALL, positives="trusted").run(CTX, data=each, model=tiny, trusted=which).arrays, 0
        )
        for each, which in (
            (data, trusted(ids)),
            (replace(data, labels=labels), trusted(ids)),
            (data, trusted(ids[:-1])),
        )
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("positives", ["all", "none"])
def test_without_trust_none_is_asked_for(make_set: Any, tiny: Any, positives: Positives) -> None:
    found = SupCon(**{**SMALL, "epochs": 1}, positives=positives).run(CTX, data=make_set(48), model=tiny)
    assert found.arrays
    assert not any(name.startswith(("model.head", "projection")) for name in found.arrays)
    assert found.info == {"epochs": 1, "samples": 48}


def test_missing_trust_and_a_single_image_are_the_users_errors(make_set: Any, tiny: Any) -> None:
    with pytest.raises(UserError, match="needs the input `trusted`"):
        SupCon(positives="trusted").run(CTX, data=make_set(8), model=tiny)
    with pytest.raises(UserError, match="at least 2, got 1"):
        SupCon(positives="none").run(CTX, data=make_set(1), model=tiny)


@pytest.mark.parametrize("looks", [{}, {"smallest_crop": 0.08, "jitter": 1.0}])
def test_views_are_the_codes_unless_others_are_asked_for(
    make_set: Any, tiny: Any, looks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    see = Augmentation.__call__

    def noted(self: Augmentation, *images: Any) -> torch.Tensor:
        seen.append((self.kind, self.smallest_crop, self.jitter, self.blur))
        return see(self, *images)

    monkeypatch.setattr(Augmentation, "__call__", noted)
    SupCon(**{**SMALL, "epochs": 1}, **looks).run(CTX, data=make_set(48), model=tiny)
    code = {"smallest_crop": 0.2, "jitter": 0.5, **looks}  # crops of 0.2 to 1, jitter of 0.4, 0.4, 0.4, 0.1
    assert set(seen) == {("simclr", code["smallest_crop"], code["jitter"], 0.0)}


def test_interrupted_it_ends_with_the_same_bits(make_set: Any, tiny: Any, memory: Any) -> None:
    data, stage = make_set(48), SupCon(**SMALL)
    whole = stage.run(CTX, data=data, model=tiny)
    ctx = replace(CTX, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, data=data, model=tiny)
    next(steps), next(steps)
    steps.close()
    torch.manual_seed(1)
    assert digest_of(stage.run(ctx, data=data, model=tiny).arrays, 0) == digest_of(whole.arrays, 0)


@pytest.mark.slow
def test_it_pulls_images_of_one_label_together(make_set: Any, tiny: Any) -> None:
    from bdtune.training.predict import predict_features, trained_network

    data = make_set(96)
    knobs: dict[str, Any] = {**SMALL, "epochs": 15, "batch_size": 32, "lr": 0.1}

    def contrast(positives: Positives) -> float:
        found = SupCon(**knobs, positives=positives).run(CTX, data=data, model=tiny)
        rows = predict_features(trained_network(tiny, data, found, CPU), data, CPU)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines, same = rows @ rows.T, data.labels[:, None] == data.labels
        return float(cosines[same].mean() - cosines[~same].mean())

    assert contrast("all") > contrast("none")
