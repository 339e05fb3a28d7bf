"""The planner's page, opened in headless Chromium: it shows the numbers of tools/plan.py."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from tests.commands import call
from tests.processes.launch import ROOT, run
from videoscaling.scaling.planning import page

LAWS = ("configs/laws/paper.json", "results/mini/law.json")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of few budgets of two laws."""
    monkeypatch.setattr(page, "PER_DECADE", 1)
    monkeypatch.setattr(page, "BEYOND", (1.0, 1.0))
    monkeypatch.setattr(page, "CLIPS", (None, 1e3))
    monkeypatch.chdir(ROOT)
    words = [word for law in LAWS for word in ("--law", law)]
    done = call("tools/plan.py", *words, "--html", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "page.html"


def shown(written: Path, state: str) -> dict[str, dict[str, str]]:
    """By law, the numbers of the page whose sliders stand at ``state``."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{written}#{state}"]
    done = run(command, env={"PATH": "/usr/bin:/bin", "HOME": str(written.parent)})
    cards = re.findall(r'<article[^>]*data-law="([^"]*)"[^>]*>(.*?)</article>', done.stdout, re.DOTALL)
    assert len(cards) == len(LAWS), done.stderr
    numbers = re.compile(r'data-key="(\w+)" data-value="([^"]*)"')
    return {law: {key: unescape(value) for key, value in numbers.findall(text)} for law, text in cards} | {
        "hours": {law: re.findall(r'data-gpu-hours="([^"]*)"', text)[0] for law, text in cards},
        "elsewhere": re.findall(r'<p class="elsewhere">([^<]*)</p>', done.stdout),
    }


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(
    ("number", "flops", "more"),
    [(0, "1e18", []), (1, "1e12", []), (1, "1e12", ["--serve-clips", "1e3", "--gpu", "a100", "--mfu", "0.3"])],
)
def test_the_page_shows_the_plans_of_the_command(written: Path, number: int, flops: str, more: list[str]) -> None:
    state = f"flops={flops}" + ("&clips=1e3&gpu=a100&mfu=0.3" if more else "")
    found, law = shown(written, state), LAWS[number]
    planned = json.loads(call("tools/plan.py", "--law", law, "--flops", flops, "--gpus", 1, *more, "--json").stdout)
    assert {"N", "T", "B", "lr", "loss", "C", "N_within_tolerance"} <= found[law].keys()
    assert ("serving" in found[law]) == bool(more)
    for key, value in found[law].items():
        assert json.loads(value) == planned[key], key
    assert float(found["hours"][law]) == pytest.approx(planned["gpu_hours"], rel=1e-12)
    # The other law was not fitted near this budget: its card has the nearest plan, and says so.
    (elsewhere,), other = found["elsewhere"], found[LAWS[1 - number]]
    ends, nearest, C = [("10¹¹ to 10¹³", "10¹³", 1e13), ("10¹⁷ to 10²⁰", "10¹⁷", 1e17)][number]
    assert elsewhere == f"This law is shown from {ends} FLOPs. Its nearest plan is for {nearest} FLOPs:"
    assert float(other["C"]) == pytest.approx(C, rel=0.1)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_no_card_is_empty_when_the_page_opens(written: Path) -> None:
    """No budget is near what both laws were fitted on; the second one's card was empty."""
    found = shown(written, "")
    assert all({"N", "loss", "C"} <= found[law].keys() for law in LAWS)
    assert len(found["elsewhere"]) == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_opens_where_all_laws_have_plans(written: Path) -> None:
    common = (LAWS[1], "results/study/law.json")
    words = [word for law in common for word in ("--law", law)]
    assert call("tools/plan.py", *words, "--html", str(written)).returncode == 0
    found = shown(written, "")
    assert found[common[0]]["C"].startswith("1")
    assert found[common[1]]["C"].startswith("1")
    assert not found["elsewhere"]


def test_what_is_no_page_is_refused(tmp_path: Path) -> None:
    two = ["--law", ROOT / LAWS[0], "--law", ROOT / LAWS[1]]
    for words, message in (
        ([*two, "--flops", "1e18"], "several go side by side with --html"),
        ([*two, "--html", tmp_path / "x.html", "--tokens", "1e9"], "--tokens: --html plans every budget"),
        ([*two, "--html", tmp_path], "is a folder; name a file\n"),
    ):
        done = call("tools/plan.py", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    assert not list(tmp_path.iterdir())
