"""Devices by name: where to compute, and the peak matrix rates that training reports and plans assume."""

from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

# Dense bfloat16 peaks in FLOP/s, from the vendors' data sheets (V100: float16). Names are parts of the names that
# drivers report, longest first where one is a part of another.
PEAK_FLOPS = {
    "v100": 125e12, "a100": 312e12, "a800": 312e12, "l40s": 362e12, "rtx4090": 165e12, "h100pcie": 756e12,
    "h100nvl": 835e12, "h100": 989e12, "h800": 989e12, "h200": 989e12, "h20": 148e12, "b200": 2250e12,
}  # fmt: skip


def peak_of(device_name: str) -> float | None:
    """The peak of the device a driver calls ``device_name``; None where it is not known: a guess would be read as a
    measurement."""
    plain = device_name.lower().replace(" ", "").replace("-", "")
    return next((peak for name, peak in PEAK_FLOPS.items() if name in plain), None)


def pick_device(name: str | None) -> "torch.device":
    """The device called ``name``; by default CUDA's where there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    import torch  # not at the top: plans read the table above without it

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not to be had here ({str(error).splitlines()[0]})") from None
    return device
