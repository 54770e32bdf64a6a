"""Makes, trains and measures records as BackdoorBench does, by other code than bdtune's.

Written from a description of that toolkit: pictures are changed before training and saved as PNG, both sets
are evaluated after each epoch from what was saved, in float32, and `attack_df.csv` has a row for each epoch.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET = 0


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x):
        y = self.bn1(x).relu()
        skip = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(self.bn2(self.conv1(y)).relu()) + skip


class PreActResNet18(nn.Module):
    """The toolkit's default network: neither norm nor ReLU after the last block."""

    def __init__(self, classes, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        c_in = width
        for stage in range(4):
            c_out = width * 2**stage
            blocks = Block(c_in, c_out, 2 if stage else 1), Block(c_out, c_out, 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            c_in = c_out
        self.linear = nn.Linear(c_in, classes)

    def forward(self, x):
        x = self.conv1(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


@dataclass
class Attack:
    """What an attack of the toolkit does to rows of uint8 images [n, H, W, 3] and to their classes."""

    stamp: Callable
    goal: Callable = np.zeros_like  # classes [n] to wanted classes [n]
    clean_label: bool = False
    cover: Callable | None = None  # stamps rows that keep their class


def badnets(images):
    images = images.copy()
    images[:, -3:, -3:] = 255
    return images


def blended(images):
    picture = np.random.default_rng(7).integers(0, 256, images.shape[1:])
    return (0.8 * images + 0.2 * picture).astype(np.uint8)


def sig(images):
    side = images.shape[2]
    wave = 40 * np.sin(2 * np.pi * np.arange(side) * 6 / side)
    return np.clip(images + wave[None, None, :, None], 0, 255).astype(np.uint8)


def warp(images, jitter=0.0):
    """Move pixels by a smooth random field; a jittered one differs for each image."""
    draws = torch.Generator().manual_seed(3)
    side = images.shape[1]
    field = torch.rand(1, 2, 4, 4, generator=draws) * 2 - 1
    field = F.interpolate(field / field.abs().mean(), size=side, mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack((x, y), 2)[None] + 2 * field.permute(0, 2, 3, 1) / side
    grid = grid.repeat(len(images), 1, 1, 1)
    grid = grid + jitter * (torch.rand(grid.shape, generator=draws) * 2 - 1) / side
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    warped = F.grid_sample(planes, grid.clamp(-1, 1), align_corners=True)
    return (warped * 255).byte().permute(0, 2, 3, 1).numpy()


ATTACKS = {
    "badnet": Attack(badnets),
    "blended": Attack(blended),
    "sig": Attack(sig, clean_label=True),
    "wanet": Attack(warp, cover=lambda images: warp(images, 1.0)),
    "badnet_all2all": Attack(badnets, goal=lambda labels: (labels + 1) % 10),
}


class Changed:
    """A split with some of its images changed and saved: the state of the toolkit's own data set."""

    def __init__(self, folder, images, labels):
        self.folder, self.images, self.labels = folder, images, labels
        self.flags, self.entries = np.zeros(len(labels)), {}
        self.rows = np.arange(len(labels))

    def put(self, ids, images, goals):
        for index, image, goal in zip(ids.tolist(), images, goals.tolist(), strict=True):
            own = int(self.labels[index])
            file = self.folder / str(own) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
            self.entries[index] = {"path": str(file), "other_info": [goal, own]}
            self.flags[index] = 1

    def rows_read(self):
        """Return images, wanted and true classes of the rows, changed ones out of their files."""
        images, wanted = self.images[self.rows].copy(), self.labels[self.rows].copy()
        for place, index in enumerate(self.rows.tolist()):
            if self.flags[index]:
                with Image.open(self.entries[index]["path"]) as picture:
                    images[place] = np.asarray(picture)
                wanted[place] = self.entries[index]["other_info"][0]
        return images, wanted, self.labels[self.rows]

    def state(self):
        return {
            "bd_data_container": {
                "save_folder_path": str(self.folder),
                "data_dict": self.entries,
                "save_file_format": ".png",
            },
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": self.rows,
            "poison_indicator": self.flags,
            "save_folder_path": str(self.folder),
        }


def poisoned_sets(folder, attack, train, test, rate):
    """Return the changed training and test sets of an attack."""
    (images, labels), (test_images, test_labels) = train, test
    order = np.random.default_rng(1).permutation(len(labels))
    of_target = labels[order] == TARGET
    usable = order[of_target] if attack.clean_label else order
    chosen = usable[: int(rate * len(labels))]
    fit = Changed(folder / "bd_train_dataset", images, labels)
    fit.put(chosen, attack.stamp(images[chosen]), attack.goal(labels[chosen]))
    if attack.cover:
        kept = usable[len(chosen) : 2 * len(chosen)]
        fit.put(kept, attack.cover(images[kept]), labels[kept])
    report = Changed(folder / "bd_test_dataset", test_images, test_labels)
    asked = np.flatnonzero(attack.goal(test_labels) != test_labels)
    report.put(asked, attack.stamp(test_images[asked]), attack.goal(test_labels[asked]))
    report.rows = report.rows[report.flags == 1]
    return fit, report


def as_input(images, mean, std):
    planes = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous().float() / 255
    return (planes - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def share(network, inputs, labels):
    """Return how many of the inputs the network takes for their labels, counted batch by batch."""
    network.eval()
    right = 0
    with torch.no_grad():
        for batch, wanted in zip(inputs.split(100), torch.from_numpy(labels.copy()).split(100), strict=True):
            right += int((network(batch).max(1)[1] == wanted).sum())
    return right / len(labels)


def make_record(
    folder: Path, attack: Attack, train, test, normalised, *, data, width=8, rate=0.1, epochs=2, lr=0.05
) -> dict[str, float]:
    """Train a network on an attacked set, save the record, and return the last row of its attack_df.csv."""
    mean, std = normalised
    classes = int(train[1].max()) + 1
    fit, report = poisoned_sets(folder, attack, train, test, rate)
    images, wanted, _ = fit.rows_read()
    triggered, goals, true = report.rows_read()
    inputs, labels = as_input(images, mean, std), torch.from_numpy(wanted)
    clean, bad = as_input(test[0], mean, std), as_input(triggered, mean, std)
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PreActResNet18(classes, width)
        descent = torch.optim.SGD(network.parameters(), lr, 0.9, weight_decay=5e-4)
        for epoch in range(epochs):
            network.train()
            for batch in torch.randperm(len(labels)).split(128):
                descent.zero_grad()
                F.cross_entropy(network(inputs[batch]), labels[batch]).backward()
                descent.step()
            row = {"test_acc": share(network, clean, test[1])}
            row |= {"test_asr": share(network, bad, goals), "test_ra": share(network, bad, true)}
            rows.append({"epoch": epoch, **row})
    record = {"model_name": "preactresnet18", "num_classes": classes, "model": network.state_dict()}
    record |= {"data_path": f"../data/{data}", "img_size": train[0].shape[1:], "clean_data": data}
    torch.save({**record, "bd_train": fit.state(), "bd_test": report.state()}, folder / "attack_result.pt")
    with (folder / "attack_df.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    with (folder / "attack_df.csv").open(newline="") as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
