"""The launch files: each parses, and its bdtune line is one that a sweep can be planned from."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from fnmatch import fnmatch
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


def test_slurm_takes_the_nodes_memory_and_leaves_account_and_partition_to_be_named():
    lines = (ROOT / "jobs/slurm.sbatch").read_text().splitlines()
    assert "#SBATCH --mem=0" in lines
    assert {"##SBATCH --account=ACCOUNT", "##SBATCH --partition=PARTITION"} <= set(lines)


@pytest.fixture
def slurm(tmp_path):
    """The Slurm file with stand-ins for Slurm's commands, which note their words; returns (file, notes)."""
    notes, commands, shared = tmp_path / "notes", tmp_path / "bin", tmp_path / "shared"
    (shared / "bdtune/.venv/bin").mkdir(parents=True)
    (shared / "bdtune/.venv/bin/activate").write_text("")
    commands.mkdir()
    for name, last in (
        ("scontrol", '[ "$1" = requeue ] || printf "one\\ntwo\\n"'),
        ("srun", "exec sleep 20"),
    ):
        file = commands / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> {notes}\n{last}\n')
        file.chmod(0o755)
    file = tmp_path / "slurm.sbatch"
    text = (ROOT / "jobs/slurm.sbatch").read_text()
    file.write_text(text.replace("SHARED=/shared/$USER", f"SHARED={shared}\nPATH={commands}:$PATH"))
    return file, notes


def test_slurm_starts_ray_on_the_first_node_and_queues_again_when_time_is_up(slurm):
    file, notes = slurm
    names = {
        "JOB_ID": 7,
        "JOB_NODELIST": "n[1-2]",
        "JOB_NUM_NODES": 2,
        "CPUS_PER_TASK": 32,
        "GPUS_ON_NODE": 4,
    }
    environment = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in names.items()}}
    with subprocess.Popen(["bash", str(file)], env=environment, start_new_session=True) as job:
        deadline = time.monotonic() + 20
        while "srun" not in (notes.read_text() if notes.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.terminate()
        job.wait(timeout=20)
        os.killpg(job.pid, signal.SIGKILL)  # what Slurm would do to the step
    asked, step, again = notes.read_text().splitlines()
    assert asked == "scontrol show hostnames n[1-2]"
    assert (
        "ray symmetric-run --address one:6379 --min-nodes 2 --num-cpus 32 --num-gpus 4 -- bdtune sweep"
        in step
    )
    assert again == "scontrol requeue 7"


def test_the_image_holds_what_pip_needs_and_nothing_that_is_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    untracked = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert {name.removeprefix("**/") for name in ignored} >= untracked | {".git"}
    needed = ("bdtune", "search_spaces", "README.md", "LICENSE", "pyproject.toml", "constraints.txt")
    assert not [name for name in needed if any(fnmatch(name, each) for each in ignored)]


def test_kuberay_asks_for_no_pool_of_its_own_and_tolerates_gpu_nodes():
    text = (ROOT / "jobs/kuberay.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    [worker] = [group["template"]["spec"] for group in spec["workerGroupSpecs"]]
    assert "nodeSelector" not in worker
    assert "nodeSelector" not in spec["headGroupSpec"]["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]


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
