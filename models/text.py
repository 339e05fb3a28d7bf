"""Text encoders behind one call: prompts in, token embeddings and a mask out.

``load_text_encoder("embedded")`` needs no download; anything else is a folder or a hub id of a T5, UMT5, CLIP or other
text encoder that transformers knows. Encoders are frozen: their output is computed once and cached by the caller.
"""

import hashlib
import json
import math
import re
from typing import Protocol

import torch
from torch import Tensor, nn

from videoscaling.models.hub import TEXT_ENCODERS, located, read_config
from videoscaling.utils.errors import UserError, first_line
from videoscaling.utils.files import pickles
from videoscaling.utils.random import normal

WORD = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")
END = "</s>"  # no word: WORD splits it
MAX_TOKENS = 512  # a pretrained tokenizer may name a smaller limit; none of the public video models exceeds it


class TextEncoder(Protocol):
    """The interface of a text encoder.

    Attributes:
        spec: the folder or hub id it was loaded from.
        dim: width of an embedding.
        max_tokens: longer prompts are cut, the end token kept.
        fingerprint: short hex digest of all that determines the embeddings.
    """

    spec: str
    dim: int
    max_tokens: int
    fingerprint: str

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embed prompts, padded to the longest of them.

        The empty prompt, which stands for "no caption", has at least one token: the end token.

        Returns:
            embeddings float32 [n, L, dim], zero where padded; mask bool [n, L], true on tokens.
        """
        ...

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """The length of each prompt before it is cut, end token included: ``encode`` cuts those above
        ``max_tokens``."""
        ...


class WordEncoder:
    """The embedded default: every word is a fixed random vector, its place a fixed sinusoid.

    It is a stable code. A prompt is lower-cased and split into words ("down-left" is one) and punctuation
    marks; a word's vector is drawn from a normal distribution by a hash of its spelling, so two machines agree
    without a vocabulary file. The diffusion model learns the words' meaning from its own captions.

    It is not a language model. It was not trained; "car" is as far from "cars" as from "moon", and a word
    that no training caption used means nothing. That is enough for captions of few words, such as the synthetic
    clips' or a small folder's; for free text use a T5.
    """

    spec = "embedded"
    dim = 64
    max_tokens = 64

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        wavelength = 2 * math.pi * (2 * self.max_tokens / math.pi) ** torch.linspace(0, 1, self.dim // 2)
        angle = torch.arange(self.max_tokens)[:, None] * (2 * math.pi / wavelength)
        self._places = torch.cat((angle.sin(), angle.cos()), dim=1)
        # Added one by one: the order in which torch sums, and so the last bit, is the processor's.
        lanes = sum(self._vectors(["word", END]).view(2, -1, 4).unbind(1))
        recipe = (self.dim, self.max_tokens, END, sum(lanes.unbind(1)).tolist())
        self.fingerprint = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """See ``TextEncoder.encode``."""
        split = [[*WORD.findall(p.lower())[: self.max_tokens - 1], END] for p in prompts]
        words = sorted({word for tokens in split for word in tokens})
        row = {word: i for i, word in enumerate(words)}
        vectors = self._vectors(words)
        longest = max(map(len, split), default=1)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        embeddings = torch.zeros(len(prompts), longest, self.dim)
        for i, tokens in enumerate(split):
            n = len(tokens)
            # Variances 1 and 1/2, so that the sum has about unit variance after the division.
            embeddings[i, :n] = (vectors[[row[word] for word in tokens]] + self._places[:n]) / math.sqrt(1.5)
            mask[i, :n] = True
        return embeddings.to(self.device), mask.to(self.device)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """See ``TextEncoder.count_tokens``."""
        return [len(WORD.findall(p.lower())) + 1 for p in prompts]

    def _vectors(self, words: list[str]) -> Tensor:
        """One fixed normal vector for each word: float32 [len(words), dim]."""
        digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
        index = torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
        return normal(0, "word vectors", index, (self.dim,))


class PretrainedTextEncoder:
    """A transformers text encoder (T5, UMT5, CLIP, ...), frozen, in float32: its last hidden states.

    Args:
        spec: a folder, or a hub id, that holds either the encoder with its tokenizer, or a diffusers pipeline
            (``text_encoder/`` and ``tokenizer/``).
        device: where it runs.

    Raises:
        UserError: nothing loadable there; says which folder or command would help.
    """

    def __init__(self, spec: str, device: str | torch.device = "cpu") -> None:
        root, (model_folder, tokenizer_folder) = located(
            spec, "text encoder", (("text_encoder", "tokenizer"), ("", "")), TEXT_ENCODERS
        )
        read_config(root / model_folder)
        # transformers takes seconds to import, and the embedded default does without.
        from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(root / tokenizer_folder, local_files_only=True)
            config = AutoConfig.from_pretrained(root / model_folder, local_files_only=True)
            # Of a CLIP with both halves, the text's.
            family = CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
            model, info = family.from_pretrained(
                root / model_folder,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises any kind for a configuration at fault
            why = pickles(root / model_folder)
            raise UserError(f"text encoder {spec!r} cannot be loaded: {first_line(error)}{why}") from error
        if info["missing_keys"]:  # they would be random
            lost = sorted(info["missing_keys"])[0]
            raise UserError(
                f"text encoder {spec!r} cannot be loaded: no {lost} in the weights of {root / model_folder}"
            )
        self.spec = spec
        self.device = torch.device(device)
        self.model: nn.Module = model.eval().requires_grad_(False).to(self.device)
        self.dim = model.config.hidden_size
        # CLIP's positions are learnt and end early; T5's are relative and its tokenizer may name no limit at all.
        positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
        self.max_tokens = min(MAX_TOKENS, self.tokenizer.model_max_length, positions)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        if not self.tokenizer("").input_ids:
            raise UserError(f"text encoder {spec!r}: its tokenizer adds no end token, so '' would have no tokens")
        self.fingerprint = self._digest()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """See ``TextEncoder.encode``. Memory grows with the number of prompts: batches are the caller's."""
        if not prompts:
            empty = torch.zeros(0, 1, self.dim, device=self.device)
            return empty, empty[..., 0].bool()
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        mask = tokens.attention_mask.bool()
        hidden = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return hidden.float() * mask[..., None], mask

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """See ``TextEncoder.count_tokens``."""
        if not prompts:
            return []
        # Not verbose, or every long one is warned of on stderr; nothing runs on them at that length.
        return [len(ids) for ids in self.tokenizer(prompts, truncation=False, verbose=False).input_ids]

    def _digest(self) -> str:
        """Hash of the weights, the configuration and the tokenizer, short."""
        config = self.model.config.to_dict()
        # Its path and the library that wrote it change no embedding.
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(key, None)
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        settings = json.dumps([config, vocabulary, self.max_tokens], sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def cut_warning(encoder: TextEncoder, prompts: list[str], what: str) -> str | None:
    """The warning of how many of some prompts ``encoder`` cuts; None where it cuts none.

    Args:
        what: the prompts' name in the line.
    """
    cut = sum(count > encoder.max_tokens for count in encoder.count_tokens(prompts))
    if not cut:
        return None
    limit = encoder.max_tokens
    return f"{what}: {cut} of {len(prompts)} longer than the text encoder's {limit} tokens, and cut"


def load_text_encoder(spec: str = "embedded", device: str | torch.device = "cpu") -> TextEncoder:
    """The text encoder that ``spec`` names: ``"embedded"``, a folder or a hub id.

    Raises:
        UserError: there is no such encoder here and none can be fetched.
    """
    return WordEncoder(device) if spec == "embedded" else PretrainedTextEncoder(spec, device)
