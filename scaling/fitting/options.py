"""What a user may choose of a fit, read from text and checked."""

from dataclasses import dataclass, field

from videoscaling.scaling.fitting.grids import loss_law
from videoscaling.scaling.laws import Law, LossLaw, constants_of
from videoscaling.utils.errors import UserError, nearest

# Constants that may be held, and where: the loss law's exponents as far as the fit itself looks for them.
HOLDABLE = dict.fromkeys(("B.T", "B.N", "lr.T", "lr.N"), (-10.0, 10.0))
HOLDABLE |= {f"loss.{c}": loss_law.EXPONENTS if c in ("aT", "aN") else (1e-9, 1e9) for c in constants_of(LossLaw)}
# Rates and batches that a pair can have.
PAIR = (1e-30, 1e30)


@dataclass(frozen=True)
class Options:
    """What the user may choose. ``form`` is for surfaces and loss forms, the others for grids.

    ``delta`` is where Huber's loss turns linear, by default what the noise asks for.

    ``fixed`` maps "B.N", "lr.T" or "loss.aT" to the value held.
    """

    fixed: dict[str, float] = field(default_factory=dict)
    prior: Law | None = None
    force: bool = False
    optima: bool = False
    form: str = "auto"
    delta: float | None = None

    def held(self, symbol: str) -> dict[str, float]:
        """The constants held of the law of "B", "lr" or "loss", by their own names."""
        parts = {name.partition(".")[::2]: value for name, value in self.fixed.items()}
        return {name: value for (law, name), value in parts.items() if law == symbol}


def parse_fixed(pairs: list[str], part: str) -> dict[str, float]:
    """``["B.N=0"]`` as a mapping, of constants that the part fits."""
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in HOLDABLE:
            raise UserError(
                f"--fix: unknown constant {name!r}{nearest(name, list(HOLDABLE))}; known: {', '.join(HOLDABLE)}"
            )
        if name in values:
            raise UserError(f"--fix: {name} is held twice")
        try:
            values[name] = float(value)
        except ValueError:
            raise UserError(f"--fix {pair!r}: {value!r} is not a number") from None
        low, high = HOLDABLE[name]
        if not low <= values[name] <= high:
            raise UserError(f"--fix {pair!r}: must be a finite number from {low:g} to {high:g}")
        hyper = not name.startswith("loss.")
        if part != "all" and hyper != (part == "hyperparameters"):
            raise UserError(f"--fix {name}: fit.py {part} fits no law with it")
    if sum(name.startswith("loss.") for name in values) == len(loss_law.CONSTANTS):
        raise UserError("--fix: all the loss law's constants are held: there is nothing left to fit")
    return values


def parse_pair(text: str | None) -> tuple[float, float] | None:
    """ "2e-4,65536" as (lr, B)."""
    if text is None:
        return None
    try:
        lr, B = (float(value) for value in text.split(","))
    except ValueError:
        lr = B = 0.0
    if not all(PAIR[0] < value < PAIR[1] for value in (lr, B)):
        raise UserError(f"--pair {text!r} is not LR,B: two positive numbers, such as 2e-4,65536")
    return lr, B
