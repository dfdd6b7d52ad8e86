import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils import prompts
from utils.errors import InputError
from utils.findings import FINDINGS, to_prompt
from utils.pixels import read_pixels
from utils.prompts import NULL_PROMPT, PooledFusion, ReferenceEncoder, TextEncoder, TokenFusion


def every_prompt():
    """The prompts of each finding alone, present, absent and uncertain."""
    return [to_prompt(code * np.eye(14, dtype=np.int8)[row]) for code in (1, -1, -2) for row in range(14)]


def test_the_tiny_tokenizer_tells_prompts_apart(base_model):
    tokenizer = CLIPTokenizer.from_pretrained(base_model, subfolder="tokenizer")
    tokens = [tuple(tokenizer(prompt).input_ids) for prompt in every_prompt()]
    assert len(set(tokens)) == 3 * len(FINDINGS) and max(map(len, tokens)) < 77
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer(NULL_PROMPT).input_ids == [start, end] and start != end == max(tokenizer.get_vocab().values())
    assert all(end not in sentence[:-1] for sentence in tokens), "an unknown letter became the end token"


@pytest.mark.parametrize("pooled", [True, False])
def test_texts_are_the_encoders_own_output_padded_to_77(base_model, pooled):
    encoder = TextEncoder(base_model, pooled)
    sentences = [to_prompt([1] * 8 + [0] * 6), to_prompt([0] * 14), NULL_PROMPT]
    encoded = encoder.encode(sentences)
    assert encoded.shape == ((3, 16) if pooled else (3, 77, 16)) and encoder.width == 16
    assert not encoded.requires_grad and encoded.dtype == torch.float32

    model = CLIPTextModel.from_pretrained(base_model, subfolder="text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(base_model, subfolder="tokenizer")
    for sentence, row in zip(sentences, encoded):
        ids = tokenizer(sentence).input_ids
        ids = torch.tensor([ids + [tokenizer.eos_token_id] * (77 - len(ids))])
        output = model(ids)
        torch.testing.assert_close(row, (output.pooler_output if pooled else output.last_hidden_state)[0])
        torch.testing.assert_close(row, encoder.encode([sentence])[0])  # whatever its batch mates
    assert (encoded[0] - encoded[1]).abs().max() > 0.1


def test_a_prompt_beyond_77_tokens_is_cut(base_model):
    assert TextEncoder(base_model, pooled=False).encode(["x y z " * 60]).shape == (1, 77, 16)


def test_texts_are_computed_once_per_distinct_prompt(base_model, tmp_path, accelerator, monkeypatch):
    encoder = TextEncoder(base_model, pooled=True)
    seen = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda batch: seen.extend(batch) or encode(batch))
    sentences = [to_prompt([1] + [0] * 13), to_prompt([0] * 14)]
    cache, keys = encoder.cache(sentences * 50, tmp_path, accelerator)
    assert sorted(seen) == sorted([NULL_PROMPT, *sentences])
    features = np.stack([cache[key] for key in keys[:2]])
    np.testing.assert_allclose(features, encode(sentences).numpy(), atol=1e-6)
    encoder.cache([*sentences, "a chest"], tmp_path, accelerator)
    assert seen[3:] == ["a chest"]

    TextEncoder(base_model, pooled=False).cache(sentences, tmp_path, accelerator)  # tokens have a cache of their own
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[3] += 1
    with pytest.raises(InputError, match="was made with encoder ="):
        encoder.cache(sentences, tmp_path, accelerator)


def test_references_are_pooled_after_the_norm_and_before_the_projection(reference_encoder_name):
    encoder = ReferenceEncoder(reference_encoder_name)
    assert (encoder.image_size, encoder.width) == (32, 16)
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    embedding = encoder.encode(pixels)
    assert embedding.shape == (3, 16) and not embedding.requires_grad

    model = open_clip.create_model(reference_encoder_name).eval()
    tower, before_projection = model.visual, []
    tower.ln_post.register_forward_hook(lambda _module, _inputs, output: before_projection.append(output))
    projected = model.encode_image(pixels)
    torch.testing.assert_close(
        embedding, before_projection[0][:, 0] if before_projection[0].ndim == 3 else before_projection[0]
    )
    torch.testing.assert_close(embedding @ tower.proj, projected)  # and the projection is all that was left out


