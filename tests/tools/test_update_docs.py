"""The documentation's table of keys is the schema's."""

import re

from videoscaling.tools.update_docs import BEGIN, END, PAGE, table, updated
from videoscaling.training.config import Config, config_from_dict, flatten, known_keys, load_config, to_dict


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert updated(page) == page, "run `python tools/update_docs.py`"


def test_every_key_is_there_once_with_its_default_as_one_would_write_it() -> None:
    rows = [re.fullmatch(r"\| `([a-z0-9_.]+)` \| (?:`(.*)`)? ?\| (.+) \|", line) for line in table().splitlines()[2:]]
    assert [row[1] for row in rows] == list(known_keys())
    given = load_config(None, [f"{row[1]}={row[2]}" for row in rows if row[2]])
    assert given == Config() == config_from_dict(to_dict(given))
    blank = {row[1] for row in rows if not row[2]}
    assert all(value in (None, "", []) for key, value in flatten(to_dict(Config())).items() if key in blank)


def test_what_is_around_the_table_stays() -> None:
    assert updated(f"before\n{BEGIN}\nold\n{END}\nafter\n") == f"before\n{BEGIN}\n{table()}\n{END}\nafter\n"
