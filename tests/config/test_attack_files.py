"""Attacks on the data set they are meant for: triggers that do not fit, and files that the user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from PIL import Image

from bdtune.config.load import load_sweep, load_trial
from bdtune.config.sweep import sweep_to_dict
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict, trial_id
from bdtune.datasets.digits import Digits
from bdtune.errors import ConfigError
from bdtune.reading import images

if TYPE_CHECKING:
    from pathlib import Path

TRIAL = ("dataset=digits", "defense=none")


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_trial(None, [*TRIAL, *words])
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack=badnets", "attack.size=40"], "attack.size: expected a patch that fits on 16x16 pixels"),
        (["attack=adap_blend", "attack.cells=20"], "attack.cells: expected at most 16"),
        (["attack=dynamic", "attack.widths=[4, 4, 4, 4, 4]"], "attack.widths: expected"),
    ],
)
def test_a_trigger_that_does_not_fit_is_told_when_planning(words, said):
    (problem,) = problems(*words)
    assert said in problem
    assert load_trial(None, [*TRIAL, *words], check_data=False)


def folder_of_classes(root: Path, side: int) -> Path:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (root / "set" / split / label).mkdir(parents=True)
            for number in range(3):
                image = Image.new("RGB", (side, side), (40 * number, 9, 9))
                image.save(root / "set" / split / label / f"{number}.png")
    return root


def test_sides_that_a_network_cannot_halve_are_told_when_planning(tmp_path):
    root = folder_of_classes(tmp_path, 20)
    data = ["dataset={name: imagefolder, path: set, num_classes: 2}", f"data_root={root}", "attack.rate=0.5"]
    (problem,) = problems("attack=issba", *data)
    assert "divisible by 16" in problem
    assert "20x20" in problem
    assert load_trial(None, [*TRIAL, "attack=issba", *data, "dataset.image_size=32"])


def test_the_shape_is_known_by_decoding_one_image_once(tmp_path, monkeypatch):
    root = folder_of_classes(tmp_path, 12)
    raw = {"name": "imagefolder", "path": "set", "num_classes": 2}
    given = {"dataset": raw, "attack": None, "defense": "none", "data_root": str(root)}
    spec, faults = parse_trial(given, check_data=False)
    assert not faults
    decoded = []
    decode = images.decode

    def counted(*args):
        decoded.append(args)
        return decode(*args)

    monkeypatch.setattr(images, "decode", counted)
    assert spec.dataset.image_shape(root) == spec.dataset.image_shape(root) == (12, 12, 3)
    assert len(decoded) == 1
    sized = spec.dataset.model_copy(update={"image_size": 8})
    assert sized.image_shape(root) == (8, 8, 3)
    assert len(decoded) == 1
    assert Digits(side=32).image_shape() == (32, 32, 3)


def test_a_first_image_that_cannot_be_decoded_is_told_when_planning(tmp_path):
    root = folder_of_classes(tmp_path, 12)
    (root / "set" / "train" / "a" / "0.png").write_bytes(b"no picture")
    data = ["dataset={name: imagefolder, path: set, num_classes: 2}", f"data_root={root}", "attack.rate=0.5"]
    (problem,) = problems("attack=badnets", *data)
    assert "a readable image" in problem


@pytest.fixture
def pattern(tmp_path, monkeypatch) -> Path:
    """A pattern file in the current folder."""
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.npy"


FILES = {
    "badnets": ["pattern_path", "mask_path"],
    "blend": ["pattern_path"],
    "adap_blend": ["pattern_path"],
    "trojan": ["pattern_path"],
    "label_consistent": ["surrogate_path"],
    "wanet": ["control_field"],
}


@pytest.mark.parametrize(("name", "knobs"), FILES.items())
def test_relative_files_mean_this_folder_wherever_they_are_read(name, knobs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    np.save(tmp_path / "here" / "mine.npy", np.random.default_rng(0).random((2, 4, 4)))
    monkeypatch.chdir(tmp_path / "here")
    raw = {"name": name} | dict.fromkeys(knobs, "mine.npy")
    monkeypatch.setattr(type(_attack(raw)), "check_files", lambda self: [])  # it may not be such a file
    spec, faults = parse_trial({"dataset": "digits", "attack": raw, "defense": "none"})
    assert not faults
    key = trial_id(spec)
    monkeypatch.chdir(tmp_path)
    again = spec_from_dict(spec_to_dict(spec))
    assert {getattr(again.attack, knob) for knob in knobs} == {tmp_path / "here" / "mine.npy"}
    assert trial_id(again) == key
    (tmp_path / "here" / "mine.npy").rename(tmp_path / "moved.npy")
    moved = again.attack.model_copy(update=dict.fromkeys(knobs, tmp_path / "moved.npy"))
    assert (
        moved.identity()
        == spec.attack.model_copy(update=dict.fromkeys(knobs, tmp_path / "moved.npy")).identity()
    )
    assert trial_id(again.model_copy(update={"attack": moved})) == key


def _attack(raw):
    spec, _ = parse_trial({"dataset": "digits", "attack": raw["name"], "defense": "none"}, check_data=False)
    return spec.attack


def test_a_stored_sweep_is_read_from_any_folder(pattern, tmp_path, monkeypatch):
    words = [*TRIAL, "name=files", "attack=blend", "attack.pattern=noise"]
    spec = load_sweep(None, [*words, "attack.pattern_path=mine.npy,./mine2.npy"])
    stored = tmp_path / "sweep.yaml"
    stored.write_text(yaml.safe_dump(sweep_to_dict(spec), sort_keys=False))
    assert "pattern: noise" in stored.read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_sweep(str(stored))
    assert again.grid["attack.pattern_path"] == (str(pattern), str(tmp_path / "mine2.npy"))


@pytest.fixture(autouse=True)
def second(tmp_path):
    np.save(tmp_path / "mine2.npy", np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))


def test_home_is_understood(pattern, monkeypatch):
    monkeypatch.setenv("HOME", str(pattern.parent))
    spec = load_trial(None, [*TRIAL, "attack=blend", "attack.pattern_path=~/mine.npy"])
    assert spec.attack.pattern_path == pattern
