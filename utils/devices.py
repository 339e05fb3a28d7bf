"""Devices by name: where to compute, and the peak matrix rates and memory that training reports and plans assume."""

import os
from typing import TYPE_CHECKING, NamedTuple

from videoscaling.utils.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


class Gpu(NamedTuple):
    """A GPU by the vendor's data sheet.

    Attributes:
        float32: dense peak in FLOP/s, without TF32.
        auto: dense peak in FLOP/s of what train.dtype=auto takes: bfloat16, or float32 on a GPU without it (V100:
            training in float16 is not supported).
        memory_gb: of 1e9 bytes; of a GPU that is sold with two, the larger. Drivers report a few per cent more (an
            "80 GB" H100: 85.5e9 bytes), which plans leave to the CUDA context and the communication library.
    """

    float32: float
    auto: float
    memory_gb: int


# Names are parts of the names that drivers report, longest first where one is a part of another.
GPUS = {
    "v100": Gpu(15.7e12, 15.7e12, 32),
    "a100": Gpu(19.5e12, 312e12, 80),
    "a800": Gpu(19.5e12, 312e12, 80),
    "l40s": Gpu(91.6e12, 362e12, 48),
    "rtx4090": Gpu(82.6e12, 165e12, 24),
    "h100pcie": Gpu(51.2e12, 756e12, 80),
    "h100nvl": Gpu(60e12, 835e12, 94),
    "h100": Gpu(66.9e12, 989e12, 80),
    "h800": Gpu(66.9e12, 989e12, 80),
    "h200": Gpu(66.9e12, 989e12, 141),
    "h20": Gpu(44e12, 148e12, 96),
    "b200": Gpu(75e12, 2250e12, 180),
}


def peak_of(device_name: str, dtype: str = "bfloat16") -> float | None:
    """The peak for ``dtype`` of the device a driver calls ``device_name``; None where it is not known.

    A guess would be read as a measurement.
    """
    plain = device_name.lower().replace(" ", "").replace("-", "")
    return next((planned_peak(name, dtype) for name in GPUS if name in plain), None)


def best_dtype(gpu: str) -> str:
    """What train.dtype=auto becomes on the GPU named ``gpu``, a key of ``GPUS``."""
    return "bfloat16" if GPUS[gpu].auto > GPUS[gpu].float32 else "float32"


def planned_peak(gpu: str, dtype: str) -> float:
    """The peak in FLOP/s of the GPU named ``gpu`` for a model that computes in ``dtype``, without TF32."""
    return GPUS[gpu].float32 if dtype == "float32" else GPUS[gpu].auto


def has_bfloat16() -> bool:
    """Whether this process computes on a GPU with bfloat16 matrix products of its own, not emulated ones."""
    import torch  # not at the top: plans read the tables above without it

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def pick_device(name: str | None) -> "torch.device":
    """The device called ``name``; by default a GPU where there is one, this process's own under torchrun.

    Raises:
        UserError: no such device here.
    """
    import torch

    own_gpu = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    name = name or (own_gpu if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UserError(f"--device {name}: not available here ({reason}); leave it out for what there is") from None
    return device
