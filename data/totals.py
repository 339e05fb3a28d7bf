"""Totals over a cache's shards: clips, rejections, captions, and the latents' statistics by channel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from videoscaling.data.clip_groups import SPLITS
from videoscaling.data.shards import Shard, map_arrays, read_header


class Totals:
    """The sums, gathered while ``captions`` reads the headers one by one.

    Args:
        latent_shape: (C, f, h, w) of a clip.
        text_tokens: of the empty prompt.
        text: ``max_tokens`` and ``count_tokens(prompts)``, as ``models.text``.

    Attributes:
        clips: in each split; listed: its shards that hold any; validation: the validation clips' keys.
        rejected: rows of rejected.jsonl.
        text_tokens: of the longest text.
        without_caption, cut: clips whose caption is empty, or longer than ``max_tokens``.
    """

    def __init__(self, latent_shape: tuple[int, ...], text_tokens: int, text: Any) -> None:
        self.clips = dict.fromkeys(SPLITS, 0)
        self.listed: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.rejected: list[dict[str, str]] = []
        self.validation: list[str] = []
        self.text_tokens = text_tokens
        self.without_caption, self.cut = 0, 0
        self._text = text
        self._positions = int(np.prod(latent_shape[1:]))
        self._sum, self._squares = np.zeros(latent_shape[0]), np.zeros(latent_shape[0])

    def captions(self, shards: dict[str, list[Shard]]) -> Iterator[dict[str, str]]:
        """The rows of captions.jsonl."""
        for split in SPLITS:
            for shard in shards[split]:
                tensors, about, _ = read_header(shard.path)
                if about["keys"]:
                    self.listed[split].append({"file": shard.path.name, "clips": len(about["keys"])})
                self.clips[split] += len(about["keys"])
                self.rejected += about["rejected"]
                self.text_tokens = max(self.text_tokens, tensors["text"]["shape"][1])
                if split == "train":
                    self._sum += about["sum"]
                    self._squares += about["square_sum"]
                else:
                    self.validation += about["keys"]
                self.without_caption += about["captions"].count("")
                self.cut += self._count_cut(shard.path, about["captions"])
                for key, caption in zip(about["keys"], about["captions"]):
                    yield {"split": split, "key": key, "caption": caption}

    def _count_cut(self, path: Path, captions: list[str]) -> int:
        """The clips of a shard whose captions were cut. Only those as long as the limit are split into tokens again:
        a shard's text has the different captions in order."""
        lengths, unique = map_arrays(path)["text_length"], list(dict.fromkeys(captions))
        full = [caption for caption, length in zip(unique, lengths) if length >= self._text.max_tokens]
        if not full:
            return 0
        tokens = self._text.count_tokens(full)
        cut = {caption for caption, count in zip(full, tokens) if count > self._text.max_tokens}
        return sum(caption in cut for caption in captions)

    def statistics(self) -> dict[str, list[float]]:
        """The training clips' stored latents: their "mean" and "std", one number per channel."""
        count = self.clips["train"] * self._positions
        mean = self._sum / count
        return {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(self._squares / count - mean**2, 0)).tolist(),
        }
