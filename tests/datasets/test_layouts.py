from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from bdtune.errors import DataError
from bdtune.plugins import registry
from tests.datasets.layouts import picture, write_folder, write_parquet


def make(name, **knobs):
    return registry.load("datasets", name)(**knobs)


def no_counts(monkeypatch, name):
    """Let a tiny imitation pass for the data set."""
    monkeypatch.setattr(registry.load("datasets", name), "counts", {})


def test_digits_are_the_real_ones_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    train, test = make("digits").load("train"), make("digits").load("test")
    assert train.images.shape == (1347, 16, 16, 3)
    assert test.images.shape == (450, 16, 16, 3)
    both = np.bincount(load_digits().target)
    assert np.array_equal(np.bincount(train.labels) + np.bincount(test.labels), both)
    assert np.abs(np.bincount(train.labels) / both - 0.75).max() < 0.006
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def test_digits_are_read_out_of_scikit_learns_file_without_loading_it():
    code = """
import sys
from bdtune.datasets.digits import Digits, _shipped
assert len(Digits().load("train").labels) == 1347
assert "sklearn" not in sys.modules
from sklearn.datasets import load_digits
whole = load_digits()
levels, labels = _shipped()
assert (levels == whole.images).all() and levels.dtype == whole.images.dtype
assert (labels == whole.target).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_normalise_to_zero_and_one():
    dataset = make("digits", side=32)
    pixels = dataset.load("train").images / 255
    assert pixels.shape[1:] == (32, 32, 3)
    assert np.allclose(pixels.mean((0, 1, 2)), dataset.mean, atol=0.002)
    assert np.allclose(pixels.std((0, 1, 2)), dataset.std, atol=0.002)


def cifar_archive(root, reader, monkeypatch, key):
    """Write an archive of ten rows per batch in torchvision's form, and switch its digests off."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    batches = [name for name, _ in reader.train_list + reader.test_list]
    for attribute in ("train_list", "test_list"):
        unchecked = [[name, None] for name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, unchecked)
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    for name in batches:
        content = {"data": pixels.reshape(10, -1), key: list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {label}" for label in range(10)]
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps({reader.meta["key"]: names}))
    return pixels.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_out_of_torchvisions_archive(tmp_path, monkeypatch, below):
    pixels = cifar_archive(tmp_path / below, torchvision.datasets.CIFAR10, monkeypatch, "labels")
    no_counts(monkeypatch, "cifar10")
    dataset = make("cifar10")
    assert dataset.check(tmp_path) == []
    split = dataset.load("train", tmp_path)
    assert np.array_equal(split.images, np.concatenate([pixels] * 5))
    assert np.array_equal(split.labels, np.tile(np.arange(10), 5))
    assert split.class_names[3] == "class 3"


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    cifar_archive(tmp_path, torchvision.datasets.CIFAR100, monkeypatch, "fine_labels")
    cls = registry.load("datasets", "cifar100")
    monkeypatch.setattr(cls, "num_classes", 10)
    no_counts(monkeypatch, "cifar100")
    assert np.array_equal(make("cifar100").labels("test", tmp_path), np.arange(10))


def test_a_damaged_archive_is_named(tmp_path, monkeypatch):
    cifar_archive(tmp_path, torchvision.datasets.CIFAR10, monkeypatch, "labels")
    next((tmp_path / "cifar-10-batches-py").glob("data_batch_5")).unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py.*corrupted.*--download"):
        make("cifar10").load("train", tmp_path)


