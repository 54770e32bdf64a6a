"""Images, encoders and fields that were made elsewhere: label-consistent, ISSBA and WaNet."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file
from torch.nn import functional

import bdtune
from bdtune.attacks.issba.given import BOX_NAMES, encoder_weights
from bdtune.attacks.issba.networks import Encoder
from bdtune.attacks.wanet.warp import identity_grid
from bdtune.engine.execute import Executor
from bdtune.errors import ConfigError
from bdtune.poisoning.image_files import image_file, images_digest
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, equipped, equipped_for, shown, store
from tests.trained import upstream

N, SIDE = 40, 16
LABELS = np.arange(N) % 4
IDS = np.arange(N)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 240, (N, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[..., 0] //= 3  # red and blue can be told apart
    return pixels


@pytest.fixture(scope="module")
def changed(images):
    """The images as another program might have changed them."""
    return images + np.random.default_rng(1).integers(0, 16, images.shape, dtype=np.uint8)


def written(folder, images, how, ids=IDS):
    """Write images and return where; folders have one inside for each class."""
    path = folder / f"given{'' if how.startswith('folder') else f'.{how[:3]}'}"
    if how == "npy":
        np.save(path, images)
    elif how == "npy floats":
        np.save(path, images.astype(np.float32) / np.float32(255))
    elif how == "npz":
        order = ids[::-1]
        np.savez(path, images=images[order], ids=order)
    else:
        for i in ids:
            inner = path / f"{LABELS[i]:02}"
            inner.mkdir(parents=True, exist_ok=True)
            pixels = images[i][..., ::-1] if how == "folder bgr" else images[i]
            Image.fromarray(pixels).save(inner / (f"{i:08}.png" if i % 2 else f"{i}.png"))
    return path


def crafted(path, **knobs):
    return bdtune.attack("label_consistent", crafted_path=path, target=1, **knobs)


HOW = ["npy", "npy floats", "npz", "folder"]


@pytest.mark.parametrize("how", HOW)
def test_poisoned_rows_are_the_given_images_with_corners(tmp_path, images, changed, how):
    attack = crafted(written(tmp_path, changed, how))
    assert attack.check(4, LABELS, (SIDE, SIDE, 3)) == []
    made = equipped(attack, images)
    plan = made.plan(LABELS, seed=0)
    stamped = made.apply(images, IDS, plan)
    rows = plan.poison_ids
    assert np.array_equal(stamped[rows, 3:-3], changed[rows, 3:-3])
    assert (stamped[rows, 0, 0] == 255).all()
    info = made.artefact("crafted").info
    assert made.artefact("crafted").arrays["ids"].tolist() == list(range(1, N, 4))
    assert info["largest_change"] == 15
    assert 5 < info["mean_change"] < 10
    triggered = made.trigger(images, IDS)
    assert np.array_equal(triggered[:, 3:-3], images[:, 3:-3])


def test_folders_that_opencv_wrote_have_their_channels_in_the_other_order(tmp_path, images, changed):
    path = written(tmp_path, changed, "folder bgr")
    made = equipped(crafted(path, crafted_channels="bgr"), images)
    rows = made.artefact("crafted").arrays
    assert np.array_equal(rows["images"], changed[rows["ids"]])
    with pytest.raises(ConfigError, match="Set crafted_channels to bgr"):
        equipped(crafted(path), images)


@pytest.mark.parametrize("how", ["npz", "folder"])
@pytest.mark.parametrize("dialect", ["canonical", "backdoorbox"])
def test_only_rows_that_were_given_are_poisoned(tmp_path, images, changed, how, dialect):
    some = np.array([1, 2, 5, 9, 33, 37])
    attack = crafted(written(tmp_path, changed, how, some), count=4, dialect=dialect)
    for seed in range(4):
        assert set(attack.plan(LABELS, seed=seed).poison_ids) <= {1, 5, 9, 33, 37}
    (problem,) = attack.model_copy(update={"count": 6}).check(4, LABELS)
    assert "at most the 5 images of class 1" in str(problem)
    assert "in crafted_path, got 6" in str(problem)


def test_the_content_enters_the_key_and_not_the_place(tmp_path, images, changed):
    (tmp_path / "other").mkdir()
    found = [written(folder, changed, "folder") for folder in (tmp_path, tmp_path / "other")]
    one, other = (upstream(crafted(path), images)["crafted"].recipe for path in found)
    assert one == other
    assert crafted(found[0]).identity() == crafted(found[1]).identity()
    before = images_digest(found[0], "crafted_path")
    (found[0] / "00" / "41.png").write_bytes((found[0] / "00" / "0.png").read_bytes())
    assert images_digest(found[0], "crafted_path") != before
    data = shown(images, LABELS)
    tests = [
        TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS).preimage
        for attack in (crafted(found[1]), bdtune.attack("label_consistent", target=1))
    ]
    assert tests[0] == tests[1]


def wrong_files():
    pixels = np.zeros((N, SIDE, SIDE, 3), np.uint8)
    yield (
        "other size",
        {"a.npy": np.zeros((N, 8, 8, 3), np.uint8)},
        "a.npy",
        r"of shape \[16, 16, 3\].*\[8, 8, 3\]",
    )
    yield "too few", {"a.npy": pixels[:9]}, "a.npy", "each of the 40 train samples.*with 9"
    yield (
        "too many",
        {"a.npy": np.zeros((50, SIDE, SIDE, 3), np.uint8)},
        "a.npy",
        "dataset.train_limit must be",
    )
    yield "no images", {"a.npy": np.zeros((N, 4))}, "a.npy", r"images \[N, H, W, C\].*float64 \[40, 4\]"
    yield "wrong kind", {"a.npy": pixels.astype(int)}, "a.npy", "uint8 or floats.*int64"
    yield "no array", {}, "a.npy", "readable file or folder"
    yield "text", {"a.txt": "hello"}, "a.txt", "an .npy or .npz file of images"
    yield "pickle", {"a.npy": np.array([{}])}, "a.npy", "an .npy or .npz file"
    yield "no names", {"a.npz": {"pictures": pixels}}, "a.npz", "images or data in it, got .*with pictures"
    yield (
        "ids twice",
        {"a.npz": {"images": pixels[:2], "ids": np.zeros(2, int)}},
        "a.npz",
        "2 different integers",
    )
    yield "float ids", {"a.npz": {"images": pixels[:2], "ids": np.arange(2.0)}}, "a.npz", "float64"
    yield (
        "far ids",
        {"a.npz": {"images": pixels[:2], "ids": np.array([1, 70])}},
        "a.npz",
        "ids below 40.*with 70",
    )
    yield "empty folder", {"b/c": "x"}, "b", "a folder with pictures such as 17.png"
    yield "no id", {"b/cat.png": pixels[0]}, "b", "named by sample id.*cat.png"
    yield "one id twice", {"b/1.png": pixels[0], "b/c/01.png": pixels[0]}, "b", "one picture of each sample"
    yield "no picture", {"b/1.png": "x"}, "b", "a PNG or JPEG picture"


@pytest.mark.parametrize("case", list(wrong_files()), ids=lambda case: case[0])
def test_files_that_cannot_be_used_are_told_when_planning(tmp_path, case):
    _, files, path, message = case
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content)
        elif isinstance(content, dict):
            np.savez(file, **content)
        elif name.endswith(".png"):
            Image.fromarray(content).save(file)
        else:
            np.save(file, content)
    for attack, knob in (
        (crafted(tmp_path / path), "crafted_path"),
        (given(tmp_path / path, tmp_path / path), "train_images"),
    ):
        found = [p for p in attack.check(4, LABELS, (SIDE, SIDE, 3)) if p.path == knob]
        assert len(found) == 1, found
        assert re.search(message, str(found[0])), found[0]


def test_floats_beyond_the_range_are_refused(tmp_path, images):
    np.save(tmp_path / "a.npy", images.astype(np.float32))
    with pytest.raises(ConfigError, match="floats from 0 to 1"):
        equipped(crafted(tmp_path / "a.npy"), images)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"surrogate": "none"}, "of no use with surrogate 'none'"),
        ({"surrogate_path": "w.safetensors"}, "surrogate_path is of no use with it"),
        ({"crafted_path": None, "crafted_channels": "bgr"}, "belongs to a crafted_path"),
        ({"crafted_channels": "gbr"}, "'rgb' or 'bgr'"),
    ],
)
def test_knobs_of_crafted_images_that_do_not_agree(tmp_path, knobs, message):
    with pytest.raises(ValidationError, match=message):
        bdtune.attack("label_consistent", **{"crafted_path": tmp_path, **knobs})


# --- ISSBA


def given(train, test, **knobs):
    return bdtune.attack("issba", train_images=train, test_images=test, **{"rate": 0.5, **knobs})


@pytest.mark.parametrize("how", HOW)
def test_issbas_images_may_be_made_elsewhere(tmp_path, images, changed, how):
    path = written(tmp_path, changed, how)
    (tmp_path / "test").mkdir()
    attack = given(path, written(tmp_path / "test", changed + 1, how))
    assert attack.check(4, LABELS, (SIDE, SIDE, 3)) == []
    made = equipped(attack, images)
    plan = made.plan(LABELS, seed=0)
    stamped = made.apply(images, IDS, plan)
    assert np.array_equal(stamped[plan.poison_ids], changed[plan.poison_ids])
    assert np.array_equal(made.trigger(images, IDS), changed + 1)


def test_issba_is_measured_on_the_test_images_that_were_given(tmp_path, images, changed):
    some = np.array([2, 3, 5, 7, 8])
    (tmp_path / "test").mkdir()
    attack = given(
        written(tmp_path, changed, "npz"), written(tmp_path / "test", changed, "folder", some), target=3
    )
    data = shown(images, LABELS)
    source = TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS)
    assert list(source.upstream) == ["test"]
    executor = Executor(store(), InProcess(None))
    found = source.load(InProcess(None), {n: executor.compute(node) for n, node in source.upstream.items()})
    assert np.array_equal(found.images, changed[some])
    assert found.labels.tolist() == LABELS[some].tolist()
    fit, other = (
        FitSet(dataset=data, attack=attack.model_copy(update={"test_images": path}), numerics=NUMERICS)
        for path in (attack.test_images, attack.train_images)
    )
    assert fit.preimage == other.preimage
    labels = np.zeros(6, np.int64)  # fewer than there are ids of
    (problem,) = attack.check_trial(None, data, lambda: labels)
    assert problem.path == "attack.test_images"
    assert "ids below 6" in problem.expected


def test_the_secret_is_the_users(images):
    coder = {"secret_size": 4, "epochs": 1, "batch_size": 16, "channels": 4}
    attack = bdtune.attack("issba", secret="0110", coder=coder)
    assert attack.bits == (0, 1, 1, 0)
    node = upstream(attack, images)["train"]
    assert node.stage.secret == (0, 1, 1, 0)
    assert attack.identity() != bdtune.attack("issba", coder=coder).identity()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"secret": "012"}, "should match pattern"),
        ({"secret": ""}, "should match pattern"),
        ({"secret": 11}, "valid string"),
        ({"secret": "0101"}, "has 4 bits and coder.secret_size is 20: set it to 4"),
        ({"train_images": "a.npy"}, "go together"),
        ({"train_images": "a.npy", "test_images": "b.npy", "secret": "01"}, "secret is of no use"),
        ({"train_images": "a.npy", "test_images": "b.npy", "coder_path": "c"}, "coder_path is of no use"),
        ({"train_images": "a.npy", "test_images": "b.npy", "strength": 2}, "strength is of no use"),
    ],
)
def test_issbas_knobs_that_do_not_agree(knobs, message):
    with pytest.raises(ValidationError, match=message):
        bdtune.attack("issba", **knobs)


CODER = {"secret_size": 6, "channels": 8}


def own_encoder():
    torch.manual_seed(0)
    return Encoder(6, (SIDE, SIDE, 3), 8).eval()


def box_state(encoder):
    """Return the weights as BackdoorBox saves its encoder of the same numbers."""
    theirs = {ours: name for name, ours in BOX_NAMES.items()}
    state = {}
    for name, value in encoder.state_dict().items():
        layer, _, kind = name.rpartition(".")
        in_the_middle = name == "join.3.weight"  # what was raised stands there
        parts = [value[:, :8], value[:, 14:], value[:, 8:14]] if in_the_middle else [value]
        state[f"{theirs[layer]}.{kind}"] = torch.cat(parts, 1) if in_the_middle else value
    return state


def box_residual(state, secret, image):
    """Return what BackdoorBox's encoder adds, from the description of its layers."""

    def layer(name, x, stride=1):
        weight, bias = (state[f"{name}.0.conv.{kind}"] for kind in ("weight", "bias"))
        size = weight.shape[-1] - 1
        padded = functional.pad(x, (size // 2, size - size // 2) * 2)
        return functional.conv2d(padded, weight, bias, stride)

    dense = functional.linear(secret - 0.5, state["secret_dense.0.weight"], state["secret_dense.0.bias"])
    seen = torch.cat([dense.relu().view(-1, 3, SIDE, SIDE), image - 0.5], 1)
    stages = [layer("conv1", seen).relu()]
    for number in range(2, 6):
        stages.append(layer(f"conv{number}", stages[-1], 2).relu())
    x = stages[4]
    for number, skip in zip(range(6, 10), stages[3::-1], strict=True):
        raised = layer(f"up{number}", functional.interpolate(x, scale_factor=2)).relu()
        both = [skip, raised] + ([seen] if number == 9 else [])
        x = layer(f"conv{number}", torch.cat(both, 1)).relu()
    return layer("residual", x)


def write_encoder(folder, how):
    encoder = own_encoder()
    state = {name: value.numpy() for name, value in encoder.state_dict().items()}
    path = folder / ("best_model.pth" if how == "box" else "coder.safetensors")
    if how == "box":
        torch.save({"encoder_state_dict": box_state(encoder), "decoder_state_dict": {}}, path)
    elif how == "store":
        decoder = {"decoder.bits.bias": np.zeros(6, np.float32)}
        save_file({**{f"encoder.{name}": value for name, value in state.items()}, **decoder}, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize("how", ["bare", "store", "box"])
def test_an_encoder_may_be_trained_elsewhere(tmp_path, images, how):
    attack = bdtune.attack("issba", coder_path=write_encoder(tmp_path, how), coder=CODER, secret="011010")
    assert attack.check(4, LABELS, (SIDE, SIDE, 3)) == []
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    secret = torch.tensor([[0.0, 1, 1, 0, 1, 0]]).expand(N, -1)
    with torch.no_grad():
        residual = own_encoder()(secret, planes)
        theirs = box_residual(box_state(own_encoder()), secret, planes)
    assert torch.allclose(residual, theirs, atol=1e-5)
    wanted = torch.floor((planes + residual).clamp(0, 1) * 255 + 0.5).permute(0, 2, 3, 1).numpy()
    made = equipped_for(attack, shown(images, LABELS))
    assert np.abs(made.trigger(images, IDS).astype(int) - wanted).max() <= 1
    assert "issba_coder" not in {node.stage.name for node in upstream(attack, images)["train"].walk()}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "box",
            "an encoder for 20 bits, 8 channels and images of .*secret.weight.* of another shape. Set coder",
        ),
        ("text", "as safetensors or BackdoorBox's"),
        ("text.pth", "a file of torch.save"),
        ("object.pth", "plain values and tensors, got .* could run code"),
        ("list.pth", "no dictionary of weights, nor one under 'encoder_state_dict'"),
        ("decoder", "no weights of an encoder"),
        ("gone", "readable file"),
    ],
)
def test_encoders_that_cannot_be_used_are_told_when_planning(tmp_path, how, message):
    path = tmp_path / how
    if how == "box":
        path = write_encoder(tmp_path, how)
    elif how.startswith("text"):
        path.write_text("hello")
    elif how == "object.pth":
        torch.save(own_encoder(), path)
    elif how == "list.pth":
        torch.save([torch.zeros(2)], path)
    elif how == "decoder":
        save_file({"decoder.bits.bias": np.zeros(6, np.float32)}, path)
    attack = bdtune.attack("issba", coder_path=path, coder={"channels": 8})
    (problem,) = attack.check(4, LABELS, (SIDE, SIDE, 3))
    assert problem.path == "coder_path"
    assert re.search(message, str(problem)), problem


