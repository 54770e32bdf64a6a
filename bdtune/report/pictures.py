"""The picture of an attack: clean, poisoned and their magnified difference, side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.plugins.poison_plan import Role, Rows
from bdtune.poisoning.dirty_label import named
from bdtune.report.saving import save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.poison_plan import PoisonPlan

GAINS = (20, 10, 5, 3, 2)
"""What differences may be multiplied by to be seen: the first that whitens few of the pixels touched."""
WHITENED = 0.05
CELL_INCHES = 1.3
DPI = 160
SAID = {"target", "rate", "rate_basis"}
"""Knobs that every caption begins with."""
INK, FAINT, FRAME = "#1b1f24", "#6a737d", "#d0d7de"


@dataclass(frozen=True)
class _Look:
    title: str
    class_names: tuple[str, ...]
    columns: int


@dataclass(frozen=True)
class _Row:
    name: str
    note: str
    images: np.ndarray  # uint8 [n, H, W, C]


def dataset_picture(
    dataset: Dataset, attack: Attack, path: Path, *, root: Path | None = None, seed: int = 0, columns: int = 8
) -> Path:
    """Draw an attack on a data set's training images, reading only those shown; return `path`.

    Raises `DataError` when the data set is not there and `ConfigError` when the attack does not fit it.
    """
    selection = dataset.selection("train", root)
    look = _Look(
        title=f"{attack.plugin_name()} on {dataset.plugin_name()}",
        class_names=selection.records.class_names,
        columns=columns,
    )
    attack = attack.for_dataset(dataset)
    plan = attack.plan(selection.labels, seed=seed, num_classes=dataset.num_classes)
    return _save(_picture(selection.read, selection.labels, attack, plan, look), path)


def attack_picture(
    images: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
    path: Path,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    columns: int = 8,
) -> Path:
    """Draw an attack on images (uint8 [N, H, W, C], true labels int64 [N]) to a PNG file; return `path`."""
    look = _Look(attack.plugin_name(), tuple(class_names), columns)
    plan = attack.plan(labels, seed=seed, num_classes=num_classes)
    return _save(_picture(lambda ids: images[ids], labels, attack, plan, look), path)


def chosen_ids(plan: PoisonPlan, labels: np.ndarray, columns: int) -> np.ndarray:
    """Return the ids of the rows to show: poisoned ones of different classes, then two cover rows."""
    n_cover = min(2, len(plan.cover_ids), columns - 1)
    n_poison = columns - n_cover
    of_class = labels[plan.poison_ids]
    by_class = [plan.poison_ids[of_class == label] for label in np.unique(of_class)]
    if len(by_class) > n_poison:  # classes from all over the list
        by_class = [by_class[i * len(by_class) // n_poison] for i in range(n_poison)]
    turns = [members[turn] for turn in range(n_poison) for members in by_class if turn < len(members)]
    poison = np.array(turns[:n_poison], np.int64)
    return np.concatenate([poison, plan.cover_ids[:n_cover]])


def _picture(
    read: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    attack: Attack,
    plan: PoisonPlan,
    look: _Look,
) -> Figure:
    ids = chosen_ids(plan, labels, look.columns)
    headings = [
        _heading(int(labels[i]), int(plan.labels[i]), int(plan.role()[i]), look.class_names) for i in ids
    ]
    return _draw(_rows(read(ids), ids, attack, plan, look), headings, look.title, _caption(attack, plan))


def _save(figure: Figure, path: Path) -> Path:
    return save(figure, path, dpi=DPI, metadata={"Software": "bdtune"})


def _rows(images: np.ndarray, ids: np.ndarray, attack: Attack, plan: PoisonPlan, look: _Look) -> list[_Row]:
    poisoned = attack.apply(images, ids, plan)
    rows = [
        _Row("clean", "", images),
        _Row("poisoned", "training", poisoned),
        _compared(images, poisoned),
    ]
    shown = Rows("train", ids, plan.role()[ids], {name: array[ids] for name, array in plan.extras.items()})
    rows += [_Row(name, "", pictures) for name, pictures in attack.shown_beside(shown).items()]
    made_for_test = "test" in attack.one_split.values()  # these have none, and theirs look alike
    if made_for_test or not attack.stamps_test:
        return rows
    triggered = attack.trigger(images, ids)
    if np.array_equal(triggered, poisoned):
        return rows
    return [
        *rows,
        _Row("triggered", _wanted(attack, look), triggered),
        _compared(images, triggered),
    ]


def _wanted(attack: Attack, look: _Look) -> str:
    """Return the note of test images; their goal is said where a row's heading does not say it."""
    target = attack.single_target
    return "test" if target is None else f"test, as {_class(target, look.class_names)}"


def _compared(before: np.ndarray, after: np.ndarray) -> _Row:
    change = np.abs(after.astype(int) - before)
    gain = gain_for(change)
    pixels = np.clip(change * gain, 0, 255).astype(np.uint8)
    return _Row("difference" + (f" x {gain}" if gain > 1 else ""), _measured(before, after), pixels)


