"""Fits of loss against parameters N, tokens T, batch B and learning rate lr."""