def test_weights_of_data_parallel_networks_lose_their_prefix(tmp_path):
    state = {f"module.{name}": value for name, value in box_state(own_encoder()).items()}
    torch.save(state, tmp_path / "e.pt")
    assert set(encoder_weights(tmp_path / "e.pt")) == set(own_encoder().state_dict())


# --- WaNet


@pytest.mark.parametrize("form", ["points", "upsampled", "state", "state of the authors"])
def test_fields_of_torch_save(tmp_path, form):
    drawn = bdtune.attack("wanet")
    points = torch.from_numpy(drawn._field())
    whole = functional.interpolate(points[None], size=32, mode="bicubic", align_corners=True).permute(
        0, 2, 3, 1
    )
    grid = torch.from_numpy(identity_grid(32, 32))[None]
    state = {
        "netC": {"a.weight": torch.ones(2)},
        "epoch_current": 9,
        "identity_grid": grid,
        "noise_grid": whole,
    }
    saved = {"points": points, "upsampled": whole.float(), "state": state, "state of the authors": state}
    path = tmp_path / ("field.pth" if form == "points" else "state_dict.pt")
    if form == "state of the authors":
        path = tmp_path / "ckpt.pth"
    torch.save(saved[form], path)
    attack = bdtune.attack("wanet", control_field=path)
    assert attack.check(10, None, (32, 32, 3)) == []
    assert np.allclose(attack.grid(32, 32), drawn.grid(32, 32), atol=1e-6)
    assert str(path) not in str(attack.identity())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"netC": torch.ones(2)}, "a dictionary with 'noise_grid', got .*netC.* saves with frequency_save"),
        ([1, 2], "expected a tensor, or a dictionary with 'noise_grid', got .*list"),
        (torch.from_numpy(identity_grid(32, 32))[None], "field of displacements, got the identity grid"),
        (torch.ones(3, 4, 4), r"floats \[2, k, k\] or \[H, W, 2\]"),
        (torch.full((2, 4, 4), torch.nan), "finite values"),
        (own_encoder, "plain values and tensors"),
    ],
)
def test_fields_of_torch_save_that_cannot_be_used(tmp_path, saved, message):
    torch.save(saved() if callable(saved) and not torch.is_tensor(saved) else saved, tmp_path / "f.pt")
    (problem,) = bdtune.attack("wanet", control_field=tmp_path / "f.pt").check(10)
    assert problem.path == "control_field"
    assert re.search(message, str(problem)), problem


def test_an_array_is_not_read_from_disk_to_be_looked_at(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    found = image_file(tmp_path / "a.npy", "crafted_path")
    assert (found.count, found.shape, found.ids) == (N, (SIDE, SIDE, 3), None)
