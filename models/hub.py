"""Locations of encoders: one that ships here, a folder, or the local copy of a hub repository, fetched if there is a
network.

Where there is none, one line within seconds says which folder or command would help.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from videoscaling.utils.errors import UserError, first_line, nearest
from videoscaling.utils.files import pickles, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
PATIENCE = 5  # seconds for the hub's first answer; its client alone would try for half a minute
KEPT = ("*.json", "*.safetensors", "*.txt", "*.model")  # weights, configurations, vocabularies; never pickles
VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")
# Bounds of numbers in a config.json. Published encoders stay below 263,000 (words) and 100 (layers). The libraries
# build the model of a config.json before they read its weights, which took 23 GB and did not end for 10^30 layers.
MAX_SIZE, MAX_LAYERS = 1_000_000, 1000
# Autoencoders that ship here: of synthetic clips, and of a film, a game and synthetic clips.
VAES = {name: Path(__file__).parent / f"{name}_vae" for name in ("embedded", "real32", "real64")}
TEXT_ENCODERS = ("embedded",)
Layout = tuple[str, ...]  # folders of an encoder, "" for the root; the first one holds its config.json


def located(spec: str, what: str, layouts: tuple[Layout, ...], shipped: Collection[str]) -> tuple[Path, Layout]:
    """The folder that ``spec`` names, and which of ``layouts`` it has.

    Args:
        spec: a folder, or a hub repository as owner/name.
        what: the kind of encoder, for messages.
        layouts: the first that is there is taken.
        shipped: names of encoders of this kind that ship here, for messages.

    Raises:
        UserError: there is nothing of the kind, and nothing can be fetched.
    """
    check_spec(spec, what, shipped)
    root = Path(spec)
    if root.is_dir():
        for layout in layouts:
            if (root / layout[0] / "config.json").is_file():
                return root, layout
        places = " nor ".join(str(root / layout[0]) for layout in layouts)
        raise UserError(
            f"{what} {spec!r}: no config.json in {places}; give the folder that save_pretrained wrote, or a diffusers "
            "pipeline's"
        )
    return _from_hub(spec, what, layouts)


def check_spec(spec: str, what: str, shipped: Collection[str]) -> None:
    """Raise UserError where ``spec`` is no name of ``shipped``, no folder and not of a hub id's form; no network is
    asked."""
    if spec not in shipped and not Path(spec).is_dir() and not may_be_hub_id(spec):
        near = nearest(spec, list(shipped))
        raise UserError(f"{what} {spec!r}: no such folder, and no hub id, which would be owner/name{near}")


def may_be_hub_id(spec: str) -> bool:
    """Whether ``spec`` has the form of a hub id, owner/name, and is no path of this machine."""
    path = Path(spec)
    return not (path.exists() or path.is_absolute() or spec.startswith((".", "~"))) and spec.count("/") == 1


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of an encoder.

    Raises:
        UserError: it is no JSON object, or has sizes that no encoder has.
    """
    path = folder / "config.json"
    config = read_json(path, dict)
    _check_sizes(config, "", path)
    return config


def weight_files(folder: Path, what: str) -> list[Path]:
    """The files of the weights: one, or the shards that an index names. Variants (fp16) and pickles are not used.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        names = read_json(index, dict).get("weight_map")
        if not (isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())):
            raise UserError(f"{what}: {index} has no weight_map from tensors to files")
        shards = sorted({folder / name for name in names.values()})
        missing = next((shard for shard in shards if not shard.is_file()), None)
        if missing is not None:
            raise UserError(f"{what}: {missing} is missing, which {index.name} names; copy it there")
        return shards
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    other = next((path.name for path in sorted(folder.glob("*.safetensors"))), None)
    if other is not None:
        raise UserError(f"{what}: {folder} does not load (no {WEIGHTS} in it; {other} is not used in its place)")
    raise UserError(f"{what}: no {WEIGHTS} in {folder}{pickles(folder)}")


def _check_sizes(value: Any, key: str, path: Path) -> None:
    """Refuse whole numbers above the bounds, anywhere in a JSON value; those of a list are its key's."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_sizes(part, name, path)
    elif isinstance(value, list):
        for part in value:
            _check_sizes(part, key, path)
    elif isinstance(value, int) and value > (MAX_LAYERS if "layers" in key else MAX_SIZE):
        raise UserError(f"{path}: {key} is {value}, which no published encoder has")


def _from_hub(spec: str, what: str, layouts: tuple[Layout, ...]) -> tuple[Path, Layout]:
    """The local copy of a hub repository. Only the layout's folders are fetched, without variants such as fp16.

    Offline, or where the hub does not answer in time, what an earlier run has fetched is used."""
    from huggingface_hub import snapshot_download

    layout, reason = _asked(spec, layouts)
    # Without an answer from the hub, only files that are here already can help, in any layout.
    for candidate in [layout] if layout else layouts:
        try:
            root = snapshot_download(
                spec,
                allow_patterns=[_in(folder, kept) for folder in candidate for kept in KEPT],
                ignore_patterns=[*VARIANTS, *(["*/*"] if "" in candidate else [])],
                local_files_only=layout is None,
                etag_timeout=PATIENCE,
            )
        except Exception as error:  # nothing here, or the network went away
            reason = reason or first_line(error)
            continue
        if (Path(root) / candidate[0] / "config.json").is_file():
            return Path(root), candidate
    raise UserError(
        f"{what} {spec!r} is no local folder, and could not be fetched from the hub ({reason}): check the name, or "
        f"where there is a network run `hf download {spec} --local-dir DIR` and give DIR, or use 'embedded'"
    )


def _asked(spec: str, layouts: tuple[Layout, ...]) -> tuple[Layout | None, str]:
    """Which of ``layouts`` a repository on the hub has, by one quick question for each; or None and the reason."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    for layout in layouts:
        try:
            get_hf_file_metadata(hf_hub_url(spec, _in(layout[0], "config.json")), timeout=PATIENCE)
            return layout, ""
        except EntryNotFoundError:
            continue
        except GatedRepoError:
            return None, "its terms have to be agreed to on the hub; then run `hf auth login`"
        except RepositoryNotFoundError:
            return None, "there is no such repository, or it is private"
        except HfHubHTTPError as error:
            return None, first_line(error)
        except Exception as error:  # no network: which exception says so depends on the version of the hub's client
            return None, f"no answer: {first_line(error)}"
    return None, "there is no config.json in it, nor in the folders of a pipeline"


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