def own_batches(folder, sizes, *, words=str, protocol=4, **content):
    """Write training batches of some sizes and a test batch of ten rows; return the pixels [N, 3, 32, 32]."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{number + 1}" for number in range(len(sizes))), "test_batch"]
    pixels = np.random.default_rng(0).integers(0, 256, (sum(sizes) + 10, 3, 32, 32), dtype=np.uint8)
    labels, start = np.arange(len(pixels)) % 10, 0
    for name, size in zip(names, (*sizes, 10), strict=True):
        rows = slice(start, start + size)
        batch = {"data": pixels[rows].reshape(size, -1), "labels": labels[rows].tolist(), **content}
        batch = {key.encode() if words is bytes else key: value for key, value in batch.items()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        start += size
    return pixels


@pytest.mark.parametrize(("words", "protocol"), [(str, 2), (bytes, 4), (str, 5)])
def test_batches_of_any_size_are_read_when_the_user_says_so(tmp_path, words, protocol):
    pixels = own_batches(tmp_path / "cifar-10-batches-py", (20, 10), words=words, protocol=protocol)
    with pytest.raises(DataError, match=r"CIFAR10's archive.*dataset\.verify to false"):
        make("cifar10").load("train", tmp_path)
    dataset = make("cifar10", verify=False)
    assert dataset.check(tmp_path) == []
    train, test = (dataset.load(split, tmp_path) for split in ("train", "test"))
    assert np.array_equal(np.concatenate([train.images, test.images]), pixels.transpose(0, 2, 3, 1))
    assert np.array_equal(train.labels, np.arange(30) % 10)
    with pytest.raises(DataError):  # what was read unchecked does not pass for checked
        make("cifar10").load("train", tmp_path)


def test_more_than_nine_batches_are_read_in_the_order_of_their_numbers(tmp_path):
    pixels = own_batches(tmp_path / "cifar-10-batches-py", (10,) * 11)
    train = make("cifar10", verify=False).load("train", tmp_path)
    assert np.array_equal(train.images, pixels[:-10].transpose(0, 2, 3, 1))


def test_the_published_archive_is_the_same_data_set_unverified(tmp_path, monkeypatch):
    cifar_archive(tmp_path, torchvision.datasets.CIFAR10, monkeypatch, "labels")
    no_counts(monkeypatch, "cifar10")
    checked, unchecked = (make("cifar10", verify=verify) for verify in (True, False))
    assert checked.identity() == unchecked.identity()
    assert checked.fingerprint(tmp_path) == unchecked.fingerprint(tmp_path)
    splits = [dataset.load("train", tmp_path) for dataset in (checked, unchecked)]
    assert np.array_equal(splits[0].images, splits[1].images)
    assert splits[0].class_names == splits[1].class_names


def test_cifar100_of_any_size(tmp_path):
    rows = np.arange(200) % 100
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        batch = {
            b"data": np.zeros((200, 3072), np.uint8),
            b"fine_labels": rows.tolist(),
            b"coarse_labels": [0],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    assert np.array_equal(make("cifar100", verify=False).labels("test", tmp_path), rows)


class Harmful:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_no_code_in_a_batch_is_run(tmp_path):
    own_batches(tmp_path / "cifar-10-batches-py", (10,), batch_label=Harmful(tmp_path / "made"))
    with pytest.raises(DataError, match=r"plain values.*mkdir, which could run code"):
        make("cifar10", verify=False).load("train", tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"data": np.zeros((10, 99), np.uint8)},
            r"uint8 rows of 3072 pixels under 'data', got uint8 \[10, 99\]",
        ),
        ({"data": np.zeros((10, 3072))}, "got float64"),
        ({"data": None}, "got None"),
        ({"labels": [1, 2]}, r"10 whole numbers under 'labels' or 'fine_labels', got 2"),
        ({"labels": ["cat"] * 10}, "10 whole numbers"),
        ({"labels": [[1], [2, 3]]}, "10 whole numbers"),
    ],
)
def test_batches_of_another_form_are_refused(tmp_path, content, expected):
    own_batches(tmp_path / "cifar-10-batches-py", (10,), **content)
    with pytest.raises(DataError, match=expected):
        make("cifar10", verify=False).load("train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"nothing", pickle.dumps([1]), pickle.dumps({"data": 1})[:-4]])
def test_a_batch_that_is_no_pickled_dictionary_is_refused(tmp_path, content):
    own_batches(tmp_path / "cifar-10-batches-py", (10,))
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1.*a pickled dictionary of plain values"):
        make("cifar10", verify=False).load("train", tmp_path)


def test_a_folder_without_batches_is_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="a file data_batch_1"):
        make("cifar10", verify=False).load("train", tmp_path)


def mnist_files(folder, count=20):
    """Write both splits in MNIST's form; return the pixels [2, count, 28, 28]."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, count, 28, 28), dtype=np.uint8)
    for prefix, own in zip(("train", "t10k"), pixels, strict=True):
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", own), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
    return pixels


@pytest.mark.parametrize("below", ["", "mnist"])
def test_mnist_out_of_torchvisions_files(tmp_path, monkeypatch, below):
    pixels = mnist_files(tmp_path / below / "MNIST" / "raw")
    no_counts(monkeypatch, "mnist")
    dataset = make("mnist")
    assert dataset.check(tmp_path) == []
    for split, own in zip(("train", "test"), pixels, strict=True):
        loaded = dataset.load(split, tmp_path)
        assert np.array_equal(loaded.images, np.stack([own] * 3, axis=3))
        assert np.array_equal(loaded.labels, np.arange(20) % 10)
        reader = torchvision.datasets.MNIST(str(tmp_path / below), train=split == "train")
        assert np.array_equal(loaded.images[..., 0], reader.data.numpy())
        assert np.array_equal(loaded.labels, reader.targets.numpy())
    assert make("mnist", image_size=32).load("test", tmp_path).images.shape == (20, 32, 32, 3)


