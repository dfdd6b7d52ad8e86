import math

import pytest
import torch
import torch.nn.functional as F

from utils.checkpoints import load_strictly
from utils.errors import InputError
from uvit.model import UViT, timestep_embedding

SMALL = {"img_size": 4, "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 4, "num_heads": 2}


@pytest.fixture
def model():
    """A tiny U-ViT whose every parameter matters."""
    torch.manual_seed(0)
    model = UViT(**SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, 4), torch.tensor([0, 999]), torch.randn(2, 1, 16)


def official_names(depth, mlp_time_embed=False):
    """The parameters of the official implementation, https://github.com/baofff/U-ViT, libs/uvit.py."""

    def both(*names):
        return [f"{name}.{part}" for name in names for part in ("weight", "bias")]

    def block(prefix, skip=()):
        layers = both("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", *skip)
        return [f"{prefix}.{name}" for name in ("attn.qkv.weight", *layers)]

    names = ["pos_embed", *both("patch_embed.proj", "norm", "decoder_pred", "final_layer"), *block("mid_block")]
    for number in range(depth // 2):
        names += block(f"in_blocks.{number}") + block(f"out_blocks.{number}", skip=("skip_linear",))
    return {*names, *(both("time_embed.0", "time_embed.2") if mlp_time_embed else ())}


def test_the_papers_size():
    with torch.device("meta"):
        model = UViT()
    assert model.pos_embed.shape == (1, 1 + 1 + 256, 1024)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} == official_names(20)
    assert (len(model.in_blocks), len(model.out_blocks)) == (10, 10)
    assert model.in_blocks[0].attn.qkv.weight.shape == (3 * 1024, 1024)
    assert model.out_blocks[9].skip_linear.weight.shape == (1024, 2048)
    assert model.patch_embed.proj.weight.shape == (1024, 4, 2, 2)
    assert model.decoder_pred.weight.shape == (16, 1024) and model.final_layer.weight.shape == (4, 4, 3, 3)
    block = 12 * 1024**2 + 10 * 1024  # qkv, proj, mlp; their biases and two norms
    skip = 2 * 1024**2 + 1024
    other = 258 * 1024 + (16 + 1) * 1024 + 2 * 1024 + (16 * 1024 + 16) + (4 * 4 * 9 + 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 21 * block + 10 * skip + other


def test_official_weights_load_strictly(tmp_path):
    with torch.device("meta"):
        assert set(UViT(**SMALL, mlp_time_embed=True).state_dict()) == official_names(4, mlp_time_embed=True)
    model = UViT(**SMALL)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = {name: torch.randn(shapes[name]) for name in official_names(4)}
    model.load_state_dict(weights, strict=True)
    model.save_pretrained(tmp_path / "uvit")
    loaded = load_strictly(UViT, tmp_path / "uvit")
    assert loaded.config.depth == 4
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in weights.items())


def test_time_is_cosines_then_sines():
    embedding = timestep_embedding(torch.tensor([0, 1, 999]), 8)
    for row, step in enumerate((0, 1, 999)):
        angles = [step / 10000 ** (index / 4) for index in range(4)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        torch.testing.assert_close(embedding[row], torch.tensor(expected), atol=1e-4, rtol=0)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert timestep_embedding(torch.tensor([5]), 7).shape == (1, 7)


def restated(weights, latents, timesteps, prompt):
    """The U-ViT of SMALL, from the equations: Bao et al. 2023, figure 1 and section 3."""

    def linear(name, x):
        y = torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"])
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def block(name, x):
        query, key, value = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x)).chunk(3, dim=-1)
        heads = []
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            scores = torch.einsum("bqd,bkd->bqk", query[..., part], key[..., part]) / 8**0.5
            heads.append(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), value[..., part]))
        x = x + linear(f"{name}.attn.proj", torch.cat(heads, -1))
        hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU
        return x + linear(f"{name}.mlp.fc2", hidden)

    patches = []
    for row in range(2):
        for column in range(2):
            patch = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            patches.append(torch.einsum("bcyx,dcyx->bd", patch, weights["patch_embed.proj.weight"]))
    patches = torch.stack(patches, 1) + weights["patch_embed.proj.bias"]
    x = torch.cat((prompt, timestep_embedding(timesteps, 16)[:, None], patches), 1) + weights["pos_embed"]

    first = block("in_blocks.0", x)
    second = block("in_blocks.1", first)
    x = block("mid_block", second)
    x = block("out_blocks.0", linear("out_blocks.0.skip_linear", torch.cat((x, second), -1)))
    x = block("out_blocks.1", linear("out_blocks.1.skip_linear", torch.cat((x, first), -1)))

    x = linear("decoder_pred", norm("norm", x))[:, 2:]
    image = torch.zeros(len(x), 3, 4, 4)
    for row in range(2):
        for column in range(2):
            patch = x[:, 2 * row + column].view(-1, 2, 2, 3)  # (B, y, x, C)
            image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch.permute(0, 3, 1, 2)
    return F.conv2d(image, weights["final_layer.weight"], weights["final_layer.bias"], padding=1)


def test_the_output_is_the_equations(model, inputs):
    with torch.no_grad():
        output = model(*inputs)
        assert output.shape == inputs[0].shape and output.std() > 0.1
        torch.testing.assert_close(output, restated(model.state_dict(), *inputs), atol=1e-5, rtol=1e-4)


def test_without_prompt_tokens(inputs):
    model = UViT(**SMALL, num_prompt_tokens=0)
    assert model.pos_embed.shape == (1, 5, 16)
    assert model(inputs[0], inputs[1]).shape == inputs[0].shape


def test_a_compiled_model_is_the_model(model, inputs):
    """Traced as one graph; the compiler behind it (inductor takes a minute here) is torch's to test."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [{"patch_size": 3}, {"embed_dim": 18, "num_heads": 4}])
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="has to divide"):
        UViT(**{**SMALL, **sizes})


def test_another_architectures_weights_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    UViT(**{**SMALL, "depth": 2}).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
    with pytest.raises(InputError, match=r"not of the architecture in its config\.json: 24 unexpected keys"):
        load_strictly(UViT, tmp_path / "a")
