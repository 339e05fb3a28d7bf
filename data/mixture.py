"""Several caches as one: training clips mixed by weight, validation on all their frozen lists.

The clip at a position is a function of the position alone (``data.sample_order.mixed_index``), as with one cache:
there is no epoch to wait for, and resuming needs nothing that a run would have to remember. Of caches whose clips
differ in shape a step takes one shape, and which one is a function of the step (``data.sample_order.steps_by_set``).
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from videoscaling.data.clip_groups import list_hash
from videoscaling.data.index import CacheMeta, shape_name
from videoscaling.data.latents import LatentCache, video_of
from videoscaling.data.sample_order import MIXED, mixed_index
from videoscaling.data.shards import Shards, Stored, as_float
from videoscaling.utils.errors import UserError, plural

# What must be equal for latents to mean the same, and what to call it.
ALIKE = {
    "vae_fingerprint": "autoencoder",
    "vae_dtype": "the autoencoder's dtype",
    "text_fingerprint": "text encoder",
    "text_dim": "width of the text embeddings",
}


def open_data(folders: Sequence[str], weights: Sequence[float] = ()) -> "Data":
    """The data that ``data.cache``, the folder of one cache or several, and ``data.weights`` mean.

    Raises:
        UserError: a cache is missing, unfinished or damaged, one is named twice, or the caches do not go together
            (the difference is named).
    """
    places = [Path(folder).resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError(f"data.cache: {folders[i]} is named twice; name it once, weigh it by data.weights")
    caches = [LatentCache(folder) for folder in folders]
    first = caches[0]
    for other in caches[1:]:
        for key, what in ALIKE.items():
            if first.meta.get(key) != other.meta.get(key):
                raise UserError(
                    f"data.cache: {first.path} and {other.path} do not go together: {what} "
                    f"{first.meta.get(key)} and {other.meta.get(key)}"
                )
    if len({cache.latent_shape for cache in caches}) > 1:
        return ShapeMixture(caches, weights)
    return first if len(caches) == 1 else Mixture(caches, weights)


class Mixture:
    """Caches of one shape mixed by weight; attributes and methods as ``LatentCache``'s.

    Args:
        weights: how often clips of each are seen in training, in any unit; none: as many as they hold. Shares are
            rounded to thousandths (``data.sample_order.MIXED``), and hold exactly in every thousand clips.

    A validation clip that several lists name, with the same latent, counts once.
    """

    def __init__(self, caches: Sequence[LatentCache], weights: Sequence[float] = ()) -> None:
        first = caches[0]
        self.path, self.caches = first.path, list(caches)
        self.sizes = [cache.train_size for cache in caches]
        self.counts = shares([str(cache.path) for cache in caches], list(weights) or self.sizes)
        self.latent_shape, self.text_dim = first.latent_shape, first.text_dim
        self.text_tokens = max(cache.text_tokens for cache in caches)
        form = (self.latent_shape, self.text_tokens, self.text_dim)
        self._train = Shards([file for cache in caches for file in cache.files["train"]], *form)
        self._validation = Shards([file for cache in caches for file in cache.files["validation"]], *form)
        self._listed, self.validation_keys = self._union(caches)
        self.train_size, self.validation_size = len(self._train), len(self._listed)
        self.validation_hash = list_hash(self.validation_keys)
        longest = max(caches, key=lambda cache: cache.text_tokens)
        self.null_context = longest.null_context
        parts = [
            {"cache": str(c.path), "fingerprint": c.meta["fingerprint"], "clips": c.train_size, "share": count / MIXED}
            for c, count in zip(caches, self.counts)
        ]
        self.meta: CacheMeta = first.meta | {
            "fingerprint": list_hash([f"{part['fingerprint']} {part['share']}" for part in parts]),
            "validation_hash": self.validation_hash,
            "text_tokens": self.text_tokens,
            "n_clips": self.train_size + self.validation_size,
            "mixture": parts,
        }

    @property
    def parts(self) -> "list[Mixture]":
        return [self]

    def _union(self, caches: Sequence[LatentCache]) -> tuple[Tensor, list[str]]:
        """The places of the validation clips among those of all caches, and their keys."""
        places: dict[str, list[int]] = {}
        listed, keys, place = [], [], 0
        for cache in caches:
            for key in cache.validation_keys:
                same = places.setdefault(key, [])
                if not any(self._equal(place, other) for other in same):
                    listed.append(place)
                    keys.append(key)
                same.append(place)
                place += 1
        return torch.tensor(listed, dtype=torch.int64), keys

    def _equal(self, one: int, other: int) -> bool:
        latents = self._validation.read(torch.tensor([one, other])).latents
        return torch.equal(latents[0], latents[1])

    def order(self, position: Tensor, seed: int) -> Tensor:
        """As ``LatentCache.order``; caches' clips are numbered one after the other."""
        return mixed_index(position, self.sizes, self.counts, seed)

    def stored(self, indices: Tensor, pinned: bool = False) -> Stored:
        return self._train.read(indices, pinned)

    def check(self, indices: Tensor) -> None:
        self._train.check(indices)

    def verify_validation(self, again: bool = False) -> None:
        for cache in self.caches:
            cache.verify_validation(again)
        self._validation.check_all(again)

    def train(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return as_float(self.stored(indices))

    def validation(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return as_float(self._validation.read(self._listed[indices]))


class ShapeMixture:
    """Caches whose clips differ in shape. Each step of training takes clips of one shape, in the order that a run on
    the caches of that shape alone has.

    Args:
        weights: how often steps of each cache are taken, in any unit; none: by their tokens. A step has as many tokens
            whatever its shape, so shares of steps are shares of tokens. They are rounded to thousandths, and hold
            exactly in every thousand steps.

    Attributes:
        parts: the data of each shape, in the order in which ``caches`` name the shapes.
        counts: steps of each shape in ``data.sample_order.MIXED``.
        latent_shape: of the largest shape.
        meta: the largest shape's, with "shapes": what ``training.run.resolve`` takes of each.
    """

    def __init__(self, caches: Sequence[LatentCache], weights: Sequence[float] = ()) -> None:
        weights = list(weights) or [cache.train_size * math.prod(cache.latent_shape[1:]) for cache in caches]
        groups: dict[tuple[int, ...], list[tuple[LatentCache, float]]] = {}
        for cache, weight in zip(caches, weights, strict=True):
            groups.setdefault(cache.latent_shape, []).append((cache, weight))
        self.parts = [one[0][0] if len(one) == 1 else Mixture(*zip(*one)) for one in groups.values()]
        names = [f"the clips of {shape_name(shape)}" for shape in groups]
        self.counts = shares(names, [sum(weight for _, weight in one) for one in groups.values()], "steps")
        largest = max(self.parts, key=lambda part: math.prod(part.latent_shape))
        self.latent_shape = largest.latent_shape
        shapes = [
            {
                "latent_shape": list(part.latent_shape),
                "text_tokens": part.text_tokens,
                "fingerprint": part.meta["fingerprint"],
                "clips": part.train_size,
                "share": count / MIXED,
            }
            for part, count in zip(self.parts, self.counts)
        ]
        self.meta: CacheMeta = largest.meta | {
            "fingerprint": list_hash([f"{shape['fingerprint']} {shape['share']}" for shape in shapes]),
            "validation_hash": list_hash([part.validation_hash for part in self.parts]),
            "n_clips": sum(part.train_size + part.validation_size for part in self.parts),
            "shapes": shapes,
        }

    @property
    def caches(self) -> list[LatentCache]:
        return [cache for part in self.parts for cache in part.caches]

    def verify_validation(self, again: bool = False) -> None:
        for part in self.parts:
            part.verify_validation(again)


Data = LatentCache | Mixture | ShapeMixture


def shared_video_warnings(data: Data) -> list[str]:
    """A warning for each two caches of which one validates on videos that the other trains on, by their names.

    A cache separates its own videos. Caches of one source with other clips draw other numbers of videos to validate
    on: of 400 videos 39 at 17 frames and 32 as pictures, so that 7 of the 39 were trained on. Caches of the same list
    whose clips are as long, such as those of a film in two sizes, keep the same distance from it.
    """
    found = []
    for one, other in itertools.permutations(data.caches, 2):
        if _split_alike(one, other):
            continue
        validated = {video_of(key) for key in one.validation_keys}
        if shared := sorted(validated & other.training_videos):
            found.append(
                f"data.cache: {other.path} trains on {len(shared):,} of the {plural(len(validated), 'video')} that "
                f"{one.path} validates on, by their names (such as {shared[0]}): the loss is not of unseen videos "
                f"alone; make {other.path} of others"
            )
    return found


def _split_alike(one: LatentCache, other: LatentCache) -> bool:
    """Whether two caches validate on the same clips, by their names, of the same frames."""
    same = all(one.meta.get(key) == other.meta.get(key) for key in ("frames", "stride", "fps_wanted"))
    return same and one.validation_hash == other.validation_hash


def shares(names: Sequence[str], weights: Sequence[float], unit: str = "clips") -> list[int]:
    """How many of ``MIXED`` clips or steps come from each cache: the weights' shares, rounded so that they add up.

    Raises:
        UserError: as many weights as caches are not given, or a share is below half of one clip or step.
    """
    if len(weights) != len(names):
        raise UserError(
            f"data.weights: {plural(len(weights), 'number')} for {plural(len(names), 'cache')}; give one for each"
        )
    exact = [MIXED * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    rest = sorted(range(len(names)), key=lambda i: counts[i] - exact[i])[: MIXED - sum(counts)]
    counts = [count + (i in rest) for i, count in enumerate(counts)]
    for name, count, share in zip(names, counts, exact):
        if not count:
            raise UserError(
                f"data.cache: {name} would be seen less than once in {MIXED} {unit} (share "
                f"{share / MIXED:.2g}); raise its share in data.weights or leave it out"
            )
    return counts
