"""The training set seen through an attack, as the inputs of stages: pixels are made on the fly.

Roles of data: *fit* (the poisoned training set), *select* (a part of it held out, with observed labels),
*report* (clean and triggered test images). What is known to be clean, a *clean set* for a defense and a part
for selection, is taken out before anything is poisoned; samples are numbered without it.

A source is made of exactly what can change its content: the split's fingerprint, the part of the attack that
touches it, and the seed where something is drawn. Where files lie is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, SerializeAsAny, SkipValidation

from bdtune.engine.input_source import PluginSource, Resident, Source
from bdtune.engine.key import derive_seed, digest_of
from bdtune.engine.node import Node
from bdtune.engine.numerics import Numerics
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.attack import Attack
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.plugins.poison_plan import SplitName, drawn_order
from bdtune.poisoning.clean_sources import CleanTest, DataSource, Images
from bdtune.poisoning.last_stamped import LastStamped
from bdtune.poisoning.reserve import Reserve
from bdtune.poisoning.stream import poisoned_stream, sealed

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from bdtune.engine.stage import Artefact, Stage
    from bdtune.plugins.model import Model
    from bdtune.plugins.poison_plan import PoisonPlan
    from bdtune.poisoning.reserve import Parts
    from bdtune.training.supervised import Supervised

_last_stamped = LastStamped()


class AttackedSource(DataSource):
    """Base: a split of a data set seen through an attack."""

    attack: SerializeAsAny[SkipValidation[Attack]] | None = None
    """None: no attack, the data set stays clean."""
    seed: int = Field(0, ge=0)
    """The data seed: which samples are held out and, unless the attack has a seed, which are poisoned."""
    numerics: Numerics = Numerics()
    """Where the attack's own training stages compute; enters keys through those stages."""
    reserve: Reserve = Reserve()
    """What is known to be clean, and is no part of the training set."""

    view: ClassVar[str] = ""
    """The attack's identity that counts (`bdtune.effects`), where it is not that of the split."""

    @property
    def bound(self) -> Attack | None:
        """The attack as it is made on this data set."""
        return None if self.attack is None else self.attack.for_dataset(self.dataset)

    @cached_property
    def upstream(self) -> Mapping[str, Node]:
        attack = self.bound
        if attack is None:
            return {}
        clean = FitSet(dataset=self.dataset, root=self.root, **self.reserved())
        nodes = attack.artefacts(Attacker(clean, attack.trigger_seed, self.numerics, self.plan_seed))
        only = attack.one_split
        return {name: node for name, node in nodes.items() if only.get(name, self.split) == self.split}

    def reserved(self) -> dict[str, Any]:
        """Return the fields that say what is reserved, for other sources of the same training images."""
        return {"reserve": self.reserve, "seed": self.seed} if self.reserve else {}

    @property
    def attack_seed(self) -> int:
        """The attacker's seed: `attack.seed` where it is given, else the data seed."""
        return self.seed if self.attack is None else self.attack.attacker_seed(self.seed)

    @property
    def plan_seed(self) -> int:
        """Seed of the poison plan: depends on the attacker's seed and the attack, not on its strength."""
        attack = self.bound
        return self.seed if attack is None else attack.plan_seed(self.attack_seed)

    def made_of(self) -> dict[str, Any]:
        attack = self.bound
        view = self.view or self.split
        return {**super().made_of(), "attack": attack.identity(view) if attack else None}


