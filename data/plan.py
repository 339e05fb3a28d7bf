"""The plan of a cache: which clips it is to hold, and the settings that say so."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from videoscaling.data import rejections, writer
from videoscaling.data.cache_report import counts_text
from videoscaling.data.choices import FILM, SYNTHETIC_CLIPS, SYNTHETIC_VALIDATION
from videoscaling.data.clip_groups import ClipGroup, doom_units, read_frozen, synthetic_units
from videoscaling.data.index import CacheSettings, list_hash, read_index
from videoscaling.data.shards import Shard
from videoscaling.data.shot_sources import ShotCounts, ShotOptions, split_into_shots, whole_videos
from videoscaling.data.sources import doom, synthetic
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import scan_sources
from videoscaling.data.sources.source import Listing, Rejected, Source, identity
from videoscaling.data.splits import SAMPLE, Split, VideoScan, draw
from videoscaling.data.video import decode, shots
from videoscaling.data.video.clips import ClipOptions, Shape
from videoscaling.data.work_share import warn_of_node
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.tables import KINDS


class Plan(NamedTuple):
    """The clips to encode, with the facts about them that are known before encoding."""

    units: dict[str, list[ClipGroup]]
    clips_per_unit: float
    scan: VideoScan | None = None
    frozen: list[str] | None = None
    listing: Listing | None = None
    split: Split | None = None
    shots: ShotCounts | None = None
    rendered_fps: float | None = None

    @property
    def about(self) -> dict[str, object]:
        """The skipped sources and the split, for the index and the reports."""
        if self.listing is None or self.split is None:
            return {"split": {"by": "seed"}}
        left_aside: dict[str, object] = {"skipped": self.listing.skipped, "unread_columns": self.listing.unread}
        if self.shots is not None:
            left_aside["shots"] = asdict(self.shots)
        return left_aside | {"split": self.split.about}

    @property
    def rule(self) -> CacheSettings:
        """The setting by which caches that are split otherwise differ."""
        return {writer.RULE: self.split.rule} if self.split and self.split.rule else {}

    @property
    def fps(self) -> float | None:
        """Frames per second of the clips; None where it is not known."""
        return self.scan.fps if self.scan else self.rendered_fps

    @property
    def videos(self) -> int:
        """The videos that clips are cut from; 0 for rendered clips."""
        return len(self.scan.order) if self.scan else 0

    def shards(self, out: Path, settings: CacheSettings, latent_shape: Sequence[int]) -> dict[str, list[Shard]]:
        """The cache's shards, of about ``data.writer.SHARD_BYTES`` each."""
        per_shard = max(1, int(writer.clips_per_shard(latent_shape) / max(self.clips_per_unit, 1e-9)))
        return writer.plan_shards(out, settings, self.units, per_shard)


# A plan is made when it is needed, given whether to split as caches did before there were rules.
Planner = Callable[[bool], Plan]


@dataclass(frozen=True)
class VideoRequest:
    """The videos that a cache is to be made of.

    Attributes:
        source: a folder, a manifest or tars, as ``data.sources.listing.scan_sources`` takes it.
        out: the cache's folder.
        clip_options: how clips are taken from them, but for the backend.
        backend: what decodes; None is the one that the cache was begun with, or else the default.
        clips: the most training clips; None for all.
        validation: a number of clips as text, an earlier cache whose list is kept, or None for a tenth of the videos.
        workers, limit_seconds: as ``data.video.decode_workers.decoded``.
        max_rejected: the fraction of the videos that may be rejected.
        writing: whether the cache is made, and rejected videos are counted and named in its folder.
        stay_open: whether the plan's ``scan`` is used after it is made, and closed by the caller.
        shots: how the videos' shots are found, so that clips lie within them; None: clips may cross cuts.
    """

    source: str
    out: Path
    listing: ListingOptions
    clip_options: ClipOptions
    backend: str | None
    clips: int | None
    validation: str | None
    workers: int
    limit_seconds: float
    max_rejected: float
    writing: bool
    stay_open: bool
    shots: ShotOptions | None = None


def plan_rendered(
    source: str, shape: Shape, *, clips: int | None, validation: str | None, seed: int, device: str
) -> tuple[CacheSettings, Planner]:
    """The settings that determine the content of a cache of rendered clips, and its plan.

    Args:
        source: one of ``data.choices.RENDERED``.
    """
    wanted, frozen = _validation_wanted(validation)
    if frozen is not None:
        raise UserError(f"--validation takes a number here: every {source} cache has the same validation clips")
    train = clips or SYNTHETIC_CLIPS
    count = SYNTHETIC_VALIDATION if wanted is None else wanted
    fps = doom.FPS if source == "doom" else None
    if source == "doom":
        made_by = f"doom {doom.VERSION}, vizdoom {doom.game_version()}"
        units = doom_units(shape, train, count, seed)
    else:
        made_by = f"synthetic {synthetic.VERSION}"
        units = synthetic_units(shape, train, count, seed, device)
    settings = {"source": made_by, "seed": seed, "clips": train, "validation": count}
    return settings, lambda as_before: Plan(units, len(units["train"][0].keys), rendered_fps=fps)


class ListedVideos(NamedTuple):
    """The videos of a request, none of which is opened yet.

    Attributes:
        clip_options: the request's, with the backend that decodes.
        wanted, frozen: how many clips are validated on, or the keys of an earlier list.
    """

    request: VideoRequest
    clip_options: ClipOptions
    listing: Listing
    wanted: int | None
    frozen: list[str] | None


def plan_videos(request: VideoRequest) -> tuple[CacheSettings, Planner]:
    """As ``plan_rendered``, of a cache of videos; some of them are opened when the plan is made."""
    return plan_listed(list_videos(request))


