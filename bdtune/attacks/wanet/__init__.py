"""WaNet: a smooth warp that is the same for every image, relabelled to one target class.

Source: WaNet - Imperceptible Warping-Based Backdoor Attack (Nguyen and Tran, 2021), arXiv:2102.10369,
section 3; the warp used directly as a trigger, as in GSSD, and with cover rows ("noise mode"), as in A-ABL.
Departures: the paper poisons a new part of every batch while it trains; here the poisoned rows are fixed, and
so is each cover row's disturbance, which its sample id decides. Pixels are uint8, so a part of a sub-pixel
warp is rounded away. The grid is made in float64, so about one of 10,000 values differs by one grey level
from PyTorch's float32, in dialect backdoorbox too. Dialect backdoorbench warps the images as its data set
normalises them, and truncates, in PyTorch's float32: the same bytes, up to a third of them a level darker in
flat areas. Neither has the toolkits' cover disturbances, which depend on all that was drawn before.
BackdoorBench builds its network before it draws the field: give its state_dict.pt, which it saves only where
`frequency_save` is set, as `control_field`.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.attacks.wanet import torch_warp, warp
from bdtune.effects import ByContent, Only, TrainOnly
from bdtune.engine.key import sample_generator
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.knobs import UserFile
from bdtune.plugins.poison_plan import Role, exact_count
from bdtune.poisoning.bench_floats import CIFAR10, normalised, stored_bytes
from bdtune.poisoning.conventions import AABL, BENCH, GSSD
from bdtune.poisoning.cover_rows import CoverRowsAttack
from bdtune.poisoning.dialects import MAX_SEED, DialectAttack, first_of_batches, torch_uniform
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.pattern_files import file_digest, stored_array
from bdtune.poisoning.tensor_files import ENDINGS, stored_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.poison_plan import Rows

NOISE_GRID = "noise_grid"
"""The field's name in files of the authors and of BackdoorBench."""


