"""One response surface through all runs: loss over (N, T, B, lr)."""
