"""Pictures of attacks that train something first: never unasked, once, and left cleanly."""

from __future__ import annotations

import json
import sys

import pytest

from bdtune import cli
from bdtune.engine.execute import Event
from bdtune.engine.input_source import PluginSource
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Tick
from bdtune.plugins import registry
from bdtune.report.stages import LINE_EVERY_S, StageProgress, described
from bdtune.testing.small import quick
from bdtune.training.supervised import Supervised

DATA = ["dataset=digits", "dataset.train_limit=80", "dataset.test_limit=30", "numerics.precision=fp32"]


def dotted(knobs, prefix="attack"):
    for name, value in knobs.items():
        if isinstance(value, dict) and "name" not in value:
            yield from dotted(value, f"{prefix}.{name}")
        elif isinstance(value, dict):
            inner = ", ".join(f"{key}: {each}" for key, each in value.items())
            yield f"{prefix}.{name}={{{inner}}}"
        else:
            yield f"{prefix}.{name}={list(value) if isinstance(value, tuple) else value}"


@pytest.fixture
def show(monkeypatch, capsys, tmp_path):
    """Run `bdtune show attack`; returns (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDTUNE_HOME", str(tmp_path / "runs"))

    def run(name: str, *words: str) -> tuple[int, str, str]:
        settings = [*DATA, *dotted(quick(registry.load("attacks", name)))]
        monkeypatch.setattr(sys, "argv", ["bdtune", "show", "attack", name, *settings, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def files(folder):
    return sorted(file.name for file in folder.rglob("*"))


@pytest.mark.parametrize("name", ["label_consistent", "trojan"])
def test_nothing_is_trained_unasked(show, tmp_path, name):
    code, out, err = show(name)
    assert code == 0
    assert "rate_basis" in out
    assert err.startswith("no picture: this attack first computes ")
    assert "--train" in err
    assert err.count("\n") == 1
    assert files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label_consistent", "dynamic"])
def test_what_it_needs_is_trained_once(show, tmp_path, name):
    code, out, err = show(name, "--train", "--json")
    assert code == 0
    assert json.loads(out)["name"] == name
    assert "computing" in err
    first = (tmp_path / f"{name}.png").read_bytes()
    for words in (["--train"], []):
        _, _, err = show(name, *words, "-o", "again.png")
        assert err == f"picture: {tmp_path / 'again.png'}\n"
        assert (tmp_path / "again.png").read_bytes() == first


def training(epochs):
    """A node of a training, whose inputs are of no matter."""
    return Node(Supervised(epochs=epochs), dict.fromkeys(("data", "subset", "model"), Anything(plugin=None)))


class Anything(PluginSource):
    """A source that may be any input."""

    @property
    def gives(self):
        return object


def test_what_would_be_trained_is_named_with_its_length_and_known_cost(show):
    _, _, err = show("label_consistent", "attack.robust.epochs=7")
    assert "computes robust_surrogate (7 epochs), crafted_images;" in err
    show("label_consistent", "--train")
    _, _, err = show("label_consistent", "attack.robust.epochs=7")
    assert "computes robust_surrogate (7 epochs), crafted_images, about " in err
    _, _, err = show("label_consistent", "attack.pgd.steps=3")
    assert "computes crafted_images, about " in err


def test_ctrl_c_leaves_cleanly_and_the_same_command_goes_on(show, tmp_path, monkeypatch):
    told = StageProgress.event

    def interrupt(self, event):
        told(self, event)
        if event.what == "tick":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StageProgress, "event", interrupt)
        code, out, err = show("label_consistent", "--train", "--json")
    assert code == 130
    assert json.loads(out)
    assert "interrupted; the same command goes on from here" in err
    assert files(tmp_path / "runs" / "store" / "leases") == []
    code, _, err = show("label_consistent", "--train")
    assert code == 0
    assert "all_samples" not in err
    assert (tmp_path / "label_consistent.png").exists()


def tick(epoch, epochs):
    return Tick(epoch, epochs, {}, Artefact)


class FakeTime:
    now = 100.0

    def __call__(self):
        return self.now


def test_plain_lines_come_now_and_then_with_the_time_that_is_left(capsys):
    clock = FakeTime()
    node = training(20)
    with StageProgress(clock=clock) as progress:
        progress.event(Event("started", node, "key"))
        for epoch in range(9, 20):  # eight were done before
            clock.now += LINE_EVERY_S / 2
            seconds = (epoch - 8) * LINE_EVERY_S / 2
            progress.event(Event("tick", node, "key", seconds, tick(epoch, 20)))
        progress.event(Event("computed", node, "key", 83.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "computing supervised (20 epochs)"
    assert lines[1] == "supervised: 10 of 20, about 1 min 15 s left"
    assert lines[-1] == "supervised: done in 1 min 23 s"
    assert len(lines) == 7


def test_a_terminal_gets_bars(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    node = training(2)
    with StageProgress() as progress:
        progress.event(Event("started", node, "key"))
        progress.event(Event("waiting", node, "other"))
        progress.event(Event("tick", node, "key", 1.0, tick(1, 2)))
        progress.event(Event("computed", node, "key", 2.0))
    err = capsys.readouterr().err
    assert "supervised" in err
    assert "2/2" in err
    assert err.count("another process") == 1


def test_stages_are_described_by_their_length():
    assert described(training(3)) == "supervised (3 epochs)"
    assert described(training(1)) == "supervised"
