"""What grids over late knobs share: `bdtune plan --json` says it before, the store shows it after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.grids import quick

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_lfd_trains_each_teacher_once_and_a_student_per_weights(grid: Any, tmp_path: Path) -> None:
    lfd = grid(
        "defense=lfd",
        *quick("teacher", "student"),
        "defense.teacher.model=lenet_s,resnet_s1,resnet_s,mobilenetv2_s",
        "defense.alpha=0,0.15,0.3",
        "defense.beta=0,0.001,0.01",
    )
    plan = lfd.plan()
    assert plan["trials"] == 36
    before = plan["stages"]
    assert (before["lfd_teacher"]["unique"], before["lfd_teacher"]["without_sharing"]) == (4, 36)
    assert (before["lfd_student"]["unique"], before["lfd_student"]["exact"]) == (36, False)  # at most
    computed = lfd.compute(tmp_path)
    assert computed["lfd_teacher"] == computed["sample_losses"] == computed["embedding"] == 4
    assert computed["lfd_student"] == 4 * 7  # with alpha 0 there are no candidates for beta to push
    assert computed["supervised"] == 1
    after = lfd.plan()["stages"]
    assert {name: after["lfd_student"][name] for name in ("unique", "cached", "exact")} == {
        "unique": 28,
        "cached": 28,
        "exact": True,
    }
    assert {name: count["unique"] for name, count in after.items()} == computed


@pytest.mark.slow
def test_aabl_trains_one_naive_model_for_all_splits(grid: Any, tmp_path: Path) -> None:
    aabl = grid(
        "defense=aabl",
        *quick("naive", "train"),
        "defense.train.pgd.steps=1",
        "defense.ifgsm.eps=1/255,2/255,4/255,8/255",
        "defense.score=sce,ce",
        "defense.rule=fixed",
    )
    before = aabl.unique()
    assert (before["naive"], before["adversarial_losses"], before["scores"]) == (1, 4, 8)
    assert before["adversarial_training"] == 8  # at most
    computed = aabl.compute(tmp_path)
    assert (computed["naive"], computed["adversarial_losses"], computed["scores"]) == (1, 4, 8)
    assert computed["adversarial_training"] <= 4  # both scores rank alike: they keep the same samples
    assert aabl.unique() == computed


def test_abl_trains_one_isolation_model_for_all_rates_and_unlearnings(grid: Any, tmp_path: Path) -> None:
    abl = grid(
        "defense=abl",
        *quick("isolate", "recover", "unlearn"),
        "defense.p=0.05,0.1,0.2",
        "defense.unlearn.lr=1e-5,1e-4,1e-3",
    )
    before = abl.unique()
    assert (before["abl_isolate"], before["sample_losses"]) == (1, 1)
    assert (before["abl_recover"], before["abl_unlearn"]) == (3, 9)
    computed = abl.compute(tmp_path)
    assert (computed["abl_isolate"], computed["abl_recover"], computed["abl_unlearn"]) == (1, 3, 9)
    assert abl.unique() == computed
