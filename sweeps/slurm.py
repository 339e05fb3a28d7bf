"""Slurm executor: submits a sweep's cells as job arrays, and trains the cells on the nodes.

The submitting process writes ``<sweep>/slurm/<submission>.json`` and follows the queue (``slurm_queue``). The jobs
write only to the cells' folders. They exchange nothing else, so that either side may die and be started again.
"""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from videoscaling import IMPORT_PATH
from videoscaling.sweeps.config import ExecutorKeys, SlurmKeys, minutes
from videoscaling.sweeps.grid import Sweep
from videoscaling.sweeps.state import FAILURE
from videoscaling.training.config import config_from_dict
from videoscaling.training.result import finished_result, resumable_step
from videoscaling.training.run import Run
from videoscaling.utils.errors import DataFault, UserError, nearest
from videoscaling.utils.files import read_json, write_json
from videoscaling.utils.yaml_text import Values

FOLDER = "slurm"  # in the sweep's
# sbatch's messages where its controller may answer later
TEMPORARY_ERRORS = (
    "socket timed out",
    "unable to contact slurm controller",
    "temporarily unable",
    "connection refused",
)
# Its messages for an array above MaxArraySize (1001 jobs by default) or above a user's limit
TOO_MANY_ERRORS = ("invalid job array specification", "submit limit")


class SubmittedCell(TypedDict):
    """A cell in a submission: ``training.run.Run``'s values, and its run id."""

    config: Values
    N: int
    n_ctx: int
    clips: int
    flops_per_token: float
    run_id: str


class Submission(TypedDict):
    """The file of an array of jobs: its name, Slurm's id once it is known, and the cells of each job."""

    name: str
    job: str | None
    executor: Values
    tasks: list[list[SubmittedCell]]


# -- where the sweep is started ------------------------------------------------------------------------------------


def submit(sweep: Sweep, cells: Sequence[Run]) -> str | None:
    """Submit one array of jobs for ``cells``, ``runs_per_job`` of them in each; returns its job id.

    None if the controller did not answer. It may have accepted the jobs, so the file with their names stays.

    Raises:
        UserError: sbatch refuses, with its message.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

    keys = sweep.keys.executor.slurm
    sets = parts(sweep, cells)
    name = f"{re.sub(r'[^A-Za-z0-9]+', '-', sweep.keys.name)}-{uuid.uuid4().hex[:8]}"
    record = (sweep.directory / FOLDER / f"{name}.json").resolve()
    tasks: list[list[SubmittedCell]] = [
        [{**dataclasses.asdict(run), "run_id": run.config.run_dir.name} for run in part] for part in sets
    ]
    content = Submission(name=name, job=None, executor=dataclasses.asdict(sweep.keys.executor), tasks=tasks)
    write_json(record, content)
    executor = submitit.SlurmExecutor(folder=logs(sweep.directory), python=keys.python)
    executor.update_parameters(**_parameters(keys, name))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), _signals_blocked():
            if len(sets) == 1:
                jobs = [executor.submit(work, str(record), 0)]
            else:
                jobs = executor.map_array(work, [str(record)] * len(sets), list(range(len(sets))))
    except (FailedJobError, FailedSubmissionError) as error:
        message = _sbatch_message(str(error))
        if any(text in message.lower() for text in TEMPORARY_ERRORS):
            print(f"sbatch: {message}; trying again", file=sys.stderr, flush=True)
            return None
        record.unlink()
        if len(sets) > 1 and any(text in message.lower() for text in TOO_MANY_ERRORS):
            message += (
                f" ({len(sets):,} jobs at once are more than this cluster takes of one array or one user; give each "
                "more cells by executor.slurm.runs_per_job)"
            )
        raise UserError(f"sbatch refuses: {message}") from None
    job = jobs[0].job_id.partition("_")[0]
    write_json(record, content | {"job": job})
    return job


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals, also for the commands started meanwhile: a terminal's Ctrl-C reaches all of them, and an sbatch
    that dies of it may have submitted its jobs already."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parts(sweep: Sweep, cells: Sequence[Run]) -> list[Sequence[Run]]:
    """The cells of each job."""
    each = sweep.keys.executor.slurm.runs_per_job
    return [cells[i : i + each] for i in range(0, len(cells), each)]


def check_options(keys: SlurmKeys) -> None:
    """Check that Slurm is installed here and that sbatch knows all options.

    Raises:
        UserError: a program is missing, or an option is unknown; names the nearest known option.
    """
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"executor.kind=slurm: no {program} on the path; run this where Slurm is, or say executor.kind=local"
            )
    if not keys.options:
        return
    out = subprocess.run(["sbatch", "--help"], capture_output=True, text=True)
    known = sorted(set(re.findall(r"--([a-z][a-z-]+)", out.stdout)))
    for name in keys.options:
        if known and name.replace("_", "-") not in known:
            raise UserError(f"executor.slurm.options: sbatch knows no --{name}{nearest(name, known)}")


def _parameters(keys: SlurmKeys, name: str) -> dict[str, object]:
    """The parameters of a job, arguments of submitit's ``update_parameters``."""
    # The user's setup lines may change the folder and PYTHONPATH.
    ours = [
        f"cd {shlex.quote(str(Path.cwd()))}",
        f'export PYTHONPATH={shlex.quote(str(IMPORT_PATH))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]
    given = {"partition": keys.partition, "account": keys.account, "mem": keys.mem}
    given |= {"gpus_per_node": keys.gpus, "cpus_per_task": keys.cpus}
    options = {option.replace("_", "-"): value for option, value in keys.options.items()}
    return {option: value for option, value in given.items() if value is not None} | {
        "job_name": name,
        "nodes": keys.nodes,
        "ntasks_per_node": 1,
        "time": minutes(keys.time),
        "array_parallelism": keys.array,
        "signal_delay_s": keys.warning_seconds,
        "setup": [*keys.setup, *ours],
        "stderr_to_stdout": True,
        # Newer srun does not take this over from sbatch.
        "srun_args": [f"--cpus-per-task={keys.cpus}"] if keys.cpus else [],
        "additional_parameters": {"requeue": True, **options},
    }


def logs(directory: Path) -> Path:
    """The folder of the jobs' logs in a sweep's ``directory``."""
    return directory / FOLDER / "logs"


def _sbatch_message(text: str) -> str:
    """sbatch's message in one line."""
    lines = [line.partition("error: ")[2] or line for line in text.splitlines() if line.strip()]
    return "; ".join(line.strip() for line in lines)[:400]


# -- on the nodes ----------------------------------------------------------------------------------------------------


def work(record: str, task: int) -> None:
    """Body of a job: train its cells with ``run_cells``, checkpoint on Slurm's warning signal, and requeue.

    Several nodes run the same cell, joined by torchrun. A job that got the warning before any cell had a later
    checkpoint is not requeued, because it would never end.
    """
    from videoscaling.sweeps.local import Interrupt, run_cells

    with Interrupt() as interrupt:
        content = read_submission(Path(record))
        try:
            keys = executor_keys(content["executor"])
            cells = [_cell(values) for values in content["tasks"][task]]
        except (KeyError, TypeError, IndexError) as error:
            raise damaged(Path(record), f"{error!r:.100}") from None
        # A requeued job skips its failed cells; the submitting process decides when they are tried again.
        cells = [run for run in cells if not (run.config.run_dir / FAILURE).exists()]
        before = [tokens_of(run) for run in cells]
        try:
            run_cells(cells, keys, _print_outcome, interrupt, rendezvous=_rendezvous(keys))
        except DataFault as fault:  # recorded in the cell's failure.json too, which ends the sweep
            print(f"error: {fault}", file=sys.stderr, flush=True)
            return
        if interrupt.caught is None:
            return
        if interrupt.caught != signal.SIGUSR2 or os.environ.get("SLURM_NODEID", "0") != "0":
            return  # cancelled; or preempted, and Slurm requeues it if configured so
        if all(tokens_of(run) <= tokens for run, tokens in zip(cells, before)):
            raise RuntimeError("no cell got any further before the warning: give executor.slurm.time more minutes")
        if shutil.which("scontrol"):  # a container may have none: ``submit_and_wait`` submits the cells again
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)


