"""What the pages say holds: their code runs, their commands parse, their links lead somewhere.

To write the tables of plugins anew: python -m tests.contracts.test_readme
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from bdtune import cli, testing
from bdtune.config.campaign import is_campaign, load_campaign
from bdtune.config.expand import points
from bdtune.config.load import load_sweep, search_spaces, split_words
from bdtune.config.search import preview
from bdtune.config.sweep import SweepSpec
from bdtune.config.trial import TrialSpec
from bdtune.plugins import registry
from bdtune.plugins.attack import Attack
from bdtune.plugins.metric import METRICS
from bdtune.source import is_own
from bdtune.testing.cases import cases, plugins_outside
from bdtune.tuning.samplers import SAMPLERS
from bdtune.tuning.schedulers import SCHEDULERS
from bdtune.verbs import run

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "search_spaces/README.md",
        "bdtune/README.md",
        "bdtune/plugins/README.md",
        "jobs/README.md",
        "tests/benchmarks/README.md",
        ".github/CONTRIBUTING.md",
        ".github/CHANGELOG.md",
    )
}
AUTHORS = "bdtune/plugins/README.md"
BEGIN, END = "<!-- plugins -->", "<!-- end of plugins -->"
HEADINGS = {"attacks": "attack", "defenses": "defense", "datasets": "data set", "models": "model"}
EXAMPLES = {
    "class Frame(": "attacks/frame",
    "class LossFilter(": "defenses/loss_filter",
    "class LastLayer(": "defenses/last_layer",
    "class Stripes(": "datasets/stripes",
    "class Linear(": "models/linear",
    "WORST_CLASS =": "metrics/worst_class",
    "MINE =": "samplers/mine",
    "PATIENT =": "schedulers/patient",
}
"""What the code of an example holds, and the file that it is."""


def blocks(language):
    """Return the fenced blocks of a language on all pages, each with its page."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [pytest.param(code, id=page) for page, text in PAGES.items() for code in fence.findall(text)]


def lines(language):
    """Return the commands in the blocks of a language."""
    every = [line for block in blocks(language) for line in block.values[0].splitlines()]
    return [shlex.split(line, comments=True) for line in every]


COMMANDS = [words for words in lines("sh") if words]


def own_names(kind):
    """Return the package's own plugins of a kind: those of tests are elsewhere."""
    return [name for name, place in sorted(registry.places(kind).items()) if is_own(place.module)]


