"""Device names as drivers report them."""

import pytest

from utils.devices import peak_of


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Some Future Chip", None),
    ],
)
def test_peaks_by_reported_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak
