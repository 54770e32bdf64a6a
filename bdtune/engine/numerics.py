"""Where and how precisely a stage computes: the part of a key that says which results may differ in bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from bdtune.effects import OnlyIf, Whether
from bdtune.engine.hardware import computes_bf16, has_gpu
from bdtune.knobs import Knobs

if TYPE_CHECKING:
    from typing import Self

LATER = ("tf32", "cudnn_benchmark", "compile", "micro_batch")
"""Settings that are in a key where they are not as they always were."""


class Numerics(Knobs):
    """Device, precision and algorithms of training stages; all evaluation is exact fp32, uncompiled."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of trainings; all evaluation is fp32. auto: bf16 where the hardware computes in it, else fp32."""
    deterministic: bool = True
    """Use deterministic algorithms only; on a CPU results are then repeatable bit for bit."""
    tf32: Annotated[bool, OnlyIf(tf32=True)] = False
    """Let trainings on a GPU round the factors of fp32 products to TF32, 10 of 23 bits."""
    cudnn_benchmark: Annotated[bool | None, OnlyIf(cudnn_benchmark=(True, False))] = None
    """Let cuDNN time its algorithms and take the fastest of each run; null: unless deterministic."""
    compile: Annotated[bool, OnlyIf(compile=True)] = False
    """Compile the networks of trainings, which takes a minute and changes the last digits."""
    micro_batch: Annotated[int | None, OnlyIf(in_parts=True)] = Field(None, ge=1)
    """Most images that pass at once, where this changes the last digits alone; null: whole batches."""

    fused: Annotated[int, OnlyIf(fuses=True), Whether(above=1)] = Field(1, ge=1)
    """Most trainings of one network that are computed together, as seeds; 1: each alone. Results then differ
    in the last bits."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError(
                "cudnn_benchmark true needs deterministic false: the fastest differs from run to run"
            )
        if self.fuses and (self.compile or self.in_parts):
            other = "compile" if self.compile else "micro_batch"
            raise ValueError(f"fused and {other} do not go together: what is computed as one passes as it is")
        return self

    @property
    def in_parts(self) -> bool:
        """Whether batches pass in parts from the start."""
        return self.micro_batch is not None

    @property
    def fuses(self) -> bool:
        """Whether trainings may be computed together."""
        return self.fused > 1

    def resolved(self, device: Literal["cpu", "cuda"] | None = None) -> Numerics:
        """Return these without "auto": for the device that is given, else for this machine."""
        device = self.device if self.device != "auto" else device or _best_device()
        precision = self.precision if self.precision != "auto" else _best_precision(device)
        settled: dict[str, str | bool | None] = {"device": device, "precision": precision}
        if device == "cpu":  # where these change nothing
            settled |= {"tf32": False, "cudnn_benchmark": None}
        elif self.cudnn_benchmark is not None and self.cudnn_benchmark != self.deterministic:
            settled["cudnn_benchmark"] = None
        if all(getattr(self, name) == value for name, value in settled.items()):
            return self
        return self.model_copy(update=settled)

    def exact(self) -> Numerics:
        """Return a copy that computes in float32, for what is counted or decided; "auto" devices stay."""
        return self.model_copy(update={"precision": "fp32", "tf32": False, "compile": False})

    def alone(self) -> Numerics:
        """Return a copy for what is never computed together with others."""
        return self.model_copy(update={"fused": 1}) if self.fuses else self

    def tag(self) -> dict[str, str | bool | int]:
        """Return the numerics tag of a key; how many are computed together is no part of it."""
        resolved = self.resolved()
        tag = {name: getattr(resolved, name) for name in ("device", "precision", "deterministic")}
        later = {name: getattr(resolved, name) for name in LATER}
        defaults = {name: type(self).model_fields[name].default for name in LATER}
        changed = {name: value for name, value in later.items() if value != defaults[name]}
        return {**tag, **changed, **({"fused": True} if self.fuses else {})}


def _best_device() -> Literal["cpu", "cuda"]:
    return "cuda" if has_gpu() else "cpu"


def _best_precision(device: str) -> Literal["fp32", "bf16"]:
    if device == "cuda" and not has_gpu():  # a driver without a GPU: those it schedules on compute in bf16
        return "bf16"
    return "bf16" if computes_bf16(device) else "fp32"
