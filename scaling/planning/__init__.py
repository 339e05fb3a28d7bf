"""Plans: from a budget to a run."""
