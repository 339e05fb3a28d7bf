"""A sweep loses no cell, runs none twice, and says how it stands."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.commands import call
from tests.sweeps.sweeps import edit, write_sweep
from videoscaling.scaling import law_file
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.search import simulate as simulation
from videoscaling.utils.locks import lock_run_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 2 sizes x 2 rates x 1 batch, one size held out."""
    base = {"log": {"every_steps": 5}, "checkpoint": {"every_steps": 10}}
    sizes = [{"size": "1x32"}, {"size": "2x32", "heldout": True}]
    executor = {"workers": 2, "retries": 1, "stack": 1}  # stacks have tests of their own
    return write_sweep(tmp_path, cache, base, batch_tokens=[64], lr=[1e-3, 3e-3], sizes=sizes, executor=executor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": []}, "an empty grid"),
        ({"lr": []}, "1x32 has no lr"),
        ({"batch_tokens": [100]}, "not a whole number of clips of 32 tokens"),
        ({"szies": []}, "did you mean 'sizes'"),
        ({"sizes": [{"size": "1x32"}, {"size": "1x32", "heldout": True, "lr": [1e-4]}]}, "held out and in the fit"),
        ({"sizes": [{"size": "1x31"}]}, "width must be a multiple of 32"),
        ({"lr": ["fast"]}, "lr"),
        (
            {"executor": {"processes": 3}},
            "2 clips cannot be shared by 3 processes; nearest: 96 (of executor.processes=3)",
        ),
        ({"config": {"train": {"context_parallel": 2}}}, "train.context_parallel=2: must divide the processes (1)"),
    ],
)
def test_bad_sweeps_are_refused_in_one_line(sweep: Path, changes: dict, message: str) -> None:
    edit(sweep, **changes)
    said = here("run", sweep, status=2)[1]
    assert message in said
    assert said.count("\n") == 1
    assert not (sweep.parent / "runs").exists()


def here(*words: object, status: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of the command."""
    done = call("tools/sweep.py", *words)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


# Grids that could be fitted.
WIDE = {"lr": [1e-3, 2e-3, 4e-3], "batch_tokens": [32, 64, 128], "sizes": [{"size": "1x32"}, {"size": "2x32"}]}


def unencoded(sweep: Path) -> None:
    """The sweep's base names a cache that nobody has made yet."""
    path = sweep.parent / "base.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": {"cache": "none/such"}}))


def law_of_clips(folder: Path, n_ctx: int | None) -> Path:
    raw = json.loads((ROOT / "configs" / "laws" / "paper.json").read_text()) | {"n_ctx": n_ctx}
    path = folder / f"law-{n_ctx}.json"
    law_file.save(law_file.from_dict(raw), path)
    return path


