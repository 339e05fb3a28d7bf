"""A trained model as a folder of standard files, which diffusers' and safetensors' users read without this package.

    models/x/  config.json  diffusion_pytorch_model.safetensors  scheduler_config.json  README.md  metrics.jsonl

config.json has what rebuilds the model and finds its encoders; a large model's weights are sharded with an index.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videoscaling.data.index import CacheMeta, is_latent_shape, is_size
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.diffusion.sampling import build_scheduler
from videoscaling.models.dit import VideoDiT
from videoscaling.models.hub import read_config, weight_files
from videoscaling.training.checkpoints.checkpoint import find_checkpoint, load_into, read_state, read_tensors
from videoscaling.training.config import Config, config_from_dict, flatten, nested, to_dict
from videoscaling.training.config import read_config as recorded
from videoscaling.training.logs.log_files import METRICS, parse_row
from videoscaling.utils.errors import UserError, shown
from videoscaling.utils.files import replace_folder, temporary, write_bytes, write_json, write_text
from videoscaling.utils.yaml_text import Values

EMBEDDED = Path(__file__).parents[2] / "models" / "embedded_dit"
CLASS = "VideoDiT"
# Of the configuration: what sampling reads. Of the data's meta: the latents' shape, the encoders and the frame rate.
KEYS = (
    *("model.layers", "model.width", "model.heads", "model.patch"),
    *("diffusion.process", "diffusion.target", "data.caption_dropout", "train.dtype"),
)
META = ("latent_shape", "text_dim", "fps", "vae", "vae_fingerprint", "text", "text_fingerprint")


class Trained(NamedTuple):
    """A trained model on disk: where it is, its configuration, its data's ``META``, and its weights by name."""

    path: Path
    config: Config
    data: CacheMeta
    tensors: dict[str, Tensor]


def exported_folder(path: str | Path) -> Path | None:
    """The export that ``path``, a folder, its file of weights or "embedded", means; None of a run or a checkpoint."""
    folder = EMBEDDED if str(path) == "embedded" else Path(path)
    if folder.is_file():  # of the weights: the rest lies next to them
        folder = folder.parent
    return folder if (folder / "config.json").is_file() else None


def read_trained(path: str | Path, weights: str = "ema") -> Trained:
    """The weights ("ema" or "model") of a run directory's newest checkpoint, of a checkpoint, or of an exported folder
    ("embedded": the one shipped here).

    Raises:
        UserError: there is none, it is damaged, or it has other weights than these.
    """
    folder = exported_folder(path)
    if folder is None:
        checkpoint = find_checkpoint(Path(path), (weights,))
        data = read_state(checkpoint)["data"]
        return Trained(checkpoint, recorded(checkpoint), data, dict(read_tensors(checkpoint, weights)))
    facts = read_config(folder)
    if facts.get("_class_name") != CLASS:
        raise UserError(f"{folder}: holds no {CLASS}, as tools/export.py writes it, but {facts.get('_class_name')}")
    if lost := next((key for key in (*KEYS, *META, "weights") if key not in facts), None):
        raise UserError(f"{folder / 'config.json'}: has no {lost}; export the model again with tools/export.py")
    _check_types(facts, folder / "config.json")
    if facts["weights"] != weights:
        raise UserError(f"{folder}: holds no {weights} weights; there are {facts['weights']}")
    config = config_from_dict(nested({key: facts[key] for key in KEYS}))
    tensors = {
        name: tensor for file in weight_files(folder, f"model {str(path)!r}") for name, tensor in _load(file).items()
    }
    return Trained(folder, config, {key: facts[key] for key in META}, tensors)


def _load(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable ({error}); the weights are damaged") from None


def load_initial(model: VideoDiT, path: str, meta: CacheMeta) -> None:
    """Load the weights of ``train.init=path``; UserError if they are another model's, or of other encoders than
    ``meta``'s."""
    given = read_trained(path)
    for kind in ("vae", "text"):
        if given.data[f"{kind}_fingerprint"] != meta[f"{kind}_fingerprint"]:
            raise UserError(
                f"train.init={path}: trained with another {kind} ({given.data[kind]}) than the cache ({meta[kind]}); "
                "encode the clips with that one"
            )
    load_into(model, given.tensors, given.path)


def _check_types(facts: Values, path: Path) -> None:
    texts = ("weights", "vae", "vae_fingerprint", "text", "text_fingerprint")
    sizes = ("text_dim", "model.layers", "model.width", "model.heads")
    right = {name: isinstance(facts[name], str) for name in texts} | {name: is_size(facts[name]) for name in sizes}
    right["latent_shape"] = is_latent_shape(facts["latent_shape"])
    right["fps"] = facts["fps"] is None or (type(facts["fps"]) in (int, float) and 0 < facts["fps"] < 1e6)
    if wrong := [name for name in right if not right[name]]:
        raise UserError(f"{path}: {wrong[0]} is {shown(facts[wrong[0]])}; export the model again with tools/export.py")


def export(trained: Trained, weights: str, out: Path, card: str) -> None:
    """Write ``trained``, whose weights are of the kind ``weights``, as the folder ``out``, whole or not at all.

    The run's metrics.jsonl is copied up to the checkpoint's step.

    Args:
        card: the text of its README.md.
    """
    from huggingface_hub import save_torch_state_dict

    flat = flatten(to_dict(trained.config))
    facts = {key: flat[key] for key in KEYS} | {key: trained.data[key] for key in META}
    tmp = temporary(out)
    try:
        tmp.mkdir(parents=True)
        write_json(tmp / "config.json", {"_class_name": CLASS, "weights": weights} | facts)
        scheduler_of(trained).save_config(tmp)
        save_torch_state_dict(trained.tensors, tmp, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")
        for file in tmp.glob("*.safetensors"):  # written for the owner alone
            file.chmod(0o644)
        write_text(tmp / "README.md", card)
        if (log := trained.path.absolute().parents[1] / METRICS).is_file():
            rows = [(line, parse_row(line)) for line in log.read_bytes().splitlines(keepends=True)]
            step = read_state(trained.path)["step"]
            write_bytes(tmp / METRICS, b"".join(line for line, row in rows if row and row["step"] <= step))
        replace_folder(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def scheduler_of(trained: Trained) -> Any:
    """The diffusers scheduler that is the default of the model's process."""
    process = Process(trained.config.diffusion.process, trained.config.diffusion.target)
    return build_scheduler(process, SamplerOptions(), torch.device("cpu"))
