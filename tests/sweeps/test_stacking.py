"""Which cells are trained together."""

import pytest

from videoscaling.sweeps.stacking import stacks
from videoscaling.training.config import Config, load_config
from videoscaling.training.run import Run, resolve
from videoscaling.training.stacked.stack_key import row_bytes, stack_key

META = {"latent_shape": [16, 5, 4, 4], "fingerprint": "x"}


def cell(lr: float = 1e-3, batch: int = 80, size: str = "2x64", data: int = 0, *more: str) -> Run:
    words = [f"model.size={size}", f"optim.lr={lr}", f"train.batch_tokens={batch}", f"data.seed={data}"]
    config: Config = load_config(None, [*words, "data.cache=x", "train.tokens=8000", f"seed={int(1e6 * lr)}", *more])
    return resolve(config, META)


def sizes(found: list[list[Run]]) -> list[int]:
    return [len(group) for group in found]


def test_rows_of_a_grid_are_stacked_in_the_order_of_their_first() -> None:
    runs = [cell(lr, batch, data=batch) for batch in (160, 80) for lr in (1e-3, 2e-3, 4e-3)]
    for stack in ("auto", 8):
        found = stacks(runs, stack, gpu=False, workers=1, memory=1e11)
        assert [{run.config.train.batch_tokens for run in group} for group in found] == [{160}, {80}]
        assert sizes(found) == [3, 3]
    assert sizes(stacks(runs, 2, False, 1, 1e11)) == [1, 2, 1, 2]
    assert stacks(runs, 1, False, 1, 1e11) == [[run] for run in runs]


def test_what_differs_in_more_than_its_optimiser_is_apart() -> None:
    base = stack_key(cell().config)
    assert stack_key(cell(2e-3).config) == base
    assert stack_key(cell(1e-3, 80, "2x64", 0, "optim.weight_decay=0.1", "optim.schedule=wsd").config) == base
    for other in (
        cell(batch=160),
        cell(size="1x64"),
        cell(1e-3, 80, "2x64", 0, "train.milestones=[800]"),
    ):
        assert stack_key(other.config) != base


def test_repeats_are_stacked_and_a_part_sees_as_few_streams_as_may_be() -> None:
    runs = [cell(lr, data=data) for lr in (1e-3, 2e-3, 4e-3) for data in (1, 2)]  # as a grid lists them
    assert len({stack_key(run.config) for run in runs}) == 1
    assert sizes(stacks(runs, 6, gpu=True, workers=1, memory=1e11)) == [6]
    for group in stacks(runs, 3, gpu=True, workers=1, memory=1e11):
        assert len({run.config.data_seed for run in group}) == 1


def test_a_stack_of_no_given_size_leaves_every_worker_some_and_fits_into_memory() -> None:
    runs = [cell(1e-3 * (1 + n)) for n in range(12)]
    assert sizes(stacks(runs, "auto", False, 4, 1e11)) == [3] * 4
    assert sizes(stacks(runs, "auto", False, 1, 2 * 5.5 * row_bytes(runs[0]))) == [4] * 3
    assert sizes(stacks(runs, "auto", False, 1, 1.0)) == [1] * 12
    assert sizes(stacks(runs, 12, False, 4, 1.0)) == [12]  # who names a number has decided


@pytest.mark.parametrize(
    ("gpu", "size", "batch", "more", "together"),
    [
        (False, "2x64", 160, (), True),
        (False, "2x64", 640, (), False),
        (False, "2x64", 640, ("train.compile=true",), True),
        (True, "6x192", 6400, (), False),
        (True, "5x192", 1600, (), True),
        (True, "2x64", 80, ("train.activation_checkpointing=true",), False),
    ],
)
def test_only_small_models_are_stacked_unasked(gpu: bool, size: str, batch: int, more: tuple, together: bool) -> None:
    runs = [cell(lr, batch, size, 0, *more) for lr in (1e-3, 2e-3)]
    assert sizes(stacks(runs, "auto", gpu, 1, 1e11)) == ([2] if together else [1, 1])