@pytest.fixture
def refused_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of simulated sweeps, which take a second each, are refused at once."""

    def refuse(*given: object) -> None:
        raise UnsupportedFit("not in this test")

    monkeypatch.setattr(surface_law, "fit_law", refuse)


@pytest.mark.usefixtures("refused_fits")
def test_simulate_needs_no_encoded_clips(sweep: Path, tmp_path: Path) -> None:
    """Tokens per clip are the cache's, else --n-ctx, else the law's, and then it says so."""
    edit(sweep, **WIDE)
    of_cache = json.loads(here("simulate", sweep, "--json")[0])
    assert of_cache["n_ctx"] == 32
    assert "32 tokens" in here("simulate", sweep, "--n-ctx", 16, status=2)[1]
    assert here("simulate", sweep, "--n-ctx", 32, "--json")[0] == json.dumps(of_cache) + "\n"
    patched = yaml.safe_load((tmp_path / "base.yaml").read_text()) | {"model": {"patch": [1, 2, 4]}}
    (tmp_path / "patched.yaml").write_text(yaml.safe_dump(patched))
    # What training would refuse of a cache that is there, the simulation does too.
    assert "too narrow" in here("simulate", sweep, f"base={tmp_path / 'patched.yaml'}", status=2)[1]
    unencoded(sweep)
    assert here("simulate", sweep, "--n-ctx", 32, "--json")[0] == json.dumps(of_cache) + "\n"
    assert (
        json.loads(here("simulate", sweep, "--n-ctx", 16, "--json")[0])["targets"][0]["C"]
        < of_cache["targets"][0]["C"]
    )
    reported, said = here("simulate", sweep, "--law", law_of_clips(tmp_path, 32), "--json")
    assert {k: v for k, v in json.loads(reported).items() if k != "warnings"} == {
        k: v for k, v in of_cache.items() if k != "warnings"
    }
    assumed = next(text for text in json.loads(reported)["warnings"] if "32 tokens" in text)
    assert "none/such" in assumed
    assert "--n-ctx" in assumed
    assert f"warning: {assumed}\n" in said


def test_simulate_without_tokens_per_clip_says_how_to_give_them(sweep: Path, tmp_path: Path) -> None:
    unencoded(sweep)
    for words in (["--law", law_of_clips(tmp_path, None)], [], ["--n-ctx", 0]):  # the paper's clips are 1280 tokens
        said = here("simulate", sweep, *words, status=2)[1]
        assert said.count("\n") == 1
        assert "--n-ctx" in said
    # What trains still asks for the clips.
    assert "make one with tools/cache_latents.py" in here("run", sweep, "--dry-run", status=2)[1]


def test_simulate_with_nothing_to_fit_is_refused(sweep: Path) -> None:
    assert "no (N, T) has 3 different (lr, B)" in here("simulate", sweep, status=2)[1]
    edit(sweep, sizes=[{"size": "1x32", "heldout": True}])
    assert "every size is held out" in here("simulate", sweep, status=2)[1]


def test_simulate_fits_the_runs_of_several_sweeps_together(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, passed = [{"size": "1x32"}, {"size": "2x32"}], []
    held_out = {"size": "4x32", "heldout": True, "lr": [1e-3], "batch_tokens": [32]}

    def expect(truth: object, runs: list, targets: list, **more: object) -> dict:
        passed.append((sorted(runs, key=repr), targets))
        return {"warnings": []}

    monkeypatch.setattr(simulation, "expect", expect)
    edit(sweep, **WIDE | {"sizes": [*fitted, held_out]})
    here("simulate", sweep, "--json")
    parts = [("held_out", [held_out]), ("one", fitted[:1]), ("both", fitted)]  # one size is in two of them
    for name, sizes in parts:
        edit(sweep, sizes=sizes)
        shutil.copy(sweep, sweep.parent / f"{name}.yaml")
    files = [sweep.parent / f"{name}.yaml" for name, _ in parts]
    here("simulate", files[0], "--also", files[1], "--also", files[2], "--json")
    assert passed[0] == passed[1]
    assert len(passed[0][0]) == 2 * len(WIDE["lr"]) * len(WIDE["batch_tokens"])


def test_simulate_joins_the_milestones_of_a_cell_of_two_sweeps(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, other = [], sweep.parent / "other.yaml"
    monkeypatch.setattr(simulation, "expect", lambda truth, runs, *_, **more: passed.extend(runs) or {"warnings": []})
    edit(sweep, sizes=[{"size": "1x32"}], milestones=[320, 640])
    shutil.copy(sweep, other)
    edit(sweep, milestones=[320, 1280])
    here("simulate", other, "--also", sweep, "--flops", 1e15, "--json")
    assert {run.milestones for run in passed} == {(320, 640, 1280)}


def test_simulate_refuses_sweeps_of_other_clips(sweep: Path) -> None:
    edit(sweep, batch_tokens=[128])
    other = sweep.parent / "other.yaml"
    shutil.copy(sweep, other)
    edit(other, config={"model": {"patch": [1, 2, 2]}})
    said = here("simulate", sweep, "--also", other, status=2)[1]
    assert f"--also {other}: clips of 8 tokens, not of 32" in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("refused_fits")
def test_simulate_predicts_held_out_sizes_at_their_last_milestone(sweep: Path) -> None:
    held_out = {"heldout": True, "lr": [1e-3], "batch_tokens": [32]}
    longer = held_out | {"size": "4x32", "lr": [2e-3], "milestones": [640, 1280, 2560]}
    edit(sweep, **WIDE | {"sizes": [{"size": "1x32"}, {"size": "2x32"}, held_out | {"size": "4x32"}, longer]})
    (target,) = json.loads(here("simulate", sweep, "--json")[0])["targets"]
    assert (target["N"], target["T"]) == (16 * 4 * 32**2, 2560)
    assert target["C"] == pytest.approx(0.75 * target["N"] * (7 + 32 / 32) * 2560, rel=0.2)
    (target,) = json.loads(here("simulate", sweep, "--flops", 1e15, "--json")[0])["targets"]
    assert target["C"] == 1e15


def test_simulate_says_that_a_prior_lost_its_sense(sweep: Path) -> None:
    edit(sweep, **WIDE)
    assert "--prior: sweeps are fitted by one surface" in here("simulate", sweep, "--prior", "law.json", status=2)[1]


def test_a_law_far_from_its_compute_is_a_warning(sweep: Path) -> None:
    edit(sweep, **WIDE)
    reported, said = here("simulate", sweep, "--sweeps", 2, "--json")
    (far,) = json.loads(reported)["warnings"]
    assert "law 'paper' was fitted from 3e+17 to 2e+19 FLOPs" in far
    assert said == f"warning: {far}\n"


def test_dry_run_keeps_its_columns_apart(sweep: Path) -> None:
    """Numbers of any length: as many words in each line as there are columns."""
    edit(sweep, milestones=[3_200_000_000_000], batch_tokens=[3_200_000_000], sizes=[{"size": "16x2048"}])
    head, *rows, _, hours = here("run", sweep, "--dry-run")[0].splitlines()
    assert "the YAML gives no cost.flops_per_second" in hours
    assert head.split() == ["run", "id", "size", "N", "T", "B", "lr", "steps", "FLOPs", "hours"]
    assert len(rows) == 2
    for row in rows:
        assert row.split()[1:5] == ["16x2048", "1,073,741,824", "3,200,000,000,000", "3,200,000,000"]
        assert len(row.split()) == 9
        assert len(row) == len(head)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_id,N,T,B,lr,loss\n" + "".join(f"a{i},1e6,1e9,1e5,1e-3,0.5\n" for i in range(900)), "not a YAML mapping"),
        ("run_id,time\na, 12:30\n", "not a YAML mapping"),
        ("x" * 200 + ": 1\n", f"unknown key '{'x' * 56}..."),
        ('{"units": {"N": "parameters"}}', "unknown key 'units'"),
        ("1: 2\n", "unknown key '1'"),
    ],
)
def test_another_file_than_a_sweep_is_reported_in_a_short_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    said = here("simulate", path, status=2)[1]
    assert message in said
    assert "a sweep's YAML" in said
    assert "configs/sweep/quickstart.yaml" in said
    assert len(said) < 250 + len(str(path))


def test_status_tells_running_stopped_and_lost(sweep: Path, tmp_path: Path) -> None:
    """A begun cell runs while a process holds its folder; else it was stopped, if it said so, or it is lost."""
    first, second, third, _ = json.loads(here("run", sweep, "--dry-run", "--json")[0])["cells"]
    folders = [tmp_path / "runs" / "grid" / cell["run_id"] for cell in (first, second, third)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        with lock_run_dir(folder):
            pass
    said = {"run_id": second["run_id"], "status": "preempted", "tokens": 640, "milestones": []}
    (folders[1] / "result.json").write_text(json.dumps(said))
    with lock_run_dir(folders[0]):
        reported, _ = here("status", sweep)
        # Asking leaves the hold where it is, and takes none.
        assert here("status", sweep)[0] == reported
    assert "1 lost, 1 pending, 1 running, 1 stopped" in reported
    assert f"running grid/{first['run_id']}: 0%" in reported
    assert f"stopped grid/{second['run_id']}: 50%" in reported
    assert f"lost grid/{third['run_id']}: 0%" in reported
    counts = json.loads(here("status", sweep, "--json")[0])["counts"]
    assert counts == {"lost": 2, "pending": 1, "stopped": 1}


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("flops", ["0", "-1", "nan", "inf", "1e-300", "1e300", "1e34"]),
        ("noise", ["0", "-1", "nan", "inf", "1e-300", "1e3", "0.11"]),
        ("n-ctx", ["0", "-1", "9" * 400]),
        ("sweeps", ["1", "-1", "10001"]),
        ("seeds", ["0", "1001"]),
    ],
)
def test_simulate_refuses_numbers_beyond_sense(sweep: Path, option: str, values: list[str]) -> None:
    edit(sweep, **WIDE)
    for value in values:
        said = here("simulate", sweep, f"--{option}={value}", status=2)[1]
        assert said.startswith(f"error: --{option} "), (value, said)
        assert "must be a number from " in said
        assert said.count("\n") == 1


def test_simulate_refuses_a_budget_below_one_clip(sweep: Path) -> None:
    edit(sweep, **WIDE)
    said = here("simulate", sweep, "--flops", "1", status=2)[1]
    assert "less than one clip of 32" in said
    assert said.count("\n") == 1


def test_simulate_names_a_bad_index(sweep: Path, tmp_path: Path) -> None:
    edit(sweep, **WIDE)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "index.json").write_text("[]")
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["data"] = {"cache": str(tmp_path / "bad")}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(base))
    said = here("simulate", sweep, f"base={tmp_path / 'bad.yaml'}", status=2)[1]
    assert "index.json: not the index of a latent cache" in said
