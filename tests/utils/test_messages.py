from videoscaling.utils.messages import warn


def test_a_warning_is_one_line_whatever_names_it_holds(capsys):
    warn("a\nb\x1b[2J/\u2028x.mp4: no frames")
    assert capsys.readouterr().err == "warning: a\\nb\\x1b[2J/\\u2028x.mp4: no frames\n"
