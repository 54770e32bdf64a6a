from __future__ import annotations

import os
import subprocess
import sys

from bdtune.verbs.console import results_only_on_stdout

NOISY = """
import os, subprocess, sys
from bdtune.verbs.console import results_only_on_stdout
with results_only_on_stdout():
    print("(raylet) A worker died")
    os.write(1, b"from C\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"])
print("{}")
"""


def test_standard_output_carries_results_alone_whatever_prints():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert sorted(done.stderr.split("\n")) == ["", "(raylet) A worker died", "from C", "from a child"]


def test_a_standard_output_that_is_no_file_is_set_aside_too(capsys, monkeypatch):
    class Cell:
        def write(self, text: str) -> int:
            raise AssertionError(text)

        def flush(self) -> None:
            pass

        def fileno(self) -> int:
            raise OSError

    with monkeypatch.context() as notebook:
        notebook.setattr(sys, "stdout", Cell())
        with results_only_on_stdout():
            print("noise")
    assert "noise" in capsys.readouterr().err
    os.fstat(1)
