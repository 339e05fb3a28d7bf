"""Export a trained model as a folder of standard files: config.json, safetensors, a diffusers scheduler and a card.

    python tools/export.py --checkpoint runs/x --out models/x --law runs/law.json --licence mit
    python sample.py --checkpoint models/x --prompt "a dog runs along the beach"

The weights are float32, sharded above 5 GB. The card has the recipe, the data, the validation loss and, with --law,
the loss that the law expects of such a run. sample.py and VideoPipeline.from_run read the folder, and give the videos
of the run itself.
"""

import argparse
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videoscaling.scaling import law_file
from videoscaling.scaling.prediction import predict
from videoscaling.tools.inputs import CHECKPOINT, LAW
from videoscaling.training.checkpoints.paths import check_exists
from videoscaling.utils.errors import Parser, UserError, path_text, plural, run_cli
from videoscaling.utils.files import recover_folder, remove_abandoned
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import pixels_text

USE = """
```python
from videoscaling import VideoPipeline

pipeline = VideoPipeline.from_run("FOLDER")  # the path of this folder
videos = pipeline("a prompt", steps=50, guidance=5)  # [1, 3, frames, height, width] in [-1, 1]
```

`diffusers.SCHEDULER.from_pretrained("FOLDER")` gives the scheduler, and
`pipeline.model(x, t, context, mask)` is the network, a `torch.nn.Module` whose weights are the safetensors here. Its
`t` runs from 0 (data) to 1 (noise): the scheduler's timestep divided by 1000.
"""


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        reads=CHECKPOINT,
        aliases=("--ckpt", "--run", "--model", "--model-path"),
        help="a run directory, or a checkpoint",
    )
    parser.add_argument(
        "--out", type=Path, writes="folder", required=True, help="folder to write; replaced if it holds an export"
    )
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged or raw (default: ema)")
    parser.add_argument("--law", type=path_text, reads=LAW, help="law file whose expected loss goes into the card")
    parser.add_argument("--about", help="a paragraph for the card: what the model is good for, and what it is not")
    parser.add_argument("--licence", help="of the weights, for the card, such as mit (default: none is stated)")
    return parser


def card(name: str, facts: list[tuple[str, str]], *, about: str | None, licence: str | None, scheduler: str) -> str:
    """The model's README.md: hub metadata, what it is, ``facts`` as a table, and how to use it."""
    head = ["---", *([f"license: {licence}"] if licence else []), "library_name: videoscaling"]
    head += ["pipeline_tag: text-to-video", "---", "", f"# {name}", ""]
    what = [*textwrap.wrap(about, 119, break_on_hyphens=False), ""] if about else []
    made = f"Written on {datetime.now(UTC).date()} by `tools/export.py`. Licence: {licence or 'not stated'}."
    rows = ["| | |", "|---|---|", *(f"| {what} | {fact} |" for what, fact in facts)]
    return "\n".join([*head, *what, made, "", *rows, USE.replace("FOLDER", name).replace("SCHEDULER", scheduler)])


def facts_of(config: Any, state: dict[str, Any], weights: str, law: str | None) -> list[tuple[str, str]]:
    """(What, fact) of a run: its size, data, recipe and losses.

    Args:
        config: the run's resolved configuration; ``state``: the checkpoint's; ``law``: a law file.
    """
    from videoscaling.data.index import shape_name
    from videoscaling.models.sizes import parameters
    from videoscaling.training.result import recipe
    from videoscaling.training.run import SEVERAL_SHAPES

    data, model, optim, train = state["data"], config.model, config.optim, config.train
    N, T = parameters(model.layers, model.width), state["tokens"]
    last = next((one for one in reversed(state["milestones"]) if one["tokens"] == T), None)
    kind = "ema_" if weights == "ema" else ""
    source = re.sub(r" \d+$", "", Path(data["source"]).name)  # without the version of how its clips are made
    shapes = ", ".join(f"{shape_name(shape['latent_shape'])} {shape['share']:.1%}" for shape in data.get("shapes", []))
    if shapes and law:
        raise UserError(f"--law {law}: {SEVERAL_SHAPES}; leave it out")
    facts = [
        ("size", f"{model.size} (layers x width), N = {N:,} parameters in the blocks' matrices"),
        ("videos", f"{plural(data['frames'], 'frame')} of {pixels_text(data['height'], data['width'])}"),
        *([("trained on", f"latents of several shapes, by shares of the tokens: {shapes}")] if shapes else []),
        ("data", f"{source}, {data['n_clips']:,} clips, fingerprint {data['fingerprint']}"),
        ("autoencoder", f"{data['vae']}, fingerprint {data['vae_fingerprint']}"),
        ("text encoder", f"{data['text']}, fingerprint {data['text_fingerprint']}"),
        ("training", f"T = {T:,} tokens in batches of B = {train.batch_tokens:,}, seed {config.seed}"),
        (
            "optimiser",
            f"AdamW, rate {optim.lr:g} ({optim.schedule}), beta1 {optim.beta1:g}, half-life of beta2 "
            f"{optim.beta2_half_life:g} tokens, weight decay {optim.weight_decay:g}, clipping at {optim.clip:g}",
        ),
        (
            "diffusion",
            f"{config.diffusion.process}, target {config.diffusion.target}, timesteps {config.diffusion.timesteps}, "
            f"caption dropout {config.data.caption_dropout:g}",
        ),
        ("weights", f"EMA, width {config.ema.width:g}" if weights == "ema" else "raw"),
    ]
    if last:
        loss, error = last[f"{kind}val_loss"], last[f"{kind}val_se"]
        facts.append(("validation loss", f"{loss:.4f}, standard error {error:.4f}"))
    if law:
        fitted = law_file.load(law)
        found = predict(fitted, N, T, train.batch_tokens, optim.lr)
        own, theirs = recipe(config, data), fitted.recipe or {}
        other = [name for name in own if theirs.get(name) not in (None, own[name])]
        facts.append(
            (
                "loss by the law",
                f"{found.predicted[0]:.4f}, 95 % interval of a run {found.low[0]:.4f} to {found.high[0]:.4f} "
                f"({law}{', of runs with other values of ' + ', '.join(other) if other else ''})",
            )
        )
    return facts


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.out.exists() and not (args.out / "scheduler_config.json").is_file():
        raise UserError(f"--out {args.out}: exists, and is no export; name a new folder")
    # torch takes seconds to import, and mistyped paths are reported without it.
    check_paths(parser, args)
    check_exists(args.checkpoint)
    if args.law:
        law_file.load(args.law)
    from videoscaling.training.checkpoints.checkpoint import read_state
    from videoscaling.training.checkpoints.exported import export, exported_folder, read_trained, scheduler_of
    from videoscaling.training.config import read_config

    if exported_folder(args.checkpoint):
        raise UserError(f"--checkpoint {args.checkpoint}: is an export already; copy the folder")
    trained = read_trained(args.checkpoint, args.weights)
    facts = facts_of(read_config(trained.path), read_state(trained.path), args.weights, args.law)
    recover_folder(args.out)
    remove_abandoned(args.out)
    scheduler = type(scheduler_of(trained)).__name__
    text = card(args.out.name, facts, about=args.about, licence=args.licence, scheduler=scheduler)
    export(trained, args.weights, args.out, text)
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


if __name__ == "__main__":
    run_cli(main)
