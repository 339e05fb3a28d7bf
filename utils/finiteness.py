"""The check that keeps NaN and infinity out of pictures and videos."""

from torch import Tensor

from videoscaling.utils.errors import UserError


class NotFinite(UserError):
    """Latents or pixels are NaN or infinite: there is nothing to show."""


def check_finite(values: Tensor, what: str, fix: str) -> None:
    """Check that no entry of ``values`` is NaN or infinite.

    Args:
        values: floats of any shape, or integers, which are finite.
        what: names the values in the message; ``fix``: what to do about it.

    Raises:
        NotFinite: with the share that is not finite.
    """
    finite = values.isfinite()
    if not finite.all():
        share = 1 - finite.double().mean().item()
        raise NotFinite(f"{what}: {100 * share:.3g} % of the values are NaN or infinite; {fix}")
