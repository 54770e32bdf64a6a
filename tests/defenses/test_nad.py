"""NAD: attention and its objective against slow plain versions, controls, and what settings share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defenses.nad import NAD, report
from bdtune.defenses.nad.attention import apart, attention, groups_of
from bdtune.defenses.nad.stages import Answers, Distil, Teacher
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import UserError
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.fine_tune import FineTune
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays, new_network
from tests.defenses.repairing import SHORT, distinct, graph, with_clean_set
from tests.doubles import CPU

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs

CTX = Context(seed=4, numerics=CPU)
TUNED: dict[str, Any] = {**SHORT, "schedule": "constant"}


@pytest.fixture
def inputs(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    """Inputs of the distillation, after a little training on poison and of a teacher."""
    given = with_clean_set(poisoned[0])
    assert given.clean is not None
    fit, clean = given.fit.value, given.clean.value  # type: ignore[attr-defined]
    model = bdtune.model("resnet18", width=2)
    every = Artefact({"ids": np.arange(60), "labels": fit.labels})
    init = Supervised(**SHORT).run(CTX, data=fit, subset=every, model=model)
    found = {"data": clean, "subset": Artefact({"ids": np.arange(30), "labels": clean.labels})}
    found |= {"model": model, "init": init}
    return {**found, "teacher": Teacher(**TUNED).run(CTX, **found)}


def same(one: Artefact, two: Artefact) -> bool:
    return digest_of(one.arrays, None) == digest_of(two.arrays, None)


# Attention


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_by_loops(power: float) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = attention(maps, power)
    for image in range(2):
        slow = [
            sum(abs(float(maps[image, c, y, x])) ** power for c in range(3))
            for y in range(4)
            for x in range(5)
        ]
        norm = math.sqrt(sum(value**2 for value in slow))
        np.testing.assert_allclose(found[image], [value / (norm + 1e-6) for value in slow], rtol=1e-4)


def test_distances_by_hand() -> None:
    one, two = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.6, 0.8]])
    assert float(apart(one, two, "mean")) == pytest.approx((1 + 0.16 + 0.64) / 4)
    assert float(apart(one, two, "sum")) == pytest.approx((1 + 0.8) / 2)
    assert float(apart(one, two, "norm")) == pytest.approx((1 + math.sqrt(0.8)) / 2)
    equal = one.clone().requires_grad_()
    apart(equal, one, "norm").backward()
    assert torch.isfinite(equal.grad).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "side", "sizes"),
    [("resnet18", 32, [256, 64, 16]), ("wrn", 32, [1024, 256, 64]), ("preactresnet18", 16, [64, 16, 4])],
)
def test_groups_are_the_last_ones(model: str, side: int, sizes: list[int]) -> None:
    knobs = {} if model == "wrn" else {"width": 2}
    network = bdtune.model(model, **knobs).build(3, (side, side, 3)).eval()
    images = torch.rand(2, 3, side, side)
    groups = groups_of(network, images, 3)
    assert list(groups.values()) == sizes
    _, maps = network.with_layers(images, groups)
    last = [*maps.values()][-1]
    torch.testing.assert_close(last.mean((2, 3)), network.features(images))
    with pytest.raises(UserError, match=r"defense.distil.beta: expected .* at most for this network, got 9"):
        groups_of(network, images, 9)


# The objective


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["mean", "sum", "norm"])
def test_the_distillation_is_the_slow_one(inputs: dict[str, Any], distance: Any) -> None:
    stage = Distil(**TUNED, beta=(3.0, 0.0, 5.0), power=2.0, distance=distance)
    data = inputs["data"]
    student = new_network(inputs["model"], data, CTX.seed, CPU, inputs["init"]).train()
    teacher = new_network(inputs["model"], data, CTX.seed, CPU, inputs["teacher"]).eval()
    see = Augmentation.of("none", data)
    names = list(groups_of(teacher, see(torch.from_numpy(data.images[:2])), 3))
    rule = {"momentum": 0.9, "weight_decay": stage.weight_decay, "nesterov": True}
    optimizer = torch.optim.SGD(student.parameters(), stage.lr, **rule)
    images, lasts = DeviceSet(data, torch.device("cpu")), []
    for epoch in range(stage.epochs):
        lasts = []
        for batch in images.shuffled(stage.batch_size, CTX.seed, epoch):
            logits, own = student.with_layers(see(batch.images), names)
            with torch.no_grad():
                _, wanted = teacher.with_layers(see(batch.images), names)
            loss = cross_entropy(logits, batch.labels)
            for name, beta in zip(names, stage.beta, strict=True):
                a, b = (
                    (m := maps[name].pow(2).sum(1).flatten(1)) / (m.norm(dim=1, keepdim=True) + 1e-6)
                    for maps in (own, wanted)
                )
                squares = (a - b).square().sum(1)
                means = {"mean": squares.mean() / a.shape[1], "sum": squares.mean()}
                far = {**means, "norm": squares.sqrt().mean()}
                loss = loss + beta * far[distance]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lasts.append(float(loss.detach()))
    found = stage.run(CTX, **inputs)
    for name, array in module_arrays(student).items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=2e-3, atol=2e-5, err_msg=name)
    row = found.curve[-1]
    assert row["loss"] == pytest.approx(np.mean(lasts), rel=1e-3)
    total = row["ce"] + 3 * row["attention_1"] + 5 * row["attention_3"]
    assert total == pytest.approx(row["loss"], rel=1e-4)
    assert [positions for _, positions in found.info["groups"]] == [64, 16, 4]


def test_without_beta_it_is_plain_tuning_to_the_last_bit(inputs: dict[str, Any]) -> None:
    """The control: the teacher then has no part in the result."""
    others = {name: value for name, value in inputs.items() if name != "teacher"}
    plain = FineTune(**TUNED, weight_decay=1e-4, nesterov=True).run(CTX, **others)
    control = Distil(**TUNED, beta=(0.0, 0.0))
    assert same(plain, control.run(CTX, **inputs))
    assert same(plain, control.run(CTX, **{**inputs, "teacher": inputs["init"]}))
    assert not same(plain, Distil(**TUNED, beta=(0.0, 100.0)).run(CTX, **inputs))


def test_the_teacher_stays_as_it_is_and_the_student_comes_nearer(inputs: dict[str, Any]) -> None:
    before = {name: array.copy() for name, array in inputs["teacher"].arrays.items()}
    longer = {**TUNED, "epochs": 6}
    pulled, free = (Distil(**longer, beta=(beta,)).run(CTX, **inputs) for beta in (300.0, 0.0))
    assert all(np.array_equal(before[name], array) for name, array in inputs["teacher"].arrays.items())
    assert pulled.curve[-1]["attention_1"] < free.curve[-1]["attention_1"]


# The chain


def test_betas_share_the_model_the_clean_images_and_the_teacher() -> None:
    students = [
        {}, {"beta": [0, 0, 0]}, {"beta": [5000]}, {"power": 4}, {"distance": "norm"}, {"lr": 0.01},
        {"epochs": 40},
    ]  # fmt: skip
    trials = [graph({"name": "nad", "distil": distil}) for distil in students]
    assert distinct("classifier", *trials) == len(students)
    assert {role: distinct(role, *trials) for role in ("undefended", "tuning", "teacher")} == dict.fromkeys(
        ("undefended", "tuning", "teacher"), 1
    )
    teachers = [graph({"name": "nad", "teacher": each}) for each in ({}, {"epochs": 5}, {"mode": "ft_sam"})]
    assert (distinct("teacher", *teachers), distinct("tuning", *teachers)) == (3, 1)


def test_teachers_of_a_constant_rate_are_one_training() -> None:
    teacher = Teacher(schedule="constant", epochs=10)
    assert teacher.at(5) == Teacher(schedule="constant", epochs=5)
    assert Teacher().at(5) is None  # its rate falls at a fraction of the epochs


def test_the_defaults_and_presets_are_the_papers() -> None:
    assert (Distil().rate(0), Distil().rate(1), Distil().rate(2), Distil().rate(19)) == pytest.approx(
        (0.1, 0.1, 0.01, 0.01)
    )
    assert (Teacher().rate(1), Teacher().rate(2)) == pytest.approx((0.1, 0.01))
    for preset, beta, epochs in (
        ("nad/cifar10", (500.0, 1000.0, 1000.0), 20),
        ("backdoorbench/nad", (500.0, 1000.0), 10),
        ("backdoorbox/nad", (500.0, 500.0, 500.0), 20),
    ):
        spec, problems = parse_trial({"clean": 0.05, "defense": {"preset": preset}})
        assert spec is not None, problems
        assert isinstance(spec.defense, NAD)
        assert (spec.defense.distil.beta, spec.defense.distil.epochs) == (beta, epochs)
    _, problems = parse_trial({"attack": "badnets", "defense": {"name": "nad", "distil": {"beta": []}}})
    assert [problem.path for problem in problems] == ["defense.distil.beta"]


# What it reports


def test_the_backdoor_of_each_classifier(
    inputs: dict[str, Any], poisoned: tuple[DefenseInputs, Truth]
) -> None:
    fit, truth = poisoned[0].fit.value, poisoned[1]  # type: ignore[attr-defined]
    student = Distil(**TUNED, beta=(1.0, 2.0)).run(CTX, **inputs)
    three = {"undefended": inputs["init"], "teacher": inputs["teacher"], "student": student}
    answers = Answers().run(CTX, data=fit, model=inputs["model"], **three)
    assert answers.arrays["predictions"].shape == (3, 60)
    artefacts = {"undefended": inputs["init"], "classifier": student, "answers": answers}
    found = report.diagnose(artefacts, truth, (1.0, 2.0))
    poison = np.flatnonzero(truth.is_poison)
    for who, weights, row in zip(report.WHO, three.values(), answers.arrays["predictions"], strict=True):
        network = new_network(inputs["model"], fit, 0, CPU, weights).eval()
        with torch.no_grad():
            classes = network(Augmentation.of("none", fit)(torch.from_numpy(fit.images))).argmax(1).numpy()
        assert classes.tolist() == row.tolist()
        assert found[f"train_asr_{who}"] == pytest.approx(np.mean(classes[poison] == 0))
    positions = [positions for _, positions in student.info["groups"]]
    assert [found["weight_1"], found["weight_2"]] == pytest.approx([1 / positions[0], 2 / positions[1]])
    picture = report.figure(artefacts, truth)
    assert len(picture.axes) == 2
    assert len(picture.axes[0].lines) == 2
