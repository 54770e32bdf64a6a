"""Records of BackdoorBench: an old result's poisoned images, and the network that was trained on them.

Source: BackdoorBench (Wu et al., 2022; its version of July 2025), whose format was read from what it does:
a folder `record/<name>/` with attack_result.pt, bd_train_dataset/ and bd_test_dataset/.
Departures: which images are poisoned, and to what, is the record's: no seed and no rate changes it. Changed
training images that keep their class are cover rows, where BackdoorBench counts them as poison; in a record
of WaNet or of the input-aware attack, those of the target class cannot be told from poison. The network has
seen what a trial holds out. `asr_all` is absent where the record lacks images of the target class.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from bdtune.attacks.record.files import Record, read_record, record_digest
from bdtune.attacks.record.stages import RecordImages, RecordModel
from bdtune.effects import ByContent, ModelOnly
from bdtune.engine.node import Node
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.knobs import absolute
from bdtune.plugins.attack import Attack
from bdtune.plugins.poison_plan import SplitName
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.rendered import looked_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Source
    from bdtune.plugins.attack import TestLabels
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker, FitSet


class FromRecord(Attack):
    """The images of a record in the place of the clean ones, and its network as the undefended model.

    `rate`, `target` and the like are the record's: filled in from it, and errors where they say otherwise.
    """

    path: Annotated[Path, ByContent(lambda folder, _: record_digest(folder))]
    """Folder of the record; its content enters keys, not where it lies."""
    hand_over: Annotated[Literal["model", "data"], ModelOnly] = "model"
    """model: the record's network is the undefended one; data: its poisoned set alone is used."""

    one_split: ClassVar[dict[str, SplitName]] = {"train": "train", "test": "test"}
    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("all_to_all", "source_classes", "cover_rate", "cover_count"),
        "Which images are poisoned, and to what, is the record's",
    )
    min_undefended_asr: ClassVar[float] = 0.5  # any attack's record may be given, weak ones too

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any) -> Any:
        """Settle a relative path, as workers run elsewhere, and take from the record what it decides."""
        if not isinstance(raw, dict) or not isinstance(raw.get("path"), str | Path):
            return raw
        path = absolute(Path(raw["path"]))
        assert path is not None
        raw = {**raw, "path": str(path) if isinstance(raw["path"], str) else path}
        try:
            facts = _facts(read_record(path))
        except ConfigError:
            return raw  # `check_files` says what is wrong
        for knob, value in facts.items():
            # a default counts as not given: a sweep starts from a trial with all knobs written out
            if raw.get(knob, value) not in (value, cls.model_fields[knob].default):
                raise ValueError(f"the record has {knob}: {value}, leave it out")
        return {**raw, **facts}

    @property
    def single_target(self) -> int | None:
        record = self._readable
        return None if record is None else record.target

    def test_labels(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return read_record(self.path).goals(labels)

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        part = read_record(self.path).test
        if problems := self._of_split("test", labels):
            raise ConfigError(problems)
        rows = np.zeros(part.total, bool)
        rows[part.ids] = True
        return rows

    def tests_complete(self) -> bool:
        part = read_record(self.path).test  # BackdoorBench leaves out the images of the target class
        return len(part.ids) == part.total

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        names: tuple[SplitName, ...] = ("train", "test")
        return {
            name: Node(RecordImages(path=self.path, split=name), {}, 0, attacker.numerics) for name in names
        }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return looked_up(self.artefact(rows.split), rows)

    @property
    def hands_over(self) -> bool:
        return self.hand_over == "model"

    def backdoored_model(self, fit: FitSet, model: Source) -> Node | None:
        if not self.hands_over:
            return None
        facts = CleanTest(dataset=fit.dataset, root=fit.root)
        return Node(RecordModel(path=self.path), {"model": model, "data": facts}, 0, fit.numerics)

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        record = self._readable
        if record is None:
            return []  # `check_files` says why
        labels = test_labels()
        found = [] if labels is None else self._of_split("test", labels, "attack.path")
        if self.hands_over:
            from bdtune.attacks.record.model import model_problems

            found += model_problems(record, model, dataset.num_classes, dataset.scale()["mean"])
        return found

    def check_files(self) -> list[Problem]:
        return problems_of(read_record, self.path)

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        record = self._readable
        if record is None or record.image_shape == image_shape:
            return []
        expected = f"expected a record of images of shape {image_shape}, as the data set's are"
        return [Problem("path", expected, str(record.image_shape))]

    def _check_target(self, num_classes: int) -> list[Problem]:
        record = self._readable
        if record is None or record.num_classes == num_classes:
            return []
        expected = f"expected a record of {num_classes} classes, as many as the data set has"
        return [Problem("path", expected, f"{record.num_classes} of '{record.data}'")]

    def _check_counts(self, labels: np.ndarray) -> list[Problem]:
        return self._of_split("train", labels)

    def _of_split(self, split: SplitName, labels: np.ndarray, path: str = "path") -> list[Problem]:
        """Return how a split's true labels differ from those that the record was made of."""
        record = self._readable
        if record is None:
            return []
        part = record.part(split)
        if len(labels) != part.total:
            expected = f"expected a record made of the data set's {len(labels)} {split} images"
            hint = f"dataset.{split}_limit must be left out" if len(labels) < part.total else ""
            return [Problem(path, expected, f"one of {part.total} of '{record.data}'", hint=hint)]
        other = int(np.count_nonzero(np.asarray(labels)[part.ids] != part.true))
        if not other:
            return []
        expected = f"expected the true classes of the record's {split} images to be those of the data set"
        got = f"others for {other} of {len(part.ids)}"
        return [Problem(path, expected, got, hint="Are its images in another order?")]

    def _drawn(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        record = read_record(self.path)
        return record.train.ids[record.is_poison], record.train.ids[~record.is_poison]

    @property
    def _readable(self) -> Record | None:
        return None if self.check_files() else read_record(self.path)


def _facts(record: Record) -> dict[str, Any]:
    """Return the knobs that a record decides."""
    poison = record.is_poison
    of_target = record.target is None or bool((record.train.true[poison] == record.target).any())
    return {
        "rate": int(poison.sum()) / record.train.total,
        "count": None,
        "rate_basis": "dataset",
        "target": record.target or 0,
        "include_target_class": of_target,
        "quantise": "round",
        "trigger_seed": 0,
    }
