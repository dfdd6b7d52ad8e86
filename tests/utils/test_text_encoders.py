"""TEXT_ENCODER: another CLIP or a BERT in the place of BASE_MODEL's text encoder, through training and sampling."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from running import BACKBONES, flags, run_script, sample, says
from safetensors.torch import load_file
from tiny_models import WIDTH, save_bert, save_clip
from transformers import AutoTokenizer, BertModel, ViTConfig, ViTModel

from models.diffusion import PromptedDenoiser, load_unet
from models.weights import load_vision
from utils.checkpoints import weights_fingerprint
from utils.errors import InputError
from utils.findings import parse_findings, to_prompt
from utils.prompts import NULL_PROMPT, TextEncoder, TokenFusion

TEXTS = ["large left pleural effusion", "no edema"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, base_model):
    """Folders of text encoders, by what they are."""
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "bert": save_bert(folder / "bert"),
        "without pooler": save_bert(folder / "without", pooler=False),
        "own kind": save_bert(folder / "own", pooler=False, kind="cxr-bert"),
        "short": save_bert(folder / "short", max_position_embeddings=32),
        "of the same width": save_bert(folder / "same", width=WIDTH),
        "clip": save_clip(folder / "clip", base_model),
    }


def states(folder, texts, length):
    """What a BERT says of texts that are padded: (last hidden states, pooled), as transformers alone computes it."""
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=length, return_tensors="pt")
    output = BertModel.from_pretrained(folder).eval()(tokens.input_ids, attention_mask=tokens.attention_mask)
    return output.last_hidden_state, output.pooler_output


@pytest.mark.parametrize(("name", "length"), [("bert", 77), ("short", 32)])
def test_width_and_tokens_are_the_encoders_own(encoders, name, length):
    hidden, pooled = states(encoders[name], TEXTS, length)
    for wants_pooled, wanted in ((True, pooled), (False, hidden)):
        encoder = TextEncoder("", wants_pooled, name=encoders[name])
        assert (encoder.width, encoder.longest) == (24, length)
        torch.testing.assert_close(encoder.encode(TEXTS), wanted)
        null, reference = encoder.null_prompt("own")
        torch.testing.assert_close(null, encoder.encode([NULL_PROMPT])[0])
        assert reference is None and (null - wanted[0]).abs().max() > 0.1
    assert TextEncoder("", True, name=encoders[name]).encode(["edema " * 99]).isfinite().all()  # cut


@pytest.mark.parametrize("name", ["without pooler", "own kind"])
def test_a_text_is_the_state_of_the_first_token_where_no_pooler_was_trained(encoders, name, capsys):
    encoder = TextEncoder("", True, name=encoders[name])
    assert "has no trained pooler: a text is the state of its first token" in capsys.readouterr().out
    hidden, _ = states(encoders["without pooler"], TEXTS, 77)
    torch.testing.assert_close(encoder.encode(TEXTS), hidden[:, 0])
    again = TextEncoder("", True, name=encoders[name])  # a pooler that is drawn anew would be another encoder
    assert weights_fingerprint(encoder.model) == weights_fingerprint(again.model)
    assert weights_fingerprint(again.model) != weights_fingerprint(TextEncoder("", True, name=encoders["bert"]).model)


@pytest.mark.parametrize("pooled", [True, False])
def test_the_same_clip_by_another_way_is_the_same_encoder(encoders, base_model, pooled):
    own, other = TextEncoder(base_model, pooled), TextEncoder(base_model, pooled, name=encoders["clip"])
    assert weights_fingerprint(own.model) == weights_fingerprint(other.model) and own.longest == other.longest
    texts = ["A chest X ray image with edema", "edema. fracture.", NULL_PROMPT]
    torch.testing.assert_close(own.encode(texts), other.encode(texts), rtol=0, atol=0)


def test_encoders_share_a_cache_folder_and_no_text(encoders, base_model, tmp_path, accelerator):
    names = ("", encoders["bert"], encoders["without pooler"])
    for _ in range(2):
        for name in names:
            encoder = TextEncoder(base_model, True, name=name)
            cache, keys = encoder.cache(TEXTS, str(tmp_path), accelerator)
            features = torch.stack([torch.tensor(cache[key]) for key in keys])
            torch.testing.assert_close(features, encoder.encode(TEXTS))
    assert len(list(tmp_path.iterdir())) == 3 and (tmp_path / "text_pooled").is_dir()  # BASE_MODEL's is where it was


def test_what_is_no_text_encoder_is_refused(encoders, base_model, tmp_path):
    shutil.copytree(encoders["bert"], tmp_path / "vit", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)).save_pretrained(
        tmp_path / "vit"
    )
    cut = Path(shutil.copytree(encoders["bert"], tmp_path / "cut"))
    state = load_file(cut / "model.safetensors")
    torch.save({name: value for name, value in state.items() if "layer.1" not in name}, cut / "pytorch_model.bin")
    (cut / "model.safetensors").unlink()
    (tmp_path / "file").write_text("")
    for name, words in (
        (tmp_path / "absent", "there is no such folder here"),
        (tmp_path / "file", "no text encoder in"),
        (base_model, "there is no file"),
        (f"{base_model}/vae", "no text encoder in"),
        (tmp_path / "vit", "no text encoder in"),
        (cut, "missing keys"),
    ):
        for pooled in (True, False):
            with pytest.raises(InputError) as refused:
                TextEncoder(base_model, pooled, name=str(name))
            says(str(refused.value), f"TEXT_ENCODER '{name}'", words, "leave it empty for BASE_MODEL's")


def test_texts_of_another_width_are_projected_for_the_unet(base_model, capsys):
    fusion = TokenFusion(24, WIDTH, token_dim=WIDTH)
    text, reference = torch.randn(2, 77, 24), torch.randn(2, WIDTH)
    tokens = fusion(text, reference)
    assert tokens.shape == (2, 78, WIDTH) and torch.equal(tokens[:, 77], reference)
    torch.testing.assert_close(tokens[:, :77], fusion.project_text(text))
    assert fusion.project_text.weight.shape == (WIDTH, 24)
    assert {*TokenFusion(24, WIDTH).state_dict()} == {"project.weight"}  # as ever, where no width is given
    with pytest.raises(InputError, match="they are not of one model"):
        load_unet(base_model, 24)
    load_unet(base_model, 24, "a BERT")
    assert f"texts of width 24 are projected to {WIDTH}" in capsys.readouterr().out


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_is_sampled_with_its_text_encoder(backbone, config, encoders, runs, tmp_path):
    constants = flags(RUN_DIR=tmp_path / backbone, TEXT_ENCODER=encoders["without pooler"], PROMPT="impression")
    assert run_script(f"train_diffusion_{backbone}", "--config", config, *constants) == 0
    training = json.loads((tmp_path / backbone / "best" / "training.json").read_text())
    encoder = TextEncoder("", True, name=encoders["without pooler"])
    assert training["constants"]["TEXT_ENCODER"] == encoders["without pooler"]
    assert training["encoders"]["text_encoder"] == weights_fingerprint(encoder.model)
    model = PromptedDenoiser.from_pretrained(tmp_path / backbone / "best")
    assert model.fusion.config.text_dim == 24

    asked = {"TEXT": "Severe pulmonary edema.", "CONDITION": "both"}
    assert sample(backbone, config, tmp_path, tmp_path / "made", **asked) == 0
    moved = shutil.copytree(encoders["without pooler"], tmp_path / "moved")
    assert sample(backbone, config, tmp_path, tmp_path / "made", TEXT_ENCODER=moved, **asked) == 0
    assert len(pd.read_csv(tmp_path / "made" / "synthetic.csv")) == 1  # it is the same image
    message = sample(backbone, config, tmp_path, tmp_path / "other", TEXT_ENCODER=encoders["bert"], **asked)
    says(message, "was trained with another text_encoder", "TEXT_ENCODER")
    message = sample(backbone, config, runs, tmp_path / "other", TEXT_ENCODER=encoders["bert"], SPLIT="validate")
    says(message, "was trained with another text_encoder", "BASE_MODEL")
    says(sample(backbone, config, runs, tmp_path / "other", TEXT_ENCODER=tmp_path / "absent"), "no text encoder in")
    assert not (tmp_path / "other").exists()


def test_another_text_encoder_is_another_run(config, encoders, runs, tmp_path):
    shutil.copytree(runs / "clipUViT", tmp_path / "run")
    constants = flags(RUN_DIR=tmp_path / "run", TEXT_ENCODER=encoders["of the same width"], MAX_STEPS=6)
    says(run_script("train_diffusion_clipUViT", "--config", config, *constants), "trained with other encoders")


def test_a_student_reads_with_its_teachers_encoder(config, encoders, tmp_path):
    constants = flags(RUN_DIR=tmp_path / "teacher", TEXT_ENCODER=encoders["bert"], MAX_STEPS=2)
    assert run_script("train_diffusion_clipUViT", "--config", config, *constants) == 0
    constants = flags(
        CHECKPOINT=tmp_path / "teacher" / "best",
        RUN_DIR=tmp_path / "student",
        STUDENT_STEPS=2,
        TEACHER_STEPS=2,
        MAX_STEPS=2,
    )
    assert run_script("distill_diffusion", "--config", config, *constants) == 0
    assert sample("clipUViT", config, tmp_path, tmp_path / "made", CHECKPOINT=tmp_path / "student" / "best") == 0


def test_an_authors_file_reads_with_base_models_encoder(uvit_file, base_model, encoders):
    with pytest.raises(InputError, match="leave TEXT_ENCODER empty"):
        load_vision(str(uvit_file), "UViT", base_model, text_encoder=encoders["bert"])


def test_the_demos_bert_says_of_an_impression_what_its_clip_says_of_the_findings():
    assets = Path(__file__).parent.parent.parent / "assets" / "demo"
    bert = TextEncoder("", True, name=str(assets / "bert"))
    clip = TextEncoder(str(assets / "base_model"), True)
    assert bert.width == clip.width == 128
    names = ["Edema", "Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Fracture", "Support Devices"]
    said = [
        "Mild pulmonary edema.", "Severe cardiomegaly.", "Small left pleural effusion.", "1. Large right pneumothorax.",
        "Displaced fracture of the left clavicle.", "Endotracheal tube and right central line.",
    ]  # fmt: skip
    prompts = clip.encode([to_prompt(parse_findings(name)) for name in names])
    distances = torch.cdist(bert.encode(said), prompts)
    assert distances.argmin(dim=1).tolist() == [*range(len(names))]
