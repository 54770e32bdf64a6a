"""Writes small records in the format of BackdoorBench, from the description of that format."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bdtune.plugins import registry
from bdtune.testing.small import folder_until_exit


def stamped(images):
    """Return images (uint8 [n, H, W, C]) with a square in a corner that none of random images has."""
    after = images.copy()
    after[:, -4:, -4:] = np.where(images[:, -4:, -4:] > 127, 0, 255)
    return after


def changed(folder, name, images, labels, flags, goals, *, whole=False):
    """Write the changed images of a split and return its entry, as BackdoorBench's data set has it."""
    entries = {}
    after = stamped(images)
    for index in np.flatnonzero(flags):
        own = int(labels[index])
        file = folder / name / str(own) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(after[index]).save(file)
        written = f"../record/{folder.name}/{name}/{own}/{index}.png"
        entries[index] = {"path": written, "other_info": [int(goals[index]), own]}
    rows = np.arange(len(labels))
    return {
        "bd_data_container": {
            "save_folder_path": f"../record/{folder.name}/{name}",
            "data_dict": entries,
            "save_file_format": ".png",
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": rows if whole else rows[flags > 0],
        "poison_indicator": flags.astype(np.float64),
        "save_folder_path": f"../record/{folder.name}/{name}",
    }


def write_record(
    folder,
    train,
    test,
    *,
    classes,
    network="preactresnet18",
    state=None,
    data="digits",
    rate=0.2,
    cover=0,
    target=0,
    every_test_row=False,
    **over,
):
    """Write a record of two splits, each (images, labels); return its folder.

    `rate` of the training images are poisoned, those of the target class left out; the first `cover` others
    are changed and keep their class. With target None each class goes to the next.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (images, labels), (test_images, test_labels) = ((np.asarray(a), np.asarray(b)) for a, b in (train, test))
    goal = lambda y: (y + 1) % classes if target is None else np.full_like(y, target)  # noqa: E731
    may = np.flatnonzero(labels != (-1 if target is None else target))
    chosen = np.random.default_rng(0).permutation(may)[: int(rate * len(labels))]
    kept = np.setdiff1d(may, chosen)[:cover]
    flags = np.zeros(len(labels))
    flags[chosen] = flags[kept] = 1
    goals = goal(labels)
    goals[kept] = labels[kept]
    test_flags = np.ones(len(test_labels)) if every_test_row else (test_labels != goal(test_labels)) * 1.0
    raw = {
        "model_name": network,
        "num_classes": classes,
        "model": {} if state is None else state,
        "data_path": "../data/digits",
        "img_size": images.shape[1:],
        "clean_data": data,
        "bd_train": changed(folder, "bd_train_dataset", images, labels, flags, goals, whole=True),
        "bd_test": changed(
            folder, "bd_test_dataset", test_images, test_labels, test_flags, goal(test_labels)
        ),
    }
    torch.save({**raw, **over}, folder / "attack_result.pt")
    return folder


@cache
def shelf():
    """Return the one folder of this process's records."""
    return folder_until_exit("bdtune-test-records-")


def record_of(train, test, classes, **knobs):
    """Return the attack of a record of two splits, every test image in it; equal ones are written once."""
    content = (*(np.asarray(array).tobytes() for array in (*train, *test)), np.asarray(train[0]).shape)
    folder = shelf() / f"{hash(content):x}"
    if not folder.exists():
        write_record(folder, train, test, classes=classes, every_test_row=True)
    return registry.load("attacks", "record")(path=folder, **knobs)


def bench_state(network):
    """Return the weights of a preactresnet18 (`final_norm` off) under the names that BackdoorBench has."""
    state = {}
    for name, value in network.state_dict().items():
        part, at, rest = name.split(".", 2) if name.startswith("body") else ("linear", "", name[5:])
        if part == "body" and at != "0":
            block = int(at) - 1
            rest = rest.replace("norm", "bn").replace("shortcut.", "shortcut.0.")
            part = f"layer{block // 2 + 1}.{block % 2}"
        elif part == "body":
            part = "conv1"
        state[f"{part}.{rest}"] = value
    return state