class WaNet(DialectAttack, CoverRowsAttack, DirtyLabelAttack):
    """x' = x read at clip(gr (b + s n / side)), with identity grid b and an upsampled control field n."""

    version: ClassVar[int] = 2  # 1 did not normalise in dialect backdoorbench

    strength: float = Field(0.5, ge=0.0)
    """s; at 0.5 the mean displacement is 0.19 pixels on each axis, at every image size."""
    control_points: int = Field(4, ge=2, le=1024)
    """k, the points of the random control field on each side; with k = 224, s = 1 is usual for 224 pixels."""
    grid_rescale: float = Field(1.0, gt=0.0)
    """gr, scales the whole grid; below 1 the border is cut off, so that nothing needs clipping."""
    cross_ratio: Annotated[float | None, TrainOnly] = Field(0.0, ge=0.0)
    """Cover rows for each poisoned row (noise mode; the paper: 2): disturbed warp, true label."""
    noise_rescale: Annotated[float, Only("train", "cover")] = Field(2.0, ge=0.0, le=4.0)
    """Cover rows are disturbed by (U noise_rescale - 1) / side, U from [0, 1) for each pixel and axis."""
    control_field: Annotated[UserFile, ByContent(file_digest)] = None
    """Field to use, .npy or .pt: control points [2, k, k], or upsampled [H, W, 2]; null: a drawn one.

    BackdoorBench saves its own only with `frequency_save`: `noise_grid` in state_dict.pt, taken as it is.
    """

    cover_share: ClassVar[str] = "cross_ratio"
    min_undefended_asr: ClassVar[float] = 0.85
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {"backdoorbox": {"quantise": "round"}}
    batchwise: ClassVar[frozenset[str]] = frozenset({"backdoorbench"})
    normalises: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/wanet": GSSD,
        "gssd/wanet_224": {**GSSD, "control_points": 224, "strength": 1.0},
        "aabl/wanet": {**AABL, "cross_ratio": 2.0},
        "backdoorbench/wanet": {**BENCH, "cross_ratio": 2.0},
        "backdoorbox/wanet": {"dialect": "backdoorbox", "rate": 0.1, "target": 0, "cross_ratio": 2.0},
    }

    def cover_fraction(self) -> float:
        if not self.rate or not self.cross_ratio:
            return 0.0
        return float(Decimal(repr(self.rate)) * Decimal(repr(self.cross_ratio)))  # 0.29 * 3 is 0.87

    def cover_rows(self, n_poison: int, basis: int) -> int:
        if self.rate is None and self.cross_ratio is not None:
            return exact_count(self.cross_ratio, n_poison)
        return super().cover_rows(n_poison, basis)

    @property
    def covers_test(self) -> bool:
        return self.has_covers

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        grid = self.grid(*images.shape[1:3])
        cover = rows.role == Role.COVER
        if not cover.any():
            return warp.sampled(images, grid)
        images[~cover] = warp.sampled(images[~cover], grid)
        disturbed = np.clip(grid + self._disturbance(images, rows[cover]), -1, 1)
        images[cover] = warp.sampled(images[cover], disturbed)
        return images

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        scale = self.bench_scale or CIFAR10
        grid = self.grid(*images.shape[1:3])
        seen = normalised(images, scale)
        cover = rows.role == Role.COVER
        seen[~cover] = torch_warp.sampled(seen[~cover], grid)
        disturbance = self._disturbance(images, rows[cover]).astype(np.float32)
        seen[cover] = torch_warp.sampled(seen[cover], np.clip(grid + disturbance, -1, 1))
        return stored_bytes(seen, scale)

    def grid(self, height: int, width: int) -> np.ndarray:
        """Return where the triggered image reads its pixels: float64 [H, W, 2] in [-1, 1], x and y.

        In dialect backdoorbench float32, as PyTorch makes it.
        """
        path = self.control_field
        return _grid(self, path and file_digest(path, "control_field"), height, width)

    def check_files(self) -> list[Problem]:
        return [] if self.control_field is None else problems_of(self._field)

    @model_validator(mode="after")
    def _seed_of_the_field(self) -> Self:
        draws = self.dialect != "canonical" and self.control_field is None
        if draws and self.trigger_seed > MAX_SEED:
            seeded = f"dialect '{self.dialect}' seeds NumPy's generator with trigger_seed"
            raise ValueError(f"{seeded}, at most {MAX_SEED}, got {self.trigger_seed}")
        return self

    def _field(self) -> np.ndarray:
        """Return the control field, float64 [2, k, k]."""
        if self.control_field is not None:
            return _user_field(self.control_field)
        return _drawn_field(self.control_points, self.trigger_seed, self.dialect != "canonical")

    def _disturbance(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return what is added to the grid of each cover row, float64 [n, H, W, 2]."""
        _, height, width, _ = images.shape
        drawn = np.empty((len(rows), height, width, 2))
        for i, generator in enumerate(self.generators(rows)):
            words = generator.bit_generator.random_raw(height * width)
            drawn[i] = words.view(np.uint32).reshape(height, width, 2)
        return (drawn * (self.noise_rescale / 2**32) - 1) / np.array([width, height])

    def _batchwise(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        return first_of_batches(total, self.rate or 0.0, cover_ratio=self.cross_ratio or 0.0)


@lru_cache(maxsize=8)
def _grid(attack: WaNet, _field_digest: str | None, height: int, width: int) -> np.ndarray:
    is_bench = attack.dialect == "backdoorbench"
    kind, made_by = (np.float32, torch_warp) if is_bench else (np.float64, warp)
    field = np.moveaxis(made_by.upsampled(attack._field().astype(kind), height, width), 0, -1)
    moved = kind(attack.strength) * field / np.array([width, height], kind)
    grid = np.clip(kind(attack.grid_rescale) * (made_by.identity_grid(height, width) + moved), -1, 1)
    grid.flags.writeable = False
    return grid


@lru_cache(maxsize=32)
def _drawn_field(points: int, seed: int, as_torch: bool) -> np.ndarray:
    """Return a control field [2, points, points]: uniform in [-1, 1], divided by its mean size."""
    shape = (2, points, points)
    if as_torch:
        field = torch_uniform(shape, seed) * np.float32(2) - np.float32(1)
    else:
        words = sample_generator(seed, "wanet", "field").bit_generator.random_raw(2 * points * points)
        field = (words >> np.uint64(11)).reshape(shape) * 2.0**-52 - 1
    field = (field / np.abs(field).mean()).astype(np.float64)
    field.flags.writeable = False
    return field


def _user_field(path: Path) -> np.ndarray:
    """Return a user's field, float64 [2, h, w]; one that is upsampled already is resized like any other."""
    pickled = path.suffix.lower() in ENDINGS
    array = _saved_field(path) if pickled else stored_array(path, "control_field")
    shape = list(array.shape)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array  # the toolkits save one more axis
    is_points = array.ndim == 3 and array.shape[0] == 2 and array.shape[1] == array.shape[2] > 1
    is_upsampled = array.ndim == 3 and array.shape[2] == 2 and min(array.shape[:2]) > 1
    if not (is_points or is_upsampled) or not np.issubdtype(array.dtype, np.floating):
        expected = "expected floats [2, k, k] or [H, W, 2]"
        raise ConfigError(Problem("control_field", expected, got=f"{path} ({array.dtype} {shape})"))
    if not np.isfinite(array).all() or not array.any():
        raise ConfigError(Problem("control_field", "expected finite values, not all 0", got=str(path)))
    array = array.astype(np.float64)
    if is_upsampled and np.allclose(array, warp.identity_grid(*array.shape[:2]), atol=1e-4):
        expected = "expected a field of displacements"
        hint = "Give the noise grid that was saved beside it"
        raise ConfigError(Problem("control_field", expected, f"the identity grid in {path}", hint=hint))
    return array / np.abs(array).mean() if is_points else np.moveaxis(array, -1, 0)


def _saved_field(path: Path) -> np.ndarray:
    """Return the tensor in a file of torch.save, or the noise grid among others."""
    found = stored_tensors(path, "control_field")
    grid = found.get(NOISE_GRID) if isinstance(found, dict) else found
    if grid is not None and hasattr(grid, "detach"):
        return np.asarray(grid.detach().float().numpy())
    named = (
        f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else type(found).__name__
    )
    expected = f"expected a tensor, or a dictionary with '{NOISE_GRID}'"
    hint = "BackdoorBench's state_dict.pt has it, which it saves with frequency_save"
    raise ConfigError(Problem("control_field", expected, f"{path} ({named})", hint=hint))
