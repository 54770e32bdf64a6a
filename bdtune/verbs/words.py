"""The words of a command line: a file, settings, and data sets to be fetched first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.config.load import load_trial, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence


def split(words: Sequence[str] | None, *, download: bool = False) -> tuple[str | None, list[str]]:
    """Return the file, if any, and the settings; with `download` the data set is fetched if it is missing."""
    file, overrides = split_words(words or [])
    if download:
        single = [word for word in overrides if "," not in word]
        spec = load_trial(file, single, check_data=False)
        if spec.data_root is not None and spec.dataset.check(spec.data_root):
            spec.dataset.download(spec.data_root)
    return file, overrides
