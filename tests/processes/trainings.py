"""Trainings in processes of their own, several to a group as torchrun starts them, with what can go wrong in them.

They are forked from a server that has imported torch, as a sweep's cells are: a start takes a second, not ten.
"""

import errno
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.processes import launch
from tests.processes.launch import ROOT
from videoscaling.sweeps.local import PRELOADED
from videoscaling.training.signals import SIGNALS


def start(log: Path, target: Callable[..., int | None], *args: Any, world: int = 1) -> list[BaseProcess]:
    """Start ``target(*args)`` in ``world`` processes; each one's output goes to ``log``/<rank>."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_child, args=(log / str(rank), rank, world, port, target, args), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    launch.forked.extend(processes)
    return processes


def finish(processes: list[BaseProcess], seconds: float = 600) -> list[int | None]:
    """Their exit statuses; None for one that did not end in time, and was killed. None of them outlives the call.

    ``seconds`` bounds a hang: two trainings of seconds took more than 120 s on a core shared by ten processes.
    """
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def together(log: Path, target: Callable[..., int | None], *args: Any, world: int = 1) -> str:
    """Run ``target(*args)`` in ``world`` processes that must all end well; the first one's output."""
    codes = finish(start(log, target, *args, world=world))
    texts = [(log / str(rank)).read_text() for rank in range(world)]
    assert codes == [0] * world, "\n".join(texts)
    return texts[0]


def _child(log: Path, rank: int, world: int, port: int, target: Callable[..., int | None], args: tuple) -> None:
    from videoscaling.utils.errors import run_cli

    with log.open("w") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    if world > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (group | where).items()})
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    # A sweep of an earlier test may have started the server, which then blocks them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    run_cli(lambda: target(*args))


# -- what runs in them ---------------------------------------------------------------------------------------------


def train_it(overrides: list[str]) -> int:
    """A training, and whether it left its process group open: a forked process does not die of it, another would."""
    import torch.distributed as dist

    from videoscaling.training.config import load_config
    from videoscaling.training.train import train

    try:
        return train(load_config(None, overrides))
    finally:
        print("group open" if dist.is_initialized() else "group closed", flush=True)


def train_on_nodes(overrides: list[str], processes: int) -> int:
    """A training whose nodes have so many ``processes`` each."""
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    return train_it(overrides)


def with_exact_gathers(overrides: list[str]) -> int:
    """A training whose processes hold each other's slices in float32 too."""
    from videoscaling.training.distributed.parallel import Slices

    plain = Slices.gather
    Slices.gather = lambda self, exact=True: plain(self)
    return train_it(overrides)


