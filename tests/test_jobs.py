"""The launch files: each parses, and its bdtune line is one that a sweep can be planned from."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
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


def bdtune_words(file, **environment):
    """Return the words after `bdtune` in the last line, as the shell gives them in such an environment."""
    line = lines_of(file)[-1]
    found = re.search(r"(?:^|\s)bdtune (.+?)(\) & wait -n)?$", line)
    assert found, f"{file} does not end in a bdtune line: {line}"
    script = f"set -u; SHARED=/shared; printf '%s\\n' {found[1]}"
    printed = subprocess.run(
        ["bash", "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    return printed.stdout.splitlines()


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


def test_slurm_runs_one_task_per_node_and_is_told_before_its_time_is_up():
    text = (ROOT / "jobs/slurm.sbatch").read_text()
    for option in ("--ntasks-per-node=1", "--exclusive", "--requeue", "--signal=B:USR1@180"):
        assert f"#SBATCH {option}" in text


@pytest.mark.parametrize("name", ["slurm.sbatch", "kuberay.yaml"])
def test_a_cluster_that_is_started_sends_no_usage_statistics(name):
    assert re.search(r"RAY_USAGE_STATS_ENABLED(=0|, value: .0.)", (ROOT / "jobs" / name).read_text())


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_ends_the_ray_of_others(file):
    commands = " ".join(lines_of(file))
    assert "ray stop" not in commands
    assert "symmetric-run" not in commands  # it refuses to start beside another Ray, and ends all in the end


def test_results_of_a_ray_job_may_lie_in_a_bucket():
    file = ROOT / "jobs/ray_job.sh"
    assert bdtune_words(file, BDTUNE_STORE="s3://a/b c") == [*bdtune_words(file), "--store", "s3://a/b c"]


def test_slurm_takes_the_nodes_memory_and_leaves_account_and_partition_to_be_named():
    lines = (ROOT / "jobs/slurm.sbatch").read_text().splitlines()
    assert "#SBATCH --mem=0" in lines
    assert {"##SBATCH --account=ACCOUNT", "##SBATCH --partition=PARTITION"} <= set(lines)


COMMANDS = {
    "scontrol": '[ "$1" = requeue ] || printf "localhost\\nother\\n"',
    # As Slurm does: the words after the option run on each node, and are ended with the step.
    "srun": 'shift; SLURMD_NODENAME=other "$@" & SLURMD_NODENAME=localhost exec "$@"',
    "ray": 'case $* in *--head*) exec "$PYTHON" -m http.server "$PORT" --bind 127.0.0.1 &> /dev/null;; esac',
    "python": "cat > /dev/null",  # waits until all nodes have joined
    "bdtune": """trap 'echo ended >> "$NOTES"; exit 130' TERM; echo runs >> "$NOTES"
sleep "$SWEEP_S" & wait $!; exit "$SWEEP_RC\"""",
}
"""What stands in for each command, after it has noted its words."""


class SlurmJob:
    """The Slurm file, run as a job of such a number, with stand-ins for the commands it calls."""

    def __init__(self, folder, number, **environment):
        self.number, self.notes, shared = number, folder / "notes", folder / "shared"
        (folder / "bin").mkdir()
        for name, rest in COMMANDS.items():
            command = folder / "bin" / name
            command.write_text(f'#!/bin/bash\necho "{name} $*" >> "$NOTES"\n{rest}\n')
            command.chmod(0o755)
        (shared / "bdtune/.venv/bin").mkdir(parents=True)
        (shared / "bdtune/.venv/bin/activate").write_text(f"PATH={folder}/bin:$PATH\n")
        file = folder / "slurm.sbatch"
        text = (ROOT / "jobs/slurm.sbatch").read_text()
        file.write_text(text.replace("SHARED=/shared/$USER", f"SHARED={shared}"))
        names = {"JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": 2, "CPUS_PER_TASK": 32, "GPUS_ON_NODE": 4}
        slurm = {f"SLURM_{name}": str(value) for name, value in {"JOB_ID": number, **names}.items()}
        other = {"NOTES": str(self.notes), "PYTHON": sys.executable, "USER": "me", "SWEEP_RC": "0"}
        self.process = subprocess.Popen(
            ["bash", str(file)],
            env={**os.environ, **slurm, **other, **environment},
            start_new_session=True,
        )

    def noted(self, word):
        """Wait until a stand-in has noted a line that starts so; returns the line."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = self.notes.read_text().splitlines() if self.notes.exists() else []
            for line in lines:
                if line.startswith(word):
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no {word} in {lines}")

    def ended(self):
        """Wait for its exit status."""
        return self.process.wait(timeout=60)


def free_port():
    """Return a free port among those that jobs choose by their number."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as place, contextlib.suppress(OSError):
            place.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports are taken")


@pytest.fixture
def slurm(tmp_path):
    """Start the Slurm file as a job that is ended with all its processes, as Slurm would."""
    jobs = []

    def start(**environment):
        jobs.append(SlurmJob(tmp_path, free_port() - 20_000, **environment))
        return jobs[0]

    yield start
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()


def test_slurm_starts_ray_on_both_nodes_and_the_sweep_joins_it(slurm):
    job = slurm(SWEEP_S="600")
    assert job.noted("scontrol") == "scontrol show hostnames n[1-2]"
    head, worker = job.noted("ray start --head"), job.noted("ray start --address")
    [port] = re.findall(r"--port (\d+)", head)
    assert 20_000 <= int(port) < 30_000
    assert f"--address localhost:{port} " in worker
    assert all(line.endswith(" --num-cpus 32 --num-gpus 4 --block") for line in (head, worker))
    assert job.noted("python") == "python - 2"
    assert job.noted("bdtune sweep").endswith(" --address auto")


def test_a_slurm_job_has_the_exit_status_of_its_sweep(slurm):
    assert slurm(SWEEP_S="0", SWEEP_RC="3").ended() == 3


def test_a_slurm_job_whose_time_is_up_ends_its_sweep_and_queues_again(slurm):
    job = slurm(SWEEP_S="600")
    job.noted("runs")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 0
    notes = job.notes.read_text().splitlines()
    assert notes.index("ended") < notes.index(f"scontrol requeue {job.number}")


def test_a_slurm_job_that_is_cancelled_is_not_queued_again(slurm):
    job = slurm(SWEEP_S="600")
    job.noted("runs")
    os.killpg(job.process.pid, signal.SIGTERM)  # as Slurm does
    assert job.ended() != 0
    assert "requeue" not in job.notes.read_text()


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


def test_kuberay_keeps_the_operators_rules_that_no_schema_has():
    job = yaml.safe_load((ROOT / "jobs/kuberay.yaml").read_text())
    assert len(job["metadata"]["generateName"]) + 5 <= 47  # five random characters follow
    cluster = job["spec"]["rayClusterSpec"]
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52)  # the first with tokens
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_kuberay_quotes_what_kubernetes_wants_as_strings():
    cluster = yaml.safe_load((ROOT / "jobs/kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        values = [*group["rayStartParams"].values(), *(each["value"] for each in container["env"])]
        assert all(isinstance(value, str) for value in values)


def test_a_worker_of_the_kuberay_cluster_holds_a_trial():
    spec = yaml.safe_load((ROOT / "jobs/kuberay.yaml").read_text())["spec"]
    words = shlex.split(spec["entrypoint"])[1:]
    sweep = load_sweep(*split_words(options_of(words)[1]["words"]), check_data=False)
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert float(limits["cpu"]) >= sweep.resources.cpu
        assert float(limits["nvidia.com/gpu"]) >= sweep.resources.gpu
