"""Names and defaults that commands offer for clips. No torch here: its import takes seconds, and --help needs none."""

SYNTHETIC = "synthetic"
RENDERED = (SYNTHETIC, "doom")  # sources whose clips are made rather than read
FILM = "film"  # the source of ``data.sources.film``
NAMED_SOURCES = (*RENDERED, FILM)
SYNTHETIC_CLIPS, SYNTHETIC_VALIDATION = 4096, 256
BACKENDS = ("decord", "pyav", "torchcodec")  # of ``data.video.decode``
SHOT_RULES = ("histogram", "transnetv2")  # of ``data.video.shots``
LIMIT_SECONDS = 60.0  # in which a video is decoded, or rejected
VERIFIED = 16  # sources that a check of a cache encodes again
