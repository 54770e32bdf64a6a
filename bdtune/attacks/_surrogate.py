"""Networks that an attacker trains on the clean training set, before there is any poison.

Their seeds come from the attack's `trigger_seed`, apart from those of any trial: a defender who happens to
take the same recipe and the same seed trains another network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.attacks._pattern_files import file_digest
from bdtune.attacks._sources import CleanTest, DataSource, FitLabels
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, Context, Given, Inputs, Kind, Node, Source, Stage
from bdtune.errors import ConfigError, Problem
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.choices import Schedule  # noqa: TC001  pydantic reads it
from bdtune.training.everything import AllSamples
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.numerics import Numerics
    from bdtune.models._base import Model


MOST_BYTES = 4 * 2**30
"""Of a weights file: the largest networks have 0.6 GB."""


class Surrogate(Supervised):
    """Train the attacker's own classifier on clean data; inputs and result are those of `Supervised`."""

    name: ClassVar[str] = "surrogate"
    classifier: ClassVar[bool] = False

    epochs: int = Field(30, ge=1)
    """Passes over the training set; no paper states them, a cosine of 30 ends close to a long training."""
    schedule: Schedule = "cosine"
    """multistep: times `gamma` at each milestone; cosine: to zero; constant."""


class RobustSurrogate(AdversarialTraining):
    """Train the attacker's own classifier adversarially; inputs and result are those of `Supervised`."""

    name: ClassVar[str] = "robust_surrogate"
    classifier: ClassVar[bool] = False


class GivenWeights(Stage):
    """Take weights from a user's safetensors file, such as a store's own `arrays.safetensors`.

    Names are those of the network's state, with or without "model." in front. Raises `ConfigError` for a
    file that cannot be read. What enters keys is the file's digest, not its path.
    """

    name: ClassVar[str] = "given_weights"
    kind: ClassVar[Kind] = "train"

    path: Path
    """The file."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "knobs": {"path": file_digest(self.path, "surrogate_path", MOST_BYTES)}}

    def run(self, inputs: Inputs, ctx: Context) -> Artefact:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(self.path)
        except (OSError, SafetensorError) as error:
            got = f"{self.path} ({error})"
            raise ConfigError(Problem("surrogate_path", "expected a safetensors file", got)) from error
        bare = {name.removeprefix("model."): array for name, array in arrays.items()}
        return Artefact({f"model.{name}": array for name, array in bare.items()})


def weights_problems(path: Path, knob: str = "surrogate_path") -> list[Problem]:
    """Return what keeps a weights file from being read; reads its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        file_digest(path, knob, MOST_BYTES)
        with safe_open(path, framework="np") as file:
            empty = not file.keys()
    except ConfigError as error:
        return list(error.problems)
    except (OSError, SafetensorError) as error:
        return [Problem(knob, "expected a safetensors file", got=f"{path} ({error})")]
    return [Problem(knob, "expected a file with weights in it", got=str(path))] if empty else []


@dataclass(frozen=True)
class Attacker:
    """What an attack's own stages share: the clean training set, seed and numerics.

    `seed` is the attack's `trigger_seed`, so that nodes are the same for all seeds and rates of trials.
    """

    clean: Source
    seed: int
    numerics: Numerics

    @property
    def labels(self) -> Source:
        """The true labels of the training set, without its images."""
        assert isinstance(self.clean, DataSource), "a trained attack needs a data set"
        return FitLabels(dataset=self.clean.dataset, root=self.clean.root)

    @property
    def test(self) -> Source:
        """The clean test images, for triggers that are rendered ahead; nothing is trained on them."""
        assert isinstance(self.clean, DataSource), "a trained attack needs a data set"
        return CleanTest(dataset=self.clean.dataset, root=self.clean.root)

    def node(self, stage: Stage, **inputs: Node | Source) -> Node:
        """Return a node of the attack, on its own seed."""
        return Node(stage, inputs, derive_seed(self.seed, "attacker"), self.numerics)

    def classifier(self, recipe: Supervised, model: Model) -> Node:
        """Return the node of a classifier that is trained on the whole clean training set."""
        everything = self.node(AllSamples(), data=self.labels)
        return self.node(recipe, data=self.clean, subset=everything, model=Given(plugin=model))
