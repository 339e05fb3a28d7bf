"""Training on several caches: shares, resuming and validation as on one."""

from pathlib import Path

import pytest
import torch

from tests.conftest import make_cache
from tests.training.test_trainer import overrides, result, run
from videoscaling.data.mixture import Mixture, open_data
from videoscaling.training.batches import BatchLoader
from videoscaling.training.config import config_from_dict, load_config, run_id, to_dict
from videoscaling.training.run import encoded_shape
from videoscaling.training.train import prepare
from videoscaling.utils.errors import UserError


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("mixture")
    return [make_cache(folder / "large", 96, 16), make_cache(folder / "small", 20, 18)]


def mixed(both: list[Path], out: Path, *more: str) -> list[str]:
    folders = f"data.cache=[{','.join(map(str, both))}]"
    return [*(word for word in overrides("", out, "x") if not word.startswith("data.cache=")), folders, *more]


def test_each_process_of_a_loader_reads_its_part_of_the_mixture(both: list[Path], tmp_path: Path) -> None:
    resolved, cache = prepare(load_config(None, mixed(both, tmp_path, "data.weights=[1,3]")))
    assert isinstance(cache, Mixture)
    assert encoded_shape(resolved.config) == list(cache.latent_shape)
    assert config_from_dict(to_dict(resolved.config)) == resolved.config
    cpu = torch.device("cpu")
    alone = BatchLoader(resolved, cache, 0, 1, cpu)
    halves = [BatchLoader(resolved, cache, rank, 2, cpu) for rank in range(2)]
    for step in (0, 1, 70, 3):
        position = torch.arange(step * resolved.clips, (step + 1) * resolved.clips)
        x0 = cache.train(cache.order(position, resolved.config.seed))[0]
        assert torch.equal(alone.batch(step).x0, x0)
        for samples in zip(alone.batch(step), *(half.batch(step) for half in halves)):
            assert torch.equal(samples[0], torch.cat(samples[1:]))


def test_a_run_on_a_mixture_resumes_and_names_its_parts(both: list[Path], tmp_path: Path) -> None:
    def trained(name: str, *more: str) -> dict:
        folders = f"data.cache=[{','.join(map(str, both))}]"
        return run(both[0], tmp_path, name, folders, "data.weights=[1,1]", "optim.warmup_tokens=384", *more)

    whole = trained("whole")
    trained("parts", "train.tokens=1280")
    parts = trained("parts")
    assert parts["milestones"][-1] == whole["milestones"][-1]
    changed = r"data.fingerprint: \w+ -> \w+; data.weights: \[1.0, 1.0\] -> \[1.0, 2.0\]"
    with pytest.raises(UserError, match=changed):
        trained("parts", "data.weights=[1,2]")
    cache = open_data(list(map(str, both)), [1, 1])
    assert result(tmp_path / "whole")["recipe"]["data"] == cache.meta["fingerprint"]
    # The same eighteen clips in both lists but the last two: once each.
    assert cache.validation_size == 18


def test_weights_are_part_of_a_run_and_caches_folders_are_not(both: list[Path], tmp_path: Path) -> None:
    def id_of(*more: str) -> str:
        return run_id(prepare(load_config(None, mixed(both, tmp_path, *more)))[0].config)

    assert id_of("data.weights=[1,1]") == id_of("data.weights=[2,2]") != id_of("data.weights=[1,2]")
    one = list(overrides(both[0], tmp_path, "x"))
    listed = [*one, f"data.cache=[{both[0]}]"]
    assert run_id(prepare(load_config(None, one))[0].config) == run_id(prepare(load_config(None, listed))[0].config)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.cache=[]"], "data.cache=.*: must be a folder, or a list of folders"),
        (["data.cache=[a,[b]]"], "must be a folder, or a list of folders"),
        (["data.cache=[a,b]", "data.weights=[1]"], "data.weights=.*: give one for each folder in data.cache .2."),
        (["data.cache=[a,b]", "data.weights=[1,0]"], "data.weights=.*: each must be a positive number"),
        (["data.cache=[a,b]", "data.weights=[1,inf]"], "data.weights=.*: each must be a positive number"),
        (["data.weights=[1,2]"], "give one for each folder in data.cache .1."),
    ],
)
def test_what_is_no_mixture_is_refused(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as reported:
        load_config(None, more)
    assert "\n" not in str(reported.value)
