"""Building a latent cache from a plan: one process's share of its shards, and the index once all shards are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videoscaling.data import writer
from videoscaling.data.clip_groups import SPLITS
from videoscaling.data.index import CacheIndex, CacheSettings
from videoscaling.data.plan import Planner
from videoscaling.data.rejections import RejectionCount
from videoscaling.data.work_share import WorkShare
from videoscaling.data.writer import Load
from videoscaling.utils.progress import Progress


class Built(NamedTuple):
    """The state of a cache after one process has made its share.

    Attributes:
        index: of the finished cache; None while other processes' shards are missing.
        already: whether the cache was finished before.
        shards, shards_there: its number of shards, and of finished ones; counted while the cache is unfinished.
    """

    index: CacheIndex | None
    already: bool = False
    shards: int = 0
    shards_there: int = 0


def build_share(
    out: Path,
    settings: CacheSettings,
    plan: Planner,
    *,
    vae: Any,
    text: Any,
    latent_shape: Sequence[int],
    load: Load,
    share: WorkShare,
    max_rejected: float,
    about: Mapping[str, object],
) -> Built:
    """Make one process's share of the cache in ``out``, and finish the cache if all the other shards are there.

    Args:
        settings: what determines the cache's content; the rule of its split is added.
        plan: returns the clips to encode; its argument asks for the split rule of older caches.
        vae, text: encoders, as ``data.writer.write_share``'s.
        latent_shape: (C, f, h, w) of a clip.
        max_rejected: the fraction of the videos that may be rejected.
        about: further facts for the index, of no consequence for the content.

    Raises:
        UserError: as ``data.writer``'s functions.
    """
    with writer.working(out, share) as work:
        index = writer.open_cache(out, settings, work)
        if index is not None:
            return Built(index, already=True)
        planned = plan(writer.recorded_rule(out)[1])
        settings = settings | planned.rule
        writer.record_rule(out, settings, work)
        shards = planned.shards(out, settings, latent_shape)
        tally = RejectionCount(out, shards, max_rejected, planned.videos)
        mine = [shard for split in SPLITS for shard in shards[split]][share.rank :: share.world]
        # Sources rather than clips, which are not known before they are opened.
        total = sum(len(shard.units) for shard in mine)
        with Progress(total, "encoding", "videos" if planned.videos else "batches") as bar:
            writer.write_share(
                shards=mine,
                vae=vae,
                text=text,
                latent_shape=latent_shape,
                work=work,
                load=load,
                tally=tally,
                progress=bar.update,
            )
        about = {**about, "fps": planned.fps, **planned.about}
        index = writer.close_cache(out, settings, shards, latent_shape, text, work, about=about, frozen=planned.frozen)
    if index is not None:
        return Built(index)
    count = sum(map(len, shards.values()))
    return Built(None, shards=count, shards_there=count - writer.missing_shards(shards))
