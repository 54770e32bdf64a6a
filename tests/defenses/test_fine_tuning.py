"""Fine-tuning as a defense: what it reads, what settings share, what it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defending.weight_changes import distance, distances, head_cosine, largest_filters, weights_of
from bdtune.defenses.fine_tuning import FineTuning
from bdtune.engine.stage import Context
from bdtune.plugins.clean_part import CleanPart
from bdtune.plugins.data import LabelSet
from bdtune.poisoning.reserved_sources import CleanLabels, CleanSet
from bdtune.trials.graph import undefended
from tests.defenses.repairing import SHORT, distinct, graph, with_clean_set
from tests.doubles import CPU

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=3, numerics=CPU)


# The clean set's parts


@pytest.mark.parametrize("validation", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(10, 10, 10), (40, 7, 2), (1, 5, 0)])
def test_each_clean_image_is_in_one_part_and_each_class_in_both(validation: float, sizes: Any) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), sizes))
    tuning, held = (
        CleanPart(part=part, validation=validation).run(CTX, data=LabelSet(labels, 3)).arrays  # type: ignore[arg-type]
        for part in ("tuning", "validation")
    )
    assert sorted([*tuning["ids"], *held["ids"]]) == list(range(len(labels)))
    for part in (tuning, held):
        assert np.array_equal(part["labels"], labels[part["ids"]])
        assert np.all(np.diff(part["ids"]) > 0)
    for label, size in enumerate(sizes):
        wanted = 0 if validation == 0 else min(max(1, int(validation * size + 0.5)), size - 1)
        assert np.count_nonzero(held["labels"] == label) == max(wanted, 0)


def test_the_parts_are_drawn_anew_for_another_seed() -> None:
    data, stage = LabelSet(np.arange(40) % 4, 4), CleanPart(part="validation", validation=0.2)
    ids = [stage.run(Context(seed=seed), data=data).arrays["ids"].tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_the_labels_of_the_clean_set_are_had_without_its_images() -> None:
    found = graph({"name": "fine_tuning", "validation": 0.2})
    labels = found.chain["tuning"].inputs["data"]
    images = found.chain["classifier"].inputs["data"]
    assert isinstance(labels, CleanLabels)
    assert isinstance(images, CleanSet)

    class LabelsAlone:
        def split(self, *_: object) -> None:
            raise AssertionError("no image is to be read")

        def labels(self, dataset: Any, split: Any) -> np.ndarray:
            return dataset.labels(split)  # type: ignore[no-any-return]

    from bdtune.reading.resident import InProcess

    found_labels = labels.load(LabelsAlone(), {}).labels  # type: ignore[arg-type]
    assert np.array_equal(found_labels, images.load(InProcess(), {}).labels)


# The chain


def test_without_a_clean_set_it_says_so_before_anything_starts() -> None:
    _, problems = parse_trial({"attack": "badnets", "defense": "fine_tuning"})
    assert [str(problem) for problem in problems] == [
        "clean: expected images known to be clean, which 'fine_tuning' tunes the classifier on, got none. "
        "Set clean: 0.05 for 5 % of the training set"
    ]


def test_all_tunings_share_the_undefended_model_and_the_clean_parts() -> None:
    tunings: list[dict[str, Any]] = [
        {}, {"mode": "ft_sam"}, {"mode": "ft_sam", "rho": 8}, {"mode": "fst"}, {"mode": "fst", "alpha": 0.2},
        {"lr": 0.1}, {"epochs": 5}, {"smoothing": 0.1}, {"bn_mode": "eval"},
    ]  # fmt: skip
    trials = [graph({"name": "fine_tuning", "validation": 0.2, "tune": tune}) for tune in tunings]
    assert distinct("classifier", *trials) == len(tunings)
    for role in ("undefended", "tuning", "validation"):
        assert distinct(role, *trials) == 1
    spec, _ = parse_trial({"dataset": "digits", "attack": "badnets", "clean": 0.1, "defense": "fine_tuning"})
    assert spec is not None
    baseline = undefended(spec)
    assert baseline is not None
    from bdtune.trials.graph import trial_graph

    assert trial_graph(baseline).chain["classifier"].recipe == trials[0].chain["undefended"].recipe


def test_another_clean_set_is_another_undefended_model_and_another_attack_no_other_clean_set() -> None:
    plain = {"name": "fine_tuning"}
    assert distinct("undefended", graph(plain), graph(plain, clean=0.2)) == 2
    assert distinct("tuning", graph(plain), graph(plain, clean=0.2)) == 2
    assert distinct("tuning", graph(plain), graph(plain, attack="blend")) == 1


def test_zero_epochs_are_no_defense_with_the_same_key() -> None:
    none = graph({"name": "none"})
    for mode in ("ft", "fst"):
        found = graph({"name": "fine_tuning", "tune": {"epochs": 0, "mode": mode}})
        assert found.evaluate.recipe == none.evaluate.recipe


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("backdoorbench/ft", {"mode": "ft", "epochs": 100, "lr": 0.01, "smoothing": 0.0}),
        ("backdoorbench/ft_sam", {"schedule_unit": "batch", "horizon": 100, "rho": 2.0, "smoothing": 0.1}),
        ("ft_sam/cifar10", {"mode": "ft_sam", "schedule_unit": "epoch", "rho": 2.0, "smoothing": 0.1}),
        ("ft_sam/gtsrb", {"mode": "ft_sam", "epochs": 50, "rho": 8.0, "smoothing": 0.0}),
        ("fst/fst", {"mode": "fst", "epochs": 10, "batch_size": 128, "weight_decay": 0.0, "alpha": 0.1}),
        ("fst/lp", {"mode": "lp", "epochs": 10}),
        ("super_ft/cifar10", {"schedule": "triangular", "lr": 0.03, "peaks": (2.5, 0.05)}),
    ],
)
def test_presets_are_the_papers_settings(preset: str, expected: dict[str, Any]) -> None:
    spec, problems = parse_trial({"attack": "badnets", "clean": 0.05, "defense": {"preset": preset}})
    assert spec is not None, problems
    assert isinstance(spec.defense, FineTuning)
    found = spec.defense.tune.model_dump()
    assert {name: found[name] for name in expected} == expected


def test_a_setting_of_ones_own_is_laid_over_a_preset() -> None:
    given = {"preset": "ft_sam/gtsrb", "tune": {"rho": 4}, "train": {"epochs": 7}}
    spec, _ = parse_trial({"attack": "badnets", "clean": 0.05, "defense": given})
    assert spec is not None
    assert isinstance(spec.defense, FineTuning)
    tune = spec.defense.tune
    assert (tune.rho, tune.epochs, tune.mode, spec.defense.train.epochs) == (4, 50, "ft_sam", 7)
    _, problems = parse_trial({"clean": 0.05, "defense": {"preset": "ft_sam/gtsrp"}})
    assert "Did you mean 'ft_sam/gtsrb'?" in str(problems[0])
    _, problems = parse_trial({"clean": 0.05, "defense": {"preset": "fst/lp", "name": "lfd"}})
    assert str(problems[0]).startswith("defense.name: expected 'fine_tuning', whose preset 'fst/lp' is")


# What it reports


def slow_distance(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    pairs = [(a, b) for n in before for a, b in zip(before[n].ravel(), after[n].ravel(), strict=True)]
    return float(np.sqrt(sum((b - a) ** 2 for a, b in pairs) / sum(a**2 for a, _ in pairs)))


def test_how_far_weights_moved() -> None:
    rng = np.random.default_rng(0)
    before = {"body.0.weight": rng.normal(size=(4, 2, 3, 3)), "body.1.bias": rng.normal(size=4)}
    before |= {"head.weight": rng.normal(size=(3, 4))}
    after = {name: array + rng.normal(size=array.shape) for name, array in before.items()}
    assert distance(before, after) == pytest.approx(slow_distance(before, after))
    by_layer = distances(before, after)
    assert list(by_layer) == ["body.0", "head"]
    for name, found in by_layer.items():
        one, two = ({name: each[f"{name}.weight"]} for each in (before, after))
        assert found == pytest.approx(slow_distance(one, two))
    assert head_cosine(before, before) == pytest.approx(1.0)
    assert head_cosine(before, {"head.weight": -before["head.weight"]}) == pytest.approx(-1.0)
    norms = [np.sqrt(np.square(kernel).sum()) for kernel in before["body.0.weight"]]
    assert largest_filters(before) == pytest.approx(max(norms))
    assert np.isnan(largest_filters({"head.weight": before["head.weight"]}))
    arrays = {"model.head.weight": np.ones((2, 2)), "model.norm.running_mean": np.ones(2)}
    assert list(weights_of(arrays)) == ["head.weight"]
    names = ["body.2.conv1", "body.2.conv2", "body.10.conv1", "hidden", "head"]
    shuffled = {f"model.{name}.weight": np.ones(1) for name in sorted(names)}
    assert [name.removesuffix(".weight") for name in weights_of(shuffled)] == names


def test_it_mends_a_model_and_says_what_changed(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, truth = with_clean_set(poisoned[0]), poisoned[1]
    defense = bdtune.defense("fine_tuning", validation=0.2, train=SHORT, tune={**SHORT, "mode": "ft_sam"})
    chain = defense.build(given)
    found = {name: counting.compute(node, counting.note) for name, node in chain.items()}
    values = defense.diagnose(found, truth)
    expected = {"distance", "distance_most", "head_cosine", "filters_before", "filters_after", "loss", "acc"}
    assert values.keys() == expected | {"validation_loss", "validation_acc"}
    assert values["distance_most"] >= values["distance"] > 0
    picture = defense.figure(found, truth)
    assert picture is not None
    assert len(picture.axes) == 2
    assert counting.computed.count("supervised") == 1
    again = bdtune.defense("fine_tuning", validation=0.2, train=SHORT, tune={**SHORT, "mode": "fst"})
    counting.compute(again.build(given)["classifier"], counting.note)
    assert counting.computed.count("supervised") == 1
    assert counting.computed.count("clean_part") == 2
    assert counting.computed.count("fine_tune") == 2