def weights_before_training(overrides: list[str], path: str) -> int:
    """Writes the weights of a training that has not made a step, whole."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    from videoscaling.training.config import load_config
    from videoscaling.training.train import prepare
    from videoscaling.training.trainer import Trainer

    trainer = Trainer(*prepare(load_config(None, overrides)))
    weights = trainer.writer.copy({"model": trainer.model.state_dict()}, trainer.main)["model"]
    if trainer.main:
        save_file(weights, path)
    dist.destroy_process_group()
    return 0


def average_watched(overrides: list[str]) -> int:
    """Train with a look at the average after every step, as a preview takes one; no checkpoint in between."""

    from videoscaling.training.batches import Samples
    from videoscaling.training.step import TrainStep
    from videoscaling.training.trainer import Trainer

    begun: list[Trainer] = []
    restore, step = Trainer.restore, TrainStep.run

    def recorded(self: Trainer) -> None:
        begun.append(self)
        restore(self)

    def watched(self: TrainStep, samples: Samples, tokens: int) -> None:
        step(self, samples, tokens)
        first = Samples(*(value[:1] for value in samples))
        with torch.no_grad():
            begun[0].ema(first.x0, first.t, first.context, first.mask)

    Trainer.restore, TrainStep.run = recorded, watched
    return train_it(overrides)


def poisoned(overrides: list[str], steps: list[int], ranks: tuple[int, ...] = (0,)) -> int:
    """A training in which one sample of each of ``steps`` (counted from 0) is not a number, on ``ranks``."""
    with_feed(lambda step, samples: samples.x0[0].fill_(torch.nan) if step in steps and _rank() in ranks else None)
    return train_it(overrides)


def hung(overrides: list[str], step: int, rank: int) -> int:
    """A training in which one process never comes back from reading the samples of ``step``."""
    with_feed(lambda now, samples: time.sleep(3600) if (now, _rank()) == (step, rank) else None)
    return train_it(overrides)


def killed(overrides: list[str], step: int, rank: int) -> int:
    """A training in which one process is killed while it reads the samples of ``step``."""
    with_feed(lambda now, samples: os.kill(os.getpid(), signal.SIGKILL) if (now, _rank()) == (step, rank) else None)
    return train_it(overrides)


def killed_together(overrides: list[list[str]], step: int) -> int:
    """Trainings in one process that is killed while it reads the samples of ``step``."""
    from videoscaling.training.config import load_config
    from videoscaling.training.stacked.loop import train_stacked

    with_feed(lambda now, samples: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)
    return train_stacked([load_config(None, words) for words in overrides])


def killed_within(overrides: list[str], step: int, seconds: float) -> int:
    """A training that is killed ``seconds`` after it asked for the samples of ``step``, wherever it is then."""

    def meddle(now: int, samples: Any) -> None:
        if now == step:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    with_feed(meddle)
    train_it(overrides)
    time.sleep(60)  # for a kill that comes after the end
    return 0


def told_to_stop(overrides: list[str], step: int, rank: int, number: int) -> int:
    """A training of which one process gets a signal while it reads the samples of ``step``."""
    with_feed(lambda now, samples: os.kill(os.getpid(), number) if (now, _rank()) == (step, rank) else None)
    return train_it(overrides)


def on_a_full_disk(overrides: list[str], saves: int, rank: int | None = None) -> int:
    """A training whose disk is full when it writes tensors for the ``saves``-th time and later, for one ``rank``."""
    from videoscaling.training.checkpoints import checkpoint

    plain, done = checkpoint.save_file, []

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        done.append(path)
        if len(done) >= saves and rank in (None, _rank()):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        plain(tensors, path)

    checkpoint.save_file = save_file
    return train_it(overrides)


def killed_in_a_save(overrides: list[str], saves: int, rank: int) -> int:
    """A training of which one process is killed when it writes tensors for the ``saves``-th time."""
    from videoscaling.training.checkpoints import checkpoint

    plain, done = checkpoint.save_file, []

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        done.append(path)
        plain(tensors, path)
        if len(done) == saves and rank == _rank():
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = save_file
    return train_it(overrides)


def flags_alone(minutes: float, sends: tuple[int, ...]) -> int:
    """Only the flags by which processes stop together, and only ``sends`` send them: 3 where that is found out."""
    import torch.distributed as dist

    from videoscaling.training.distributed.parallel import lost_process
    from videoscaling.training.signals import StopRequest

    dist.init_process_group("gloo")
    stop = StopRequest(2, minutes)
    if _rank() not in sends:
        time.sleep(3600)
    stop.agreed()
    try:
        stop.agreed()
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(3 if lost_process(error) else 4)
    return 0


def short_of_memory(overrides: list[str], most: int, ranks: tuple[int, ...]) -> int:
    """A training that believes in a GPU, whose memory holds ``most`` clips at a time on ``ranks``.

    By their clocks a micro-batch of one clip is the fastest on the first process, and of all clips on the others.
    """
    from videoscaling.training import memory
    from videoscaling.training.step import TrainStep
    from videoscaling.training.trainer import Trainer

    plain, find_micro_batch = TrainStep.backward, Trainer.find_micro_batch

    def gradients(self: TrainStep, samples: Any, share: bool = True) -> torch.Tensor:
        loss = plain(self, samples, share)
        if self.micro_batch > most and _rank() in ranks:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    def on_a_gpu(self: Trainer) -> None:
        self.device, cpu = torch.device("cuda"), self.device
        find_micro_batch(self)
        print(f"{self.train_step.micro_batch} at a time")
        self.device = cpu

    def timer(train_step: TrainStep, samples: Any) -> Callable[[int], float]:
        return lambda size: float(size**2 if _rank() == 0 else size**0)

    memory.MAX_MICRO_BATCH_TOKENS, memory.pass_timer = 1, timer
    TrainStep.backward, Trainer.find_micro_batch = gradients, on_a_gpu
    return train_it(overrides)


def with_feed(meddle: Callable[[int, Any], None]) -> None:
    """Have ``meddle(step, samples)`` see, and perhaps change, a copy of each step's samples."""
    from videoscaling.training.batches import BatchLoader, Samples

    plain = BatchLoader.batch

    def step(self: BatchLoader, number: int) -> Samples:
        samples = Samples(*(value.clone() for value in plain(self, number)))
        meddle(number, samples)
        return samples

    BatchLoader.batch = step


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
