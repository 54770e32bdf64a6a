"""Tables, figures and progress: what people look at.

Called as a function, the package is `bdtune.api.report`: `bdtune.report("gssd")` must mean the same whether
or not one of its modules was imported before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from bdtune.api import report

        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
