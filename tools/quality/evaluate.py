"""The distances of generated sets of clips from real ones, of the real halves from each other, and of corruptions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoscaling.data.index import CacheMeta
from videoscaling.data.latents import LatentCache
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.video.clips import Shape
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.tools.quality import clips as sets
from videoscaling.tools.quality.correlation import MIN_MODELS, RankCorrelation, rank_correlations
from videoscaling.tools.quality.corruptions import corrupted
from videoscaling.tools.quality.kernel_distance import Distance, kernel_distance, relative_change
from videoscaling.tools.quality.models import cache_of, load_model, sample_clips
from videoscaling.tools.quality.names import is_cache, is_model
from videoscaling.tools.quality.networks import features_of, load_networks
from videoscaling.tools.quality.result import Entry, Evaluation
from videoscaling.training.checkpoints.exported import read_trained
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import UserError
from videoscaling.utils.progress import Progress

Features = dict[str, Tensor]  # by network


@dataclass(frozen=True)
class Request:
    """What to compare, and how (the options of tools/evaluate_samples.py).

    Attributes:
        real: None is the cache of the first model.
        clips: of each set, at most.
        shape: of clips where neither a cache nor a model has one.
    """

    generated: Sequence[str]
    real: str | None
    features: Sequence[str]
    clips: int
    seed: int
    shape: Shape
    sampler: SamplerOptions
    batch: int
    corruptions: bool
    bfloat16: bool = False
    vae: str | None = None
    text: str | None = None
    device: str | None = None


def evaluate_clips(request: Request) -> Evaluation:
    """Compare models and folders of videos with real clips, by the features of networks.

    Raises:
        UserError: a package or a file is missing, clips are of different shapes, or there are too few.
        NotFinite: pixels or features are NaN or infinite.
    """
    device = pick_device(request.device)
    networks = load_networks(request.features, request.bfloat16)
    models = [name for name in request.generated if is_model(name)]
    # All before the first is sampled: each takes a while.
    trained = {name: read_trained(name).data for name in models}
    for name in request.generated:
        if name not in models:
            list_sources(name, ListingOptions(captions=False))
    real, shape = _real_clips(request, models, device)
    _check_shapes(request, trained, shape, device)
    seed, clips = request.seed, len(real.others)
    total = len(request.generated) + (6 if request.corruptions else 2)
    entries = []
    with Progress(total, "evaluating", "sets of clips") as progress:

        def features(made: Tensor) -> Features:
            found = {name: features_of(network, made) for name, network in networks.items()}
            progress.update(1)
            return found

        def entry(name: str, kind: str, made: Features, **more: object) -> Entry:
            return Entry(name, kind, clips, _distances(reference, made, seed), **more)

        reference, others = features(real.reference), features(real.others)
        entries.append(entry("real", "real", others))
        for name, damaged in corrupted(real.others, seed).items() if request.corruptions else ():
            found = features(damaged)
            change = {network: relative_change(others[network], found[network]) for network in networks}
            entries.append(entry(name, "corruption", found, change=change))
        for name in request.generated:
            if name in models:
                pipeline, facts = load_model(name, device, vae=request.vae, text=request.text)
                made = sample_clips(pipeline, real.captions, request.sampler, seed=seed, batch=request.batch)
                entries.append(entry(name, "model", features(made), **asdict(facts)))
            else:
                made = sets.made_clips(name, clips, Shape(shape[0], shape[1:]))
                entries.append(Entry(name, "videos", len(made), _distances(reference, features(made), seed)))
    about = {"sampler": asdict(request.sampler)} if models else {}
    return _evaluation(request, entries, clips, shape=shape, **about)


def evaluate_files(request: Request) -> Evaluation:
    """Compare features that a user computed: .npy files of [clips, width] or [clips, vectors, width]. A random half of
    the real ones is the reference.

    Raises:
        UserError: a file is missing, or no array of such a shape.
        NotFinite: a feature is NaN or infinite.
    """
    files = [*request.generated, request.real]
    if not all(str(name).endswith(".npy") for name in files):
        raise UserError(f"{' '.join(map(str, files))}: .npy files of features need --real FILE.npy, and no others")
    real, *made = (_read_features(Path(name)) for name in (request.real, *request.generated))
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(request.seed))]
    half = len(real) // 2
    reference = {"features": real[:half]}
    pairs = [("real", real[half : 2 * half]), *zip(request.generated, made)]
    entries = [
        Entry(name, "features", len(found), _distances(reference, {"features": found}, request.seed))
        for name, found in pairs
    ]
    return _evaluation(request, entries, half)


def _real_clips(
    request: Request, models: Sequence[str], device: torch.device
) -> tuple[sets.RealClips, tuple[int, int, int]]:
    """The real clips, and their frames, height and width."""
    if request.real is None and not models:
        raise UserError("--real: name a cache or videos to compare with")
    where = request.real or cache_of(models[0])
    if is_cache(where):
        found = sets.clips_of_cache(LatentCache(where), request.clips, request.seed, vae=request.vae, device=device)
    else:
        shape = request.shape
        if models:
            frames, *sides = load_model(models[0], device, vae=request.vae, text=request.text)[0].clip_shape
            shape = Shape(frames, (sides[0], sides[1]))
        found = sets.clips_of_videos(where, request.clips, shape, seed=request.seed, captions=bool(models))
    frames, height, width = found.reference.shape[2:]
    return found, (frames, height, width)


def _check_shapes(
    request: Request, trained: Mapping[str, CacheMeta], shape: tuple[int, int, int], device: torch.device
) -> None:
    """Raise where a model makes clips of another shape than the real ones', or lacks its encoders. Of models that have
    these in common one is loaded."""
    keys = ("vae_fingerprint", "text_fingerprint")
    kinds = {(*data["latent_shape"], *map(data.get, keys)): name for name, data in trained.items()}
    for name in kinds.values():
        made = load_model(name, device, vae=request.vae, text=request.text)[0].clip_shape
        if made != shape:
            raise UserError(f"{name}: makes clips of {made}, and the real ones are {shape}")


def _distances(reference: Features, made: Features, seed: int) -> dict[str, Distance]:
    return {name: kernel_distance(reference[name], made[name], seed) for name in reference}


def _evaluation(request: Request, entries: list[Entry], clips: int, **about: object) -> Evaluation:
    measured = [entry for entry in entries if entry.loss is not None]
    correlations: list[RankCorrelation] = []
    if len(measured) >= MIN_MODELS:
        losses = [entry.loss for entry in measured]
        for name in measured[0].distances:
            correlations += rank_correlations(losses, [entry.distances[name].value for entry in measured], name)
    return Evaluation(request.real or "", clips, request.seed, entries=entries, correlations=correlations, **about)


def _read_features(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no array of features ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (2, 3):
        raise UserError(f"{path}: must hold numbers of shape [clips, width] or [clips, vectors, width]")
    features = torch.from_numpy(array.astype(np.float64))
    return features if features.dim() == 3 else features[:, None]
