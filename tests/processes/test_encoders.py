"""The embedded encoders in a process of their own, which loads neither transformers nor diffusers."""

from tests.processes.launch import python
from videoscaling.models.text import load_text_encoder


def test_another_process_gives_the_same_embedding_without_slow_imports():
    program = (
        "from videoscaling.models.text import load_text_encoder as load; import sys; e = load();"
        "from videoscaling.models.vae import load_vae; load_vae('embedded');"
        "assert not {'transformers', 'diffusers', 'torch._dynamo'} & set(sys.modules);"
        "print(e.fingerprint, *e.encode(['a small blue star'])[0][0, 2, :3].tolist())"
    )
    fingerprint, *values = python("-c", program).stdout.split()
    encoder = load_text_encoder()
    assert encoder.fingerprint == fingerprint
    assert encoder.encode(["a small blue star"])[0][0, 2, :3].tolist() == [float(v) for v in values]
