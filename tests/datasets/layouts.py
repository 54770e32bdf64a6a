"""Generated data sets in the layouts that users have."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(row, side=8, mode="RGB"):
    """Return a smooth picture that differs from row to row, as a Pillow image."""
    pixels = np.random.default_rng(row).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def encoded(row, side=8, kind="PNG", mode="RGB"):
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    picture(row, side, mode).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file, labels, *, sides=8, names=None, row_group=7, first=0, kind="PNG", label="label"):
    """Write a Parquet file in the Hugging Face layout, one picture per label."""
    sides = np.broadcast_to(sides, len(labels))
    images = [
        {"bytes": encoded(first + row, int(side), kind), "path": f"{row}.png"}
        for row, side in enumerate(sides)
    ]
    table = pa.table({"image": images, label: pa.array(labels)})
    if names is not None:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=row_group)


def write_folder(folder, counts, *, side=8, suffix="png"):
    """Write one folder of pictures per class: {class name: number of pictures}."""
    row = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(row, side).save(folder / name / f"{number:04d}.{suffix}")
            row += 1


def small_parquet(root, n_train=60, n_test=20, classes=3, **options):
    """Write data set "small" under `root` and return the knobs of the `parquet` plugin that reads it."""
    write_parquet(root / "small" / "train.parquet", np.arange(n_train) % classes, **options)
    write_parquet(root / "small" / "test.parquet", np.arange(n_test) % classes, first=1000, **options)
    return {"path": "small", "num_classes": classes}
