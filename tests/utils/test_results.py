"""A result with a fault anywhere is refused or has the same values; results of older versions are read as they are."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from videoscaling.scaling import runs
from videoscaling.scaling.fitting.grids.clip_losses import averaged_weights
from videoscaling.utils.errors import UserError
from videoscaling.utils.results import FILE, DamagedResult, read_result, write_result

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted(ROOT.glob("results/mini/cells/*/result.json"))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """``content`` with one fault of a kind that disks, copies and editors make."""
    at, end = draw.randrange(len(content)), draw.randrange(1, 4096)
    lines = content.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    digit = draw.choice([i for i, byte in enumerate(content) if 48 <= byte < 58])
    return draw.choice(
        [
            lambda: content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :],
            lambda: content[:digit] + str(draw.randrange(10)).encode() + content[digit + 1 :],
            lambda: content[:at] + content[at + 1 :],
            lambda: content[:at] + content[at : at + 1] + content[at:],
            lambda: content[:at],
            lambda: content[:at] + bytes(end) + content[at + end :],
            lambda: b"".join(lines[:line] + lines[line + 1 :]),
            lambda: b"".join([*lines[: line + 1], *lines[line:]]),
            lambda: content[:at] + content,
        ]
    )()


def table(folder: Path) -> str:
    """The rows that fits and ``collect`` see."""
    table = runs.read(folder)
    return repr([getattr(table, name) for name in table.__dataclass_fields__])


@pytest.mark.parametrize(("seed", "count"), [(1, 250), pytest.param(2, 5000, marks=pytest.mark.slow)])
def test_no_fault_gives_another_table(tmp_path: Path, seed: int, count: int) -> None:
    draw = random.Random(seed)
    write_result(tmp_path / "a", json.loads(COMMITTED[0].read_text()))
    path = tmp_path / "a" / FILE
    content, whole = path.read_bytes(), table(tmp_path)
    refused = 0
    for _ in range(count):
        path.write_bytes(changed := mutated(content, draw))
        try:
            assert table(tmp_path) == whole, changed
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > 0.8 * count  # the others are faults of white space, or of the checksum's name


def test_a_seal_does_not_mind_how_a_file_is_indented(tmp_path: Path) -> None:
    result = json.loads(COMMITTED[0].read_text())
    write_result(tmp_path, result)
    path = tmp_path / FILE
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert read_result(path) == result
    path.write_text(path.read_text().replace('"seed": ', '"seed": 1'))
    with pytest.raises(DamagedResult, match="not as the run wrote it"):
        read_result(path)


def test_results_of_older_versions_are_read_as_they_are() -> None:
    assert len(COMMITTED) == 139
    for path in COMMITTED:
        assert read_result(path) == json.loads(path.read_text())


def test_damaged_results_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, path in zip("abc", COMMITTED):
        write_result(tmp_path / name, json.loads(path.read_text()))
    whole = set(runs.read(tmp_path).run_id)
    assert capsys.readouterr().err == ""
    path = tmp_path / "b" / FILE
    path.write_text(path.read_text().replace('"ema_val_loss": 1.', '"ema_val_loss": 2.', 1))
    assert set(runs.read(tmp_path).run_id) == whole - {"b"}
    warning = f"warning: {path}: not as the run wrote it (another checksum); left out, as 1 of 3 results is\n"
    assert capsys.readouterr().err == warning
    for name in "ac":
        (tmp_path / name / FILE).write_text("[]")
    with pytest.raises(UserError, match=r"a/result.json: not a run's result \(an object is needed, not a list\)"):
        runs.read(tmp_path)


def test_losses_by_clip_are_those_that_the_run_wrote(tmp_path: Path) -> None:
    """Their spread enters every interval."""
    path = tmp_path / "1.npy"
    np.save(path, np.full((2, 3, 2), 0.5))
    content = bytearray(path.read_bytes())
    crc32 = zlib.crc32(content)
    assert averaged_weights(str(path), crc32).mean(1).tolist() == [0.5] * 3
    content[-2] ^= 1  # 0.5 -> 0.53125: a loss like any other
    path.write_bytes(content)
    assert averaged_weights(str(path)).mean(1).tolist() != [0.5] * 3
    with pytest.raises(UserError, match="not as the run wrote it"):
        averaged_weights(str(path), crc32)
