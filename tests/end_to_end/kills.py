"""Killing the driver of a sweep at random moments and starting it again, until it is done."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bdtune.engine.node import config_hash_of
from bdtune.engine.store import Store

PLUGINS = Path(__file__).parent.parent / "plugins"
SPACE = """
name: small
trial:
  dataset: tiny
  attack: {name: badnets, rate: 0.2, target: 0}
  defense: {name: toy, prefix: {epochs: 4, seconds: PREFIX_S}, tail: {epochs: 4, seconds: TAIL_S}}
  model: linear
  numerics: {device: cpu, precision: fp32}
grid:
  defense.prefix.level: [0, 1]
  defense.beta: [0.3, 0.45, 0.5]
select: {metric: oracle_acc}
"""
LONGEST_S = 300.0
"""For one start of the sweep."""


class Runs:
    """Starts of one sweep in one run directory, each a process (and Ray session) of its own."""

    def __init__(self, folder: Path, slower: float = 1.0, *, space: str = SPACE) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.home, self.log, self.verb = folder / "runs", folder / "toy.log", "sweep"
        self.file = folder / "small.yaml"
        space = space.replace("PREFIX_S", f"{0.4 * slower}").replace("TAIL_S", f"{0.3 * slower}")
        self.file.write_text(space)

    def command(self, *words: str) -> list[str]:
        """Return the command line of the sweep or campaign."""
        own = [self.verb, str(self.file), "--json", "--cpus", "2"]
        return [sys.executable, "-m", "bdtune.cli", *own, *words]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of that command."""
        return {
            **os.environ,
            "BDTUNE_PLUGINS": str(PLUGINS),
            "BDTUNE_TOY_LOG": str(self.log),
            "BDTUNE_HOME": str(self.home),
            "RAY_AUTH_MODE": "disabled",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # by a script that put us behind
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with (self.folder / "stderr.txt").open("a") as errors:
            return subprocess.Popen(
                self.command(*words),
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def finish(self, *words: str) -> dict[str, Any]:
        """Run the sweep to its end and return what it prints."""
        process = self.start(*words)
        out, _ = process.communicate(timeout=LONGEST_S)
        assert process.returncode == 0, (self.folder / "stderr.txt").read_text()[-3000:]
        return json.loads(out)

    def sync(self) -> None:
        """Let MLflow have what it has not taken yet."""
        command = [sys.executable, "-m", "bdtune.cli", "sync", "--out", str(self.folder / "runs")]
        subprocess.run(command, check=True, capture_output=True, timeout=LONGEST_S)

    def wait_for(self, stage: str, count: int = 1) -> None:
        """Wait until so many starts of a stage are noted."""
        deadline = time.monotonic() + LONGEST_S
        while len(self.notes(stage)) < count:
            assert time.monotonic() < deadline, (self.folder / "stderr.txt").read_text()[-3000:]
            time.sleep(0.05)

    def notes(self, stage: str = "", what: str = "start") -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:  # the line that a killed process was writing
                continue
        return [note for note in found if note["stage"].startswith(stage) and note["what"] == what]

    @property
    def store(self) -> Store:
        return Store(self.home / "store")

    def computed_after_publishing(self) -> list[str]:
        """Return the toy stages that were started although their result was there."""
        store = self.store
        published: dict[str, float] = {}
        manifests = {manifest.key: manifest for manifest in store.entries()}
        for manifest in manifests.values():
            inputs = manifest.preimage["inputs"]
            digests = {}
            for name, value in inputs.items():
                if "key" in value:
                    digests[name] = manifests[value["key"]].digest
                elif "digest" in value:
                    digests[name] = value["digest"]
            identity = [manifest.preimage["knobs"], manifest.preimage["seed"], digests]
            name = json.dumps([manifest.name, identity], sort_keys=True)
            published[name] = (store.place.folder(manifest.key) / "manifest.json").stat().st_mtime
        starts = [
            (json.dumps([note["stage"], note["identity"]], sort_keys=True), note["time"])
            for note in self.notes()
        ]
        assert {name for name, _ in starts} <= published.keys(), "what began was published in the end"
        return [name for name, at in starts if at > published[name]]

    def published_twice(self) -> Counter[str]:
        """Return the stages that were published more often than the store has them."""
        lines = (self.store.root / "costs.jsonl").read_text().splitlines()
        manifests = self.store.entries()
        published = Counter(config_hash_of(manifest.preimage) for manifest in manifests)
        return Counter(json.loads(line)["config_hash"] for line in lines) - published

    def leftovers(self) -> list[str]:
        """Return leases, pins, failures, checkpoints, unfinished files and scratch folders that stayed."""
        root, store = self.home, self.home / "store"
        places = ("leases", "pins", "failed", "tmp/checkpoints", "quarantine")
        found = {path for place in places for path in (store / place).iterdir()}
        found |= {path for path in (store / "tmp").iterdir() if path.name != "checkpoints"}
        found |= {*root.glob("sweeps/*/tune/*"), *root.rglob(".*@*")}
        return sorted(str(path.relative_to(root)) for path in found)

    def differences(self, result: dict[str, Any], undisturbed: Runs, expected: dict[str, Any]) -> list[str]:
        """Return in what a disturbed sweep's end differs from an undisturbed one's."""
        statuses, runs_of = self.mlflow_runs()
        left = self.leftovers()
        wrong = {
            "other metrics": metrics(result) != metrics(expected),
            "other contents": digests(self) != digests(undisturbed),
            "computed again although it was published": self.computed_after_publishing(),
            "published twice": self.published_twice(),
            f"MLflow runs: {dict(statuses)}": statuses != {"FINISHED": len(result["trials"]) + 1},
            f"MLflow runs per trial: {dict(runs_of)}": runs_of != dict.fromkeys(metrics(result), 1),
            f"left: {left}": left,
        }
        return [difference for difference, is_so in wrong.items() if is_so]

    def mlflow_runs(self) -> tuple[Counter[str], Counter[str]]:
        """Return the runs' statuses, and how many runs each trial has."""
        with sqlite3.connect(self.home / "mlflow.db") as database:
            statuses = Counter(status for (status,) in database.execute("select status from runs"))
            named = database.execute("select value from tags where key = 'bdtune.trial'")
            trials = Counter(trial for (trial,) in named)
        database.close()
        return statuses, trials


def metrics(result: dict[str, Any]) -> dict[str, Any]:
    """Return status and metrics by trial."""
    return {trial["id"]: (trial["status"], trial["metrics"]) for trial in result["trials"]}


def by_setting(result: dict[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Return status and metrics by what varies: other waiting times make other trials."""
    varied = ("defense", "defense.prefix.level", "defense.beta")
    return {
        tuple(trial["params"].get(name) for name in varied): (trial["status"], trial["metrics"])
        for trial in result["trials"]
    }


def digests(runs: Runs) -> dict[str, str]:
    """Return the digest of each key's content."""
    return {manifest.key: manifest.digest for manifest in runs.store.entries()}
