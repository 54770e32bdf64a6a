"""Where and how precisely a stage computes: the part of a key that says which results may differ in bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bdtune.effects import OnlyIf, Whether
from bdtune.engine.hardware import cpu_has_bf16, has_gpu
from bdtune.knobs import Knobs


class Numerics(Knobs):
    """Device and precision of training stages."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of trainings; all evaluation is fp32. auto: bf16 where the hardware computes in it, else fp32."""
    deterministic: bool = True
    """Use deterministic algorithms only; on a CPU results are then repeatable bit for bit."""

    fused: Annotated[int, OnlyIf(fuses=True), Whether(above=1)] = Field(1, ge=1)
    """Most trainings of one network that are computed together, as seeds; 1: each alone. Results then differ
    in the last bits."""

    @property
    def fuses(self) -> bool:
        """Whether trainings may be computed together."""
        return self.fused > 1

    def resolved(self, device: Literal["cpu", "cuda"] | None = None) -> Numerics:
        """Return these without "auto": for the device that is given, else for this machine."""
        device = self.device if self.device != "auto" else device or _best_device()
        precision = self.precision if self.precision != "auto" else _best_precision(device)
        if (device, precision) == (self.device, self.precision):
            return self
        return self.model_copy(update={"device": device, "precision": precision})

    def exact(self) -> Numerics:
        """Return a copy that computes in float32, for what is counted or decided; "auto" devices stay."""
        return self.model_copy(update={"precision": "fp32"})

    def alone(self) -> Numerics:
        """Return a copy for what is never computed together with others."""
        return self.model_copy(update={"fused": 1}) if self.fuses else self

    def tag(self) -> dict[str, str | bool]:
        """Return the numerics tag of a key; how many are computed together is no part of it."""
        resolved = self.resolved()
        return {
            "device": resolved.device,
            "precision": resolved.precision,
            "deterministic": resolved.deterministic,
            **({"fused": True} if self.fuses else {}),
        }


def _best_device() -> Literal["cpu", "cuda"]:
    return "cuda" if has_gpu() else "cpu"


def _best_precision(device: str) -> Literal["fp32", "bf16"]:
    if device == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    if not has_gpu():  # a driver without a GPU: those it schedules on compute in bf16
        return "bf16"
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
