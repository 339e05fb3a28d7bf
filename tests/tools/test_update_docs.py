"""The generated parts of the documentation are current, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from videoscaling import ROOT
from videoscaling.tools.update_docs import DOCS, PARTS, anchor, key_table, updated
from videoscaling.training.config import Config, config_from_dict, flatten, known_keys, load_config, to_dict

PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PARTS, ids=lambda page: page.name)
def test_the_page_is_current(page: Path) -> None:
    name, make = PARTS[page]
    text = page.read_text(encoding="utf-8")
    assert text.count(f"<!-- {name}: ") == text.count(f"<!-- end of {name} -->") == 1
    assert updated(text, name, make()) == text, "run `python tools/update_docs.py`"


def test_every_key_is_there_once_with_its_default_as_one_would_write_it() -> None:
    pattern = r"\| `([a-z0-9_.]+)` \| (?:`(.*)`)? ?\| (.+) \|"
    rows = [re.fullmatch(pattern, line) for line in key_table(Config).splitlines()[2:]]
    assert [row[1] for row in rows] == list(known_keys())
    given = load_config(None, [f"{row[1]}={row[2]}" for row in rows if row[2]])
    assert given == Config() == config_from_dict(to_dict(given))
    blank = {row[1] for row in rows if not row[2]}
    assert all(value in (None, "", []) for key, value in flatten(to_dict(Config())).items() if key in blank)


def test_what_is_around_a_part_stays() -> None:
    begin, end = "<!-- keys: made by python tools/update_docs.py -->", "<!-- end of keys -->"
    assert updated(f"before\n{begin}\nold\n{end}\nafter\n", "keys", "new") == f"before\n{begin}\nnew\n{end}\nafter\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The fragments by which the headings of ``page`` are linked."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_have_a_leading_zero(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"(?<![\w./\\])\.\d+", prose)
