from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.networks.resnet import PreActBlock, Shortcut


def parameters(name, num_classes=10, side=32, **knobs) -> int:
    with torch.device("meta"):
        network = bdtune.model(name, **knobs).build(num_classes, (side, side, 3))
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        # LfD card, table of teachers
        ("resnet_s1", {}, 2_606),
        ("resnet_s1", {"stem_width": 1}, 146),
        ("resnet_s", {}, 3_658),
        ("resnet_s", {"stem_width": 2}, 612),
        ("resnet_s2", {}, 4_903_242),
        ("vgg_s", {}, 181_434),
        ("lenet_s", {}, 1_358),
        ("lenet", {}, 62_006),
        ("mobilenetv2_s", {}, 942),
        # the usual CIFAR forms
        ("resnet18", {}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("preactresnet18", {}, 11_172_170),
        ("vgg16", {}, 14_728_266),
        (
            "vgg16",
            {"batch_norm": False, "classifier": "imagenet"},
            134_301_514,
        ),  # torchvision's with 10 classes
        ("mobilenet_v2", {}, 2_236_682),
        ("densenet121", {}, 6_956_298),
        ("wrn", {}, 175_066),
        # Zagoruyko and Komodakis, table 4: 0.6, 11.0 and 36.5 million
        ("wrn", {"depth": 40}, 563_930),
        ("wrn", {"widen": 8}, 10_961_370),
        ("wrn", {"depth": 28, "widen": 10}, 36_479_194),
    ],
)
def test_parameters_at_ten_classes(name, knobs, expected):
    assert parameters(name, **knobs) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v2", "densenet121"])
def test_imagenet_form_has_torchvisions_shapes(name):
    import torchvision

    with torch.device("meta"):
        ours = bdtune.model(name).build(1000, (224, 224, 3))
        theirs = getattr(torchvision.models, name)(weights=None)
    shapes = [sorted(str(tuple(weight.shape)) for weight in net.parameters()) for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_resnet18_computes_what_torchvisions_does():
    import torchvision

    torch.manual_seed(0)
    ours = bdtune.model("resnet18").build(5, (96, 96, 3)).eval()
    theirs = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(ours(images), theirs(images))


def test_stem_follows_the_image_side():
    def stride(side, stem):
        with torch.device("meta"):
            return bdtune.model("resnet18", stem=stem).build(2, (side, side, 3)).body[0].stride[0]

    assert [stride(64, "auto"), stride(65, "auto"), stride(32, "imagenet"), stride(224, "cifar")] == [
        1,
        2,
        2,
        1,
    ]


def test_width_scales_the_features():
    assert bdtune.model("resnet18", width=16).build(2, (16, 16, 3)).feature_dim == 128


def test_a_wide_network_has_three_stages_of_whole_blocks():
    network = bdtune.model("wrn", widen=2).build(2, (32, 32, 3))
    assert network.feature_dim == 128
    assert network.body[0].weight.shape[0] == 16  # the first convolution is not widened
    assert sum(isinstance(part, PreActBlock) for part in network.body) == 6
    assert network.body(torch.rand(1, 3, 32, 32)).shape[2:] == (8, 8)
    with pytest.raises(ValidationError, match="6 n"):
        bdtune.model("wrn", depth=18)


def test_lenet_says_at_planning_time_what_it_needs(tmp_path):
    from PIL import Image

    from bdtune.config.load import load_trial
    from bdtune.errors import ConfigError

    assert not bdtune.model("lenet_s").check((16, 16, 3))
    assert not bdtune.model("lenet").check((16, 20, 3))
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "small" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    words = ["dataset=imagefolder", "dataset.path=small", "dataset.num_classes=2"]
    words += [f"data_root={tmp_path}", "defense=lfd"]
    with pytest.raises(ConfigError) as error:
        load_trial(None, [*words, "model=lenet_s", "defense.teacher.model=lenet"])
    found = {problem.path: str(problem) for problem in error.value.problems}
    assert set(found) == {"model", "defense.teacher.model"}
    assert all("at least 16 pixels a side, got 8 pixels" in said for said in found.values())
    assert load_trial(None, [*words, "model=lenet_s", "dataset.image_size=16"])


@pytest.mark.parametrize("name", ["lenet", "lenet_s"])
def test_lenet_refuses_tiny_images(name):
    with pytest.raises(ValueError, match="at least 16 pixels"):
        bdtune.model(name).build(2, (8, 8, 3))


def test_lenet_has_the_layers_of_lenet_5():
    """Grey images and 10 classes: the maps and units of the paper's figure 2, C1 to F6."""
    network = bdtune.model("lenet").build(10, (32, 32, 1))
    shapes = []
    for layer in network.body:
        layer.register_forward_hook(lambda _layer, _seen, out: shapes.append(tuple(out.shape[1:])))
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    weighted = [s for s, layer in zip(shapes, network.body, strict=True) if list(layer.parameters())]
    assert weighted == [(6, 28, 28), (16, 10, 10), (120,), (84,)]
    pooled = [s for s, e in zip(shapes, network.body, strict=True) if isinstance(e, torch.nn.MaxPool2d)]
    assert pooled == [(6, 14, 14), (16, 5, 5)]


def test_width_is_checked():
    with pytest.raises(ValidationError, match="width"):
        bdtune.model("resnet18", width=0)


def test_describing_a_network_loads_no_torch():
    code = "import sys, bdtune; bdtune.model('resnet18'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_shortcut_is_a_convolution_with_a_stride(channels):
    torch.manual_seed(0)
    shortcut = Shortcut(channels, 2 * channels, 2)
    images = torch.randn(2, channels, 9, 8)
    plain = torch.nn.functional.conv2d(images, shortcut.weight, stride=2)
    assert torch.allclose(shortcut(images), plain, atol=1e-6)


def test_narrow_networks_learn_on_images_of_64_pixels():
    """A 1x1 convolution with a stride and few channels used to write beyond its buffers here."""
    network = bdtune.model("resnet18", width=4).build(3, (64, 64, 3)).to(memory_format=torch.channels_last)
    for _ in range(4):
        images = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last)
        network(images).square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_a_preactresnet_may_lack_its_last_norm():
    without = bdtune.model("preactresnet18", final_norm=False)
    names = {name for name, _ in without.build(3, (32, 32, 3)).named_parameters()}
    assert {name.partition(".")[0] for name in names} == {"body", "head"}
    assert "body.9.weight" not in names
