"""Training on clips of several shapes: one a step, in the order that a run on each alone has."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.commands import call
from tests.conftest import make_cache
from tests.training.test_static_shapes import Graphs, graphs  # noqa: F401
from tests.training.test_trainer import losses, metrics, overrides, result
from videoscaling.data.mixture import ShapeMixture, open_data
from videoscaling.data.sample_order import MIXED, steps_by_set
from videoscaling.models.sizes import exact_flops
from videoscaling.scaling.runs import read
from videoscaling.sweeps.directory import data_of
from videoscaling.tools.export import facts_of
from videoscaling.training.batches import BatchLoader, ShapeLoader
from videoscaling.training.checkpoints.checkpoint import find_checkpoint, read_state
from videoscaling.training.checks import check_share
from videoscaling.training.config import load_config, read_config
from videoscaling.training.run import encoded_shape
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.train import prepare, train
from videoscaling.training.trainer import RAW_SHARE, Trainer
from videoscaling.utils.errors import UserError

CPU = torch.device("cpu")
VIDEO, PICTURE = (4, 2, 4, 4), (4, 1, 2, 4)  # 32 and 8 tokens
NAMES = ["2x4x4", "1x2x4"]
# 24 steps of 4 videos or 16 pictures.
KEYS = ("data.weights=[2,1]", "train.tokens=3072", "optim.warmup_tokens=384")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shapes")
    return [make_cache(folder / "videos", 48, 8), make_cache(folder / "pictures", 40, 12, PICTURE)]


def keys_of(both: list[Path], out: Path, name: str, *more: str) -> list[str]:
    own = [word for word in overrides("", out, name) if not word.startswith("data.cache=")]
    return [*own, f"data.cache=[{','.join(map(str, both))}]", *KEYS, *more]


def trained(both: list[Path], out: Path, name: str, *more: str) -> dict:
    assert train(load_config(None, keys_of(both, out, name, *more))) == 0
    return result(out / name)


def trainer_of(both: list[Path], out: Path, *more: str) -> Trainer:
    return Trainer(*prepare(load_config(None, keys_of(both, out, "x", *more))))


@pytest.fixture(scope="module")
def whole(both: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, ``whole``."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    trained(both, out, "whole", "train.milestones=[1280]")
    return out / "whole"


def shapes_of_steps(counts: list[int], steps: int, seed: int) -> list[int]:
    taken = np.array([steps_by_set(step, counts, seed) for step in range(steps + 1)])
    assert (np.diff(taken, axis=0).sum(1) == 1).all()  # a step takes one set
    return np.diff(taken, axis=0).argmax(1).tolist()


def test_every_thousand_steps_hold_exact_shares_in_an_order_of_the_seed() -> None:
    drawn = shapes_of_steps([700, 300], 2 * MIXED, 5)
    assert [np.bincount(block).tolist() for block in np.split(np.array(drawn), 2)] == [[700, 300]] * 2
    assert drawn[:MIXED] != drawn[MIXED:]
    assert drawn[:MIXED] != shapes_of_steps([700, 300], MIXED, 6)
    assert 50 < sum(drawn[:200]) < 70 or len(set(drawn[:20])) == 2  # shuffled within a block
    assert sum(steps_by_set(10**12 + 7, [1, 999], 5)) == 10**12 + 7


def test_a_step_has_one_shape_and_each_shape_its_own_order(both: list[Path], tmp_path: Path) -> None:
    run, data = prepare(load_config(None, keys_of(both, tmp_path, "x")))
    assert isinstance(data, ShapeMixture)
    assert [part.latent_shape for part in data.parts] == [VIDEO, PICTURE]
    alone = ShapeLoader(run, data, 0, 1, CPU)
    halves = [ShapeLoader(run, data, rank, 2, CPU) for rank in range(2)]
    seen: list[list[torch.Tensor]] = [[], []]
    for step in range(run.steps):
        samples = alone.batch(step)
        for whole, *parts in zip(samples, *(half.batch(step) for half in halves)):
            assert torch.equal(whole, torch.cat(parts))
        shape = [VIDEO, PICTURE].index(tuple(samples.x0.shape[1:]))
        assert len(samples.t) == run.parts[shape].clips == [4, 16][shape]
        seen[shape].append(samples)
    counts = run.steps_of_parts(run.steps)
    assert [len(steps) for steps in seen] == counts
    assert min(counts) >= 5
    for part, cache, steps in zip(run.parts, data.parts, seen):
        position = torch.arange(len(steps) * part.clips)
        wanted = cache.train(cache.order(position, part.data_seed))[0]
        assert torch.equal(torch.cat([samples.x0 for samples in steps]), wanted)
    # Their t and noise are not each other's, as one seed would have it.
    assert not set(seen[0][0].t.tolist()) & set(seen[1][0].t.tolist())
    again = ShapeLoader(run, data, 0, 1, CPU)
    assert torch.equal(again.batch(17).x0, alone.batch(17).x0)
    again.check(3, 9)
    assert again.fault is None


def test_a_resumed_run_and_one_in_micro_batches_are_the_whole_run(
    both: list[Path], whole: Path, tmp_path: Path
) -> None:
    trained(both, tmp_path, "parts", "train.tokens=1280")
    found = trained(both, tmp_path, "parts", "train.milestones=[1280]")
    assert found["milestones"] == result(whole)["milestones"]
    assert metrics(tmp_path / "parts") == metrics(whole)
    small = trained(both, tmp_path, "small", "train.milestones=[1280]", "train.micro_batch=1")
    np.testing.assert_allclose(losses(tmp_path / "small"), losses(whole), rtol=1e-5)
    ours, theirs = small["milestones"][-1]["by_shape"], found["milestones"][-1]["by_shape"]
    for name in NAMES:
        assert ours[name]["ema_val_loss"] == pytest.approx(theirs[name]["ema_val_loss"], rel=1e-5)
    lines = metrics(whole)
    assert all(list(line["loss_by_shape"].values()) == pytest.approx([line["loss"]]) for line in lines)  # of a step
    assert {name for line in lines for name in line["loss_by_shape"]} == set(NAMES)
    assert losses(whole)[-6:].mean() < losses(whole)[:6].mean()
    assert metrics(tmp_path / "small")[-1]["noise_scale"] is None  # its clips would be alike


def test_a_smaller_clip_has_as_many_tokens_in_a_micro_batch(both: list[Path], tmp_path: Path) -> None:
    trainer = trainer_of(both, tmp_path, "train.micro_batch=2")
    sizes: list[tuple[int, ...]] = []
    trainer.model.register_forward_pre_hook(lambda model, inputs: sizes.append(tuple(inputs[0].shape[:3])))
    for step in range(8):
        trainer.train_step.run(trainer.loader.batch(step), step * 128)
    assert set(sizes) == {(2, 4, 2), (8, 4, 1)}
    # The largest shape is where memory is looked for; the others must fit too.
    tried: list[int] = []
    plain = trainer.train_step.backward

    def gradients(samples: object, share: bool = True) -> torch.Tensor:
        tried.append(samples.x0[0].numel())
        if trainer.train_step.micro_batch > 1 and samples.x0[0].numel() < 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(samples, share)

    trainer.train_step.backward = gradients
    trainer.device = torch.device("cuda")  # where it is looked for
    trainer.find_micro_batch()
    assert (trainer.train_step.micro_batch, tried) == (1, [128, 32, 128, 32])


def test_a_shapes_validation_is_that_of_a_run_on_it_alone(both: list[Path], whole: Path, tmp_path: Path) -> None:
    last = result(whole)["milestones"][-1]
    assert list(last["by_shape"]) == NAMES
    stored = np.load(whole / "validation" / f"{last['tokens']}.npy")
    assert stored.shape == (2, 8 + 12, 2)
    assert np.isfinite(stored[0]).all(1).nonzero()[0].tolist() == [0, 1, 8, 9, 10]  # a quarter of each
    for name, folder, where in zip(NAMES, both, (slice(8), slice(8, None))):
        alone = overrides(folder, tmp_path, name, f"train.init={whole}", "train.tokens=128")
        trainer = Trainer(*prepare(load_config(None, alone)))
        found = trainer._validate(trainer.ema)
        np.testing.assert_array_equal(found.losses, stored[1][where])
        assert (found.loss, found.standard_error) == tuple(
            last["by_shape"][name][key] for key in ("ema_val_loss", "ema_val_se")
        )
    tokens = [8 * 32, 12 * 8]
    for kind in ("val_loss", "ema_val_loss"):
        own = [last["by_shape"][name][kind] for name in NAMES]
        assert last[kind] == pytest.approx(np.average(own, weights=tokens), rel=1e-12)
    own = [last["by_shape"][name]["ema_val_se"] for name in NAMES]
    assert last["ema_val_se"] == pytest.approx(np.hypot(*np.multiply(own, tokens)) / sum(tokens), rel=1e-12)


def test_tokens_and_flops_are_those_of_the_steps_taken(both: list[Path], whole: Path) -> None:
    run, data = prepare(load_config(None, keys_of(both, whole.parent, "whole", "train.milestones=[1280]")))
    loader = ShapeLoader(run, data, 0, 1, CPU)
    taken = [len(loader.batch(step).t) for step in range(24)]
    videos, pictures = taken.count(4), taken.count(16)
    N, text = 16 * 32**2, (data.parts[0].text_tokens, data.parts[0].text_dim)
    C = sum(steps * 128 * 0.75 * N * (7 + n_ctx / 32) for steps, n_ctx in ((videos, 32), (pictures, 8)))
    exact = videos * 4 * exact_flops(1, 32, 32, 4, *text) + pictures * 16 * exact_flops(1, 32, 8, 4, *text)
    done = result(whole)
    assert (done["status"], done["tokens"], videos + pictures) == ("done", 3072, 24)
    assert done["flops"] == done["milestones"][-1]["flops"] == pytest.approx(C, rel=1e-12)
    assert metrics(whole)[-1]["flops"] == done["flops"]
    assert done["exact_flops"] == exact
    assert [(one["latents"], one["n_ctx"], one["clips"], one["steps"]) for one in done["shapes"]] == [
        ("2x4x4", 32, 4, videos),
        ("1x2x4", 8, 16, pictures),
    ]
    assert done["milestones"][0]["flops"] < done["flops"] * 0.5
    assert done["recipe"]["data"] == data.meta["fingerprint"]
    # A run of so many FLOPs ends with the step that reaches them.
    by_flops = ("train.tokens=null", "train.milestones=[]")
    asked, _ = prepare(load_config(None, keys_of(both, whole.parent, "x", *by_flops, f"train.flops={C - 1}")))
    assert (asked.config.train.tokens, asked.flops(asked.steps)) == (3072, done["flops"])
    less, _ = prepare(load_config(None, keys_of(both, whole.parent, "x", *by_flops, f"train.flops={C / 2}")))
    assert less.flops(less.steps - 1) < C / 2 <= less.flops(less.steps)


def test_weights_are_shares_of_steps_and_by_default_the_caches_tokens(both: list[Path], tmp_path: Path) -> None:
    folders = list(map(str, both))
    assert open_data(folders).counts == [828, 172]  # 48 x 32 to 40 x 8
    data = open_data(folders, [1, 3])
    assert data.counts == [250, 750]
    third = make_cache(tmp_path / "more", 20, 8)
    data = open_data([*folders, str(third)], [2, 1, 1])
    assert (data.counts, [part.train_size for part in data.parts]) == ([750, 250], [68, 40])
    assert data.parts[0].counts == [667, 333]
    assert data.meta["latent_shape"] == list(VIDEO)  # what sample.py makes
    prints = {open_data(folders, weights).meta["fingerprint"] for weights in ([1, 1], [1, 2])}
    prints |= {open_data(folders[::-1], [1, 1]).meta["fingerprint"], open_data(folders[:1]).meta["fingerprint"]}
    assert len(prints) == 4
    with pytest.raises(UserError, match="the clips of 1x2x4 would be seen less than once in 1000 steps"):
        open_data(folders, [10_000, 1])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (100, "train.batch_tokens=100: not a whole number of clips of every shape .32, 8 tokens.; nearest: 96 or 128"),
        (8, "train.batch_tokens=8: not a whole number of clips of every shape .32, 8 tokens.; nearest: 32"),
        (1024, "a batch of 128 clips of 8 tokens, of which .* has 40; at most 320 tokens$"),
    ],
)
def test_a_batch_is_a_whole_number_of_clips_of_every_shape(
    both: list[Path], tmp_path: Path, batch: int, message: str
) -> None:
    more = ("data.weights=[1,2]", f"train.batch_tokens={batch}", "train.tokens=4096")
    both = [make_cache(tmp_path / "videos", 96, 2), both[1]] if batch == 1024 else both
    done = call("train.py", *keys_of(both, tmp_path, "x", *more))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr)
    assert not (tmp_path / "x").exists()


def test_a_validation_set_of_one_shape_is_too_small(both: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validation.clips=10: the cache has 8 validation clips of 32 tokens"):
        trainer_of(both, tmp_path, "validation.clips=10")


def test_processes_share_the_clips_of_every_shape(both: list[Path], tmp_path: Path) -> None:
    run, _ = prepare(load_config(None, keys_of(both, tmp_path, "x", "train.batch_tokens=160")))
    check_share(run, 5)
    with pytest.raises(UserError, match="5 clips or 20 clips cannot be shared by 4 processes; nearest: 128 or 256"):
        check_share(run, 4)


def test_a_dry_run_reports_each_shape(both: list[Path], whole: Path, tmp_path: Path) -> None:
    done = call("train.py", "--dry-run", "--json", *keys_of(both, tmp_path, "x"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    shapes = report["shapes"]
    assert [(one["latents"], one["clips_per_step"], one["share"]) for one in shapes] == [
        ("2x4x4", 4, 0.667),
        ("1x2x4", 16, 0.333),
    ]
    assert sum(one["steps"] for one in shapes) == report["steps"] == 24
    assert [report["flops"][name] for name in ("C", "exact")] == [
        result(whole)[name] for name in ("flops", "exact_flops")
    ]
    assert report["validation"]["samples"] == 2 * (8 + 2 + 12 + 3)
    assert report["data"] == shapes[0]["data"]
    assert report["epochs"] == pytest.approx(3072 / (48 * 32 + 40 * 8))
    text = call("train.py", "--dry-run", *keys_of(both, tmp_path, "x")).stdout
    assert "4 clips of 32 tokens or 16 clips of 8 tokens" in text
    assert "a step of the largest clips by formula" in text
    assert not (tmp_path / "x").exists()


def test_laws_sweeps_and_stacks_take_clips_of_one_shape(both: list[Path], whole: Path, tmp_path: Path) -> None:
    config = load_config(None, keys_of(both, tmp_path, "x"))
    for refuse in (lambda: data_of(config), lambda: encoded_shape(config)):
        with pytest.raises(UserError, match="^data.cache: these caches differ in the shape of their clips.*; "):
            refuse()
    with pytest.raises(UserError, match="stacked runs have clips of one shape"):
        train_stacked([config, load_config(None, keys_of(both, tmp_path, "y", "seed=1"))])
    with pytest.raises(UserError, match=r"result.json: trained on clips of several shapes.*; leave it out"):
        read(whole.parent)
    sweep = {"sizes": [{"size": "1x32"}], "lr": [1e-3], "batch_tokens": [128], "milestones": [1280]}
    sweep |= {"name": "s", "out": str(tmp_path), "config": {"data": {"cache": list(map(str, both))}}}
    OmegaConf.save(OmegaConf.create(sweep), tmp_path / "sweep.yaml")
    done = call("tools/sweep.py", "run", tmp_path / "sweep.yaml", "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "these caches differ in the shape of their clips, and a law's clips have one" in done.stderr


def test_the_card_of_an_export_names_the_shapes(whole: Path) -> None:
    checkpoint = find_checkpoint(whole)
    config, state = read_config(checkpoint), read_state(checkpoint)
    facts = dict(facts_of(config, state, "ema", None))
    assert facts["trained on"].endswith("2x4x4 66.7%, 1x2x4 33.3%")
    with pytest.raises(UserError, match="law.json: these caches differ in the shape of their clips"):
        facts_of(config, state, "ema", "law.json")


@pytest.mark.slow
def test_each_shape_is_compiled_once(both: list[Path], tmp_path: Path, graphs: Graphs) -> None:
    trainer = trainer_of(both, tmp_path, "train.compile=true", "train.micro_batch=2", "validation.batch=3")
    for step in range(8):
        trainer.train_step.run(trainer.loader.batch(step), step * 128)
    trainer._validate(trainer.model, RAW_SHARE)
    trainer._validate(trainer.ema)
    assert (graphs.count(True), graphs.count(False)) == (2, 2)
    trainer.train_step.run(trainer.loader.batch(8), 8 * 128)
    trainer._validate(trainer.ema)
    assert len(graphs) == 4
    assert {symbolic for _, symbolic, _ in graphs} == {0}


def test_damage_of_either_cache_is_found(both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = prepare(load_config(None, keys_of(both, tmp_path, "x")))
    loader = ShapeLoader(run, data, 0, 1, CPU)
    checked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        BatchLoader, "check", lambda self, first, last: checked.append((loader.parts.index(self), first, last))
    )
    loader.check(4, 11)
    first, last = run.steps_of_parts(4), run.steps_of_parts(11)
    assert checked == [(0, first[0], last[0]), (1, first[1], last[1])]
    assert loader.fault is None
    loader.parts[1].fault = fault = UserError("damaged")
    assert loader.fault is fault
