"""A clip's tokens over two processes: predictions, gradients, what is sent and what is kept."""

import json
from pathlib import Path

import pytest

from tests.processes.trainings import together
from tests.processes.watched_steps import watch_shards
from videoscaling.training.planning.memory_formula import activation_bytes


def test_predictions_gradients_exchanges_and_memory(tmp_path: Path) -> None:
    together(tmp_path / "log", watch_shards, str(tmp_path / "found"), False, world=2)
    found = json.loads((tmp_path / "found").read_text())
    blocks, clips, tokens, width = 2, 3, 32, 64
    # Two exchanges a block and pass, and the prediction's.
    assert found["calls"] == {"all_to_all_single bfloat16": 4 * blocks, "all_to_all_single float32": 2}
    # Queries, keys, values and outputs of half of the tokens, in each of two passes.
    assert found["bytes"]["all_to_all_single bfloat16"] == blocks * 2 * 8 * clips * tokens // 2 * width
    shape = {"layers": 4, "width": 128, "text_tokens": 16, "clips": 3, "dtype": "float32"}
    formula = activation_bytes(**shape, n_ctx=96 // 2, recompute=False)
    assert found["kept"] == pytest.approx(formula, rel=0.15)


@pytest.mark.slow
def test_compiled_as_one_graph_they_are_the_same(tmp_path: Path) -> None:
    """Also the gradients: a collective into a given tensor gets none by the compiler (DeepSpeed pull request 8491)."""
    together(tmp_path / "log", watch_shards, str(tmp_path / "found"), True, world=2)
