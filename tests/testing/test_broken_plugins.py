"""What an author sees of a plugin that breaks a promise: expected, got, and which line or node."""

from __future__ import annotations

from itertools import count

import pytest

from bdtune.config.load import load_trial
from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.plugins.presets import preset
from bdtune.testing.cases import cases, explained
from bdtune.verbs.doctor import examine
from tests.contracts.test_readme import EXAMPLES, blocks

pytestmark = pytest.mark.slow

SOURCES = {
    file: block.values[0]
    for block in blocks("python")
    for mark, file in EXAMPLES.items()
    if mark in block.values[0]
}
FRAME, FILTER = "attacks/frame", "defenses/loss_filter"
STRIPES, LINEAR = "datasets/stripes", "models/linear"
ONES, RETURNED = "stamped = np.ones_like(images)", "        return stamped"
LOSSES = 'losses = warmup.arrays["trace.losses"].mean(0)'
HEAD = "self.head = nn.Linear(int(np.prod(image_shape)), num_classes)"
numbers = count()


def line_of(text: str) -> int:
    """Return the line of the filter's file that begins a text."""
    before, _, _ = SOURCES[FILTER].partition(text)
    return before.count("\n") + 1


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Save an example with a change, under a name of its own; returns kind and name."""

    def save(file, old, new):
        assert old in SOURCES[file]
        kind, name = file.partition("/")[0], f"broken_{next(numbers)}"
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(SOURCES[file].replace(old, new))
        monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
        return kind, name

    return save


def reason(plugin, check):
    """Return what is said of one promise of a plugin, "" if it is kept."""
    [case] = [case for case in cases([plugin]) if case.check == check]
    try:
        return case.run() or ""
    except Exception as error:
        return explained(error, registry.places(plugin[0])[plugin[1]])


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "parts"),
    [
        (FRAME, "import numpy as np", "import numpy as np\nimport nosuch", 7, ["No module named 'nosuch'"]),
        (FRAME, ONES, ONES[:-1], 20, ["SyntaxError: '(' was never closed"]),
        (FRAME, "thickness: int = Field(1, ge=1)", "thickness = 1", 13, ["non-annotated", "`thickness = 1`"]),
        (FRAME, "def stamp(", "def stampp(", None, ["Frame to define stamp", "Did you mean 'stampp'?"]),
        (FRAME, "class Frame(DirtyLabelAttack)", "class Frame", None, ["based on Attack", "got none"]),
        (FILTER, "LossFilter(Defense)", "LossFilter(Stage)", None, ["based on Defense", "got none"]),
        (
            STRIPES,
            "class Stripes(",
            "class Other(Dataset):\n    pass\n\n\nclass Stripes(",
            None,
            ["expected one class based on Dataset", "got Other(Dataset), Stripes(Dataset)"],
        ),
        (LINEAR, "def build(", "def make(", None, ["expected class Linear to define build"]),
    ],
)
def test_what_keeps_a_file_from_being_loaded_is_one_line_with_its_place(broken, file, old, new, line, parts):
    kind, name = broken(file, old, new)
    with pytest.raises(ConfigError) as caught:
        registry.load(kind, name)
    text = str(caught.value)
    assert f"{name}.py:{line}:" in text if line else f"{name}.py:" in text
    assert all(part in text for part in parts)
    assert "\n" not in text
    assert reason((kind, name), "loads") == text
    assert len(list(cases([(kind, name)]))) == 1


def test_a_list_names_the_line_of_a_file_that_is_no_python(broken):
    kind, name = broken(FRAME, ONES, ONES[:-1])
    assert f"{name}.py:20: " in registry.describe(kind, name).summary


def test_a_file_that_failed_to_be_imported_is_tried_again(broken, tmp_path):
    kind, name = broken(FRAME, "import numpy as np", "import numpy as np\nimport nosuch")
    with pytest.raises(ConfigError):
        registry.load(kind, name)
    (tmp_path / kind / f"{name}.py").write_text(SOURCES[FRAME])
    assert registry.load(kind, name).plugin_name() == name


def test_a_plugin_with_the_name_of_another_is_not_passed_over(tmp_path, monkeypatch):
    from bdtune.testing.cases import plugins_outside

    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "badnets.py").write_text(SOURCES[FRAME])
    monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
    assert ("attacks", "badnets") in plugins_outside()
    assert "two: " in reason(("attacks", "badnets"), "loads")


@pytest.mark.parametrize(
    ("file", "old", "new", "check", "parts"),
    [
        (
            FRAME,
            ONES,
            "stamped = np.full_like(images, 255)",
            "stamp",
            ["expected values in [0, 1] from the train stamp (not 0 to 255)", "from 0 to 255"],
        ),
        (
            FRAME,
            RETURNED,
            f"{RETURNED} + 0.1",
            "stamp",
            ["train: values from 0.1 to 1.1", "test:", "are clipped"],
        ),
        (FRAME, ONES, f"{ONES} * np.nan", "stamp", ["expected finite values", "got NaN or infinity"]),
        (FRAME, ONES, f"{ONES}.astype(np.uint8)", "stamp", ["expected floats in [0, 1]", "got uint8"]),
        (FRAME, RETURNED, f"{RETURNED}[:, 1:]", "stamp", ["expected [12, 16, 16, 3]", "got [12, 15, 16, 3]"]),
        (FRAME, RETURNED, "", "stamp", ["expected an array", "got NoneType"]),
        (
            FRAME,
            ONES,
            f"{ONES} + np.zeros(7)",
            "trigger_shows",
            [".py:20: ValueError: operands could not be"],
        ),
        (
            FRAME,
            ONES,
            "stamped = np.random.default_rng().random(images.shape, np.float32)",
            "any_order_and_batches",
            ["training images ", "`self.generators(rows)`"],
        ),
        (
            FRAME,
            '    """Of the border, in pixels."""',
            "",
            "described",
            ["docstring below", "thickness have none"],
        ),
        (
            FILTER,
            '"classifier": train',
            '"clf": train',
            "chain",
            ["'classifier'", "subset, warmup, keep, clf"],
        ),
        (FILTER, "warmup=warmup, subset", "warmups=warmup, subset", "recipes", ["Did you mean 'warmup'?"]),
        (FILTER, "subset = given", "given.fit.images; subset = given", "chain", ["got given.fit.images"]),
        (
            FILTER,
            "        return self.train",
            "        return self.warmup",
            "chain",
            ["`Supervised`", "got Warmup"],
        ),
        (
            FILTER,
            "        return self.train",
            "        return Supervised(epochs=9)",
            "epochs",
            ["for 200", "for 9"],
        ),
        (
            FILTER,
            'arrays["trace.losses"]',
            'arrays["losses"]',
            "subsets",
            [f".py:{line_of(LOSSES)}: KeyError: 'losses' in node 'keep'"],
        ),
        (
            FILTER,
            LOSSES,
            'losses = np.random.random(len(subset.arrays["ids"]))',
            "derived_stages",
            ["derived node 'keep' gives another result", "`ctx.seed`"],
        ),
        (
            FILTER,
            LOSSES,
            f"import torch; {LOSSES}",
            "derived_stages",
            ["node 'keep' imports torch", "kind = 'train'"],
        ),
        (FILTER, "array[kept] for", "array[kept].astype(np.int32) for", "subsets", ["node 'keep'", "int32"]),
        (
            FILTER,
            "return Artefact({",
            "return ({",
            "subsets",
            ["expected an Artefact of node 'keep', got dict"],
        ),
        (
            STRIPES,
            "(0.3, 0.3, 0.3)  #",
            "(76, 76, 76)  #",
            "public_facts",
            ["`mean`", "between 0 and 1", "(76, 76, 76)"],
        ),
        (STRIPES, "    mean: ", "    average: ", "public_facts", ["expected the class to have mean"]),
        (
            STRIPES,
            "arrays=images)",
            "arrays=images / 255)",
            "records",
            ["uint8 [40, H, W, 3]", "got float64 [40, 16, 16, 3]"],
        ),
        (STRIPES, "Records(labels", "Records(list(labels)", "records", ["labels int64 [N]", "got list"]),
        (
            STRIPES,
            'default_rng(split == "train")',
            "default_rng()",
            "records",
            ["same train records each time"],
        ),
        (
            STRIPES,
            "        return Records(labels, arrays=images)",
            "",
            "records",
            ["expected Records", "got NoneType"],
        ),
        (LINEAR, "self.head = ", "self.last = ", "seed", ["`head` to be a torch.nn.Linear"]),
        (
            LINEAR,
            "images.flatten(1)",
            "images",
            "shapes",
            ["[2, 768]", "got [2, 3, 16, 16] for images of 16 pixels"],
        ),
        (
            LINEAR,
            HEAD,
            f"{HEAD}; self.scale = nn.Parameter(self.head.bias.data)",
            "gradients",
            ["scale have none"],
        ),
        (
            LINEAR,
            HEAD,
            f"{HEAD}; self.head.weight.data += float(np.random.rand())",
            "seed",
            ["head.weight differ"],
        ),
        (LINEAR, "num_classes)\n", "10)\n", "layers", ["`num_classes` logits, 3, got 10"]),
        (LINEAR, "class Flat(Network)", "class Flat(nn.Module)", "layers", ["to return a Network, got Flat"]),
    ],
)
def test_a_broken_promise_says_what_was_expected_and_got(broken, file, old, new, check, parts):
    plugin = broken(file, old, new)
    text = reason(plugin, check)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_a_result_that_follows_the_truth_is_named_by_its_node(broken):
    plugin = broken(FILTER, LOSSES, 'losses = np.random.random(len(subset.arrays["ids"]))')
    assert reason(plugin, "truth_is_not_read").startswith("the result of keep, classifier differs")


def test_a_bare_assert_is_quoted():
    def bare():
        assert [] == [1]

    place = registry.places("attacks")["badnets"]
    with pytest.raises(AssertionError) as caught:
        bare()
    assert "[] == [1]" in explained(caught.value, place)


@pytest.mark.parametrize("kind", registry.TABLES)
def test_entries_of_tables_are_tried(kind, tmp_path, monkeypatch):
    [(file, source)] = [(file, text) for file, text in SOURCES.items() if file.startswith(kind)]
    name = file.partition("/")[2]
    (tmp_path / kind).mkdir()
    (tmp_path / kind / f"{name}.py").write_text(source)
    monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
    [case] = cases([(kind, name)])
    assert case.run() is None


def test_a_metric_that_gives_no_number_is_refused(tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "listed.py").write_text(
        "from bdtune.plugins.metric import Metric\n"
        "LISTED = Metric('listed', 'a list', lambda predicted, labels, goals: [0.5], 'clean')\n"
    )
    monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
    assert "expected a finite number of (predicted, labels, goals), got [0.5]" in reason(
        ("metrics", "listed"), "metric"
    )


def test_a_plugin_that_cannot_be_loaded_stops_no_other(broken, tmp_path):
    _, attack = broken(FRAME, "import numpy as np", "import numpy as np\nimport nosuch")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "gone.py").write_text("import nosuch")
    assert preset("attacks", "gssd/badnets")[0] == "badnets"
    with pytest.raises(ConfigError, match="It is a knob of sig"):
        load_trial(None, ["dataset=digits", "attack={name: badnets, frequency: 3}"])
    [finding] = [each for each in examine(tmp_path) if each.about == "data set gone"]
    assert finding.severity == "problem"
    assert "gone.py:1: " in finding.text
    assert attack not in registry.loadable("attacks")
