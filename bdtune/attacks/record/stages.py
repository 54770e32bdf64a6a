"""Stages that read a BackdoorBench record once, so that trials find images and weights in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from bdtune.attacks.record.files import read_record, read_state, record_digest
from bdtune.effects import ByContent
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import ConfigError, Problem, UserError

if TYPE_CHECKING:
    from bdtune.attacks.record.files import Record
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model


class FromFolder(Stage):
    """Base: what is read depends on the record's content, not on where it lies."""

    kind: ClassVar[Kind] = "train"

    path: Annotated[Path, ByContent(lambda folder, _: record_digest(folder))]
    """Folder of the record."""


class RecordImages(FromFolder):
    """Read the images that an attack changed.

    No inputs. Result: ids int64 [n], ascending, images uint8 [n, H, W, C]. Raises `ConfigError` where a file
    is no PNG picture of the record's size.
    """

    name: ClassVar[str] = "record_images"

    split: Literal["train", "test"]
    """Which of the record's two sets."""

    def run(self, ctx: Context) -> Artefact:
        record = read_record(self.path)
        part = record.part(self.split)
        images = np.empty((len(part.ids), *record.image_shape), np.uint8)
        for row, file in enumerate(part.files):
            images[row] = _picture(file, record)
        return Artefact({"ids": part.ids, "images": images})


def _picture(file: Path, record: Record) -> np.ndarray:
    from PIL import Image

    height, width, channels = record.image_shape
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            pixels = np.asarray(opened.convert("RGB" if channels == 3 else "L"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(Problem("attack.path", "expected a PNG picture", f"{file} ({error})")) from error
    if pixels.shape[:2] != (height, width):
        expected = f"expected pictures of {height}x{width} pixels, as the record says"
        raise ConfigError(Problem("attack.path", expected, f"{file} of {pixels.shape[0]}x{pixels.shape[1]}"))
    return pixels.reshape(record.image_shape)


class RecordModel(FromFolder):
    """Take the network of a record, under bdtune's names.

    Inputs: model (Model), data (ImageSet, for its normalisation and shape). Result: weights `model.<name>`.
    Raises `UserError` where a name or a shape does not fit; planning says so before.
    """

    name: ClassVar[str] = "record_model"
    classifier: ClassVar[bool] = True

    def run(self, ctx: Context, *, data: ImageSet, model: Model) -> Artefact:
        from bdtune.attacks.record.model import model_problems, our_state
        from bdtune.training.weights import PREFIX

        record = read_record(self.path)
        if problems := model_problems(record, model, data.num_classes, tuple(data.mean)):
            raise UserError(problems)
        state = our_state(read_state(self.path), record.network, record.data, tuple(data.std))
        return Artefact({PREFIX + name: np.array(array, order="C") for name, array in state.items()})
