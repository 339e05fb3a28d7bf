"""What a sweep makes of Slurm's answers, whatever they are; the real one is in tests/processes/slurm."""

import json
import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.sweeps.test_run import here
from videoscaling.sweeps import local, slurm, slurm_queue
from videoscaling.sweeps import status as overview
from videoscaling.sweeps.cost import estimate
from videoscaling.sweeps.grid import Sweep, load_sweep
from videoscaling.sweeps.slurm_queue import queue_of, submit_and_wait
from videoscaling.sweeps.state import FAILURE, CellState, CellStatus
from videoscaling.training.run import Run
from videoscaling.utils.errors import DataFault, UserError
from videoscaling.utils.files import write_json

META = {"latent_shape": [16, 5, 4, 4], "fingerprint": "none"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sweep of two cells as Slurm's jobs."""
    grid = {
        "name": "grid",
        "out": str(tmp_path / "runs"),
        "milestones": [800],
        "batch_tokens": [80],
        "lr": [1e-3, 2e-3],
        "sizes": [{"size": "1x64"}],
        "executor": {"kind": "slurm", "retries": 2},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def loaded(path: Path, *overrides: str) -> Sweep:
    return load_sweep(path, list(overrides), lambda config: META)


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of this name on the path, before any other."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``submit_and_wait`` without waiting, with an empty queue; it is interrupted at the twentieth poll."""
    seen = SimpleNamespace(interrupt=SimpleNamespace(caught=None), looks=0, submitted=[], reported=[])

    def look(directory: Path) -> dict[str, str]:
        seen.looks += 1
        if seen.looks == 20:
            seen.interrupt.caught = 2
        return {}

    monkeypatch.setattr(slurm_queue, "queue_of", look)
    monkeypatch.setattr(slurm_queue, "check_options", lambda keys: None)
    monkeypatch.setattr(slurm_queue, "_sleep", lambda seconds, interrupt, meanwhile=None: None)
    return seen


def checkpointed(run: Run, step: int) -> None:
    folder = run.config.run_dir / "checkpoints" / f"step_{step:07}"
    folder.mkdir(parents=True)
    (folder / "optimizer.safetensors").touch()


def test_a_thousand_jobs_are_found_in_the_queue_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their record is one file, which is large: it is read once."""
    cells = [[{"run_id": f"cell{number}"}] for number in range(1000)]
    write_json(tmp_path / slurm.FOLDER / "grid-1.json", {"tasks": cells})
    program(
        tmp_path / "bin",
        "squeue",
        'i=0; while [ $i -lt 1000 ]; do echo "grid-1|7|$i|PENDING|Priority"; i=$((i + 1)); done; '
        'echo "other|8|0|RUNNING|None"',
        monkeypatch,
    )
    read, count = slurm.read_json, []
    monkeypatch.setattr(slurm, "read_json", lambda path, *how: count.append(path) or read(path, *how))
    tasks = queue_of(tmp_path)
    assert len(count) == 1
    assert len(tasks) == 1000
    assert tasks["cell999"] == "7_999 PENDING (Priority)"


def test_a_cell_that_dies_ever_later_without_a_checkpoint_is_given_up(
    path: Path, following: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it logged is lost with it, and is no progress."""
    sweep = loaded(path, "lr=[1e-3]")
    (run,) = sweep.cells
    folder = run.config.run_dir
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()

    def submit(sweep: Sweep, cells: list) -> str:
        following.submitted.append(len(cells))
        tokens = 80 * len(following.submitted)
        (folder / "metrics.jsonl").write_text(json.dumps({"tokens": tokens, "tokens_per_second": 1.0}) + "\n")
        return "7"

    monkeypatch.setattr(slurm_queue, "submit", submit)
    submit_and_wait(sweep, lambda run, outcome: following.reported.append(outcome), following.interrupt)
    assert following.submitted == [1, 1, 1]  # once and two retries
    assert following.reported == ["again", "again", "failed"]
    assert "Slurm job ended" in json.loads((folder / FAILURE).read_text())["reason"]


def test_a_cell_whose_turn_has_not_come_has_not_failed(
    path: Path, following: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job was lost four times, and each time the cell before it had got further."""
    sweep = loaded(path, "executor.slurm.runs_per_job=2", "executor.retries=1")
    first = sweep.cells[0]

    def submit(sweep: Sweep, cells: list) -> str:
        following.submitted.append(len(cells))
        if len(following.submitted) < 5:
            steps = 1 + len(following.submitted)
            checkpointed(first, steps)
        return "7"

    monkeypatch.setattr(slurm_queue, "submit", submit)
    submit_and_wait(sweep, lambda run, outcome: following.reported.append(outcome), following.interrupt)
    assert following.submitted == [2] * 6  # the fifth brought nothing, nor did its one retry
    assert following.reported[-2:] == ["failed", "failed"]


def test_a_finished_cell_that_starts_again_to_grow_gets_further(path: Path) -> None:
    """The EMA at its old end is no checkpoint to continue from: only later checkpoints count."""
    (run, _) = loaded(path).cells
    (run.config.run_dir / "checkpoints" / "step_0000010").mkdir(parents=True)
    assert slurm.tokens_of(run) == 0
    checkpointed(run, 3)
    assert slurm.tokens_of(run) == 240


def test_a_job_that_the_queue_does_not_show_at_once_is_not_submitted_twice(
    path: Path, following: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of the queue for two looks, it is lost: those of its second life too."""
    sweep = loaded(path, "lr=[1e-3]")
    name = sweep.cells[0].config.run_dir.name

    def look(directory: Path) -> dict[str, str]:
        following.looks += 1
        following.interrupt.caught = 2 if following.looks == 20 else None
        late = following.looks - submitted[-1] if submitted else 0
        return {name: "7_0 RUNNING"} if late > 1 and (len(submitted) > 1 or late < 4) else {}

    submitted: list[int] = []
    monkeypatch.setattr(slurm_queue, "queue_of", look)
    monkeypatch.setattr(slurm_queue, "submit", lambda sweep, cells: submitted.append(following.looks) or "7")
    submit_and_wait(sweep, lambda run, outcome: None, following.interrupt)
    assert len(submitted) == 2


def test_an_sbatch_that_gets_no_answer_counts_as_nothing(
    path: Path, following: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_queue, "submit", lambda sweep, cells: following.submitted.append(len(cells)))
    submit_and_wait(loaded(path), lambda run, outcome: following.reported.append(outcome), following.interrupt)
    assert len(following.submitted) > 3
    assert "failed" not in following.reported


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Unable to contact slurm controller (connect failure)", True),
        ("invalid partition specified: nope", False),
    ],
)
def test_what_sbatch_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, again: bool, capsys
) -> None:
    """Where nobody answered the jobs may be in the queue all the same: their names are kept to find them by."""
    program(tmp_path / "bin", "sbatch", f"echo 'sbatch: error: {words}' >&2; exit 1", monkeypatch)
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    sweep = loaded(path)
    records = sweep.directory / slurm.FOLDER
    if again:
        assert slurm.submit(sweep, sweep.cells) is None
        assert len(list(records.glob("*.json"))) == 1
        assert words in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=f"sbatch refuses: .*{words}"):
            slurm.submit(sweep, sweep.cells)
        assert not list(records.glob("*.json"))


