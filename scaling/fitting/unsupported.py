"""Fits that the data do not support: exit 3, or with ``--force`` a warning."""

from collections.abc import Iterable


class UnsupportedFit(Exception):
    """The data do not support the fit asked for. The message's first line says why.

    Attributes:
        forcible: whether ``--force`` fits all the same, or in a surface's place ``--method grids``.
        advice: what else helps, or empty.
    """

    def __init__(self, message: str, forcible: bool = True, advice: str = "") -> None:
        super().__init__(message)
        self.forcible, self.advice = forcible, advice

    def text(self, verb: str, way: str, notes: Iterable[str]) -> str:
        """That nothing was fitted (or ``verb``), why, what would help, and the notes on the table."""
        first, *more = str(self).splitlines()
        ways = "; ".join(filter(None, (self.advice, way)))
        return "\n".join([f"not {verb}: {first}{ways and f' ({ways})'}", *more, *(f"note: {text}" for text in notes)])


class Checks:
    """What a fit has to say of its data: warnings, and refusals, which ``force`` turns into warnings."""

    def __init__(self, force: bool = False) -> None:
        self.force = force
        self.warnings: list[str] = []
        self.forced: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def refuse(self, text: str, advice: str = "", forcible: bool = True) -> None:
        """Raise UnsupportedFit, or continue where that is forced."""
        if not (forcible and self.force):
            raise UnsupportedFit(text, forcible, advice)
        self.forced.append(f"forced: {text.splitlines()[0]}")
