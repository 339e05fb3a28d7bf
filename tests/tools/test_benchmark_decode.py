import argparse

import pytest
import torch

from tests.data.video.videos import make_video, source
from videoscaling.data.sources.source import Source
from videoscaling.data.video.probe import probe
from videoscaling.tools.benchmarks import decode

CPU = torch.device("cpu")


def test_rows_and_a_video_made_longer(tmp_path, monkeypatch):
    path = make_video(tmp_path / "x.mp4", frames=60, coding={"bf": "2"})
    found = probe(source(path))
    longer = probe(Source("y.mp4", decode.lengthened(path, tmp_path / "y.mp4", 3), ""))
    step = found.times[1] - found.times[0]
    assert list(longer.times) == [longer.times[0] + i * step for i in range(180)]
    monkeypatch.setattr(decode, "LONGER", 3)
    speed, seek = decode.decode_rows(argparse.Namespace(rounds=2), CPU, tmp_path, path)
    assert {"plain loop", "pyav"} <= set(speed["frames_per_second"])
    assert all(value["value"] > 0 for value in speed["frames_per_second"].values())
    assert seek["seconds"] == pytest.approx([2.5, 7.5])
    assert seek["ratio"] > 0


@pytest.mark.slow
def test_a_seek_into_ten_minutes_takes_at_most_twice_that_into_ten_seconds(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=240, height=240, width=320, coding={"preset": "veryfast", "g": "48"})
    row = decode.seek_row(15, CPU, tmp_path, source(path))
    assert row["seconds"][1] == pytest.approx(600)
    assert row["ratio"] < 2
