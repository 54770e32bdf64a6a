"""Records of BackdoorBench as attacks: images, classes, the network handed over, and what is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import bdtune
from bdtune.attacks.record.files import read_record, record_digest
from bdtune.attacks.record.model import COUNTERPARTS, our_state
from bdtune.cli import main
from bdtune.config.load import load_trial
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict, trial_id
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.errors import UserError
from bdtune.plugins import registry
from bdtune.plugins.poison_plan import Role
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph
from tests.records import bench_state, stamped, write_record

MODEL = {"name": "preactresnet18", "final_norm": False, "width": 8}
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def digits():
    data = bdtune.dataset("digits")
    return [(split.images, split.labels) for split in (data.load("train"), data.load("test"))]


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return bdtune.model(**MODEL).build(10, SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits, network):
    """A record of all digits, with a network that was never trained."""
    place = tmp_path_factory.mktemp("records") / "badnet_0_1"
    return write_record(place, *digits, classes=10, state=bench_state(network), rate=0.1, cover=20, target=3)


def parsed(folder, **settings):
    raw = {
        "dataset": "digits",
        "attack": {"name": "record", "path": str(folder)},
        "model": MODEL,
        "numerics": {"device": "cpu", "precision": "fp32"},
    }
    return parse_trial({**raw, **settings})


def spec(folder, **settings):
    found, faults = parsed(folder, **settings)
    assert not faults
    return found


def refused(folder, **settings):
    _, faults = parsed(folder, **settings)
    return [f"{fault.path}: {fault.expected}, got {fault.got}. {fault.hint}" for fault in faults]


def test_images_and_classes_are_those_of_the_record(folder, digits, tmp_path):
    trial = spec(folder)
    (images, labels), (test_images, test_labels) = digits
    executor = Executor(Store(tmp_path), InProcess())
    sources = [
        cls(dataset=trial.dataset, attack=trial.attack, numerics=trial.numerics)
        for cls in (FitSet, TriggeredTest)
    ]
    fit, triggered = (
        source.load(InProcess(), {name: executor.compute(node) for name, node in source.upstream.items()})
        for source in sources
    )
    plan = trial.attack.plan(labels, seed=0, num_classes=10)
    changed = plan.role() != Role.CLEAN
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (134, 20)
    assert np.array_equal(fit.images[changed], stamped(images[changed]))
    assert np.array_equal(fit.images[~changed], images[~changed])
    assert set(fit.labels[plan.poison_ids]) == {3}
    rest = np.setdiff1d(np.arange(len(labels)), plan.poison_ids)
    assert np.array_equal(fit.labels[rest], labels[rest])
    others = test_labels != 3
    assert np.array_equal(triggered.images, stamped(test_images[others]))
    assert np.array_equal(triggered.labels, test_labels[others])
    assert set(triggered.goals) == {3}
    assert plan.digest() == trial.attack.plan(labels, seed=0, num_classes=10).digest()


def test_each_class_to_the_next(tmp_path, digits):
    folder = write_record(tmp_path / "all2all", *digits, classes=10, target=None, rate=0.5)
    attack = bdtune.attack("record", path=folder)
    labels = digits[0][1]
    plan = attack.plan(labels, seed=0, num_classes=10)
    assert attack.single_target is None
    assert np.array_equal(plan.labels[plan.poison_ids], (labels[plan.poison_ids] + 1) % 10)


def test_what_the_record_decides_is_filled_in_and_cannot_be_changed(folder):
    attack = spec(folder).attack
    assert (attack.rate, attack.target, attack.rate_basis) == (134 / 1347, 3, "dataset")
    assert attack.include_target_class is False
    told = refused(folder, attack={"name": "record", "path": str(folder), "rate": 0.5})
    assert told == [
        f"attack: expected settings that agree: the record has rate: {134 / 1347}, leave it out, got . "
    ]


def test_the_content_is_its_identity_not_its_place(folder, tmp_path, monkeypatch):
    moved = tmp_path / "record" / "elsewhere"
    shutil.copytree(folder, moved)
    assert trial_id(spec(moved)) == trial_id(spec(folder))
    assert set(trial_graph(spec(moved)).stages) == set(trial_graph(spec(folder)).stages)
    monkeypatch.chdir(tmp_path)
    relative = spec("record/elsewhere")
    assert relative.attack.path == moved
    monkeypatch.chdir("/")
    assert spec_from_dict(spec_to_dict(relative)) == relative
    picture = next((moved / "bd_test_dataset").rglob("*.png"))
    os.utime(picture.parent, ns=(1, 1))
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(picture)
    assert record_digest(moved) != record_digest(folder)


def test_the_network_is_the_undefended_model(folder, network, digits, tmp_path):
    executor = Executor(Store(tmp_path), InProcess())
    graph = trial_graph(spec(folder))
    assert graph.chain["classifier"].name == "record_model"
    arrays = executor.compute(graph.chain["classifier"]).arrays
    state = network.state_dict()
    assert {f"model.{name}" for name in state} == set(arrays)
    assert all(np.array_equal(arrays[f"model.{name}"], value.numpy()) for name, value in state.items())
    alone = trial_graph(spec(folder, attack={"name": "record", "path": str(folder), "hand_over": "data"}))
    assert alone.chain["classifier"].name == "supervised"
    assert alone.data_digest == graph.data_digest
    later = trial_graph(spec(folder, seed=4, holdout=0.1))
    assert later.chain["classifier"].recipe == graph.chain["classifier"].recipe
    defended = trial_graph(spec(folder, defense="abl"))
    assert trial_graph(defended.baseline).chain["classifier"].recipe == graph.chain["classifier"].recipe


AS_THEIRS = {
    "resnet18": {"stem": "imagenet"},
    "resnet34": {"stem": "imagenet"},
    "vgg16": {"batch_norm": False, "classifier": "imagenet"},
    "densenet121": {"stem": "imagenet"},
    "mobilenet_v2": {"stem": "imagenet"},
}


def test_all_networks_but_one_are_torchvisions():
    assert {"preactresnet18", *AS_THEIRS} == set(COUNTERPARTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_THEIRS)
def test_torchvisions_networks_have_the_same_weights_and_answers(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=3).eval()
        ours = bdtune.model(name, **AS_THEIRS[name]).build(3, (32, 32, 3)).eval()
    draws = torch.Generator().manual_seed(0)
    state = {}
    for key, value in theirs.state_dict().items():
        drawn = torch.randn(value.shape, generator=draws) if value.ndim else torch.zeros(())
        scale = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        state[key] = (drawn * scale).abs() + 1 if "running_var" in key else drawn * scale
    theirs.load_state_dict(state, assign=True)
    found = our_state({key: value.numpy() for key, value in state.items()}, name, "digits", (1.0, 1.0, 1.0))
    assert set(found) == set(ours.state_dict())
    ours.load_state_dict({key: torch.from_numpy(value) for key, value in found.items()}, assign=True)
    images = torch.randn(2, 3, 32, 32, generator=draws)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_another_scale_of_the_images_is_put_into_the_first_convolution():
    weight = np.ones((2, 3, 1, 1), np.float32)
    found = our_state({"conv1.weight": weight}, "preactresnet18", "cifar10", (0.247, 0.486, 0.261))
    np.testing.assert_allclose(found["body.0.weight"][0, :, 0, 0], [1, 2, 1])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "preactresnet18"}, "body.9.bias and 4 more missing in the record"),
        ({"name": "preactresnet18", "final_norm": False, "width": 32}, "more of another shape"),
        ({"name": "resnet18"}, "only in the record"),
    ],
)
def test_another_network_is_refused(folder, model, words):
    (told,) = refused(folder, model=model)
    assert told.startswith(
        "model: expected {name: preactresnet18, final_norm: false}, the record's network, got"
    )
    assert words in told
    assert "'attack.hand_over: data' takes the poisoned set alone" in told


def test_a_network_that_bdtune_lacks_leaves_the_poisoned_set(digits, tmp_path):
    folder = write_record(tmp_path / "r", *digits, classes=10, network="vgg19_bn")
    (told,) = refused(folder)
    assert told.startswith(
        "attack.hand_over: expected the record of one of preactresnet18, resnet18, resnet34, "
    )
    assert "one of 'vgg19_bn'" in told
    assert not refused(
        folder, attack={"name": "record", "path": str(folder), "hand_over": "data"}, model="resnet18"
    )


def test_another_mean_of_the_images_is_refused(digits, tmp_path, network):
    folder = write_record(tmp_path / "r", *digits, classes=10, state=bench_state(network), data="gtsrb")
    (told,) = refused(folder)
    assert "normalised with the mean (0.0, 0.0, 0.0)" in told
    assert "dataset.mean to [0.0, 0.0, 0.0] and dataset.std to [1.0, 1.0, 1.0]" in told


def test_weights_that_are_not_finite_are_refused_by_name(digits, tmp_path, network):
    state = {name: value.clone() for name, value in bench_state(network).items()}
    state["layer2.0.bn1.weight"][3] = float("nan")
    state["linear.bias"][0] = float("inf")
    folder = write_record(tmp_path / "r", *digits, classes=10, state=state)
    (told,) = refused(folder)
    assert told.startswith("attack.hand_over: expected a network whose weights are all finite")
    assert "'layer2.0.bn1.weight' and 1 more" in told
    assert not refused(folder, attack={"name": "record", "path": str(folder), "hand_over": "data"})


@pytest.mark.parametrize("whole", [False, True])
def test_every_image_is_counted_only_where_the_record_has_them(small, whole):
    folder = small(every_test_row=whole)
    attack = registry.load("attacks", "record")(path=folder)
    assert attack.tests_complete() == whole


def test_another_data_set_is_refused(folder, digits, tmp_path, network):
    (told,) = refused(folder, dataset={"name": "digits", "train_limit": 100})
    assert told == (
        "attack.path: expected a record made of the data set's 100 train images, got one of 1347 of "
        "'digits'. dataset.train_limit must be left out"
    )
    (told,) = refused(folder, dataset={"name": "digits", "test_limit": 100})
    assert "100 test images, got one of 450" in told
    assert any(
        "shape (32, 32, 3)" in told for told in refused(folder, dataset={"name": "digits", "side": 32})
    )
    state = bench_state(network)
    fewer = write_record(tmp_path / "a", *digits, classes=12, state=state)
    assert "attack.path: expected a record of 10 classes" in refused(fewer)[0]
    (images, labels), test = digits
    other = write_record(tmp_path / "b", (images, np.roll(labels, 1)), test, classes=10, state=state)
    (told,) = refused(other)
    assert "expected the true classes of the record's train images" in told


class Code:
    """Stands for any object whose making could run code."""


BROKEN = {
    "no folder": (
        shutil.rmtree,
        "expected a folder of BackdoorBench's, with attack_result.pt in it",
    ),
    "no file": (lambda f: (f / "attack_result.pt").unlink(), "expected a folder with attack_result.pt in it"),
    "no torch": (lambda f: (f / "attack_result.pt").write_bytes(b"nothing"), "expected a file"),
    "no images": (
        lambda f: shutil.rmtree(f / "bd_train_dataset"),
        "expected the images of bd_train in the folder",
    ),
    "code": (lambda f: torch.save({"model": Code()}, f / "attack_result.pt"), "are not loaded"),
    "a defense": (
        lambda f: torch.save({"model": {}}, f / "attack_result.pt"),
        "without model_name, num_classes, data_path",
    ),
}
OVER = {
    "version": ({"bd_train": {"x": [], "y": []}}, "got another layout. BackdoorBench's version 2"),
    "no training set": ({"bd_train": None}, "expected a record with a poisoned training set"),
    "size": ({"img_size": "32"}, "expected 3 whole numbers as img_size"),
    "state": ({"model": [1]}, "expected the state of a network under 'model'"),
}


@pytest.fixture
def small(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    both = (images, np.arange(12) % 3)
    return lambda **over: write_record(tmp_path / "small", both, both, classes=3, **over)


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_record_is_told_at_once(small, what):
    folder = small()
    spoil, words = BROKEN[what]
    spoil(folder)
    told = [message for message in refused(folder) if message.startswith("attack.path")]
    assert len(told) == 1
    assert words in told[0]


@pytest.mark.parametrize("what", OVER)
def test_an_unknown_layout_is_told_at_once(small, what):
    over, words = OVER[what]
    told = refused(small(**over))
    assert any(words in message for message in told)


def test_paths_cannot_leave_the_folder(small):
    folder = small()
    raw = torch.load(folder / "attack_result.pt", weights_only=False)
    entries = raw["bd_train"]["bd_data_container"]["data_dict"]
    first = next(iter(entries))
    entries[first]["path"] = "../../../etc/passwd"
    torch.save(raw, folder / "attack_result.pt")
    (told,) = [message for message in refused(folder) if "passwd" in message]
    assert "expected the images of bd_train in the folder" in told or "expected paths such as" in told


def test_classes_that_follow_no_rule_are_refused(small):
    folder = small()
    raw = torch.load(folder / "attack_result.pt", weights_only=False)
    for number, entry in enumerate(raw["bd_test"]["bd_data_container"]["data_dict"].values()):
        entry["other_info"][0] = number % 3
    torch.save(raw, folder / "attack_result.pt")
    with pytest.raises(UserError, match="expected one target class for all triggered test images"):
        read_record(folder)


def test_a_file_that_is_no_picture_of_the_size_is_told(folder, tmp_path):
    moved = tmp_path / "r"
    shutil.copytree(folder, moved)
    node = trial_graph(spec(moved)).chain["classifier"]
    assert node.name == "record_model"
    source = TriggeredTest(dataset=spec(moved).dataset, attack=spec(moved).attack)
    picture = next((moved / "bd_test_dataset").rglob("*.png"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    with pytest.raises(UserError, match="expected pictures of 16x16 pixels"):
        Executor(Store(tmp_path / "store"), InProcess()).compute(source.upstream["test"])


@pytest.mark.slow
def test_a_run_from_the_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    words = [
        "attack={name: record, path: badnet_0_1}",
        "defense=none",
        "model={name: preactresnet18, final_norm: false, width: 8}",
        "numerics={device: cpu, precision: fp32}",
    ]
    assert Path(load_trial(None, words).attack.path) == folder
    monkeypatch.setattr("sys.argv", ["bdtune", "run", *words, "--out", str(tmp_path / "runs")])
    with contextlib.suppress(SystemExit):
        main()
    told = capsys.readouterr().out
    assert "asr" in told
