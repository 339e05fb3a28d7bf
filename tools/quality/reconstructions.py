"""Reconstructions of clips by an autoencoder: their PSNR and SSIM, the latents' statistics, and a picture of both."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from videoscaling.data.choices import RENDERED, SYNTHETIC
from videoscaling.data.clip_groups import video_group
from videoscaling.data.plan import plan_rendered
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.sources.synthetic import render
from videoscaling.data.video.clips import ClipOptions, Shape, to_float
from videoscaling.data.video.decode import default_backend
from videoscaling.data.video.decode_workers import decoded
from videoscaling.models.fidelity import psnr, squared_errors, ssim
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.tools.quality.clips import within_shots
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write
from videoscaling.utils.random import derive_seed

HELD_OUT = derive_seed(0, "held out")  # the clips that tools/train_vae.py scores its own on, and trains on none of
BATCH = 8
SHOWN = 4  # clips of one source and frames of a clip in the picture
ROWS = ("videos", "kept")  # of the picture
FONT = 14  # pixels


def clips_by_source(args: argparse.Namespace, sources: Sequence[Source], shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """(name, clips float32 [n, 3, F, H, W]) of each video or shot that can be read, by the name of its video; the
    others are named on stderr.

    Args:
        sources: what ``args.source`` lists; rendered clips, which no autoencoder here was trained on, have none.
    """
    if args.source == SYNTHETIC:
        yield "synthetic, held out", render(torch.arange(args.clips), HELD_OUT, shape.frames, *shape.sides)
        return
    if args.source in RENDERED:
        _, plan = plan_rendered(args.source, shape, clips=1, validation=str(args.clips), seed=0, device="cpu")
        clips = torch.cat([unit.load().pixels for unit in plan(False).units["validation"]])
        yield f"{args.source}, held out", to_float(clips)
        return
    sources = within_shots(args.source, sources, shape)
    clip_options = ClipOptions(shape, args.clips, backend=default_backend())
    units = (video_group(source, clip_options) for source in sources)
    for source, found in zip(sources, decoded(units, workers=1)):
        if isinstance(found, Rejected):
            print(f"{source.name}: {found}", file=sys.stderr)
        else:
            for lost in found.rejected:
                print(f"{lost['clip']}: {lost['reason']}: {lost['detail']}", file=sys.stderr)
            yield source.video, to_float(found.pixels)


def measured(vae: VideoVAE, clips: Tensor) -> dict[str, Tensor]:
    """Squared error and SSIM of each clip; and the clips' latents and reconstructions, all on the CPU."""
    parts = []
    for part in clips.split(BATCH):
        latents = vae.encode(part)
        parts.append((latents.cpu(), vae.decode(latents).cpu()))
    latents, made = (torch.cat(part) for part in zip(*parts))
    return {"error": squared_errors(clips, made), "ssim": ssim(clips, made), "latents": latents, "made": made}


def row(name: str, parts: Sequence[dict[str, Tensor]]) -> dict[str, object]:
    """The scores of the clips of ``measured`` parts: PSNR of the pooled squared error (the stricter), and means over
    clips."""
    error, similar = (torch.cat([part[key] for part in parts]) for key in ("error", "ssim"))
    return {
        "source": name,
        "clips": len(error),
        "psnr": round(psnr(error.mean().item()), 3),
        "psnr_per_clip": round(sum(map(psnr, error.tolist())) / len(error), 3),
        "ssim": round(similar.mean().item(), 4),
    }