class TrainSource(AttackedSource):
    """Base of what is made of the poisoned training set: a part of it, or the truth about that part."""

    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Fraction of each observed class that is held out of the fit part, for selection."""

    split: ClassVar[SplitName] = "train"

    def made_of(self) -> dict[str, Any]:
        reserve = {"reserve": self.reserve.model_dump()} if self.reserve else {}
        return {**super().made_of(), "holdout": self.holdout, **reserve, **self._seeds()}

    def _seeds(self) -> dict[str, int | None]:
        """Return the seeds that something is drawn by: one where the same serves for all that is drawn."""
        drawn = self.holdout > 0 or bool(self.reserve)
        if self.attack is None:
            return {"seed": self.seed if drawn else None}
        apart = drawn and self.attack_seed != self.seed
        return {"seed": self.attack_seed, **({"holdout_seed": self.seed} if apart else {})}

    def parts(self, labels: np.ndarray) -> Parts:
        """Return what is reserved of all true labels int64 [M] of the split, and the training set."""
        return self.reserve.parts(labels, self.seed)

    def plan(self, labels: np.ndarray) -> PoisonPlan | None:
        """Return the attack's plan for the training set of true labels int64 [N]."""
        if self.attack is None:
            return None
        return self.attack.drawn_plan(labels, self.plan_seed, num_classes=self.dataset.num_classes)

    def kept(self, observed: np.ndarray) -> np.ndarray:
        """Return bool [N]: the rows of the fit part. The rest is held out, stratified by observed class."""
        kept = np.ones(len(observed), bool)
        if self.holdout > 0:
            order = drawn_order(np.arange(len(observed)), len(observed), derive_seed(self.seed, "holdout"))
            for label in np.unique(observed):
                members = order[observed[order] == label]
                kept[members[: int(self.holdout * len(members) + 0.5)]] = False
        return kept

    def _planned(self, labels: np.ndarray) -> tuple[PoisonPlan | None, np.ndarray, np.ndarray]:
        """Return the plan for true labels int64 [N], the observed labels, and bool [N]: the fit part."""
        plan = self.plan(labels)
        observed = labels if plan is None else plan.labels
        return plan, observed, self.kept(observed)

    def _part(self, resident: Resident, artefacts: Mapping[str, Artefact], *, held_out: bool) -> ImageSet:
        split = resident.split(self.dataset, "train")
        rows, labels = self._rows(np.asarray(split.labels))
        plan, observed, kept = self._planned(labels)
        ids = np.flatnonzero(~kept if held_out else kept)
        attack = self.bound
        attack = attack.equip(artefacts) if attack else None
        images: Images
        if not isinstance(split.images, np.ndarray):
            stream = split.images if rows is None else poisoned_stream(split.images, None, None, rows)
            images = sealed(poisoned_stream(stream, attack, plan, ids))
        else:
            at = ids if rows is None else rows[ids]
            images = split.images if len(at) == len(split.images) else split.images[at]
            if attack is not None and plan is not None:
                stamp = partial(attack.apply, images, ids, plan)
                # what is held out is read once, and would take the place of what is read by every stage
                images = stamp() if held_out else _last_stamped.get(self._content(attack, artefacts), stamp)
        return ImageSet(images, observed[ids], **self._facts())

    def _content(self, attack: Attack, artefacts: Mapping[str, Artefact]) -> Hashable:
        """Return what decides the bytes of the stamped images, as in the keys of stages that read them."""
        trained = {name: digest_of(one.arrays, one.info) for name, one in artefacts.items()}
        return type(attack), type(self.dataset), self.digest, tuple(sorted(trained.items()))

    def _rows(self, labels: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Return which rows int64 [N] of the split are the training set (None: all), and their labels."""
        if not self.reserve:
            return None, labels
        rows = self.parts(labels).rest
        return rows, labels[rows]

    def _labels(self, resident: Resident) -> np.ndarray:
        """Return the true labels int64 [N] of the training set, without reading an image."""
        return self._rows(resident.labels(self.dataset, "train"))[1]


class FitSet(TrainSource):
    """The poisoned training set, without what is held out: all that a defense trains on."""

    role: ClassVar[str] = "fit"

    stream: bool = False
    """Whether images come in blocks: training then sees them in another order, which is another result."""

    def made_of(self) -> dict[str, Any]:
        return {**super().made_of(), "stream": self.stream}

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        return self._part(resident, artefacts, held_out=False)


class LabelSource(TrainSource):
    """Base of what reads the plan and no pixel: only pixels need what an attack trains."""

    @cached_property
    def upstream(self) -> Mapping[str, Node]:
        return {}


class FitLabels(LabelSource):
    """The observed labels of the fit part, without its images."""

    role: ClassVar[str] = "fit_labels"
    loads: ClassVar[type] = LabelSet

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> LabelSet:
        _, observed, kept = self._planned(self._labels(resident))
        return LabelSet(observed[kept], self.dataset.num_classes)


class FitRows(LabelSource):
    """The ids int64 [n] of the fit part's rows: an attacker, too, trains on nothing that is held out."""

    role: ClassVar[str] = "fit_rows"
    loads: ClassVar[type] = np.ndarray

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return np.flatnonzero(self._planned(self._labels(resident))[2])


class SelectSet(TrainSource):
    """The held out part of the poisoned training set, with observed labels; empty without a holdout."""

    role: ClassVar[str] = "select"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        return self._part(resident, artefacts, held_out=True)


class TruthSource(LabelSource):
    """The truth about the fit part, for evaluation and diagnostics only."""

    role: ClassVar[str] = "truth"
    loads: ClassVar[type] = Truth

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> Truth:
        labels = self._labels(resident)
        plan, observed, kept = self._planned(labels)
        role = np.zeros(len(labels), np.uint8) if plan is None else plan.role()
        target = self.attack.single_target if self.attack else None
        return Truth(labels[kept], observed[kept], role[kept], target)


@dataclass(frozen=True)
class Attacker:
    """What an attack makes its own nodes of: the clean training set, its seeds and numerics.

    `seed` is the attack's `trigger_seed`, so that nodes are the same for all seeds and rates of trials;
    `plan_seed` is for a trigger that depends on the poison plan.
    """

    clean: FitSet
    seed: int
    numerics: Numerics
    plan_seed: int = 0

    @property
    def labels(self) -> Source:
        """The true labels of the training set, without its images."""
        return self.clean.read_as(FitLabels)

    @property
    def test(self) -> Source:
        """The clean test images, for triggers that are rendered ahead; nothing is trained on them."""
        return CleanTest(dataset=self.clean.dataset, root=self.clean.root)

    def node(self, stage: Stage, **inputs: Node | Source) -> Node:
        """Return a node of the attack, on its own seed."""
        return Node(stage, inputs, derive_seed(self.seed, "attacker"), self.numerics)

    def classifier(self, recipe: Supervised, model: Model) -> Node:
        """Return the node of a classifier that is trained on the whole clean training set."""
        everything = self.node(AllSamples(), data=self.labels)
        return self.node(recipe, data=self.clean, subset=everything, model=PluginSource(plugin=model))
