"""The embedded text encoder in a process of its own."""

from tests.processes.launch import python
from videoscaling.models.text import load_text_encoder


def test_another_process_gives_the_same_embedding():
    program = (
        "from videoscaling.models.text import load_text_encoder as load; import sys; e = load();"
        "assert 'transformers' not in sys.modules;"
        "print(e.fingerprint, *e.encode(['a small blue star'])[0][0, 2, :3].tolist())"
    )
    fingerprint, *values = python("-c", program).stdout.split()
    encoder = load_text_encoder()
    assert encoder.fingerprint == fingerprint
    assert encoder.encode(["a small blue star"])[0][0, 2, :3].tolist() == [float(v) for v in values]