@pytest.mark.parametrize(
    "words",
    [
        "Batch job submission failed: Invalid job array specification",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ],
)
def test_more_jobs_than_slurm_takes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Slurm's own words (of 22.05, beyond MaxArraySize) do not say what to do about it."""
    program(tmp_path / "bin", "sbatch", f'echo "sbatch: error: {words}" >&2; exit 1', monkeypatch)
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    sweep = loaded(path)
    with pytest.raises(UserError, match="2 jobs at once.* executor.slurm.runs_per_job"):
        slurm.submit(sweep, sweep.cells)
    with pytest.raises(UserError) as alone:
        slurm.submit(sweep, sweep.cells[:1])
    assert "runs_per_job" not in str(alone.value)
    assert not list((sweep.directory / slurm.FOLDER).glob("*.json"))


def test_jobs_start_python_in_a_container(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 7', monkeypatch)
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    start = "apptainer exec --nv image.sif python"
    sweep = loaded(path, f"executor.slurm.python={start}")
    slurm.submit(sweep, sweep.cells)
    assert f" {start} -u -m submitit.core._submit " in (tmp_path / "script").read_text()


def test_ctrl_c_does_not_end_an_sbatch_half_way(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal signals it too: the controller would have jobs whose record was taken back."""
    program(tmp_path / "bin", "sbatch", "kill -INT $$; echo Submitted batch job 7", monkeypatch)
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    sweep = loaded(path)
    assert slurm.submit(sweep, sweep.cells) == "7"
    assert json.loads(next((sweep.directory / slurm.FOLDER).glob("*.json")).read_text())["job"] == "7"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_fault_of_the_data_cancels_the_other_jobs_and_ends_the_sweep(
    path: Path, following: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = loaded(path, "lr=[1e-3, 2e-3, 3e-3, 4e-3]")
    names = [run.config.run_dir.name for run in sweep.cells]
    program(tmp_path / "bin", "scancel", f"echo $* >> {tmp_path}/cancelled", monkeypatch)
    monkeypatch.setattr(slurm_queue, "submit", lambda sweep, cells: following.submitted.append(len(cells)) or "7")
    queue = {name: f"7_{number} RUNNING" for number, name in enumerate(names)}

    def look(directory: Path) -> dict[str, str]:
        following.looks += 1
        assert following.looks < 10
        if following.looks == 1:
            return {}
        if following.looks == 3:
            del queue[names[0]]
            write_json(sweep.cells[0].config.run_dir / "config.yaml", {})
            record = {"attempts": 1, "exit_status": 2, "reason": "train-00000: altered", "data_fault": True}
            write_json(sweep.cells[0].config.run_dir / FAILURE, record)
        return queue

    monkeypatch.setattr(slurm_queue, "queue_of", look)
    with pytest.raises(DataFault, match="train-00000: altered; then run the sweep again"):
        submit_and_wait(sweep, lambda run, outcome: following.reported.append(outcome), following.interrupt)
    assert (following.submitted, following.reported) == ([4], ["failed"])
    assert (tmp_path / "cancelled").read_text() == "7_1 7_2 7_3\n"


def test_a_job_ends_at_a_fault_of_the_data_without_being_queued_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    program(tmp_path / "bin", "scontrol", f"touch {tmp_path}/requeued", monkeypatch)
    sweep = loaded(path, "executor.slurm.runs_per_job=2")
    monkeypatch.setattr(slurm, "_parameters", lambda keys, name: 1 / 0)  # the record is written before
    with pytest.raises(ZeroDivisionError):
        slurm.submit(sweep, sweep.cells)

    def run_cells(*_: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)  # the warning of the job's end comes at the same moment
        raise DataFault("train-00000: altered")

    monkeypatch.setattr(local, "run_cells", run_cells)
    slurm.work(str(next((sweep.directory / slurm.FOLDER).glob("*.json"))), 0)
    assert capsys.readouterr().err == "error: train-00000: altered\n"
    assert not (tmp_path / "requeued").exists()


def test_a_job_queued_again_leaves_what_failed_in_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every end of a job's time would be worth another set of retries."""
    program(tmp_path / "bin", "srun", "exit 0", monkeypatch)
    sweep = loaded(path, "executor.slurm.runs_per_job=2")
    failed, other = sweep.cells
    monkeypatch.setattr(slurm, "_parameters", lambda keys, name: 1 / 0)  # the record is written before
    with pytest.raises(ZeroDivisionError):
        slurm.submit(sweep, sweep.cells)
    (record,) = (sweep.directory / slurm.FOLDER).glob("*.json")
    write_json(failed.config.run_dir / FAILURE, {"attempts": 3, "reason": "always"})
    trained = []
    monkeypatch.setattr(
        local, "run_cells", lambda cells, *more, **named: trained.extend(run.config.name for run in cells)
    )
    slurm.work(str(record), 0)
    assert trained == [other.config.name]
    assert (failed.config.run_dir / FAILURE).exists()


def test_a_time_is_what_was_written(path: Path) -> None:
    """YAML 1.1 takes 12:00:00 for 43,200, which as minutes would be a month, and 010 for 8."""
    assert slurm.minutes(loaded(path, "executor.slurm.time=12:00:00").keys.executor.slurm.time) == 720
    assert slurm.minutes(loaded(path, 'executor.slurm.time="1-12"').keys.executor.slurm.time) == 36 * 60
    text = path.read_text()
    path.write_text(text.replace("retries: 2", "slurm: {time: 12:00:00}"))
    assert loaded(path).keys.executor.slurm.time == "12:00:00"
    path.write_text(text.replace("retries: 2", "slurm: {time: 010}"))
    assert slurm.minutes(loaded(path).keys.executor.slurm.time) == 10
    path.write_text(text.replace("retries: 2", 'slurm: {time: "12:00:00"}'))
    assert slurm.minutes(loaded(path).keys.executor.slurm.time) == 720
    for wrong in ("1:2:3:4", "1-2:3:4:5"):
        with pytest.raises(UserError, match="minutes, or a time such as"):
            loaded(path, f"executor.slurm.time='{wrong}'")


@pytest.mark.parametrize(
    ("option", "key"),
    [("job_name", ""), ("job-name", ""), ("array", ""), ("signal", "warning_seconds"), ("time", "time")],
)
def test_options_that_the_sweep_sets_are_refused(path: Path, option: str, key: str) -> None:
    """A job of another name would not be found in the queue, and its cells submitted again."""
    with pytest.raises(UserError, match=rf"options.{option}: the sweep sets it.*{key}"):
        loaded(path, f"executor.slurm.options.{option}=x")


def test_cells_at_once_are_those_of_the_jobs_that_there_are(path: Path) -> None:
    from videoscaling.sweeps.cost import width

    rates = "lr=[1e-3,2e-3,3e-3,4e-3,5e-3,6e-3,7e-3,8e-3]"
    # Eight cells, two by two in four jobs of a core: four at once.
    assert width(loaded(path, rates, "executor.slurm.runs_per_job=2")) == 4
    assert width(loaded(path, rates, "executor.slurm.runs_per_job=2", "executor.slurm.cpus=2")) == 8
    assert width(loaded(path, rates, "executor.slurm.runs_per_job=2", "executor.slurm.array=3")) == 3
    assert width(loaded(path, rates, "executor.slurm.runs_per_job=8", "executor.slurm.gpus=4")) == 4


def test_status_says_where_the_queue_does_not_answer(
    cache: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = yaml.safe_load(path.read_text()) | {"config": {"data": {"cache": str(cache)}}, "batch_tokens": [64]}
    path.write_text(yaml.safe_dump(grid | {"sizes": [{"size": "1x32"}]}))
    assert here("status", path)[1] == ""
    write_json(tmp_path / "runs" / "grid" / slurm.FOLDER / "grid-1.json", {"tasks": []})
    program(tmp_path / "bin", "squeue", "exit 1", monkeypatch)
    assert "Slurm's queue does not answer" in here("status", path)[1]


def test_status_names_no_cell_for_its_place_in_the_queue_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand that wait are counted by what Slurm says of their jobs; one that is done needs none any more."""
    sweep = loaded(path, "lr=[1e-3,2e-3,3e-3,4e-3,5e-3]")
    names = [run.config.run_dir.name for run in sweep.cells]
    said = ["7_0 RUNNING", "7_0 RUNNING", "7_1 PENDING (Resources)", "7_2 PENDING (Resources)", "7_0 RUNNING"]
    kinds = dict(zip(names, ("done", "lost", "pending", "pending", "pending")))
    monkeypatch.setattr(
        overview, "cell_status", lambda run, results: CellStatus(CellState(kinds[run.config.run_dir.name]), share=1.0)
    )
    states = overview.states_of(sweep, dict(zip(names, said)))
    reported = overview.status(sweep, states, estimate(sweep, states))
    assert [cell.get("job") for cell in reported.to_json(sweep)["cells"]] == [None, *said[1:]]
    head, _, queued, running = overview.status_text(sweep, reported).splitlines()
    assert head.endswith("5 cells: 1 done, 3 pending, 1 running")
    assert queued == "  pending by their jobs: 2 PENDING (Resources), 1 RUNNING"
    assert running.startswith(f"  running grid/{names[1]}: 0% of ")
    assert running.endswith(", job 7_0 RUNNING")


def test_lines_of_shell_and_options_are_what_was_written(path: Path) -> None:
    """The shell's ${VAR} is none of OmegaConf's. yes is a value of --kill-on-invalid-dep; true is an option alone."""
    slurm_keys = (
        "{setup: ['export A=${B:-x}', 'printf \"\\\\${C}\"'], "
        "options: {qos: 007, kill-on-invalid-dep: yes, exclusive: true}, account: 1e3}"
    )
    path.write_text(path.read_text().replace("retries: 2", f"slurm: {slurm_keys}"))
    keys = loaded(path).keys.executor.slurm
    assert keys.setup == ["export A=${B:-x}", 'printf "\\\\${C}"']
    assert keys.options == {"qos": "007", "kill-on-invalid-dep": "yes", "exclusive": True}
    assert keys.account == "1e3"
    assert slurm._parameters(keys, "x")["setup"][:2] == keys.setup
