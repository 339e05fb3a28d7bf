"""Devices by name: where to compute, and the peak matrix rates and memory that training reports and plans assume."""

import os
from typing import TYPE_CHECKING

from videoscaling.utils.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

# Dense peaks in FLOP/s from the vendors' data sheets. Names are parts of the names that drivers report, longest first
# where one is a part of another. PEAK_FLOPS is what train.dtype=auto reaches: bfloat16, or float32 on a
# GPU without bfloat16 (V100: training in float16 is not supported).
FLOAT32_PEAK_FLOPS = {
    "v100": 15.7e12, "a100": 19.5e12, "a800": 19.5e12, "l40s": 91.6e12, "rtx4090": 82.6e12, "h100pcie": 51.2e12,
    "h100nvl": 60e12, "h100": 66.9e12, "h800": 66.9e12, "h200": 66.9e12, "h20": 44e12, "b200": 75e12,
}  # fmt: skip
PEAK_FLOPS = {
    "v100": FLOAT32_PEAK_FLOPS["v100"], "a100": 312e12, "a800": 312e12, "l40s": 362e12, "rtx4090": 165e12,
    "h100pcie": 756e12, "h100nvl": 835e12, "h100": 989e12, "h800": 989e12, "h200": 989e12, "h20": 148e12,
    "b200": 2250e12,
}  # fmt: skip
# GB of 1e9 bytes; of a GPU that is sold with two, the larger. Drivers report a few per cent more (an "80 GB" H100:
# 85.5e9 bytes), which plans leave to the CUDA context and the communication library.
MEMORY_GB = {
    "v100": 32, "a100": 80, "a800": 80, "l40s": 48, "rtx4090": 24, "h100pcie": 80, "h100nvl": 94, "h100": 80,
    "h800": 80, "h200": 141, "h20": 96, "b200": 180,
}  # fmt: skip


def peak_of(device_name: str, dtype: str = "bfloat16") -> float | None:
    """The peak for ``dtype`` of the device a driver calls ``device_name``; None where it is not known.

    A guess would be read as a measurement.
    """
    plain = device_name.lower().replace(" ", "").replace("-", "")
    return next((planned_peak(name, dtype) for name in PEAK_FLOPS if name in plain), None)


def best_dtype(gpu: str) -> str:
    """What train.dtype=auto becomes on the GPU named ``gpu``, a key of the tables above."""
    return "bfloat16" if PEAK_FLOPS[gpu] > FLOAT32_PEAK_FLOPS[gpu] else "float32"


def planned_peak(gpu: str, dtype: str) -> float:
    """The peak in FLOP/s of the GPU named ``gpu`` for a model that computes in ``dtype``, without TF32."""
    return (FLOAT32_PEAK_FLOPS if dtype == "float32" else PEAK_FLOPS)[gpu]


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
