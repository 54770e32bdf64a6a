from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune
from bdtune.defenses.lfd.stages import Threshold, Weigh
from bdtune.engine.execute import StageFailed
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.plugins.defense import Diagnose, diagnosis
from bdtune.training.supervised import Supervised
from tests.doubles import Is

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context()
MODES = ["weighted", "ascent_means", "ascent_sum", "drop", "positive_only", "plain"]


def scored(losses: Any) -> Artefact:
    return Artefact({"losses": np.asarray(losses, np.float64)})


def cut(losses: Any, alpha: float, ties: str = "all") -> Artefact:
    return Threshold(alpha=alpha, ties=ties).run(CTX, losses=scored(losses))  # type: ignore[arg-type]


def weigh(losses: Any, alpha: float, mode: str = "weighted", beta: float = 1e-3) -> np.ndarray:
    inputs = {"losses": scored(losses), "threshold": cut(losses, alpha)}
    return Weigh(mode=mode, beta=beta).run(CTX, **inputs).arrays["weights"]  # type: ignore[arg-type]


def slow_weights(losses: list[float], alpha: float, mode: str, beta: float) -> list[float]:
    """The card's equations, one sample at a time."""
    n = len(losses)
    m = math.floor(n * alpha)
    gamma = sorted(losses)[m - 1]
    inside = [loss <= gamma for loss in losses]
    size, largest = sum(inside), max(losses)
    found = []
    for loss, candidate in zip(losses, inside, strict=True):
        weighted = beta * (loss - gamma) / (largest - gamma) if candidate else loss / largest
        found.append(
            {
                "weighted": weighted,
                "drop": 0.0 if candidate else weighted,
                "positive_only": loss / largest,
                "plain": 1.0,
                "ascent_sum": -1.0 if candidate else 1.0,
                "ascent_means": -n / size if candidate else n / (n - size),
            }[mode]
        )
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5])
def test_weights_equal_the_equations(mode: str, alpha: float) -> None:
    losses = np.random.default_rng(1).gamma(1.0, 1.0, 40)
    expected = slow_weights(losses.tolist(), alpha, mode, 0.01)
    np.testing.assert_allclose(weigh(losses, alpha, mode, 0.01), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0])
def test_signs_and_ranges_of_weights(beta: float) -> None:
    losses = np.random.default_rng(2).gamma(1.0, 1.0, 200)
    weights, threshold = weigh(losses, 0.15, beta=beta), cut(losses, 0.15).arrays
    gamma, candidates = threshold["gamma"][0], threshold["candidates"]
    spread = losses.max() - gamma
    assert (weights[~candidates] > gamma / losses.max()).all()
    assert weights.max() == 1
    assert (weights[candidates] <= 0).all()
    assert weights.min() == pytest.approx(beta * (losses.min() - gamma) / spread, rel=1e-5)
    order = np.argsort(losses[candidates])
    assert (np.diff(weights[candidates][order]) >= 0).all()  # the easiest is pushed hardest


def test_alpha_is_a_fraction() -> None:
    losses = np.arange(100.0)
    for alpha, count in [(0.15, 15), (0.29, 29), (0.999, 99), (0.005, 0)]:
        assert cut(losses, alpha).arrays["candidates"].sum() == count
    assert cut(losses, 0.29).arrays["gamma"][0] == 28
    for wrong in (15, 1.0, -0.1):
        with pytest.raises(ValidationError):
            bdtune.defense("lfd", alpha=wrong)


def test_without_candidates_nothing_is_pushed() -> None:
    losses = np.arange(5.0)
    threshold = cut(losses, 0.1).arrays
    assert not threshold["candidates"].any()
    assert threshold["gamma"].tolist() == [0.0]
    np.testing.assert_allclose(weigh(losses, 0.1), losses / 4)
    for mode in ("ascent_means", "ascent_sum", "plain"):
        assert weigh(losses, 0.1, mode).tolist() == [1.0] * 5


def test_ties_at_the_threshold() -> None:
    losses = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert cut(losses, 0.2, "all").arrays["candidates"].tolist() == [True] * 4 + [False] * 6
    assert cut(losses, 0.2, "strict").arrays["candidates"].tolist() == [True] * 2 + [False] * 8


@pytest.mark.parametrize("losses", [[0.0] * 6, [2.5] * 6])
def test_a_teacher_that_tells_nothing_apart_leaves_nothing_to_learn(losses: list[float]) -> None:
    with pytest.raises(Diverged, match="none of 6 samples is left"):
        weigh(losses, 0.5)