def test_reference_embeddings_are_cached_by_image(reference_encoder_name, make_table, tmp_path, accelerator):
    table = make_table(np.zeros((3, 14)), [1, 2, 3])
    encoder = ReferenceEncoder(reference_encoder_name)
    cache, keys, readable = encoder.cache(table, tmp_path / "cache", accelerator, 2, 0)
    assert readable.all()
    pixels = torch.stack([read_pixels(path, 32) for path in table.image_path])
    np.testing.assert_allclose(cache.stack(keys), encoder.encode(pixels).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "cannot load REFERENCE_ENCODER .* it is architecture/weights"),
        ("local-dir:/absent/folder", "cannot load REFERENCE_ENCODER 'local-dir:/absent/folder'"),
        ("No-Such-Model/openai", "cannot load REFERENCE_ENCODER"),
        ("ViT-B-32/no-such-weights", "cannot load REFERENCE_ENCODER"),
    ],
)
def test_an_unknown_reference_encoder_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        ReferenceEncoder(name)


def test_a_folder_without_a_text_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no CLIP tokenizer and text_encoder in .*set BASE_MODEL"):
        TextEncoder(str(tmp_path), pooled=True)


def test_pooled_fusion_is_a_linear_map_of_the_average():
    fusion, text, reference = PooledFusion(6, 6, 10), torch.randn(4, 6), torch.randn(4, 6)
    weight, bias = fusion.text_embed.weight, fusion.text_embed.bias
    expected = torch.einsum("bd,ed->be", (text + reference) / 2, weight) + bias
    assert fusion(text, reference).shape == (4, 1, 10)
    torch.testing.assert_close(fusion(text, reference)[:, 0], expected)
    torch.testing.assert_close(fusion(text, None)[:, 0], text @ weight.T + bias)  # not averaged
    torch.testing.assert_close(fusion(text, torch.zeros(4, 6))[:, 0], text / 2 @ weight.T + bias)
    assert {name for name, _ in fusion.named_parameters()} == {"text_embed.weight", "text_embed.bias"}


def test_token_fusion_appends_the_reference_as_token_78():
    fusion, text, reference = TokenFusion(6, 6), torch.randn(4, 77, 6), torch.randn(4, 6)
    tokens = fusion(text, reference)
    assert tokens.shape == (4, 78, 6)
    assert torch.equal(tokens[:, :77], text)
    assert torch.equal(tokens[:, 77], reference)  # it starts as the identity
    assert torch.equal(fusion(text, None), text)


@pytest.mark.parametrize("fusion", [PooledFusion(6, 4, 10), TokenFusion(6, 4)])
def test_a_reference_of_another_width_is_projected_and_no_reference_stays_zero(fusion):
    for parameter in fusion.parameters():
        nn.init.normal_(parameter)
    assert fusion.project.weight.shape == (6, 4) and fusion.project.bias is None
    reference = torch.randn(2, 4)
    projected = reference @ fusion.project.weight.T
    if isinstance(fusion, TokenFusion):
        tokens = fusion(torch.randn(2, 77, 6), reference)
        torch.testing.assert_close(tokens[:, 77], projected)
        assert not fusion(torch.randn(2, 77, 6), torch.zeros(2, 4))[:, 77].any()
    else:
        text = torch.randn(2, 6)
        torch.testing.assert_close(fusion(text, reference)[:, 0], fusion.text_embed((text + projected) / 2))
        torch.testing.assert_close(fusion(text, torch.zeros(2, 4))[:, 0], fusion.text_embed(text / 2))


def test_fusions_survive_saving(tmp_path):
    for fusion in (PooledFusion(6, 4, 10), TokenFusion(6, 4)):
        nn.init.normal_(fusion.project.weight)
        fusion.save_pretrained(tmp_path / type(fusion).__name__)
        loaded = getattr(prompts, type(fusion).__name__).from_pretrained(tmp_path / type(fusion).__name__)
        assert loaded.config.reference_dim == 4
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in fusion.state_dict().items())
