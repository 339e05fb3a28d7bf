import numpy as np
import pytest

from tests.scaling.test_runs import write_run
from videoscaling.scaling.fitting.grids.clip_losses import clip_losses
from videoscaling.scaling.runs import read
from videoscaling.utils.errors import UserError


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no array at all"),
        lambda path: np.save(path, np.ones(8)),
        lambda path: np.save(path, np.ones((1, 4, 2))),
        lambda path: np.save(path, np.ones((2, 0, 2))),
        lambda path: np.save(path, np.full((2, 4, 2), np.nan)),
        lambda path: np.save(path, np.full((2, 4, 2), "x")),
        lambda path: np.save(path, np.array([{}, 1], dtype=object)),
        lambda path: np.savez(path.open("wb"), a=np.ones((2, 4, 2))),
    ],
)
def test_spoiled_files_of_validation_losses_are_named(tmp_path, spoil):
    write_run(tmp_path, "a", milestones=(1e4,), overshoot=0)
    path = tmp_path / "a" / "validation" / "10000.0.npy"
    path.parent.mkdir()
    np.save(path, np.ones((2, 4, 2)))
    assert clip_losses(read(tmp_path)).tolist() == [[0.0] * 4]
    spoil(path)
    with pytest.raises(UserError, match=r"10000.0.npy: not the losses of each validation clip"):
        clip_losses(read(tmp_path))