def read_submission(path: Path) -> Submission:
    """Read the file that ``submit`` wrote; its tasks are lists of cells with a "run_id".

    Raises:
        UserError: the file is damaged. The cells of its job are not known then, and a second job would train them too.
    """
    content = read_json(path, dict, "a submission")
    tasks = content.get("tasks")
    if not (isinstance(tasks, list) and all(isinstance(part, list) for part in tasks)):
        raise damaged(path, "no tasks")
    if not all(isinstance(cell, dict) and isinstance(cell.get("run_id"), str) for part in tasks for cell in part):
        raise damaged(path, "a cell without its run_id")
    return content


def damaged(path: Path, why: str) -> UserError:
    """The error of a submission's file that ``submit`` did not write so."""
    return UserError(f"{path}: not a submission ({why}); cancel its job, of that name (scancel), and remove the file")


def executor_keys(values: Values) -> ExecutorKeys:
    """The inverse of ``dataclasses.asdict``."""
    # Older jobs have a key more, or lack one.
    known = {name: values[name] for name in ExecutorKeys.__dataclass_fields__ if name in values}
    return ExecutorKeys(**known | {"slurm": SlurmKeys(**values["slurm"])})


def _cell(values: SubmittedCell) -> Run:
    numbers = {name: value for name, value in values.items() if name not in ("config", "run_id")}
    return Run(config=config_from_dict(values["config"]), **numbers)


def _rendezvous(keys: ExecutorKeys) -> list[str]:
    """torchrun's options if a cell runs on several nodes, including this one."""
    if keys.slurm.nodes == 1:
        return []
    # The job's own script starts the nodes' tasks, and runs on the first node.
    first = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    # Any port that all nodes can compute; the job id separates jobs on the same node.
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 40000
    node = os.environ["SLURM_NODEID"]
    return ["--nnodes", str(keys.slurm.nodes), "--node_rank", node, "--master_addr", first, "--master_port", str(port)]


def tokens_of(run: Run) -> int:
    """Tokens up to the newest checkpoint that the run can resume from."""
    final = finished_result(run)
    if final is not None:
        return final["tokens"]
    return resumable_step(run.config.run_dir) * run.config.train.batch_tokens


def _print_outcome(run: Run, outcome: str) -> None:
    print(f"{run.config.name}: {outcome}", flush=True)
