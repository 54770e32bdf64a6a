"""An encoder of hidden bit strings that was trained elsewhere: its file, and the stage that takes it.

Weights have the names of bdtune's own encoder, with or without "encoder." in front, in a safetensors file
such as a store's own; or those of BackdoorBox's (best_model.pth), whose network is the same but for the order
in which the last block sees its inputs. Models of TensorFlow, as the authors' release has, are not read:
images that they made are given as files.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from bdtune.attacks.issba.stages import coders
from bdtune.effects import ByContent
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.poisoning.shapes import differences
from bdtune.poisoning.tensor_files import ENDINGS, stored_tensors, weights_digest

if TYPE_CHECKING:
    from bdtune.attacks.issba.stages import SecretCoder

    Arrays = dict[str, np.ndarray]

KNOB = "coder_path"
PREFIX, DECODER = "encoder.", "decoder."
BOX_STATE = "encoder_state_dict"
BOX_NAMES = {
    "secret_dense.0": "secret",
    **{f"conv{i + 1}.0.conv": f"down.{i}" for i in range(5)},
    **{f"up{i + 6}.0.conv": f"up.{i}.conv" for i in range(4)},
    **{f"conv{i + 6}.0.conv": f"join.{i}" for i in range(4)},
    "residual.0.conv": "residual",
}
"""Layers of BackdoorBox's encoder, by bdtune's names for them."""
LAST_JOIN = "join.3.weight"


class GivenCoder(Stage):
    """Take an encoder's weights from a user's file.

    No inputs. Result: weights `encoder.<name>`, float32. Raises `ConfigError` for a file that cannot be read.
    What enters keys is the file's digest, not its path.
    """

    name: ClassVar[str] = "issba_given_coder"
    kind: ClassVar[Kind] = "train"

    path: Annotated[Path, ByContent(weights_digest)]
    """The file."""

    def run(self, ctx: Context) -> Artefact:
        found = encoder_weights(self.path)
        return Artefact({PREFIX + name: np.array(array, np.float32) for name, array in found.items()})


def coder_problems(path: Path | None) -> list[Problem]:
    """Return what keeps an encoder's weights from being read."""
    return [] if path is None else problems_of(encoder_weights, path)


def encoder_problems(path: Path, coder: SecretCoder, image_shape: tuple[int, int, int]) -> list[Problem]:
    """Return how an encoder's weights differ from those of the coder's encoder for images (H, W, C)."""
    import torch

    if coder_problems(path):
        return []  # which say why
    with torch.device("meta"):
        encoder, _ = coders(coder, image_shape)
    needed = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: array.shape for name, array in encoder_weights(path).items()}
    wrong = differences(needed, found, "the file")
    if not wrong:
        return []
    size = f"{coder.secret_size} bits, {coder.channels} channels and images of {list(image_shape)}"
    hint = "Set coder.secret_size and coder.channels to what the file was trained with"
    return [Problem(KNOB, f"expected an encoder for {size}", got=f"{path}: {wrong}", hint=hint)]


def encoder_weights(path: Path) -> Arrays:
    """Return an encoder's weights by bdtune's names; raises `ConfigError`."""
    return _weights(path, weights_digest(path, KNOB))


@lru_cache(maxsize=4)
def _weights(path: Path, _digest: str) -> Arrays:
    if path.suffix.lower() in ENDINGS:
        state = stored_tensors(path, KNOB)
        state = state.get(BOX_STATE, state) if isinstance(state, dict) else None
        if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
            raise _no_encoder(path, f"no dictionary of weights, nor one under '{BOX_STATE}'")
        named = {str(name).removeprefix("module."): value.numpy() for name, value in state.items()}
        return _renamed(named) if "secret_dense.0.weight" in named else _own(named, path)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _own(load_file(path), path)
    except (OSError, SafetensorError) as error:
        raise _no_encoder(path, str(error)) from error


def _own(arrays: Arrays, path: Path) -> Arrays:
    found = {name.removeprefix(PREFIX): each for name, each in arrays.items() if not name.startswith(DECODER)}
    if not found:
        raise _no_encoder(path, "no weights of an encoder")
    return found


def _renamed(arrays: Arrays) -> Arrays:
    """Return BackdoorBox's weights by bdtune's names, the last block's inputs in bdtune's order."""
    found = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        found[f"{BOX_NAMES.get(layer, layer)}.{kind}"] = array
    if LAST_JOIN in found:
        weight = found[LAST_JOIN]
        width = len(weight)
        # theirs: first stage, raised, picture and secret; ours: the raised part comes last
        parts = [weight[:, :width], weight[:, 2 * width :], weight[:, width : 2 * width]]
        found[LAST_JOIN] = np.concatenate(parts, axis=1)
    return found


def _no_encoder(path: Path, what: str) -> ConfigError:
    expected = "expected the weights of an encoder, as safetensors or BackdoorBox's best_model.pth"
    return ConfigError(Problem(KNOB, expected, got=f"{path} ({what})"))
