"""Tiny random models in the formats of the real ones: Stable Diffusion, open_clip, BERT, BART, Lightning files."""

import json
import shutil
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from small_data import REPORTS
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
)  # fmt: skip

from models.report_autoencoder import ReportAutoencoder
from utils.findings import FINDINGS, PROMPT_PARTS, PROMPT_START
from uvit.model import UViT

WIDTH = 16  # of the texts, of the references and of the U-Net's cross-attention
VAE_FACTOR = 4
PRIOR = {"latent_side": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "report_dim": 16}  # sizes
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
    """vocab.json and merges.txt of the prompts' words, a token each; returns the id of the end token, the last one."""
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
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.5, **{"max_position_embeddings": 90, **sizes},
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


def make_tokenizer():
    """A byte-level tokenizer with BART's special tokens."""
    bpe = ByteLevelBPETokenizer()
    signs = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(REPORTS, vocab_size=330, special_tokens=signs, show_progress=False)
    bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names)


def make_autoencoder(tokenizer, pooling="mean"):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.4,  # so that an untrained decoder says different things
        no_repeat_ngram_size=3,  # a rule that must not reach the reports
        forced_eos_token_id=None,
    )
    return ReportAutoencoder(BartForConditionalGeneration(config), tokenizer, pooling).eval()


def save_lightning(path, state, **others):
    """A .ckpt as Lightning writes it; the frozen models that it stores too have names of their own."""
    frozen = {
        "vae.encoder.mid_block.attentions.0.query.weight": torch.randn(4, 4),
        "text_encoder.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    checkpoint = {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": {**state, **frozen},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1), "dirpath": "checkpoint"}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5}]}],
        "lr_schedulers": [],
        **others,
    }
    torch.save(checkpoint, path)
    return str(path)


def random_weights(module, prefix=""):
    """A state as the module has it, every number at random."""
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        for name, tensor in module.state_dict().items()
    }


def uvit_state(side=8, width=128, depth=4):
    """The weights of the authors' U-ViT with heads of 64 channels, every number at random."""
    with torch.device("meta"):
        uvit, text_embed = UViT(side, 2, 4, width, depth, 2), torch.nn.Linear(WIDTH, width)
    return random_weights(uvit, "uvit.uvit.") | random_weights(text_embed, "uvit.text_embed.")
