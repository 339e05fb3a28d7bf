"""The error of a fit that the data do not support: exit 3."""


class UnsupportedFit(Exception):
    """The data do not support the fit asked for. The message's first line says why.

    Attributes:
        forcible: whether ``--force`` fits all the same.
        advice: what else helps, or empty.
    """

    def __init__(self, message: str, forcible: bool = True, advice: str = "") -> None:
        super().__init__(message)
        self.forcible, self.advice = forcible, advice
