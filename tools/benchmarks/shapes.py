"""Clips that benchmarks time, by their tokens. No torch here: --help offers these numbers."""

# Latent [channels, frames, height, width] and patch of a clip of so many tokens.
CLIPS = {
    64: ((16, 4, 4, 4), (1, 1, 1)),
    80: ((16, 5, 4, 4), (1, 1, 1)),
    128: ((16, 8, 4, 4), (1, 1, 1)),
    1280: ((16, 5, 32, 32), (1, 2, 2)),
    8192: ((16, 8, 64, 64), (1, 2, 2)),
    32760: ((16, 21, 60, 104), (1, 2, 2)),  # 81 frames of 480 x 832 pixels
}