def test_equal_weights_have_equal_digests() -> None:
    losses = np.random.default_rng(3).gamma(1.0, 1.0, 50)
    inputs = {"losses": scored(losses), "threshold": cut(losses, 0.3)}

    def digest(mode: str, beta: float) -> str:
        found = Weigh(mode=mode, beta=beta).run(CTX, **inputs)  # type: ignore[arg-type]
        return digest_of(found.arrays, found.info)

    assert digest("weighted", 0.0) == digest("drop", 1e-3) == digest("drop", 0.5)
    assert digest("weighted", 1e-3) != digest("weighted", 1e-2)
    assert digest("positive_only", 0.0) != digest("drop", 0.0)


def short(**knobs: Any) -> Defense:
    teacher = {"epochs": 1, "batch_size": 16, "model": "resnet_s1", **knobs.pop("teacher", {})}
    return bdtune.defense("lfd", teacher=teacher, student={"epochs": 1, "batch_size": 16}, **knobs)


def grid() -> list[Defense]:
    """4 teachers x 3 alphas x 3 betas."""
    narrow = {"name": "resnet_s1", "stem_width": 2}
    networks = [narrow, {**narrow, "stem_width": 4}, {**narrow, "name": "resnet_s"}, "mobilenetv2_s"]
    return [
        short(teacher={"model": network}, alpha=alpha, beta=beta)
        for network in networks
        for alpha in (0.0, 0.15, 0.3)
        for beta in (0.0, 1e-3, 1e-2)
    ]


def test_a_grid_trains_each_teacher_once_and_a_student_per_weights(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    chains = [defense.build(given) for defense in grid()]
    before = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver).stages
    assert (before["lfd_teacher"].unique, before["lfd_teacher"].without_sharing) == (4, 36)
    assert before["sample_losses"].unique == 4
    assert before["lfd_student"].unique == 36
    assert not before["lfd_student"].exact
    for chain in chains:
        counting.compute(chain["weights"], counting.note)
    assert counting.computed.count("lfd_teacher") == counting.computed.count("sample_losses") == 4
    distinct = {
        digest_of(counting.compute(chain["weights"]).arrays, {}) for chain in chains
    }  # without candidates beta does nothing
    assert len(distinct) == 4 * 7
    after = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver).stages
    assert (after["lfd_student"].unique, after["lfd_student"].exact) == (4 * 7, True)
    assert after["lfd_teacher"].cached == 4
    for chain in chains[:3]:  # alpha = 0: one student for three betas
        counting.compute(chain["classifier"], counting.note)
    assert counting.computed.count("lfd_student") == 1


