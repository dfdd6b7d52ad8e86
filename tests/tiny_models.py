"""Tiny random models, saved in the on-disk formats of the real ones: a Stable-Diffusion-like folder, an open_clip folder."""

import json
import shutil
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel

from utils.findings import FINDINGS, PROMPT_PARTS, PROMPT_START

WIDTH = 16  # of the texts, of the references and of the U-Net's cross-attention
VAE_FACTOR = 4
SCHEDULER = {  # the file of Stable Diffusion v1.4
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}

MODEL_INDEX = {  # with this file a whole StableDiffusionPipeline opens the folder
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_base_model(folder):
    """A Stable-Diffusion-like folder: vae (4 latent channels, factor 4), text_encoder, tokenizer, scheduler, unet."""
    folder = Path(folder)
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    end_token = _save_tokenizer(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=end_token + 1,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=WIDTH,
            initializer_range=0.5,  # larger than usual, so that two prompts differ
            bos_token_id=end_token - 1,
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
    ).save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def _save_tokenizer(folder):
    """vocab.json and merges.txt of the prompts' words, each one token; returns the id of the end token, the last one."""
    words = " ".join([PROMPT_START, *FINDINGS, *(words for _, words in PROMPT_PARTS)]).lower().replace(",", " ").split()
    vocabulary = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz," for end in ("", "</w>")]
    merges = []
    for word in dict.fromkeys(words):
        letters = [*word[:-1], word[-1] + "</w>"]
        while len(letters) > 1:  # from the back, where words differ: uncertain</w> = u + ncertain</w>
            *letters, left, right = letters
            letters.append(left + right)
            merges.append(f"{left} {right}")
            vocabulary.append(left + right)
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special})
    )
    return len(vocabulary) - 1


def save_reference_encoder(folder, width=WIDTH):
    """An open_clip `local-dir:` folder with a ViT image tower of 32-pixel images."""
    folder = Path(folder)
    config = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": width, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    weights = open_clip.CLIP(**config).state_dict()
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"size": [32, 32]}})
    )
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "open_clip_model.safetensors")


def save_bert(folder, width=24, pooler=True, kind="bert", **sizes):
    """A BERT of its own width with the tokenizer of a few words; pooler: False leaves its weights out of the file.

    kind: its model_type, such as "cxr-bert", which transformers does not know.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz.,-0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, **{"max_position_embeddings": 90, **sizes},
    )  # fmt: skip
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "model_type": kind}))
    if kind != "bert":  # which brings code of its own
        for name, parts in (
            ("config.json", ("AutoConfig", "AutoModel")),
            ("tokenizer_config.json", ("AutoTokenizer",)),
        ):
            told = json.loads((folder / name).read_text())
            told["auto_map"] = {part: "code.Own" for part in parts}
            (folder / name).write_text(json.dumps({**told, "tokenizer_class": "OwnTokenizer"}))
        (folder / "code.py").write_text("raise SystemExit('code of a model was run')\n")
    return str(folder)


def save_clip(folder, base_model):
    """A CLIP text model and its tokenizer side by side, those of a Stable-Diffusion-like folder."""
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(Path(base_model) / part, folder, dirs_exist_ok=True)
    return str(folder)