def tables():
    """Return the tables of all kinds, from the docstrings of the plugins' files."""
    parts = []
    for kind, heading in HEADINGS.items():
        rows = [f"| {heading} | what it is | source |", "| --- | --- | --- |"]
        for name in own_names(kind):
            about = registry.describe(kind, name)
            cells = (f"`{name}`", about.summary.removesuffix("."), about.source.removesuffix("."))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Save each example as the file that it is; return the folder."""
    folder = tmp_path_factory.mktemp("examples")
    for block in blocks("python"):
        (code,) = block.values
        for mark, name in EXAMPLES.items():
            if mark in code:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / f"{name}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDTUNE_PLUGINS", str(folder))
        yield folder


def test_the_tables_of_plugins_are_those_of_their_files():
    written = PAGES[AUTHORS].partition(BEGIN)[2].partition(END)[0].strip()
    assert written == tables(), "write the tables anew: python -m tests.contracts.test_readme"


SWEEPS = "bdtune.sweep("  # run in a process of its own by tests/test_python.py


@pytest.mark.parametrize(
    "code",
    [block for block in blocks("python") if not any(mark in block.values[0] for mark in (*EXAMPLES, SWEEPS))],
)
def test_python_runs(code):
    exec(compile(code, "page", "exec"), {"__name__": "page"})


def test_every_example_is_on_a_page(examples):
    assert all((examples / f"{name}.py").exists() for name in EXAMPLES.values())
    assert len((examples / "defenses/loss_filter.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (testing.check_attack, "frame"),
        (testing.check_defense, "loss_filter"),
        (testing.check_defense, "last_layer"),
        (testing.check_dataset, "stripes"),
        (testing.check_model, "linear"),
        (METRICS.find, "worst_class"),
        (SAMPLERS.find, "mine"),
        (SCHEDULERS.find, "patient"),
    ],
    ids=list(EXAMPLES.values()),
)
def test_examples_keep_the_promises_of_their_kind(examples, check, name):
    check(name)


def test_pytest_finds_the_promises_of_examples(examples):
    found = {f"{case.kind}/{case.name}" for case in cases(plugins_outside())}
    assert found == set(EXAMPLES.values())


@pytest.mark.slow
def test_a_trial_runs_with_the_examples(examples, tmp_path):
    small = ["dataset.train_limit=200", "dataset.test_limit=100", "numerics.device=cpu"]
    epochs = [f"defense.{stage}.epochs=1" for stage in ("warmup", "train")]
    plugins = ["dataset=digits", "attack=frame", "defense=loss_filter", "model=linear"]
    words = [*plugins, *small, *epochs, "evaluation.metrics=[worst_class]"]
    result = run.run(None, words, tmp_path, quiet=True)
    trial = next(trial for trial in result.trials if trial.id == result.best)
    assert trial.status == "done"
    assert {"acc", "asr", "der", "worst_class"} <= trial.metrics.keys()
    assert {"warmup", "keep", "classifier"} <= trial.stages.keys()


def test_examples_of_search_and_scheduler_are_read(examples, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "{trial: {dataset: stripes, defense: none}, scheduler: {name: patient, last: 2},"
        " search: {sampler: mine, trials: 2, space: {defense.train.lr: {uniform: [0.01, 0.1]}}}}"
    )
    spec = load_sweep(str(tmp_path / "s.yaml"))
    assert (spec.search.sampler, spec.scheduler.last) == ("mine", 2)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_search_spaces_on_pages_expand(text, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    if is_campaign(file):
        assert len(load_campaign(str(file), check_data=False).sweeps) > 1
        return
    spec = load_sweep(str(file))
    assert len(points(spec) if spec.search is None else preview(spec, 20)) > 1


@pytest.mark.parametrize("spec", [SweepSpec, TrialSpec], ids=lambda spec: spec.__name__)
def test_every_key_of_a_search_space_is_explained(spec):
    first = re.findall(r"^\| ([^|]*) \|", PAGES["search_spaces/README.md"], re.MULTILINE)
    explained = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert set(spec.model_fields) <= explained


def parsed(words):
    """Parse a bdtune command as the command line does, without running it."""
    command = typer.main.get_command(cli.app)
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(command.name, list(words)).params


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_on_pages_can_be_run(words):
    program, *rest = [word for word in words if not word.startswith("BDTUNE_PLUGINS=")]
    if program == "bdtune":
        params = parsed(rest)
        if rest[0] in ("sweep", "plan"):
            file, overrides = split_words(params["words"])
            if is_campaign(file):
                assert load_campaign(file, overrides, check_data=False).sweeps
            else:
                assert points(load_sweep(file, overrides, check_data=False))
    elif "-m" in rest and program == "python":
        assert importlib.util.find_spec(rest[rest.index("-m") + 1])
    elif "--pyargs" in rest:
        assert importlib.util.find_spec(rest[rest.index("--pyargs") + 1])
    else:
        assert program == "pytest" or (ROOT / program).exists()


def test_the_table_of_commands_is_complete():
    rows = re.findall(r"^\| `bdtune ([^`]*)`(.*?) \|", PAGES["README.md"], re.MULTILINE)
    rows += [("doctor", "")] * bool(re.search(r"^\| .*`bdtune doctor`", PAGES["README.md"], re.MULTILINE))
    for words, _ in rows:
        parsed(shlex.split(words))
    assert {words.split()[0] for words, _ in rows} == set(typer.main.get_command(cli.app).commands)


def test_sweeps_that_pages_name_exist():
    named = {name for text in PAGES.values() for name in re.findall(r"`bdtune sweep ([\w/]+)(?: |`)", text)}
    assert named - {"NAME"} <= {space.name for space in search_spaces()}


def test_what_authors_are_told_to_import_is_there_and_has_what_they_read():
    rows = re.findall(r"^\| `(\w+)` \| `(bdtune[\w.]+)` \| (.*) \|$", PAGES[AUTHORS], re.MULTILINE)
    assert len(rows) >= 9
    for name, module, has in rows:
        found = getattr(importlib.import_module(module), name)
        known = {*dir(found), *getattr(found, "__annotations__", {}), "diagnose", "figure", "check"}
        named = set(re.findall(r"`([a-z]\w*)`", has))
        assert named <= known, f"{name} has no {named - known}"


def test_what_an_attack_may_override_is_in_its_contract():
    section = PAGES[AUTHORS].partition("### An attack\n")[2].partition("\n### ")[0]
    named = set(re.findall(r"`(?:self\.)?([a-z_]+)(?:\(\w+\))?`", section)) - {"name"}
    assert len(named) >= 12
    assert not [name for name in named if not hasattr(Attack, name)]


def test_entry_points_on_the_page_are_those_that_are_read():
    groups = [tomllib.loads(block.values[0])["project"]["entry-points"] for block in blocks("toml")]
    assert groups
    assert all(group.removeprefix("bdtune.") in registry.EVERY for each in groups for group in each)


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    )
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_in_plain_words_and_short_lines(page):
    prose = [line for line in PAGES[page].splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 150
    assert not re.search(r"\b(twins?|told|tells?|passes on|outbox)\b", "\n".join(prose))


if __name__ == "__main__":
    before, _, rest = PAGES[AUTHORS].partition(BEGIN)
    after = rest.partition(END)[2]
    (ROOT / AUTHORS).write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", encoding="utf-8")
