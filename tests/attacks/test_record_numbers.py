"""Records give the numbers that BackdoorBench wrote beside them, to the last digit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bdtune
from bdtune.cli import main
from bdtune.plugins import registry
from tests.backdoorbench import ATTACKS, make_record
from tests.datasets.layouts import write_parquet

pytestmark = pytest.mark.slow


def imported(folder, tmp_path, monkeypatch, capsys, *words):
    """Return the metrics of README's command for a record."""
    monkeypatch.chdir(folder.parent)
    command = [
        f"attack={{name: record, path: {folder.name}}}",
        "model={name: preactresnet18, final_norm: false, width: 8}",
        "numerics={device: cpu, precision: bf16}",  # of trainings, which there are none of here
        *words,
    ]
    monkeypatch.setattr("sys.argv", ["bdtune", "run", *command, "--json", "--out", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out
    assert not ended.value.code, out
    return json.loads(out)["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_record_has_the_numbers_of_its_attack_df(name, tmp_path, monkeypatch, capsys):
    digits = bdtune.dataset("digits")
    splits = [(split.images, split.labels) for split in (digits.load("train"), digits.load("test"))]
    folder = tmp_path / "record" / name
    written = make_record(folder, ATTACKS[name], *splits, (digits.mean, digits.std), data="digits")
    found = imported(folder, tmp_path, monkeypatch, capsys, "dataset=digits")
    assert (found["acc"], found["asr"], found["ra"]) == (
        written["test_acc"],
        written["test_asr"],
        written["test_ra"],
    )
    assert ("asr_all" in found) == (name == "badnet_all2all")  # others have no image of the target class


def test_a_record_of_gtsrb_sees_its_pixels_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry.load("datasets", "gtsrb"), "counts", {})
    for split, rows in (("train", 258), ("test", 129)):
        write_parquet(tmp_path / "gtsrb" / f"{split}.parquet", np.arange(rows) % 43, first=len(split))
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    data = bdtune.dataset("gtsrb", image_size=16)
    splits = [(split.images, split.labels) for split in (data.load(s, tmp_path) for s in ("train", "test"))]
    folder = tmp_path / "record" / "badnet"
    written = make_record(folder, ATTACKS["badnet"], *splits, (black, white), data="gtsrb")
    plain = "dataset={name: gtsrb, image_size: 16, mean: [0, 0, 0], std: [1, 1, 1]}"
    found = imported(folder, tmp_path, monkeypatch, capsys, plain, f"data_root={tmp_path}")
    assert [found["acc"], found["asr"], found["ra"]] == [
        written[f"test_{name}"] for name in ("acc", "asr", "ra")
    ]
