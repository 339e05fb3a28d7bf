"""The laws: how they are fitted from runs, checked, and turned into plans."""

from pathlib import Path

PAPER = Path(__file__).resolve().parents[1] / "configs" / "laws" / "paper.json"  # the paper's own law
