"""Plain values as dataclasses."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from videoscaling.utils.errors import UserError
from videoscaling.utils.typed import typed


@dataclass
class Inner:
    on: bool = False
    rates: list[float] | None = None


@dataclass
class Outer:
    count: int = 1
    ratio: float = 0.5
    name: str = "x"
    size: str | None = None
    free: Any = None
    inner: Inner = field(default_factory=Inner)
    entries: list[Inner] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def test_values_become_their_fields_types() -> None:
    read = typed(Outer, {"count": "7", "ratio": 2, "name": 1e3, "inner": {"on": 1, "rates": [1, "2e-3"]}})
    assert read == Outer(count=7, ratio=2.0, name="1000.0", inner=Inner(on=True, rates=[1.0, 0.002]))
    assert type(read.ratio) is float
    assert str(typed(Outer, {"ratio": -0.0}).ratio) == "0.0", "one number, so one run id"
    assert type(read.inner.on) is bool
    assert typed(Outer, {"entries": [{"on": True}], "options": {"a": 1}, "free": [1]}) == Outer(
        entries=[Inner(on=True)], options={"a": 1}, free=[1]
    )


def test_defaults_are_nobody_elses() -> None:
    typed(Outer, {}).inner.on = True
    typed(Outer, {}).entries.append(Inner())
    assert typed(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, "count=1.5: must be a whole number"),
        ({"count": True}, "count=True: must be a whole number"),
        ({"count": "2e3x"}, "count='2e3x': must be a whole number"),
        ({"count": None}, "count: no value; leave the key out"),
        ({"ratio": "fast"}, "ratio='fast': must be a number"),
        ({"ratio": True}, "ratio=True: must be a number"),
        ({"ratio": 10**400}, "must be a number"),
        ({"name": ["a"]}, r"name=\['a'\]: must be text"),
        ({"inner": 3}, "inner: a group of keys, not a value"),
        ({"inner": {"on": 2}}, "inner.on=2: must be true or false"),
        ({"inner": {"rates": 0.1}}, r"inner.rates=0.1: must be a list, such as \[0.1\]"),
        ({"inner": {"rates": [1, "x"]}}, r"inner.rates\[1\]='x': must be a number"),
        ({"inner": {"rates": [None]}}, r"inner.rates\[0\]: no value"),
        ({"entries": [{"on": "maybe"}]}, r"entries\[0\].on='maybe': must be true or false"),
        ({"options": {1: 2}}, r"options=\{1: 2\}: must be a group of keys and values"),
    ],
)
def test_what_is_not_of_its_type_is_refused_with_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(Outer, values)
