import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videoscaling.data.sources.synthetic import captions
from videoscaling.models import dit
from videoscaling.models.text import cut_warning, load_text_encoder
from videoscaling.utils.errors import UserError

PROMPTS = ["A red ball, rolling down-left.", "", "two cats and a dog"]


WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "rolling", "two", "cats", "and", "the", "moon", "is", "blue"]


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A randomly initialised T5 with a word-level tokenizer of our own, saved as a real one would be."""
    return save_t5(tmp_path_factory.mktemp("t5"))


def save_t5(folder, family="T5"):
    """A T5 or UMT5 encoder of two layers, and its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=32, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    getattr(transformers, f"{family}EncoderModel")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("umt5"), "UMT5")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A randomly initialised text half of a CLIP, whose tokenizer pads with its end token."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(set("".join(WORDS[3:]) + ",-."))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    folder = tmp_path_factory.mktemp("clip")
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=20,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["embedded", "t5", "umt5", "clip"])
def encoder(request):
    if request.param == "embedded":
        return load_text_encoder("embedded")
    return load_text_encoder(str(request.getfixturevalue(f"{request.param}_folder")))


def test_padded_to_the_used_length_and_masked(encoder):
    embeddings, mask = encoder.encode(PROMPTS)
    assert embeddings.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert embeddings.shape == (3, mask.sum(1).max(), encoder.dim)
    # The empty prompt is its end token; CLIP has a first one as well.
    assert mask[1].sum() == 1 + ("clip" in encoder.spec)
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
        ids = encoder.tokenizer(long, truncation=True, max_length=encoder.max_tokens).input_ids
        assert len(ids) == encoder.max_tokens
        assert ids[-1] == encoder.tokenizer.eos_token_id


def test_tokens_are_counted_before_the_cut(encoder):
    few, many = "a red ball", "a red ball " * 300
    short, long, none = encoder.count_tokens([few, many, ""])
    assert short == encoder.encode([few])[1].sum()
    assert none == encoder.encode([""])[1].sum()
    assert long - none == 300 * (short - none)
    assert long > encoder.max_tokens == encoder.encode([many])[1].sum()
    assert encoder.count_tokens([]) == []
    assert cut_warning(encoder, [few, many, ""], "prompts") == (
        f"prompts: 1 of 3 longer than the text encoder's {encoder.max_tokens} tokens, and cut"
    )
    assert cut_warning(encoder, [few, ""], "prompts") is None


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


def test_the_fingerprint_does_not_depend_on_the_order_in_which_torch_sums(monkeypatch):
    """Another processor's last bit would refuse every cache and model of this encoder."""
    shipped = json.loads((Path(dit.__file__).parent / "embedded_dit/config.json").read_text())["text_fingerprint"]
    assert load_text_encoder("embedded").fingerprint == shipped
    exact = torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, "sum", lambda self, *dims: exact(self.double(), *dims).to(self.dtype))
    assert load_text_encoder("embedded").fingerprint == shipped


@pytest.mark.parametrize("family", ["T5", "UMT5", "CLIP"])
def test_encoders_equal_transformers_own_call(family, request):
    import transformers

    folder = request.getfixturevalue(f"{family.lower()}_folder")
    embeddings, _ = load_text_encoder(str(folder)).encode(["cats is blue"])
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("cats is blue", return_tensors="pt")
    model = getattr(transformers, "CLIPTextModel" if family == "CLIP" else f"{family}EncoderModel")
    with torch.no_grad():
        expected = model.from_pretrained(folder)(input_ids=tokens.input_ids).last_hidden_state
    assert tokens.input_ids[0, -1] == 1
    # A mask of ones added to the scores, or none: the same sums.
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=1e-6)


def test_the_text_half_of_a_whole_clip(clip_folder, tmp_path):
    """A folder of both halves, as CLIP is published."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextModel

    text = CLIPTextModel.from_pretrained(clip_folder)
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image |= {"image_size": 8, "patch_size": 4}
    whole = CLIPModel(CLIPConfig(text_config=text.config.to_dict(), vision_config=image, projection_dim=8))
    whole.text_model.load_state_dict(text.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path)
    half, both = load_text_encoder(str(clip_folder)), load_text_encoder(str(tmp_path))
    assert both.dim == 24
    assert both.max_tokens == 20
    torch.testing.assert_close(both.encode(PROMPTS)[0], half.encode(PROMPTS)[0])


def test_shards_make_no_difference(t5_folder, tmp_path):
    from transformers import AutoTokenizer, T5EncoderModel

    T5EncoderModel.from_pretrained(t5_folder).save_pretrained(tmp_path, max_shard_size="10KB")
    AutoTokenizer.from_pretrained(t5_folder).save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole, sharded = load_text_encoder(str(t5_folder)), load_text_encoder(str(tmp_path))
    assert torch.equal(sharded.encode(PROMPTS)[0], whole.encode(PROMPTS)[0])
    assert sharded.fingerprint == whole.fingerprint
    shards[-1].unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path))


def test_weights_that_are_not_all_there(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    lost = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"cannot be loaded: no {lost} in the weights"):
        load_text_encoder(str(folder))


def test_a_tokenizer_in_sentencepieces_format(t5_folder, tmp_path):
    """As google/t5-v1_1-xxl has it: spiece.model, and no tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2 as sentencepiece

    folder = tmp_path / "t5"
    shutil.copytree(t5_folder, folder, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens_map.json"))
    model = sentencepiece.ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    for i, word in enumerate(WORDS):
        model.pieces.add(piece=word if word in kinds else f"▁{word}", score=-float(i), type=kinds.get(word, 1))
    model.trainer_spec.model_type = 1  # unigram
    model.trainer_spec.unk_id = 2
    model.normalizer_spec.add_dummy_prefix = True
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    encoder = load_text_encoder(str(folder))
    assert encoder.tokenizer("cats is blue").input_ids == [
        WORDS.index(word) for word in ("cats", "is", "blue", "</s>")
    ]
    assert encoder.max_tokens == 512
    words = load_text_encoder(str(t5_folder))
    torch.testing.assert_close(encoder.encode(["cats is blue"])[0], words.encode(["cats is blue"])[0])


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
    with pytest.raises(UserError, match="no such folder"):
        load_text_encoder(str(tmp_path / "absent"))


def test_pickles_are_refused_with_a_reason(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, .* save it as safetensors"):
        load_text_encoder(str(folder))
