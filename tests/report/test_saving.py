from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from bdtune.report.saving import save

if TYPE_CHECKING:
    from pathlib import Path


class Dies:
    """A figure that is being written when its process is killed."""

    def savefig(self, target: Path | BytesIO, **_: object) -> None:
        half = b"half a picture"
        target.write(half) if isinstance(target, BytesIO) else target.write_bytes(half)
        raise SystemExit


def test_a_picture_that_is_killed_while_it_is_drawn_is_not_there(tmp_path):
    with pytest.raises(SystemExit):
        save(Dies(), tmp_path / "new.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_is_a_whole_png_and_takes_the_place_of_the_old_one(tmp_path):
    from matplotlib.figure import Figure

    path = tmp_path / "pictures" / "x.png"
    for size in (1, 2):
        save(Figure(figsize=(size, size)), path, dpi=50)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [each.name for each in path.parent.iterdir()] == ["x.png"]
