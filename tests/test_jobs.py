"""The launch files: each parses, and its bdtune line is one that a sweep can be planned from."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from bdtune import cli
from bdtune.config.expand import points
from bdtune.config.load import load_sweep, split_words

ROOT = Path(__file__).parents[1]
FILES = sorted(file for file in (ROOT / "jobs").iterdir() if file.suffix != ".md")
SCRIPTS = [file for file in FILES if file.suffix != ".yaml"]


def lines_of(file):
    """Return a file's lines without comments, continued ones joined."""
    text = file.read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def bdtune_words(file):
    """Return the words after `bdtune` in the last line, as a shell would give them."""
    line = lines_of(file)[-1]
    found = re.search(r"(?:^|\s)bdtune (.+?)( & wait)?$", line)
    assert found, f"{file} does not end in a bdtune line: {line}"
    return shlex.split(found[1].replace("$SHARED", "/shared"))


def options_of(words):
    """Parse a command line as bdtune does, without running it; returns (verb, parameters)."""
    verb, *rest = words
    command = typer.main.get_command(cli.app).commands[verb]
    return verb, command.make_context(verb, rest).params


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_bdtune_line_plans(file):
    verb, params = options_of(bdtune_words(file))
    assert verb == "sweep"
    assert params["address"] == "auto"
    spec = load_sweep(*split_words(params["words"]), check_data=False)
    assert len(points(spec)) > 1
    assert spec.resources.gpu > 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_bdtune_is_called_once_and_the_network_is_spoken_of(file):
    assert sum(len(re.findall(r"(?:^|\s)bdtune (?:sweep|run|plan)\b", line)) for line in lines_of(file)) == 1
    assert "token" in file.read_text()
    assert max(map(len, file.read_text().splitlines())) <= 120


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_valid_bash(file):
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert "set -euo pipefail" in file.read_text()


def test_slurm_runs_one_task_per_node_and_queues_again():
    text = (ROOT / "jobs/slurm.sbatch").read_text()
    for option in ("--ntasks-per-node=1", "--exclusive", "--requeue", "--signal=B:TERM"):
        assert f"#SBATCH {option}" in text
    assert "scontrol requeue" in text
    # bash runs a trap only between commands, so the step must be waited for, not run in the foreground.
    assert text.rstrip().endswith("& wait")
    [run] = [line for line in lines_of(ROOT / "jobs/slurm.sbatch") if "symmetric-run" in line]
    assert all(word in run for word in ("--min-nodes", "--num-cpus", "--num-gpus", " -- "))


def test_kuberay_frees_its_nodes_and_has_the_tested_ray():
    text = (ROOT / "jobs/kuberay.yaml").read_text()
    job = yaml.safe_load(text)
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["shutdownAfterJobFinishes"] is True
    for limit in ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit"):
        assert spec[limit] > 0
    [pinned] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert spec["rayClusterSpec"]["rayVersion"] == pinned
    assert f"rayproject/ray:{pinned}-" in text
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["entrypoint"].startswith("bdtune sweep ")


def test_a_worker_of_the_kuberay_cluster_holds_a_trial():
    spec = yaml.safe_load((ROOT / "jobs/kuberay.yaml").read_text())["spec"]
    words = shlex.split(spec["entrypoint"])[1:]
    sweep = load_sweep(*split_words(options_of(words)[1]["words"]), check_data=False)
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert float(limits["cpu"]) >= sweep.resources.cpu
        assert float(limits["nvidia.com/gpu"]) >= sweep.resources.gpu