def gain_for(change: np.ndarray) -> int:
    """Return what differences in grey levels are to be multiplied by, to be seen and told apart."""
    touched = change[change > 0]
    strong = float(np.quantile(touched, 1 - WHITENED)) if len(touched) else 255.0
    return next((gain for gain in GAINS if strong * gain <= 255), 1)


def _measured(before: np.ndarray, after: np.ndarray) -> str:
    change = np.abs(after.astype(int) - before)
    touched = (change > 0).any(-1).mean()
    error = np.mean((change / 255.0) ** 2)
    ratio = f"{-10 * np.log10(error):.0f} dB PSNR" if error > 0 else "no change"
    return f"{touched * 100:.3g} % of pixels\nat most {change.max()} of 255\n{ratio}"


def _heading(true: int, observed: int, role: int, class_names: Sequence[str]) -> str:
    name = _class(true, class_names)
    if role == Role.COVER:
        return f"{name}\ncover, keeps label"
    return f"{name}\n→ {_class(observed, class_names)}" if true != observed else f"{name}\nkeeps label"


def _class(label: int, class_names: Sequence[str]) -> str:
    return _shortened(class_names[label] if class_names else str(label))


def _shortened(name: str, longest: int = 16) -> str:
    name = re.sub(r"^n\d{8}[ _]+", "", name)  # a WordNet id before the words
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _caption(attack: Attack, plan: PoisonPlan) -> str:
    own = attack.model_dump(mode="json", include=set(type(attack).__annotations__) - SAID, exclude_none=True)
    knobs = "".join(f", {name} {value}" for name, raw in own.items() if (value := _told(raw)))
    cover = f" and {len(plan.cover_ids)} cover rows" if len(plan.cover_ids) else ""
    basis = attack.rate_basis.replace("_", " ")
    rate = "" if attack.rate is None else f" ({attack.rate * 100:g} % of {basis})"
    goal = "each class to the next" if attack.single_target is None else f"target {attack.target}"
    sources = getattr(attack, "source_classes", None)
    goal += f" from {named(sources)}" if sources else ""
    poisoned = f"{len(plan.poison_ids)} of {len(plan)} images poisoned{cover}{rate}"
    return f"{poisoned}, {goal}{knobs}"


def _told(value: Any) -> str:
    """Return a knob's value as captions print it; empty for what is off, plain, or a training."""
    if isinstance(value, dict):
        attacked = {"eps", "steps"} <= value.keys()
        return f"{value['eps'] * 255:g}/255 in {value['steps']} steps" if attacked else ""
    if value is False or value == "canonical":
        return ""
    return value.rpartition("/")[2] if isinstance(value, str) else str(value)


def _draw(rows: list[_Row], headings: list[str], title: str, caption: str) -> Figure:
    from matplotlib.figure import Figure

    margin, top, bottom, gap = 1.5, 0.95, 0.12, 0.07  # inches
    width = margin + len(headings) * (CELL_INCHES + gap) + 0.05
    height = top + len(rows) * (CELL_INCHES + gap) + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.1 / width, 1 - 0.1 / height, title, size=12, weight="bold", color=INK, va="top")
    wrapped = _wrapped(caption, int(width * 13.5))
    figure.text(0.1 / width, 1 - 0.34 / height, wrapped, size=7.5, color=FAINT, va="top")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    canvas.set_axis_off()  # one for all images: axes of their own would take longer than the images
    for r, row in enumerate(rows):
        base = height - top - (r + 1) * CELL_INCHES - r * gap
        figure.text(
            0.1 / width, (base + CELL_INCHES / 2 + 0.06) / height, row.name, size=9.5, color=INK, va="bottom"
        )
        figure.text(
            0.1 / width, (base + CELL_INCHES / 2 + 0.02) / height, row.note, size=7.5, color=FAINT, va="top"
        )
        for c, image in enumerate(row.images):
            left = margin + c * (CELL_INCHES + gap)
            _cell(canvas, left, base, image)
            if r == 0:
                middle, above = left + CELL_INCHES / 2, base + CELL_INCHES + 0.04
                canvas.text(
                    middle,
                    above,
                    headings[c],
                    size=7.5,
                    color=INK,
                    ha="center",
                    va="bottom",
                    linespacing=1.05,
                )
    return figure


def _cell(canvas: Axes, left: float, base: float, image: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    pixels = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    place = (left, left + CELL_INCHES, base, base + CELL_INCHES)
    canvas.imshow(pixels, interpolation="nearest", extent=place, aspect="auto")
    canvas.add_patch(
        Rectangle((left, base), CELL_INCHES, CELL_INCHES, fill=False, linewidth=0.4, edgecolor=FRAME)
    )


def _wrapped(text: str, columns: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, columns)[:2])