def list_videos(request: VideoRequest) -> ListedVideos:
    """What can be checked of a request before a video is opened.

    Raises:
        UserError: an option is wrong or needs what is not installed, or as ``scan_sources``.
    """
    wanted, frozen = _validation_wanted(request.validation)
    if frozen is not None:
        _check_same_clips(Path(request.validation or ""), request.clip_options)
    backend = request.backend or _cached_backend(request.out) or decode.default_backend()
    decode.check_backend(backend)
    clip_options = replace(request.clip_options, backend=backend)
    listing = scan_sources(request.source, request.listing)
    for damaged in (source for source in listing.sources if source.fault):
        warn_of_node(f"{damaged.path}: {damaged.fault} (rejected as one video)")
    if request.listing.captions:
        _warn_of_no_captions(listing)
    if request.shots is not None:
        whole_videos(listing.sources, request.shots)
    return ListedVideos(request, clip_options, listing, wanted, frozen)


def plan_listed(videos: ListedVideos) -> tuple[CacheSettings, Planner]:
    """As ``plan_videos``. With --shots the videos whose shots are not known yet are decoded here, which takes long."""
    request, clip_options, listing, wanted, frozen = videos
    sources, counts = listing.sources, None
    if request.shots is not None:
        sources, counts = split_into_shots(sources, request.shots, clip_options, numbered=request.source == FILM)
    settings = {
        "source": f"videos {decode.VERSION}",
        "videos": len(sources),
        "videos_hash": list_hash([identity(source) for source in sources]),
        "clips": request.clips,
        "clips_per_video": clip_options.clips,
        "fps_wanted": clip_options.fps,
        "hop": clip_options.window_step,
        "backend": clip_options.backend,
        "validation": wanted if frozen is None else f"list {list_hash(frozen)}",
    }
    if request.shots is not None:  # said only then: caches of before this key was there keep their fingerprints
        settings["shots"] = f"{request.shots.rule} {shots.VERSION}"

    def plan(as_before: bool) -> Plan:
        if request.shots is not None:
            _stop_if_too_few_have_shots(request, sources, len(listing.sources))
        scan = VideoScan(sources, clip_options, request.workers, request.limit_seconds)
        try:
            scan.open(SAMPLE)
            _stop_if_too_few(request, scan)
            split = draw(scan, clip_options, request.clips, wanted, frozen, as_before)
        finally:
            if not request.stay_open:
                scan.close()
        return Plan(
            split.units, scan.clips_per_video, scan=scan, frozen=frozen, listing=listing, split=split, shots=counts
        )

    return settings, plan


def _validation_wanted(text: str | None) -> tuple[int | None, list[str] | None]:
    """The value of ``--validation``: a number of clips, or the keys of an earlier list."""
    if text is None or text.isdecimal():
        return (None if text is None else int(text)), None
    if not Path(text).exists():
        raise UserError(f"--validation {text}: neither a number of clips nor an earlier cache")
    return None, read_frozen(text)


def _cached_backend(out: Path) -> str | None:
    """What decoded the cache in ``out``, finished or not; None where there is none of videos. The default depends on
    what is installed, and a cache is continued with the decoder that it was begun with."""
    settings = read_index(out)["settings"] if (out / "index.json").is_file() else None
    return settings.get("backend") if isinstance(settings, dict) else None


def _check_same_clips(given: Path, clip_options: ClipOptions) -> None:
    """Refuse the list of a cache to whose clips other frames belong: a clip is listed by its first."""
    index = (given if given.is_dir() else given.parent) / "index.json"
    earlier = read_index(index.parent)["settings"] if index.is_file() else {}
    now = {"frames": clip_options.shape.frames, "stride": clip_options.shape.stride, "fps_wanted": clip_options.fps}
    for key, value in now.items():
        if earlier.get(key, value) != value:
            option = key.removesuffix("_wanted")
            raise UserError(
                f"--validation {given}: its clips were taken with --{option} {earlier[key]}, these with {value}: "
                "under the same names they would be others"
            )


def _warn_of_no_captions(listing: Listing) -> None:
    """Say on stderr, before the work, that no source has a caption."""
    if any(source.caption for source in listing.sources):
        return
    tables = {kind: count for kind, count in listing.skipped.items() if kind in KINDS}
    where = f"; there are tables next to the videos ({counts_text(tables)}), which --source can name" if tables else ""
    warn_of_node(f"no captions found for {plural(len(listing.sources), 'video')}{where}. --no-captions confirms it")


def _stop_if_too_few_have_shots(request: VideoRequest, sources: Sequence[Source], videos: int) -> None:
    """Raise where too large a part of the ``videos`` has no shots: among the others' shots they would hardly count."""
    rejected = [Rejected(source.reason, source.fault).row(source.name) for source in sources if source.fault]
    if request.writing and rejections.exceeds(rejected, videos, request.max_rejected):
        where = rejections.write_rejected(request.out, rejected)
        raise UserError(f"{request.source}: {rejections.too_many(rejected, videos)}; each is named in {where}")


def _stop_if_too_few(request: VideoRequest, scan: VideoScan) -> None:
    """Raise where none of the first videos, or too small a part of all, can be used."""
    videos, rejected = len(scan.order), scan.rejected
    if scan.found and not (request.writing and rejections.exceeds(rejected, videos, request.max_rejected)):
        return
    where = f"; each is named in {rejections.write_rejected(request.out, rejected)}" if request.writing else ""
    if scan.found:
        raise UserError(f"{request.source}: {rejections.too_many(rejected, videos)}{where}")
    of = "" if scan.opened == videos else f" of the first {scan.opened:,}"
    example = f"; {rejections.example(rejected)}" if rejected else ""
    raise UserError(f"{request.source}: no video is left{of} ({rejections.reason_counts(rejected)}{where}{example})")