def test_neither_alpha_beta_nor_mode_touch_the_teacher(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    base = short().build(given)
    for knobs in ({"alpha": 0.3}, {"beta": 0.1}, {"mode": "drop"}, {"ties": "strict"}):
        chain = short(**knobs).build(given)
        assert chain["losses"].recipe == base["losses"].recipe
        assert chain["classifier"].recipe != base["classifier"].recipe
    other = short(teacher={"model": "resnet_s"}).build(given)
    assert other["teacher"].recipe != base["teacher"].recipe


def test_plain_is_the_undefended_baseline(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    defense = short(mode="plain")
    undefended = bdtune.defense("none", train=defense.baseline_training()).build(given)
    assert defense.build(given)["classifier"].recipe == undefended["classifier"].recipe
    assert defense.baseline_training() == short().baseline_training()
    assert type(defense.baseline_training()) is Supervised


def test_ascent_without_bound_ends_as_diverged(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    student = {"epochs": 60, "batch_size": 16, "optimizer": "sgd", "lr": 10.0, "schedule": "constant"}
    defense = bdtune.defense("lfd", teacher={"epochs": 1}, student=student, mode="ascent_means", alpha=0.4)
    with pytest.raises(StageFailed, match="lfd_student") as failed:
        counting.compute(defense.build(poisoned[0])["classifier"])
    assert failed.value.status == "diverged"
    bounded = bdtune.defense(
        "lfd", **{**defense.model_dump(), "student": {**student, "lr": 0.01, "epochs": 2}}
    )
    assert counting.compute(bounded.build(poisoned[0])["classifier"]).info["epochs"] == 2


def test_neither_the_students_training_nor_its_augmentation_changes_a_loss(
    poisoned: tuple[DefenseInputs, Truth],
) -> None:
    given, _ = poisoned
    base = short().build(given)
    student = {"epochs": 2, "batch_size": 16, "augment": "none"}
    other = bdtune.defense("lfd", **{**short().model_dump(), "student": student}).build(given)
    assert other["weights"].recipe == base["weights"].recipe
    assert other["classifier"].recipe != base["classifier"].recipe


def test_candidates_are_judged_by_the_truth(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short(teacher={"epochs": 3, "lr": 0.02}, alpha=0.2)
    judge = diagnosis(Diagnose(defense=defense), defense.build(given), Is(word="truth", value=truth))
    assert judge is not None
    found = {k.removeprefix("lfd/"): v for k, v in counting.compute(judge).info.items()}
    chain = defense.build(given)
    threshold = counting.compute(chain["threshold"]).arrays
    losses = counting.compute(chain["losses"]).arrays["losses"]
    chosen = threshold["candidates"]
    assert found["isolation_precision"] == np.mean(truth.is_poison[chosen])
    assert found["isolation_recall"] == np.sum(truth.is_poison & chosen) / 12
    assert found["gamma"] == np.sort(losses)[11]
    assert found["candidates"] == np.mean(losses <= found["gamma"]) >= 0.2  # with ties
    poison, clean = losses[truth.is_poison], losses[~truth.is_poison]
    assert found["loss_poison"] == pytest.approx(poison.mean())
    assert found["poison_above_clean"] == np.mean(poison > clean.mean())
    assert found["auroc"] == pytest.approx(
        np.mean(poison[:, None] < clean) + np.mean(poison[:, None] == clean) / 2
    )


@pytest.mark.parametrize("knobs", [{"beta": 0.5}, {"mode": "ascent_sum"}])
def test_push_is_how_negative_weights_compare_with_positive_ones(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth], knobs: dict[str, Any]
) -> None:
    given, truth = poisoned
    defense = short(teacher={"epochs": 3, "lr": 0.02, "model": "resnet_s"}, alpha=0.2, **knobs)
    chain = defense.build(given)
    weights = counting.compute(chain["weights"]).arrays["weights"].tolist()
    up, down = sum(w for w in weights if w > 0), sum(-w for w in weights if w < 0)
    assert min(up, down) > 0.01
    found = defense.diagnose({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
    assert found["weight_positive"] == pytest.approx(up)
    assert found["weight_negative"] == pytest.approx(-down)
    assert found["push"] == pytest.approx(down / up)


def test_without_poison_there_is_nothing_to_judge_by(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    clean = type(truth)(truth.labels, truth.observed, np.zeros_like(truth.role), None)
    defense = short()
    judge = diagnosis(Diagnose(defense=defense), defense.build(given), Is(word="clean", value=clean))
    assert judge is not None
    found = counting.compute(judge).info
    assert "lfd/isolation_recall" not in found
    assert "lfd/auroc" not in found
    assert np.isfinite(list(found.values())).all()


def test_the_picture_shows_losses_gamma_and_epochs(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short(teacher={"epochs": 2})
    chain = defense.build(given)
    picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
    assert picture is not None
    histogram, epochs, features, above = picture.axes
    assert [line.get_label()[:7] for line in histogram.get_lines()] == ["gamma ="]
    assert [line.get_label() for line in epochs.get_lines()] == ["clean", "poisoned"]
    assert all(len(line.get_xdata()) == 2 for line in (*epochs.get_lines(), *above.get_lines()))
    trace = counting.compute(chain["teacher"]).arrays["trace.losses"]
    clean, poison = trace[:, ~truth.is_poison], trace[:, truth.is_poison]
    np.testing.assert_allclose(above.get_lines()[0].get_ydata(), (poison > clean.mean(1)[:, None]).mean(1))
    assert [len(part.get_offsets()) for part in features.collections] == [48, 12]


def test_knobs_have_the_papers_defaults() -> None:
    lfd = bdtune.defense("lfd").model_dump()
    assert (lfd["alpha"], lfd["beta"], lfd["mode"]) == (0.15, 1e-3, "weighted")
    assert lfd["teacher"]["model"]["name"] == "resnet_s"
    shared = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "batch_size": 128}
    expected = {
        "teacher": {**shared, "epochs": 5, "schedule": "constant", "augment": "none"},
        "student": {**shared, "epochs": 80, "schedule": "cosine", "augment": "auto"},
    }
    assert {part: {name: lfd[part][name] for name in knobs} for part, knobs in expected.items()} == expected
    assert (lfd["student"]["loss_cap"], lfd["student"]["clip_norm"]) == (None, None)
