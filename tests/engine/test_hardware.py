"""What this machine computes on, without loading torch where that is plain."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bdtune.engine import hardware

ANSWERS = """
import sys
from bdtune.engine.hardware import cpu_has_bf16, has_gpu
print(has_gpu(), cpu_has_bf16(), "torch" in sys.modules)
import torch
print(torch.cuda.is_available(), torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""


@pytest.fixture(autouse=True)
def forgets():
    hardware.has_gpu.cache_clear()
    hardware.cpu_has_bf16.cache_clear()


@pytest.mark.slow
def test_the_answers_are_those_of_torch():
    done = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True, check=True)
    ours, torchs = done.stdout.splitlines()
    assert ours.split()[:2] == torchs.split()


def test_a_machine_without_a_gpus_files_has_none(tmp_path):
    (tmp_path / "null").touch()
    assert not hardware._gpu_files(tmp_path)
    for name in ("nvidia0", "kfd", "dxg"):
        (tmp_path / name).touch()
        assert hardware._gpu_files(tmp_path)
        (tmp_path / name).unlink()


def test_the_multi_process_service_is_known_by_its_processes(tmp_path):
    for number, name in (("1", "systemd"), ("7", "nvidia-smi")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "comm").write_text(f"{name}\n")
    (tmp_path / "8").mkdir()  # has just ended
    assert not hardware.mps_runs(tmp_path)
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "comm").write_text("nvidia-cuda-mps-control\n"[:15] + "\n")  # as Linux cuts it
    assert hardware.mps_runs(tmp_path)
    assert not hardware.mps_runs(tmp_path / "nowhere")


def test_freeing_what_torch_keeps_needs_no_gpu_and_no_torch(monkeypatch):
    hardware.free_cached()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    hardware.free_cached()
    assert "torch" not in sys.modules


def test_torch_is_asked_where_the_answer_is_not_plain(monkeypatch):
    class Torch:
        class cuda:
            is_available = staticmethod(lambda: True)

        class ops:
            class mkldnn:
                _is_mkldnn_bf16_supported = staticmethod(lambda: False)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert hardware.has_gpu()  # somebody has loaded it
    assert not hardware.cpu_has_bf16()


@pytest.mark.parametrize(
    ("flags", "limits", "plain"),
    [
        ({"avx512f", "avx512bw", "avx512dq", "avx512vl", "sse"}, {}, True),
        ({"avx512f", "avx512bw"}, {}, False),
        ({"avx512f", "avx512bw", "avx512dq", "avx512vl"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
    ],
)
def test_flags_say_bf16_unless_onednn_is_kept_from_using_them(monkeypatch, flags, limits, plain):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(hardware, "_flags", lambda: flags)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    if plain:
        assert hardware.cpu_has_bf16()
        assert "torch" not in sys.modules
        return
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises
    with pytest.raises(ImportError):
        hardware.cpu_has_bf16()
