"""The draw of caches that record no rule, as it was then: new caches equal it wherever it kept to the cap."""

from videoscaling.data.splits import SAMPLE, VALIDATION_CLIPS, VALIDATION_SHARE, VideoScan


def draw_before(
    scan: VideoScan, train: int | None, validation: int | None
) -> tuple[dict[str, list[str]], dict[str, list[str] | None]]:
    """The clips by source, validation's and training's (None: all of a source)."""
    scan.open(SAMPLE)
    held: dict[str, list[str]] = {}
    expected = int(scan.clips_per_video * len(scan.order))
    missing = validation
    if validation is None:
        missing = min(max(1, expected // VALIDATION_SHARE), VALIDATION_CLIPS)
    for source, keys in scan.walk() if missing else ():
        if keys:
            held[source.name] = keys if validation is None else keys[:missing]
            missing -= len(held[source.name])
        if missing <= 0:
            break
    taken = {source.file for source in scan.order if source.name in held}
    if train is None:
        return held, {source.name: None for source in scan.order if source.file not in taken}
    training: dict[str, list[str] | None] = {}
    left = train
    for source, keys in scan.walk():
        if source.file not in taken:
            training[source.name] = keys[:left] if len(keys) > left else None
            left -= len(keys)
        if left <= 0:
            break
    return held, training
