"""Keys hold who owns a stage and, outside the package, its code."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

import cloudpickle
import pytest

from bdtune.engine.node import Node
from bdtune.engine.stage import Kind, Stage
from bdtune.errors import ConfigError
from bdtune.knobs import Knobs
from bdtune.plugins import registry
from bdtune.source import owner_of, source_digest
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLUGIN = '''
from typing import ClassVar
import numpy as np
from bdtune.plugins.defense import Defense
from bdtune.engine.stage import Artefact, Stage
from bdtune.training.supervised import Supervised
{imports}

class Pick(Stage):
    """Keep some rows."""
    name: ClassVar[str] = "pick"
    kind: ClassVar = "derive"

    def run(self, ctx, *, data):
        # which rows
        labels = np.asarray(data.labels)
        ids = np.arange(len(labels))[{rows}]
        return Artefact({{"ids": ids, "labels": labels[ids]}})

class Picky(Defense):
    train: Supervised = Supervised(epochs=1)

    def build(self, given):
        subset = given.node(Pick(), data=given.labels)
        last = given.node(self.train, data=given.fit, subset=subset, model=given.model)
        return {{"subset": subset, "classifier": last}}

    def baseline_training(self):
        return self.train
'''

KEYS = """
import os, sys
import sklearn.datasets
from bdtune.config.load import load_trial
from bdtune.trials.graph import trial_graph
SET = ["dataset=digits", "numerics.device=cpu", "numerics.precision=fp32"]
for line in sys.stdin:
    folder, *names = line.split()
    if os.fork() == 0:
        os.environ["BDTUNE_PLUGINS"] = folder
        sys.path.append(folder)
        try:
            trials = [load_trial(None, [*SET, f"defense={name}"]) for name in names]
            print(*(trial_graph(trial).evaluate.recipe for trial in trials), flush=True)
        except Exception as error:
            print("error", repr(str(error)), flush=True)
        os._exit(0)
    os.wait()
"""
"""Each line of folder and names is answered by a fork: fresh, and without importing everything anew."""


@pytest.fixture(scope="module")
def recipes() -> Iterator[Callable[..., str]]:
    """Ask what a fresh process calls the results of defenses in a plugin folder."""
    command = [sys.executable, "-c", KEYS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(folder: Path, *names: str) -> str:
            process.stdin.write(" ".join([str(folder), *names]) + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        yield ask
        process.stdin.close()


def write(folder: Path, name: str, rows: str = "::2", imports: str = "") -> None:
    (folder / "defenses").mkdir(exist_ok=True)
    text = PLUGIN.format(rows=rows, imports=imports)
    (folder / "defenses" / f"{name}.py").write_text(text)


@pytest.mark.slow
def test_plugins_do_not_share_results_of_stages_of_one_name(recipes, tmp_path):
    write(tmp_path, "one", rows="::2")
    write(tmp_path, "two", rows="::3")
    one, two = recipes(tmp_path, "one", "two").split()
    assert one != two


def test_an_edited_plugin_has_other_keys(recipes, tmp_path):
    write(tmp_path, "one", rows="::2")
    before = recipes(tmp_path, "one")
    write(tmp_path, "one", rows="1::2")
    assert recipes(tmp_path, "one") != before


def test_what_a_plugin_imports_from_its_folder_counts_as_its_code(recipes, tmp_path):
    (tmp_path / "my_rows.py").write_text("STEP = 2\n")
    write(tmp_path, "one", rows="::my_rows.STEP", imports="import my_rows")
    before = recipes(tmp_path, "one")
    (tmp_path / "my_rows.py").write_text("STEP = 3\n")
    assert recipes(tmp_path, "one") != before


def test_a_plugin_may_be_a_folder_whose_files_count_as_its_code(recipes, tmp_path):
    folder = tmp_path / "defenses" / "many"
    folder.mkdir(parents=True)
    (folder / "rows.py").write_text("STEP = 2\n")
    (folder / "__init__.py").write_text(PLUGIN.format(rows="::STEP", imports="from .rows import STEP"))
    before = recipes(tmp_path, "many")
    (folder / "rows.py").write_text("STEP = 3\n")
    after = recipes(tmp_path, "many")
    assert "error" not in before + after
    assert before != after


def test_an_installed_package_registers_plugins_by_entry_points(recipes, tmp_path):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "theirs.py").write_text(PLUGIN.format(rows="::2", imports=""))
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bdtune.defenses]\ntheirs = their_package.theirs\n")
    assert "error" not in recipes(tmp_path, "theirs")
    (about / "entry_points.txt").write_text("[bdtune.defenses]\nother = their_package.theirs\n")
    expected = "expected entry point 'other' of group 'bdtune.defenses' to be a module of that name"
    assert expected in ast.literal_eval(recipes(tmp_path, "other").removeprefix("error "))


def test_comments_docstrings_and_layout_do_not_count(recipes, tmp_path):
    write(tmp_path, "one")
    before = recipes(tmp_path, "one")
    file = tmp_path / "defenses" / "one.py"
    text = (
        file.read_text().replace("# which rows", "# every other row").replace("Keep some rows.", "Halve it.")
    )
    file.write_text(f'"""A defense."""\n\n\n{text}')
    assert recipes(tmp_path, "one") == before


def test_the_package_owns_its_trainings_and_each_plugin_its_stages():
    from bdtune.defenses.gssd.stages import CleanSplit

    assert Supervised.full_name() == "training.supervised"
    assert CleanSplit.full_name().startswith("defenses.gssd")
    assert (Supervised.code_digest, source_digest(Supervised, Knobs)) == (None, None)


class First(Stage):
    name: ClassVar[str] = "of_this_name"
    kind: ClassVar[Kind] = "derive"


def test_two_stages_of_one_name_and_owner_are_an_error_that_names_both_files():
    with pytest.raises(
        ConfigError, match=r"two stages are called '.*of_this_name': First in .*\.py and .*Second in"
    ):

        class Second(Stage):
            name: ClassVar[str] = "of_this_name"
            kind: ClassVar[Kind] = "derive"


def test_a_stage_with_its_ancestors_name_makes_no_node():
    class Quiet(First):
        pass

    with pytest.raises(ConfigError, match=r"Quiet in .* needs a `name` of its own"):
        Node(Quiet(), {})


def test_a_class_without_a_file_has_no_key_and_the_error_says_what_to_do():
    lost = type("Lost", (First,), {"__module__": "nowhere", "name": "lost", "__annotations__": {}})
    with pytest.raises(ConfigError, match="move it into a plugin file"):
        lost().identity()


def test_a_plugin_that_is_sent_by_value_keeps_its_digest(monkeypatch, tmp_path):
    write(tmp_path, "one")
    monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
    picky = registry.load("defenses", "one")
    module = sys.modules[picky.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        (tmp_path / "sent").write_bytes(cloudpickle.dumps(picky()))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    read = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).identity()['code_digest'])"
    command = [sys.executable, "-c", read, str(tmp_path / "sent")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert found == picky.code_digest


def test_a_subclass_outside_is_owned_by_its_module():
    assert owner_of(First) == First.__module__
    assert First.code_digest
