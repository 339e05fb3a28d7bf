import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from data.synthetic import captions
from models.text import load_text_encoder
from utils.errors import UserError

PROMPTS = ["A red ball, rolling down-left.", "", "two cats and a dog"]


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A randomly initialised T5 with a word-level tokenizer of our own, saved as a real one would be."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "a",
        "red",
        "ball",
        "rolling",
        "two",
        "cats",
        "and",
        "the",
        "moon",
        "is",
        "blue",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["embedded", "t5"])
def encoder(request):
    if request.param == "embedded":
        return load_text_encoder("embedded")
    return load_text_encoder(str(request.getfixturevalue("t5_folder")))


def test_padded_to_the_used_length_and_masked(encoder):
    embeddings, mask = encoder.encode(PROMPTS)
    assert embeddings.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert embeddings.shape == (3, mask.sum(1).max(), encoder.dim)
    assert mask[1].sum() == 1  # the empty prompt is its end token
    # Padding is on the right and zero; tokens are not.
    assert torch.equal(mask, torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True))
    assert not embeddings[~mask].any()
    assert embeddings[mask].abs().amax(1).min() > 0


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    together, mask = encoder.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone, _ = encoder.encode([prompt])
        # A longer row changes the order of the softmax's float32 sums in a T5, nothing else.
        torch.testing.assert_close(together[i][mask[i]], alone[0], atol=1e-5, rtol=1e-5)


def test_long_prompts_are_cut_and_keep_their_end_token(encoder):
    long = "a red ball " * 300
    embeddings, mask = encoder.encode([long])
    assert mask.shape == (1, encoder.max_tokens)
    cut, _ = encoder.encode(["a red ball " * 10])
    assert cut.shape[1] == min(31, encoder.max_tokens)
    if encoder.spec == "embedded":
        places = encoder._places / 1.5**0.5
        end = encoder.encode([""])[0][0, 0]
        torch.testing.assert_close(embeddings[0, -1] - places[-1], end - places[0])
    else:
        assert encoder.tokenizer(long, truncation=True, max_length=encoder.max_tokens).input_ids[-1] == 1


def test_no_prompts_give_no_rows(encoder):
    embeddings, mask = encoder.encode([])
    assert len(embeddings) == len(mask) == 0
    assert embeddings.shape[2] == encoder.dim


def test_words_have_fixed_vectors_and_places():
    encoder = load_text_encoder("embedded")
    (first, second), _ = encoder.encode(["ball red", "RED ball"])
    places = encoder._places[:2] / 1.5**0.5
    torch.testing.assert_close(first[0] - places[0], second[1] - places[1])  # the same word in another place
    assert not torch.allclose(first, second, atol=0.1)  # order is seen
    embeddings, mask = encoder.encode(captions(torch.arange(200), seed=0))
    assert mask.shape[1] < encoder.max_tokens  # no synthetic caption is cut
    assert embeddings[mask].std() == pytest.approx(1, abs=0.1)


def test_another_process_gives_the_same_embedding():
    program = (
        "from models.text import load_text_encoder as load; import sys; e = load();"
        "assert 'transformers' not in sys.modules;"
        "print(e.fingerprint, *e.encode(['a small blue star'])[0][0, 2, :3].tolist())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    fingerprint, *values = first.split()
    encoder = load_text_encoder()
    assert encoder.fingerprint == fingerprint
    assert encoder.encode(["a small blue star"])[0][0, 2, :3].tolist() == [float(v) for v in values]


def test_t5_equals_transformers_own_call(t5_folder):
    from transformers import AutoTokenizer, T5EncoderModel

    embeddings, _ = load_text_encoder(str(t5_folder)).encode(["cats is blue"])
    tokens = AutoTokenizer.from_pretrained(t5_folder)("cats is blue", return_tensors="pt")
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(t5_folder)(input_ids=tokens.input_ids).last_hidden_state
    assert tokens.input_ids[0, -1] == 1
    # A mask of ones added to the scores, or none: the same sums.
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=1e-6)


def test_t5_from_a_pipeline_folder_and_its_fingerprint(t5_folder, tmp_path):
    from transformers import AutoTokenizer, T5EncoderModel

    model, tokenizer = T5EncoderModel.from_pretrained(t5_folder), AutoTokenizer.from_pretrained(t5_folder)
    model.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    plain, pipeline = load_text_encoder(str(t5_folder)), load_text_encoder(str(tmp_path))
    assert torch.equal(plain.encode(PROMPTS)[0], pipeline.encode(PROMPTS)[0])
    assert plain.fingerprint == pipeline.fingerprint
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "text_encoder")
    assert load_text_encoder(str(tmp_path)).fingerprint != plain.fingerprint


def test_a_missing_encoder_is_a_users_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download google/t5-v1_1-xxl --local-dir"):
        load_text_encoder("google/t5-v1_1-xxl")
    with pytest.raises(UserError, match="no local folder"):
        load_text_encoder(str(tmp_path / "absent"))


def test_pickles_are_refused_with_a_reason(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, .* save it as safetensors"):
        load_text_encoder(str(folder))
