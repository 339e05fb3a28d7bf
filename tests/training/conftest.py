"""What all tests of training share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons need one summation order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
