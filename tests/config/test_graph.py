"""A trial's graph: what it reports, what trials share, and the baseline."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from bdtune.config.trial import parse_trial, trial_id
from bdtune.plugins import registry
from bdtune.reading.resident import must_stream
from bdtune.trials.graph import trial_graph

GSSD = {
    "name": "gssd",
    "simclr": {"epochs": 2},
    "flows": {"epochs": 1},
    "retrain": {"epochs": 3, "batch_size": 32},
}


def spec(**settings: Any) -> Any:
    raw = {"dataset": "toy", "attack": "badnets", "defense": GSSD, "model": {"name": "resnet18", "width": 4}}
    found, faults = parse_trial({**raw, **settings})
    assert not faults
    return found


def recipes(**settings: Any) -> dict[str, str]:
    """Recipe by stage name."""
    return {node.name: recipe for recipe, node in trial_graph(spec(**settings)).stages.items()}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_equal_specs_give_equal_graphs() -> None:
    assert recipes() == recipes()


def test_a_later_knob_leaves_the_earlier_stages_shared() -> None:
    changed = differing(recipes(), recipes(defense={**GSSD, "beta_nd": 2.0}))
    assert {"simclr", "features", "flows", "density"}.isdisjoint(changed)
    assert {"class_tests", "evaluate"} <= changed


def test_seed_attack_and_holdout_change_everything() -> None:
    base = recipes()
    assert "simclr" in differing(base, recipes(seed=1))
    assert "simclr" in differing(base, recipes(attack="blend"))
    assert "simclr" in differing(base, recipes(holdout=0.2))


def augmentations(**settings: Any) -> dict[str, Any]:
    """What each training of a trial does to its images, and whether SimCLR's views are mirrored."""
    stages = [node.stage for node in trial_graph(spec(**settings)).stages.values()]
    found = {s.name: s.augment for s in stages if "augment" in type(s).model_fields}
    return found | {s.name: s.flip for s in stages if "flip" in type(s).model_fields}


def test_images_are_mirrored_by_default_only_where_a_mirror_image_is_of_its_class() -> None:
    assert augmentations() == {"simclr": True, "supervised": "crop_flip", "finetune": "crop_flip"}
    assert augmentations(dataset="digits") == {"simclr": False, "supervised": "crop", "finetune": "crop"}
    mirrored = augmentations(dataset={"name": "digits", "mirrors": True})
    assert mirrored == augmentations()
    assert augmentations(dataset="digits", defense="abl")["abl_recover"] == "crop_cutout"
    dynamic = trial_graph(spec(dataset="digits", attack="dynamic", defense="none"))
    recipes = {node.stage.recipe.augment for node in dynamic.stages.values() if "iab_pattern" in node.name}
    assert recipes == {"crop"}


def test_a_flip_that_is_asked_for_is_done_on_every_data_set() -> None:
    asked = {**GSSD, "simclr": {"flip": True}, "retrain": {"augment": "crop_flip"}}
    found = augmentations(dataset="digits", defense=asked)
    assert (found["simclr"], found["supervised"]) == (True, "crop_flip")


def test_the_key_says_what_is_done_to_images() -> None:
    """So a default and its meaning written out share their result."""
    written = {**GSSD["retrain"], "augment": "crop_flip"}
    simclr = {**GSSD["simclr"], "flip": True}
    tuned = {"augment": "crop_flip"}
    assert recipes() == recipes(defense={**GSSD, "simclr": simclr, "retrain": written, "finetune": tuned})
    changed = differing(recipes(dataset="digits"), recipes(dataset={"name": "digits", "mirrors": True}))
    assert {"simclr", "supervised"} <= changed
    plain = {"name": "none", "train": {"augment": "none"}}
    few = {"name": "digits", "train_limit": 300, "test_limit": 90}
    assert recipes(dataset=few, defense=plain) == recipes(dataset={**few, "mirrors": True}, defense=plain)


def test_the_baseline_of_a_trial_is_mirrored_as_the_trial_is() -> None:
    baseline = trial_graph(spec(dataset="digits")).baseline
    assert baseline is not None
    assert trial_graph(baseline).chain["classifier"].stage.augment == "crop"  # type: ignore[attr-defined]


def test_where_data_lie_changes_nothing() -> None:
    assert recipes() == recipes(data_root="/elsewhere")


def test_a_stream_trains_in_another_order_so_it_is_another_result() -> None:
    changed = differing(recipes(), recipes(pipeline="stream"))
    assert {"simclr", "evaluate"} <= changed
    assert recipes(pipeline="auto") == recipes(pipeline="resident")


def test_the_baseline_has_the_same_data_and_training() -> None:
    trial = spec()
    graph = trial_graph(trial)
    baseline = graph.baseline
    assert baseline is not None
    assert baseline.defense.plugin_name() == "none"
    assert baseline.defense.train.epochs == 3
    assert baseline.model_copy(update={"defense": trial.defense}) == trial
    assert trial_graph(baseline).baseline is None
    assert trial_id(baseline) == trial_id(trial_graph(spec(defense={**GSSD, "beta_nd": 9})).baseline)


def test_one_baseline_for_all_defenses_where_a_trial_asks_for_it() -> None:
    defenses = [GSSD, {"name": "lfd", "student": {"epochs": 4}}, "none"]
    own = [trial_graph(spec(defense=defense)).baseline for defense in defenses]
    shared = [trial_graph(spec(defense=defense, baseline={"epochs": 7})).baseline for defense in defenses]
    assert shared[0] is not None
    assert shared[0].defense.train.epochs == 7
    assert shared[0] == shared[1] != own[0] != own[1]
    assert shared[2] is own[2] is None
    changed = differing(recipes(), recipes(baseline={"epochs": 7}))
    assert not changed  # of the trial itself nothing is


def test_the_shared_baseline_is_mirrored_as_the_trial_is() -> None:
    baseline = trial_graph(spec(dataset="digits", baseline={"epochs": 7})).baseline
    assert baseline is not None
    assert trial_graph(baseline).chain["classifier"].stage.augment == "crop"  # type: ignore[attr-defined]


def test_a_trial_with_a_baseline_of_its_own_choice_is_another_trial() -> None:
    ids = [trial_id(spec(**baseline)) for baseline in ({}, {"baseline": {"epochs": 7}}, {"baseline": {}})]
    assert len(set(ids)) == 3
    assert trial_id(spec(baseline=None)) == ids[0] == "5d3231a3e0a6873d"


def test_evaluation_sees_what_there_is_to_see() -> None:
    assert set(trial_graph(spec()).evaluate.inputs) == {"classifier", "model", "clean", "triggered"}
    assert set(trial_graph(spec(attack=None, holdout=0.1)).evaluate.inputs) == {
        "classifier",
        "model",
        "clean",
        "select",
    }
    assert "select_clean" in trial_graph(spec(holdout_clean=0.1)).evaluate.inputs


def test_accuracy_on_covered_test_images_is_measured_where_an_attack_has_such_and_nowhere_else() -> None:
    plain = {"name": "wanet", "rate": 0.1}
    with_cover = trial_graph(spec(attack={**plain, "cross_ratio": 1.0}))
    assert {"cover", "triggered"} <= set(with_cover.evaluate.inputs)
    assert with_cover.baseline is not None
    assert "cover" in trial_graph(with_cover.baseline).evaluate.inputs
    assert "cover" not in trial_graph(spec(attack=plain)).evaluate.inputs


def test_no_stage_of_the_chain_reads_the_truth() -> None:
    graph = trial_graph(spec())
    assert graph.diagnose is not None
    for node in graph.chain["classifier"].walk():
        for value in node.inputs.values():
            assert type(value).__name__ not in {"TruthSource", "TriggeredTest", "CleanTest"}