def pictured(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The clips to show of one video's parts: the first ones, or of several shots one each of some spread evenly."""
    if len(parts) == 1:
        return parts[0]
    spread = parts[:: max(1, len(parts) // SHOWN)][:SHOWN]
    return {key: torch.cat([part[key][:1] for part in spread]) for key in ("clips", "made")}


def picture(path: Path, clips_of: dict[str, Tensor], made_of: list[Tensor]) -> None:
    """One column for each source, or for each of a single one's first clips: some frames, and below them what the
    autoencoder made of them, both named."""
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.utils import make_grid

    several = len(clips_of) > 1
    pairs, names = [], []
    for (name, clips), made in zip(clips_of.items(), made_of):
        shown = list(zip(clips, made))[: 1 if several else SHOWN]
        pairs += shown
        names += [name if several else f"{name}, clip {number}" for number in range(1, len(shown) + 1)]
    columns = []
    for clip, made in pairs:
        at = torch.linspace(0, clip.shape[1] - 1, min(SHOWN, clip.shape[1])).round().long()
        both = torch.cat([clip[:, at], made[:, at]], dim=1).transpose(0, 1)
        columns.append(make_grid(both, nrow=len(at), padding=1, pad_value=1))
    grid = make_grid(torch.stack(columns), nrow=len(columns), padding=2, pad_value=1)
    scale = max(1, 96 // pairs[0][0].shape[-1])  # small pixels as blocks that can be seen
    grid = grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    font = ImageFont.load_default(FONT)
    left = round(max(font.getlength(name) for name in ROWS)) + FONT
    sheet = Image.new("RGB", (pixels.shape[1] + left, pixels.shape[0] + FONT), "white")
    sheet.paste(Image.fromarray(pixels.numpy()), (left, FONT))
    write = ImageDraw.Draw(sheet)
    for number, name in enumerate(ROWS):
        write.text((FONT // 2, FONT + (2 * number + 1) * pixels.shape[0] / 4), name, "black", font, anchor="lm")
    width = (columns[0].shape[-1] + 2) * scale
    for number, name in enumerate(names):
        while name and font.getlength(name) > width:
            name = name[1:]  # a file is known by its end
        write.text((left + 2 * scale + number * width, 0), name, "black", font)
    with atomic_write(path) as tmp:
        sheet.save(tmp, "png")


def evaluate(args: argparse.Namespace) -> None:
    """Print the scores that the options of tools/evaluate_vae.py ask for, and write the picture."""
    # Before the VAE: loading diffusers takes seconds.
    sources = [] if args.source in RENDERED else list_sources(args.source, ListingOptions(captions=False))
    vae = load_vae(args.vae, pick_device(args.device), torch.bfloat16 if args.bfloat16 else torch.float32)
    vae.latent_shape(args.frames, *args.size)  # a shape that the VAE cannot take is said before any work
    # Of each video's clips the scores and latents, and pixels of no more than the picture shows.
    found_of: dict[str, list[dict[str, Tensor]]] = {}
    for name, clips in clips_by_source(args, sources, Shape(args.frames, args.size, args.stride)):
        found = measured(vae, clips)
        found |= {"clips": clips[:SHOWN].clone(), "made": found["made"][:SHOWN].clone()}
        found_of.setdefault(name, []).append(found)
    if not found_of:
        raise UserError(f"{args.source}: no video in it can be used; each is named above with its reason")
    every = [found for part in found_of.values() for found in part]
    total = row("all", every)
    rows = [row(name, part) for name, part in found_of.items()]
    latents = torch.cat([found["latents"] for found in every]).transpose(0, 1).flatten(1).double()
    mean, std = latents.mean(1), latents.std(1)
    statistics = {"mean": [round(x, 4) for x in mean.tolist()], "std": [round(x, 4) for x in std.tolist()]}
    if args.picture:
        shown = {name: pictured(parts) for name, parts in found_of.items()}
        picture(
            args.picture, {name: one["clips"] for name, one in shown.items()}, [one["made"] for one in shown.values()]
        )
    if args.json:
        print(json.dumps({"vae": args.vae, "sources": rows, "all": total, "latents": statistics}))
        return
    print(f"{'source':<40} {'clips':>6} {'PSNR':>8} {'by clip':>8} {'SSIM':>7}")
    for each in [*rows, total] if len(rows) > 1 else rows:
        figures = f"{each['psnr']:>8.2f} {each['psnr_per_clip']:>8.2f} {each['ssim']:>7.4f}"
        print(f"{each['source'][-40:]:<40} {each['clips']:>6} {figures}")
    print(
        f"latents by channel: mean {mean.min():+.3f} to {mean.max():+.3f}, deviation {std.min():.3f} to "
        f"{std.max():.3f} (near 0 and 1 where the VAE knows such clips)"
    )
