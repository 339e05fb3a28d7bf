from videoscaling.utils.text_tables import outline


def test_nested_answers_as_lines_and_tables() -> None:
    answers = {
        "runs": 3,
        "noise": {"by size": [{"N": 1e6, "sd": {"value": 0.01, "low": 0.005, "high": 0.02}}, {"N": 2e7, "sd": None}]},
        "exponent": {"value": 0.5, "low": None, "high": None, "assumed": True},
        "sizes": [1.0, 2.5],
    }
    assert outline(answers) == [
        "runs: 3",
        "noise",
        "  by size",
        "    N      sd",
        "    1e+06  0.01 [0.005, 0.02]",
        "    2e+07  unknown",
        "exponent: 0.5 (assumed True)",
        "sizes: 1, 2.5",
    ]
