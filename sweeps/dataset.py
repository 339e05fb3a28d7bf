"""A sweep's results as a data set for others: runs.csv, runs.parquet where pyarrow is installed, and a data card."""

import math
from datetime import UTC, datetime
from pathlib import Path

from videoscaling.scaling import runs
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import write_text

MEANINGS = {
    "run_id": "hash of the keys that determine the run; several rows of one run are its milestones",
    "status": "`done`, or `diverged`: a loss was not finite, and the row has none",
    "N": "parameters in the blocks' matrices, 16 x layers x width^2",
    "T": "training tokens seen so far: patches of the clips' latents",
    "B": "batch in tokens",
    "lr": "peak learning rate",
    "seed": "of the weights, and of the order of the data unless the recipe has one for that",
    "n_ctx": "tokens per clip",
    "loss": "validation loss of the raw weights, on a frozen set of clips, times and noise",
    "loss_se": "its standard error over the validation clips",
    "ema_loss": "validation loss of the EMA weights, on which laws are fitted",
    "ema_loss_se": "its standard error over the validation clips",
    "noise_scale": "gradient noise scale in tokens (arXiv 1812.06162); blank where no micro-batches were compared",
    "flops": "training FLOPs, T x 3/4 x N x (7 + n_ctx / width)",
    "heldout": "1: predicted before it ran, and not to be fitted",
}
MADE = "`tools/sweep.py collect --dataset`"  # in every card
READ = """
```python
import pandas

runs = pandas.read_csv("runs.csv")
best = runs[runs.status == "done"].sort_values("ema_loss").groupby(["N", "T"]).first()[["B", "lr", "ema_loss"]]
```

`tools/fit.py all runs.csv` fits a law to it. Names of columns and their relation to other trainers' tables: N is
ScaleBench's `non_embedding_param_size`, T is Step Law's `D`, B is its `bs` in tokens, ema_loss its `smooth loss`.
"""


def check_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` is a file, or holds something else than a data set that was written here."""
    card = folder / "README.md"
    ours = card.is_file() and MADE in card.read_text(encoding="utf-8", errors="replace")
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--dataset {folder}: exists, and is no data set of this command; name a new folder")


def write(table: RunTable, folder: Path, licence: str | None) -> list[str]:
    """Write the data set into ``folder``, under whose name it goes; the names of its files."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        names = ["runs.csv"]
    else:
        names = ["runs.csv", "runs.parquet"]
    folder.mkdir(parents=True, exist_ok=True)
    described = card(table, folder.resolve().name, licence, names)
    write_text(folder / "README.md", described)  # first: by it the folder is known again
    runs.write_csv(table, folder / "runs.csv")
    if len(names) > 1:
        # Ids are hexadecimal: some consist of digits alone, and one with an e among them would be a number.
        options = pyarrow.csv.ConvertOptions(column_types={"run_id": "string"})
        columns = pyarrow.csv.read_csv(folder / "runs.csv", convert_options=options)
        pyarrow.parquet.write_table(columns, folder / "runs.parquet")
    return [*names, "README.md"]


def card(table: RunTable, name: str, licence: str | None, files: list[str]) -> str:
    """The data card: what the rows are, their columns, the recipe that they share, how they were made."""
    diverged = sum(math.isinf(loss) for loss in table.loss)
    count, sizes = len(set(table.run_id)), sorted(set(table.N.astype(int)))
    spans = {key: getattr(table, key) for key in ("N", "T", "B", "lr")}
    ranges = ", ".join(f"{key} from {values.min():.3g} to {values.max():.3g}" for key, values in spans.items())
    lines = ["---", *([f"license: {licence}"] if licence else []), "configs:", "- config_name: default"]
    lines += [f"  data_files: {files[-1]}", "---", "", f"# {name}: losses of video diffusion transformers", ""]
    lines += [
        f"{plural(count, 'training run')} of {plural(len(sizes), 'size')}, {plural(len(table), 'row')}, one for each "
        f"milestone ({diverged} diverged, {int(table.heldout.sum())} held out): {ranges}.",
        "",
        f"Collected on {datetime.now(UTC).date()} by {MADE} from the runs' `result.json`. "
        f"Licence: {licence or 'not stated'}.",
        "",
        *("| column | meaning |", "|---|---|"),
        *(f"| `{column}` | {MEANINGS[column]} |" for column in runs.written_columns(table)),
        *(
            "",
            "What all runs share (`data`, `vae` and `text` are fingerprints):",
            "",
            "| recipe | value |",
            "|---|---|",
        ),
        *(f"| {key} | {value} |" for key, value in table.recipe.items()),
    ]
    return "\n".join([*lines, READ])
