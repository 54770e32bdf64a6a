"""Networks that an attacker trains on the clean training set, before there is any poison.

Their seeds come from the attack's `trigger_seed`, apart from those of any trial: a defender who happens to
take the same recipe and the same seed trains another network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from bdtune.effects import ByContent
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.poisoning.shapes import differences, network_shapes
from bdtune.poisoning.tensor_files import weights_digest
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.plugins.model import Model
    from bdtune.poisoning.shapes import Shapes


KNOB = "surrogate_path"
PREFIX, HEAD, COUNTER = "model.", "head.", ".num_batches_tracked"


class Surrogate(Supervised, defaults={"epochs": 30, "schedule": "cosine"}):
    """Train the attacker's own classifier on clean data; inputs and result are those of `Supervised`.

    No paper states its epochs; a cosine of 30 ends close to a long training.
    """

    name: ClassVar[str] = "surrogate"
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)
    classifier: ClassVar[bool] = False


class RobustSurrogate(AdversarialTraining):
    """Train the attacker's own classifier adversarially; inputs and result are those of `Supervised`."""

    name: ClassVar[str] = "robust_surrogate"
    version: ClassVar[int] = 1
    classifier: ClassVar[bool] = False


class GivenWeights(Stage):
    """Take weights from a user's safetensors file, such as a store's own `arrays.safetensors`.

    Names are those of the network's state, with or without "model." in front. Raises `ConfigError` for a
    file that cannot be read. What enters keys is the file's digest, not its path.
    """

    name: ClassVar[str] = "given_weights"
    kind: ClassVar[Kind] = "train"

    path: Annotated[Path, ByContent(weights_digest)]
    """The file."""

    def run(self, ctx: Context) -> Artefact:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(self.path)
        except (OSError, SafetensorError) as error:
            got = f"{self.path} ({error})"
            raise ConfigError(Problem(KNOB, "expected a safetensors file", got)) from error
        bare = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
        return Artefact({PREFIX + name: array for name, array in bare.items()})


def weights_problems(path: Path) -> list[Problem]:
    """Return what keeps a weights file from being read; reads its header alone."""
    if (problems := problems_of(_shapes_in, path)) or _shapes_in(path):
        return problems
    return [Problem(KNOB, "expected a file with weights in it", got=str(path))]


def class_problems(path: Path, num_classes: int) -> list[Problem]:
    """Return why a weights file is of a network for another number of classes than the data set has."""
    if weights_problems(path):
        return []  # which say why
    classes = _classes_in(_shapes_in(path), num_classes)
    if classes == num_classes:
        return []
    expected = f"expected weights of a network for {num_classes} classes, as many as the data set has"
    return [Problem(KNOB, expected, got=f"{path} for {classes}")]


def network_problems(path: Path, model: Model, image_shape: tuple[int, int, int]) -> list[Problem]:
    """Return how a weights file differs from the surrogate's network, whatever its classes.

    Counts of batches seen may be missing, as nothing is computed from them.
    """
    if weights_problems(path):
        return []  # which say why
    if problems := model.check(image_shape):
        return [replace(problem, path=f"surrogate_model.{problem.path}".rstrip(".")) for problem in problems]
    found = _shapes_in(path)
    classes = _classes_in(found, 1)
    network = network_shapes(model, classes, image_shape)
    needed = {name: shape for name, shape in network.items() if name in found or not name.endswith(COUNTER)}
    wrong = differences(needed, found, "the file")
    if not wrong:
        return []
    expected = f"expected the weights of surrogate_model, {model.plugin_name()}"
    hint = "Set surrogate_model and its knobs to the network that the file was trained as"
    return [Problem(KNOB, expected, got=f"{path}: {wrong}", hint=hint)]


def _classes_in(shapes: Shapes, default: int) -> int:
    bias = shapes.get(f"{HEAD}bias")
    return max(1, bias[0]) if bias else default


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's weights by the network's names; raises `ConfigError`."""
    from safetensors import SafetensorError, safe_open

    weights_digest(path, KNOB)
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return {name.removeprefix(PREFIX): tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        expected = "expected a safetensors file"
        raise ConfigError(Problem(KNOB, expected, got=f"{path} ({error})")) from error
