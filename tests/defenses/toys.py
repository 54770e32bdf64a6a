"""What tests of defenses hand to a chain in place of a data set."""

from __future__ import annotations

from typing import Any

from bdtune.engine.stage import Source


class Is(Source):
    """A source that is the value it was made of, named by a word."""

    word: str
    value: Any

    def identity(self) -> dict[str, Any]:
        return {"test": self.word}

    def load(self, resident: object, artefacts: object) -> Any:
        return self.value
