import pytest

from videoscaling.data.clip_groups import read_frozen
from videoscaling.utils.errors import UserError


def test_an_altered_frozen_list_is_refused(tmp_path):
    (tmp_path / "validation.json").write_text('{"hash": "0", "keys": ["a#0"]}')
    with pytest.raises(UserError, match="altered"):
        read_frozen(tmp_path)
    (tmp_path / "validation.json").write_text("[]")
    with pytest.raises(UserError, match="not a validation list"):
        read_frozen(tmp_path / "validation.json")
