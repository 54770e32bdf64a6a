"""What each attack makes of 64 patterned images, with made-up pictures in place of what it would train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.engine.stage import Artefact
from bdtune.plugins import registry
from bdtune.testing.small import equipped_for, nodes_of, shown
from tests.patterned import patterned
from tests.records import record_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset

CLASSES = 4
LABELS = np.arange(64) % CLASSES
IDS = np.arange(64)
CASES: dict[str, list[dict[str, Any]]] = {
    "adap_blend": [{"pattern": "noise"}],
    "badnets": [
        {"pattern": "grid"},
        {"pattern": "checker", "dialect": "backdoorbench"},
        {"all_to_all": True},
    ],
    "blend": [{"pattern": "noise"}, {"pattern": "noise", "dialect": "backdoorbox"}],
    "delta": [{}, {"dialect": "backdoorbench"}],
    "dynamic": [{"cover_rate": 0.2}, {"dialect": "backdoorbench", "cover_rate": 0.2}],
    "issba": [{}, {"dialect": "backdoorbench"}],
    "label_consistent": [{}, {"dialect": "backdoorbench", "amplitude": 0.3}, {"surrogate": "none"}],
    "sig": [{}, {"dialect": "backdoorbench"}],
    "trojan": [{}, {"shape": "watermark"}, {"dialect": "backdoorbench"}],
    "wanet": [{}, {"dialect": "backdoorbox"}, {"dialect": "backdoorbench", "cross_ratio": 1.0}],
}
"""Knobs of attacks that have more than one way to make an image; the others are taken as they are."""


def made_up() -> Artefact:
    """Return arrays of every name that an attack looks up in what it trained."""
    images = patterned()[::-1].copy()
    picture = images[5].astype(np.float32) / 255
    pictures = {"picture": picture, "colours": picture, "perturbation": (picture - 0.5) / 8}
    return Artefact({"ids": IDS, "images": images, **pictures})


def cases(name: str) -> Iterator[Attack]:
    """Yield attacks of a name, ready to stamp."""
    cls = registry.load("attacks", name)
    if name == "record":
        both = patterned(), LABELS
        yield record_of(both, both, CLASSES)
        return
    for knobs in CASES.get(name, [{}]):
        yield cls(rate=0.2 if cls.clean_label else 0.3, **knobs)


def ready(attack: Attack, dataset: Dataset) -> Attack:
    """Return an attack with made-up results of its trainings; a record's images are read, which is exact."""
    if attack.plugin_name() == "record":
        return equipped_for(attack, dataset)
    return attack.equip(dict.fromkeys(nodes_of(attack, dataset), made_up()))


def made(attack: Attack) -> dict[str, np.ndarray]:
    """Return an attack's rows and labels, and the training and test images that it stamps."""
    images = patterned()
    plan = attack.drawn_plan(LABELS, 0, num_classes=CLASSES)
    attack = ready(attack, shown(images, LABELS, CLASSES))
    return {
        "poison_ids": plan.poison_ids,
        "cover_ids": plan.cover_ids,
        "labels": plan.labels,
        "goals": attack.test_labels(LABELS, CLASSES),
        **{f"extras.{name}": array for name, array in plan.extras.items()},
        "train": attack.apply(images, IDS, plan),
        "test": attack.trigger(images, IDS),
    }