@pytest.mark.parametrize("attack", registry.names("attacks"))
def test_every_stage_of_a_trial_has_a_role_of_its_own(attack: str) -> None:
    if attack == "record":  # needs a folder
        return
    for defense in ("none", GSSD, "abl"):
        settings = {"dataset": {"name": "digits", "side": 32}, "attack": attack, "defense": defense}
        graph = trial_graph(spec(**settings, model={"name": "resnet18", "width": 4}))
        roles = [graph.roles[recipe] for recipe in graph.stages]
        assert len(set(roles)) == len(roles)
        assert {"classifier", "evaluate"} <= set(roles)


def test_roles_are_the_names_that_attack_and_defense_gave() -> None:
    graph = trial_graph(spec(attack={"name": "composite", "target": 2}))
    assert sorted(graph.roles.values()) == [
        *("attack.cover", "attack.test", "attack.train", "class_tests", "classifier", "density", "diagnose"),
        *("evaluate", "features", "flows", "relabel", "retrain", "simclr", "split"),
    ]


def test_goals_come_last() -> None:
    graph = trial_graph(spec())
    assert [node.name for node in graph.goals] == ["evaluate", "diagnose"]
    seen: set[str] = set()
    for recipe, node in graph.stages.items():
        assert all(parent.recipe in seen for parent in node.parents)
        seen.add(recipe)


def test_robust_accuracy_is_asked_for_by_the_trial_and_measured_of_the_baseline_too() -> None:
    robust = spec(evaluation={"robust": "pgd", "pgd": {"eps": "4/255"}})
    graph = trial_graph(robust)
    assert graph.evaluate.stage == robust.evaluation
    assert robust.evaluation.pgd.eps == 4 / 255
    assert graph.baseline is not None
    assert graph.baseline.evaluation == robust.evaluation
    assert differing(recipes(), recipes(evaluation={"robust": "pgd"})) == {"evaluate"}


def test_an_attack_that_is_not_made_is_not_in_the_key() -> None:
    assert recipes() == recipes(evaluation={"pgd": {"steps": 3}})
    evaluations = [
        recipes(evaluation={"robust": "pgd", "pgd": {"steps": steps}})["evaluate"] for steps in (3, 4)
    ]
    assert evaluations[0] != evaluations[1]


def judged(**defense: Any) -> list[tuple[str, int]]:
    """Return the stages that a scheduler judges, each with the epochs before it."""
    graph = trial_graph(spec(defense=defense))
    return [(graph.stages[recipe].name, before) for recipe, before in graph.judged.items()]


def test_a_scheduler_does_not_judge_what_is_yet_to_be_unlearned() -> None:
    abl = {"name": "abl", "recover": {"epochs": 7}, "unlearn": {"epochs": 3}}
    assert judged(**abl) == [("abl_unlearn", 0)]
    assert trial_graph(spec(defense=abl)).epochs == 3
    assert judged(name="abl", form="joint") == [("abl_joint", 0)]


def test_a_scheduler_judges_a_training_that_the_next_stage_goes_on_with() -> None:
    assert judged(**GSSD) == [("supervised", 0), ("finetune", 3)]
    assert trial_graph(spec(defense=GSSD)).epochs == 5
    best = {"name": "adversarial_training", "validation": 0.1, "checkpoint": "best", "train": {"epochs": 4}}
    assert judged(**best) == [("adversarial_training", 0), ("best_epoch", 4)]
    assert judged(name="lfd", student={"epochs": 6}) == [("lfd_student", 0)]


@pytest.mark.parametrize(("total", "streamed"), [(1 << 20, True), (1 << 40, False)])
def test_all_memory_decides_whether_images_fit_and_a_busy_machine_does_not(monkeypatch, total, streamed):
    memory = psutil.virtual_memory()._replace(total=total, available=0 if not streamed else 1 << 40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    must_stream.cache_clear()
    try:
        assert must_stream(spec(dataset="digits").dataset, "train", None, "auto") is streamed
    finally:
        must_stream.cache_clear()
