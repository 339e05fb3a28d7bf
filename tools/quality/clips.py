"""Clips to compare: real ones, from a cache or from videos, and those that a model or a folder has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from videoscaling.data.choices import FILM, LIMIT_SECONDS
from videoscaling.data.clip_groups import video_group
from videoscaling.data.latents import LatentCache
from videoscaling.data.shot_sources import ShotOptions, split_into_shots
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video.clips import ClipOptions, Clips, Shape, to_float
from videoscaling.data.video.decode_workers import decoded
from videoscaling.data.work_share import WorkShare
from videoscaling.models.vae import load_vae
from videoscaling.tools.quality.kernel_distance import MIN_CLIPS
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.messages import warn
from videoscaling.utils.tables import read_table


def within_shots(where: str, sources: Sequence[Source], shape: Shape) -> list[Source]:
    """The ``sources`` of ``where`` as tools/cache_latents.py takes them by default: of the film its shots."""
    if where != FILM:
        return list(sources)
    rule = ShotOptions("histogram", WorkShare(), 0, LIMIT_SECONDS)
    return split_into_shots(sources, rule, ClipOptions(shape), numbered=True)[0]


@dataclass(frozen=True)
class RealClips:
    """Real clips in two halves, drawn at random, that have no clip in common.

    Attributes:
        reference, others: float32 [n, 3, F, H, W] in [-1, 1].
        captions: of ``others``. A model is asked for these, so that its clips take the place of ``others``: samples
            for the reference's own captions would be nearer to it than independent clips are.
    """

    reference: Tensor
    others: Tensor
    captions: list[str]


def clips_of_cache(cache: LatentCache, count: int, seed: int, *, vae: str | None, device: torch.device) -> RealClips:
    """Validation clips as the autoencoder decodes them, at most ``count`` in each half.

    So what the autoencoder loses counts neither for nor against a model that makes latents.

    Raises:
        UserError: the cache has too few clips, or its autoencoder is missing or another.
    """
    chosen = _permuted(cache.validation_size, seed)[: 2 * count]
    listed = read_table(cache.path / "captions.jsonl", lambda names: "caption" in names)
    rows = [row for _, row in listed.rows(("split", "key", "caption")) if row["split"] == "validation"]
    captions = {row["key"]: str(row["caption"]) for row in rows}
    place = vae or cache.meta["vae"]
    decoder = load_vae(place, device)
    if decoder.fingerprint != cache.meta["vae_fingerprint"]:
        raise UserError(f"{place}: not the autoencoder of {cache.path}; give the right one's folder as --vae FOLDER")
    latents = cache.validation(torch.tensor(chosen))[0]
    clips = torch.cat([decoder.decode(part).cpu() for part in latents.split(8)])
    return _halves(clips, [captions[cache.validation_keys[index]] for index in chosen], count)


def clips_of_videos(where: str, count: int, shape: Shape, *, seed: int, captions: bool) -> RealClips:
    """Clips of videos, spread over as many of them as there are, at most ``count`` in each half; of the film, clips
    within its shots.

    Raises:
        UserError: there are too few clips, or no captions where they are asked for.
    """
    sources = within_shots(where, list_sources(where, ListingOptions(captions=captions)), shape)
    sources = [sources[index] for index in _permuted(len(sources), seed)]
    clips, texts = _decoded(sources, 2 * count, shape)
    order = _permuted(len(clips), seed)  # those of one video fall into either half
    return _halves(clips[order], [texts[index] for index in order], count)


def made_clips(where: str, count: int, shape: Shape) -> Tensor:
    """The first ``count`` clips of a folder of generated videos, float32 [n, 3, F, H, W] in [-1, 1]."""
    clips, _ = _decoded(list_sources(where, ListingOptions(captions=False)), count, shape)
    _check_count(len(clips), count, where)
    return clips


def _decoded(sources: Sequence[Source], count: int, shape: Shape) -> tuple[Tensor, list[str]]:
    """At most ``count`` clips and their captions, as few of each source as give so many; the unreadable are named."""
    there: dict[Source, int] = {}  # clips by the headers
    for source, found in _loaded(sources, ClipOptions(shape, count), decode=False):
        there[source] = len(found.keys)
        if len(there) == count:
            break
    each = next((n for n in range(1, count) if sum(min(n, clips) for clips in there.values()) >= count), count)
    clips: list[Tensor] = []
    captions: list[str] = []
    for _, found in _loaded(list(there), ClipOptions(shape, each)):
        clips += list(to_float(found.pixels))
        captions += found.captions
        for lost in found.rejected:
            warn(f"{lost['clip']}: {lost['reason']}: {lost['detail']}")
        if len(clips) >= count:
            break
    if not clips:
        raise UserError(
            f"no clip of {plural(shape.frames, 'frame')} of {'x'.join(map(str, shape.sides))} pixels in any video"
        )
    return torch.stack(list(islice(clips, count))), captions[:count]


def _loaded(sources: Sequence[Source], options: ClipOptions, decode: bool = True) -> Iterator[tuple[Source, Clips]]:
    groups = (video_group(source, options, decode=decode) for source in sources)
    for source, found in zip(sources, decoded(groups, workers=1)):
        if isinstance(found, Rejected):
            warn(f"{source.name}: {found}")
        else:
            yield source, found


def _halves(clips: Tensor, captions: list[str], count: int) -> RealClips:
    half = len(clips) // 2
    _check_count(half, count, "each half of the real clips")
    return RealClips(clips[:half], clips[half : 2 * half], captions[half : 2 * half])


def _check_count(found: int, wanted: int, what: str) -> None:
    if found < MIN_CLIPS:
        raise UserError(f"{what}: {plural(found, 'clip')}; a distance with an interval needs at least {MIN_CLIPS}")
    if found < wanted:  # figures compare only with those of as many clips
        warn(f"{what}: {plural(found, 'clip')} instead of {wanted}, as there are no more")


def _permuted(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