def test_mnist_out_of_parquet(tmp_path, monkeypatch):
    no_counts(monkeypatch, "mnist")
    for split in ("train", "test"):
        write_parquet(tmp_path / "mnist" / f"{split}.parquet", np.arange(20) % 10, sides=28)
    assert make("mnist").load("train", tmp_path).images.shape == (20, 28, 28, 3)


def test_mnist_knows_the_size_of_each_class():
    train, test = (registry.load("datasets", "mnist").counts[split][0] for split in ("train", "test"))
    assert (sum(train), sum(test), len(train), len(test)) == (60000, 10000, 10, 10)


@pytest.mark.parametrize(
    ("content", "got"),
    [(b"", "0 other bytes"), (bytes([0, 0, 8, 1]), "4 other bytes"), (b"x" * 900, "900 other bytes")],
)
def test_damaged_files_of_mnist_are_named(tmp_path, content, got):
    mnist_files(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte.*IDX file of uint8 with 3 axes.*{got}"):
        make("mnist").load("train", tmp_path)


def test_absent_and_short_files_of_mnist_are_named(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    mnist_files(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.*No such file"):
        make("mnist").load("test", tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1]))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.*expected 20 labels, got 2"):
        make("mnist").load("train", tmp_path)


@pytest.mark.parametrize("training", ["Training", "Final_Training/Images"])
def test_gtsrb_out_of_its_folders(tmp_path, monkeypatch, training):
    no_counts(monkeypatch, "gtsrb")
    base = tmp_path / "gtsrb"
    write_folder(base / "GTSRB" / training, {f"{label:05d}": 2 for label in range(43)}, side=20, suffix="ppm")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    lines = ["Filename;Width;Height;ClassId"]
    for row in range(43):
        picture(row, side=20 + row % 3).save(images / f"{row:05d}.ppm")
        lines.append(f"{row:05d}.ppm;20;20;{42 - row}")
    (base / "GT-final_test.csv").write_text("\n".join(lines))
    dataset = make("gtsrb")
    assert dataset.check(tmp_path) == []
    assert dataset.load("train", tmp_path).images.shape == (86, 32, 32, 3)
    assert np.array_equal(dataset.load("test", tmp_path).labels, np.arange(42, -1, -1))


def test_gtsrb_accepts_both_editions_and_nothing_else():
    final, first = registry.load("datasets", "gtsrb").counts["train"]
    assert (sum(final), first) == (39209, 26640)
    assert sum(registry.load("datasets", "gtsrb").counts["test"][0]) == 12630


def test_tiny_imagenet_out_of_its_folder(tmp_path, monkeypatch):
    no_counts(monkeypatch, "tiny_imagenet")
    monkeypatch.setattr(registry.load("datasets", "tiny_imagenet"), "num_classes", 3)
    base = tmp_path / "tiny-imagenet-200"
    names = ["n01", "n02", "n03"]
    for name in names:
        write_folder(base / "train" / name, {"images": 2}, suffix="JPEG")
    (base / "val" / "images").mkdir(parents=True)
    for row, name in enumerate(reversed(names)):
        picture(row).save(base / "val" / "images" / f"val_{row}.JPEG")
        with (base / "val" / "val_annotations.txt").open("a") as file:
            file.write(f"val_{row}.JPEG\t{name}\t0\t0\t8\t8\n")
    dataset = make("tiny_imagenet")
    assert dataset.check(tmp_path) == []
    assert dataset.labels("train", tmp_path).tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.labels("test", tmp_path).tolist() == [2, 1, 0]


@pytest.mark.parametrize("by_name", [False, True])
def test_imagenet30_picks_its_classes_in_the_papers_order(tmp_path, by_name):
    from bdtune.datasets.imagenet30 import CLASSES

    wanted = [name.replace(" ", "_") for name in CLASSES] if by_name else list(CLASSES.values())
    folder = "imagenet30" if by_name else "imagenet"
    for split in ("train", "val"):
        write_folder(tmp_path / folder / split, dict.fromkeys(["n00000000", *wanted], 1), side=9)
    dataset = make("imagenet30", image_size=16)
    assert dataset.check(tmp_path) == []
    split = dataset.load("train", tmp_path)
    assert split.images.shape == (30, 16, 16, 3)
    assert split.class_names[0] == "acorn"
    assert dataset.selection("test", tmp_path).records.paths[0].parent.name == wanted[0]


def test_imagenet30_names_every_missing_class(tmp_path):
    write_folder(tmp_path / "imagenet" / "train", {"n12267677": 1})
    with pytest.raises(DataError, match=r"airliner \(n02690373\).*volcano \(n09472597\)") as error:
        make("imagenet30").load("train", tmp_path)
    assert "acorn" not in str(error.value)


def test_vggface2_30_splits_each_person_once(tmp_path):
    from bdtune.datasets.vggface2_30 import PEOPLE

    assert len(set(PEOPLE)) == 30
    image = tmp_path / "face.jpg"
    picture(0).save(image)
    for place, number in enumerate(PEOPLE):
        folder = tmp_path / "vggface2" / ("train" if place % 2 else "test") / f"n{number:06d}"
        folder.mkdir(parents=True)
        for row in range(380):
            os.link(image, folder / f"{row:04d}_01.jpg")
    dataset = make("vggface2_30")
    assert dataset.check(tmp_path) == []
    train, test = (set(dataset.selection(split, tmp_path).records.paths) for split in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (9000, 2250, 0)


def test_imagefolder_follows_the_sorted_names(tmp_path):
    write_folder(tmp_path / "mine" / "train", {"b": 2, "a": 1})
    write_folder(tmp_path / "mine" / "val", {"a": 1, "b": 1})
    dataset = make("imagefolder", path="mine", num_classes=2)
    assert dataset.check(tmp_path) == []
    assert dataset.load("train", tmp_path).labels.tolist() == [0, 1, 1]
    (tmp_path / "mine" / "val" / "b" / "0000.png").unlink()
    assert "images of all 2 classes, got none of 1" in str(dataset.check(tmp_path)[0])


def test_a_folders_fingerprint_follows_its_listing(tmp_path):
    write_folder(tmp_path / "mine" / "train", {"a": 1, "b": 1})
    write_folder(tmp_path / "mine" / "test", {"a": 1, "b": 1})
    dataset = make("imagefolder", path="mine", num_classes=2)
    before = dataset.fingerprint(tmp_path)
    picture(9).save(tmp_path / "mine" / "train" / "a" / "new.png")
    assert dataset.fingerprint(tmp_path) != before
    assert len(dataset.load("train", tmp_path)) == 3


@pytest.mark.parametrize("path", ["..", "../other", "/etc"])
def test_a_path_cannot_lead_out_of_the_root(tmp_path, path):
    with pytest.raises(DataError, match="a folder under data_root"):
        make("parquet", path=path, num_classes=2).load("train", tmp_path)


def test_parquet_in_parts_with_the_hubs_column_names(tmp_path):
    names = ["cat", "dog"]
    write_parquet(tmp_path / "x" / "data" / "train-0.parquet", [0, 1], label="fine_label", names=names)
    write_parquet(tmp_path / "x" / "data" / "train-1.parquet", [1], label="fine_label", names=names, first=2)
    split = make("parquet", path="x", num_classes=2).load("train", tmp_path)
    assert split.labels.tolist() == [0, 1, 1]
    assert split.class_names == ("cat", "dog")
    assert np.array_equal(split.images[2], np.asarray(picture(2)))


@pytest.mark.parametrize(
    ("labels", "label", "expected"),
    [
        ([0, 1], "target", "columns `image`.*got image, target"),
        ([0.5, 1.0], "label", "whole-number labels"),
        (["cat", "dog"], "label", "whole-number labels"),
        ([0, None], "label", "whole-number labels"),
    ],
)
def test_parquet_with_other_columns_is_refused(tmp_path, labels, label, expected):
    write_parquet(tmp_path / "x" / "train.parquet", labels, label=label)
    with pytest.raises(DataError, match=expected):
        make("parquet", path="x", num_classes=2).load("train", tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.parquet").write_text("nothing of the kind")
    with pytest.raises(DataError, match=r"train\.parquet.*a Parquet file"):
        make("parquet", path="x", num_classes=2).load("train", tmp_path)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets, "GTSRB", lambda *a, **k: asked.append((a, k)))
    make("gtsrb").download(tmp_path / "new")
    assert asked == [
        ((str(tmp_path / "new"),), {"download": True, "split": split}) for split in ("train", "test")
    ]


def test_a_failed_download_is_told(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match="to fetch CIFAR10 with torchvision, got no network"):
        make("cifar10").download(tmp_path)


CASES = {
    "digits": ("digits", {}),
    "cifar10": ("cifar10", {}),
    "gtsrb": ("gtsrb", {}),
    "tiny-imagenet-30": ("parquet", {"path": "tiny-imagenet-30", "num_classes": 30}),
}
ROOT = Path(os.environ.get("BDTUNE_DATA", "/nonexistent"))
FOUND = [name for name in CASES if name == "digits" or (ROOT / name / "train.parquet").is_file()]


@pytest.mark.parametrize("case", FOUND)
def test_real_data_that_is_there_passes_every_check(case):
    name, knobs = CASES[case]
    dataset = make(name, **knobs, train_limit=600)
    assert dataset.check() == []
    assert np.bincount(dataset.load("train").labels, minlength=dataset.num_classes).min() > 0
