"""Device names as drivers report them."""

import pytest

from videoscaling.utils.devices import GPUS, best_dtype, peak_of, planned_peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-16GB", 15.7e12),
        ("Some Future Chip", None),
    ],
)
def test_peaks_by_reported_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_peaks_are_for_what_auto_computes_in() -> None:
    """A V100 has no bfloat16: hours at its float16 rate would be an eighth of what training takes there."""
    assert (best_dtype("v100"), planned_peak("v100", "float32")) == ("float32", GPUS["v100"].auto)
    assert {best_dtype(name) for name in GPUS if name != "v100"} == {"bfloat16"}
    assert planned_peak("h100", "bfloat16") / planned_peak("h100", "float32") == pytest.approx(14.8, abs=0.1)
    assert peak_of("NVIDIA H100 80GB HBM3", "float32") == 66.9e12
    assert peak_of("Some Future Chip", "float32") is None
