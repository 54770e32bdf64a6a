"""`bdtune export TRIAL`: its classifier, what became of each training row, and its record, as plain files."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from safetensors.numpy import save

from bdtune.config.trial import spec_to_dict
from bdtune.engine.files import replace_file
from bdtune.errors import Problem, UserError
from bdtune.plugins.field import plain
from bdtune.trials.belongings import classifier_of
from bdtune.trials.outcome import with_all_curves
from bdtune.trials.verdicts import rows_of, verdicts_of

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.training.classifier import Classifier
    from bdtune.trials.known import KnownTrial

WEIGHTS, DESCRIPTION, ROWS, RECORD, SETTINGS = (
    "model.safetensors",
    "model.json",
    "rows.csv",
    "trial.json",
    "trial.yaml",
)
ROLES = ("clean", "poison", "cover")
"""Of a row, by the number that a truth has for it."""


def export_trial(trial: KnownTrial, folder: Path) -> list[Path]:
    """Write a finished trial into a new or empty folder; returns the files.

    Raises `UserError` where the store lacks its results, its data set is not here, or the folder holds files.
    """
    must_be_empty(folder)
    classifier = classifier_of(trial)
    record = with_all_curves(trial.result, trial.store)
    texts = {
        DESCRIPTION: json.dumps(description(trial, classifier), indent=1),
        ROWS: _rows(trial),
        RECORD: json.dumps(record.to_json(curves=True), indent=1, allow_nan=False),
        SETTINGS: yaml.safe_dump(spec_to_dict(trial.spec), sort_keys=False),
    }
    state = {name: value.numpy() for name, value in classifier.state_dict().items()}
    contents = {WEIGHTS: save(state), **{name: text.encode() for name, text in texts.items()}}
    for name, content in contents.items():  # all is made before anything is written
        replace_file(folder / name, content)
    return [folder / name for name in contents]


def must_be_empty(folder: Path) -> None:
    """Raise `UserError` if something stands where a folder is to be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "which holds files" if folder.is_dir() else "a file"
        hint = "Give another one, or remove it first"
        raise UserError(Problem("TO", "expected a new or empty folder", f"{folder}, {what}", hint=hint))


def description(trial: KnownTrial, classifier: Classifier) -> dict[str, Any]:
    """Return what one needs to build the network again, and to feed it."""
    spec = trial.spec
    return {
        "trial": trial.result.id,
        "network": plain(spec.model),
        "num_classes": spec.dataset.num_classes,
        "image_shape": list(spec.dataset.image_shape(trial.data_root)),
        "mean": classifier.mean.flatten().tolist(),
        "std": classifier.std.flatten().tolist(),
        "input": "float32 [B, C, H, W] in [0, 1]; mean and std are buffers of the state dict",
        "load": "bdtune.load_model(FOLDER)",
    }


def _rows(trial: KnownTrial) -> str:
    """Return one line for each training row: its labels, its true role, and what the defense made of it."""
    rows, verdicts = rows_of(trial), verdicts_of(trial)
    moved = dict(zip(verdicts.relabelled.tolist(), verdicts.new_labels.tolist(), strict=True))
    kept, suspected = (np.isin(rows.ids, each) for each in (verdicts.kept, verdicts.suspected))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "true_label", "label", "role", "kept", "relabelled_to", "suspected"])
    columns = (rows.ids, rows.truth.labels, rows.truth.observed, rows.truth.role, kept, suspected)
    for row, true, label, role, own, bad in zip(*(each.tolist() for each in columns), strict=True):
        writer.writerow([row, true, label, ROLES[role], int(own), moved.get(row, ""), int(bad)])
    return out.getvalue()
