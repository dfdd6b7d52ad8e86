"""Makes assets/demo: tiny pretrained parts for the demo, in the on-disk formats of the real ones.

    make parts                                            # all of them, two at a time, in two hours or more
    python -m assets.make_demo_assets                     # one after the other
    python -m assets.make_demo_assets --PARTS vae,clip    # only some

Reads:  nothing but drawn chests (phantom), other patients than the demo's own; CONFIG
Writes: FOLDER/base_model (vae, text_encoder, tokenizer, scheduler, unet: a Stable-Diffusion-like folder),
        FOLDER/reference_encoder (open_clip local-dir), FOLDER/uvit, FOLDER/prior and FOLDER/decoder (diffusers),
        FOLDER/vit (timm local-dir), FOLDER/bart and FOLDER/bert (transformers); WORK, from which a second run resumes:
        finished parts are kept, and the trainings of scripts continue

What each part is trained on. Its counterpart in the paper was likewise pretrained on something else than chest X-rays.

    VAE                            images
    image tower and text encoder   images with their prompts (and, as a training aid, the findings)
    U-Net                          images with prompts, as Stable Diffusion's was, and no reference images
    U-ViT                          images with prompts, and nearly half of them with reference images
    ViT of the prior               latents, to predict what the report says: which findings, on which side, in which
                                   zone, how large; as vit_base_patch16_224 was trained to classify photographs
    BART                           reports, to undo noise, then to write them from one latent
    prior                          latents of images and of reports
    BERT                           impressions, to match the text encoder's embedding of the prompts of their findings

Denoisers, autoencoder and prior are pretrained by the project's own scripts, and profit from improvements there. How
long the files in FOLDER took, in minutes of one core, while the other made another part. Of an Intel Xeon with AVX-512:
the chests 5 (mostly on both cores; and 2 to encode them), the VAE 10, its decoder 17, text encoder and image tower 6,
the U-ViT 50 (288,000 examples), the U-Net 43 (192,000), BART's denoising 21. Of an AMD EPYC without it: the autoencoder
27, BERT 8. Of one with it: further steps of the U-ViT 40 and of the U-Net 31 (parts.toml), the ViT 70, the prior 16.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from tokenizers import CharBPETokenizer
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from assets.autoencoder import distil_decoder, make_vae, refine_decoder, save_half, to_pixels, train
from assets.demo_bart import make_bart, widen_decoder
from assets.demo_bert import make_bert
from evaluation.details import detail_flags
from models.diffusion import PromptedDenoiser
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from phantom import random_chest, random_findings, write_report
from utils.constants import REPOSITORY, override_constants
from utils.errors import STATUS_WHEN_STOPPED, InputError, replacing, run, say
from utils.findings import FINDINGS, to_prompt
from utils.latents import encode_moments, load_vae
from utils.mimic_cxr import read_table
from utils.pixels import read_grey

FOLDER = "assets/demo"  # where the parts go (a folder to write)
PARTS = ("chests", "vae", "decoder", "quick", "clip", "uvit", "unet", "vit", "bart", "prior", "bert")  # in order
CONFIG = "assets/parts.toml"  # how the scripts pretrain what they train
WORK = "parts"  # drawn chests, cache, runs and finished parts: a second run resumes from it (a folder to write)
CHESTS = 12_000  # drawn chests to train on (1 or more)
IMAGE_SIZE = 64  # pixels (32 to 4096)
SEED = 20_000  # of drawing and training; the demo draws with another (0 or more)
WIDTH = 128  # of the text encoder and of the image tower (2 to 16384)
VAE_CHANNELS = (16, 32, 64)  # of the autoencoder's three levels: 64 pixels <=> 4 x 16 x 16 latents (each 8 to 4096)
UNET_CHANNELS = (32, 64, 96)  # of the U-Net's three levels (each 8 to 4096)
VAE_STEPS = 1500  # of 16 images (1 or more)
DECODER_STEPS = 2700  # of 16 images, after them, the encoder left as it is (1 or more)
CRITIC_FROM = 1500  # step from which on the decoder has a critic (0 or more)
CRITIC_WEIGHT = 0.1  # of the decoder's critic against the error of the pixels (0 or more)
QUICK_CHANNELS = 16  # of the quicker decoder that imitates it (8 to 4096)
QUICK_STEPS = 4000  # of 16 images (1 or more)
CLIP_STEPS = 1200  # of 64 pairs (1 or more)
VIT_STEPS = 12_000  # of 64 latents (1 or more)
FURTHER = 40_000  # drawn studies for the ViT beside those of the denoisers, which it would learn by heart (1 or more)
REPORTS = 60_000  # written reports for BART and BERT, more than chests since nothing is drawn for them (1 or more)
BART_STEPS = 5000  # of 32 reports, in which it undoes noise (1 or more)
DECODER_WIDTH = 1024  # of the MLPs of BART's decoder, when it is trained alone (256 or more)
BART_DECODER_STEPS = 10_000  # of 64 reports, in which it is (1 or more)
DECODER_NOISE = 0.4  # on the latents then, for the decoder to read what a prior draws (0 to 100)
BERT_STEPS = 4000  # of 64 impressions (1 or more)
UNSEEN = 40_000  # drawn studies that the ViT has not seen, for the prior (1 or more)


def draw_chests() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, S, S) uint8 and labels (N, 14) int8, drawn once and kept in WORK."""
    kept = Path(WORK) / "chests.npz"
    if not kept.exists():
        rngs = (np.random.default_rng((SEED, number)) for number in range(CHESTS))
        chests = [random_chest(rng, IMAGE_SIZE) for rng in tqdm(rngs, "chests", total=CHESTS)]
        images, labels = (np.stack(column) for column in list(zip(*chests))[:2])
        with replacing(kept) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, images=images, labels=labels)
    with np.load(kept) as drawn:
        return drawn["images"], drawn["labels"]


def write_reports() -> tuple[list[str], np.ndarray]:
    """Reports of chests that are never drawn, and their labels, (REPORTS, 14) int8."""
    rngs = (np.random.default_rng((SEED, 1, number)) for number in range(REPORTS))
    studies = [(*random_findings(rng), rng) for rng in rngs]
    return [write_report(*study) for study in studies], np.stack([labels for _, labels, _ in studies])


def make_tokenizer(folder: Path, prompts: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs were merged on the prompts."""
    bpe = CharBPETokenizer(suffix="</w>", lowercase=True, bert_normalizer=False, split_on_whitespace_only=True)
    bpe.train_from_iterator(prompts, vocab_size=600, min_frequency=2, suffix="</w>", show_progress=False)
    raw = json.loads(bpe.to_str())["model"]
    words = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [word for word in sorted(raw["vocab"], key=raw["vocab"].get) if word != "<unk>"] + [",", ",</w>"]
    vocabulary = {word: number for number, word in enumerate([*dict.fromkeys(vocabulary), *words])}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in raw["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_clip(folder: Path, images: np.ndarray, labels: np.ndarray, steps: int) -> None:
    """A text encoder (transformers) and an image tower (open_clip), trained to match images and prompts.

    The loss is CLIP's contrast plus, from either embedding, the cross-entropy of the code of each finding.
    """
    prompts = [to_prompt(vector) for vector in labels]
    tokenizer = make_tokenizer(folder / "base_model" / "tokenizer", prompts)
    distinct = sorted(set(prompts))
    ids = tokenizer(distinct, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    rows = np.array([row_of[prompt] for prompt in prompts])
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": WIDTH, "layers": 3, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},  # not used
    }
    clip = open_clip.CLIP(**config, quick_gelu=False)
    tower = clip.visual
    projection, tower.proj = tower.proj, None
    text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
    heads = nn.ModuleList(nn.Linear(WIDTH, len(FINDINGS) * 4) for _ in range(2))
    temperature = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    codes = torch.from_numpy(labels.astype(np.int64)) % 4  # 1, -1, -2, 0 => 1, 3, 2, 0

    def compute_loss(step):
        batch = np.random.default_rng((SEED, step)).integers(len(images), size=64)
        image = tower(to_pixels(images[batch]))
        words = ids[rows[batch]]
        longest = 1 + (words == tokenizer.eos_token_id).int().argmax(dim=1).max()  # the rest is padding
        text = text_encoder(words[:, :longest]).pooler_output
        contrast = F.normalize(image @ projection, dim=1) @ F.normalize(text_projection(text), dim=1).T
        contrast = contrast * temperature.exp().clamp(max=100)
        same = torch.from_numpy(rows[batch][:, None] == rows[batch][None]).float()
        same = same / same.sum(dim=1, keepdim=True)  # images with one prompt match one another
        loss = F.cross_entropy(contrast, same) + F.cross_entropy(contrast.T, same)
        present = codes[batch] == 1
        for head, embedding in zip(heads, (image, text)):
            logits = head(embedding).view(-1, len(FINDINGS), 4)
            if embedding is image:  # an image shows what is present, not what a report chooses to mention
                loss = loss + 4 * F.binary_cross_entropy_with_logits(logits[..., 1], present.float())
            else:
                loss = loss + F.cross_entropy(logits.flatten(0, 1), codes[batch].flatten())
        return loss

    trained = [*tower.parameters(), projection, *text_encoder.parameters(), *text_projection.parameters()]
    train([*trained, *heads.parameters(), temperature], compute_loss, steps, 1e-3, "clip")
    tower.proj = projection
    save_text_encoder(text_encoder, folder / "base_model" / "text_encoder")
    target = folder / "reference_encoder"
    target.mkdir(parents=True, exist_ok=True)
    (target / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}, indent=2))
    weights = {name: tensor.detach().half().contiguous() for name, tensor in clip.state_dict().items()}
    save_file(weights, target / "open_clip_model.safetensors")


def save_text_encoder(model: CLIPTextModel, folder: Path) -> None:
    """Saves it with the weights' names in Stable Diffusion, which all versions of transformers load."""
    save_half(model, folder)
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": part.half() for name, part in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def moments_of(images: np.ndarray, vae) -> torch.Tensor:
    """(N, S, S) uint8 => moments (N, 2C, h, w)."""
    return torch.cat(
        [encode_moments(vae, to_pixels(images[start : start + 64])) for start in range(0, len(images), 64)]
    )


def run_script(*arguments) -> None:
    """Runs `python ARGUMENTS` in the repository; CalledProcessError if it fails or is stopped."""
    environment = {**os.environ, STATUS_WHEN_STOPPED: "1"}
    subprocess.run([sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=environment, check=True)


def draw_tree(root: Path, studies: int, seed: int) -> None:
    """Draws a CXR tree of chests in root."""
    drawing = ("--OUTPUT_ROOT", root, "--SEED", seed, "--STUDIES", studies)
    run_script("-m", "phantom", "--config", CONFIG, *drawing)


def pretrain(script: str, run: str, *arguments) -> PromptedDenoiser:
    """Trains a denoiser on the drawn chests with one of the project's own scripts => its best checkpoint.

    run: the folder under WORK that it trains in.
    """
    work = Path(WORK)
    places = ("--DATA_ROOT", work / "phantom", "--CACHE_DIR", work / "cache", "--RUN_DIR", work / run)
    run_script(script, "--config", CONFIG, *places, *arguments)
    return PromptedDenoiser.from_pretrained(work / run / "best")


def make_uvit(folder: Path) -> None:
    """A U-ViT, and the fusion of its prompts in folder/fusion."""
    trained = pretrain("train_diffusion_clipUViT.py", "clipUViT")
    save_half(trained.denoiser, folder)
    save_half(trained.fusion, folder / "fusion")


def make_unet(folder: Path) -> None:
    """The U-Net of folder/base_model."""
    start = Path(WORK) / "base_model"  # the same with an untrained U-Net
    if not start.exists():
        whole = start.with_name(".base_model.tmp")
        shutil.copytree(folder / "base_model", whole, ignore=shutil.ignore_patterns("unet"), dirs_exist_ok=True)
        UNet2DConditionModel(
            sample_size=IMAGE_SIZE // 4,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=UNET_CHANNELS,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        ).save_pretrained(whole / "unet")
        whole.rename(start)
    trained = pretrain("train_diffusion_clipSD.py", "clipSD", "--BASE_MODEL", start)
    save_half(trained.denoiser, folder / "base_model" / "unet")


def make_vit(folder: Path, steps: int) -> None:
    """The prior's transformer, trained to predict from latents what the reports say: which findings, where, how large.

    So a linear layer on its class token finds sides and zones, too.
    """
    vae, trees = load_vae(str(folder / "base_model")), (Path(WORK) / "phantom", Path(WORK) / "further")
    draw_tree(trees[1], FURTHER, SEED + 20_000)
    table = pd.concat(map(read_table, trees))
    images = np.stack([read_grey(path, IMAGE_SIZE) for path in table["image_path"]])
    moments, flags = moments_of(images, vae), torch.from_numpy(detail_flags(table["report"])[1]).float()
    sizes = {"img_size": IMAGE_SIZE // 4, "patch_size": 2, "in_chans": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
    vit = VisionTransformer(**sizes, num_classes=flags.shape[1])

    def compute_loss(step):
        generator = torch.Generator().manual_seed(SEED + step)
        batch = torch.randint(len(moments), (64,), generator=generator)
        latents = DiagonalGaussianDistribution(moments[batch]).sample(generator) * vae.config.scaling_factor
        with torch.autocast("cpu", torch.bfloat16):
            logits = vit(latents)  # (B, K)
        return F.binary_cross_entropy_with_logits(logits.float(), flags[batch])

    train(vit.parameters(), compute_loss, steps, 1.5e-3, "vit", weight_decay=0.05)
    vit.reset_classifier(0)
    vit.pretrained_cfg = {
        "architecture": "vit_base_patch16_224",  # timm's name of the code; model_args say the sizes
        "input_size": (4, IMAGE_SIZE // 4, IMAGE_SIZE // 4),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "num_classes": 0,
        "mean": (0.0,) * 4,  # latents are standardised as they are
        "std": (1.0,) * 4,
    }
    save_for_hf(vit.half(), folder / "vit", model_args=sizes, safe_serialization=True)


def make_autoencoder(folder: Path) -> None:
    """BART: pretrained as facebook/bart-base was, then as the report autoencoder of the reports, at last its decoder.

    A linear layer finds each side in the latent, but a narrow decoder exchanges them in reports of several findings;
    and of latents that a prior has drawn, one that has seen little noise writes reports that contradict themselves.
    """
    work, (reports, _) = Path(WORK), write_reports()
    denoiser, listed = work / "bart", work / "reports.csv"
    if not denoiser.exists():
        whole = denoiser.with_name(".bart.tmp")
        make_bart(whole, reports, BART_STEPS, SEED)
        whole.rename(denoiser)
    listing = pd.DataFrame({"split": "train", "text": reports})
    listing.loc[len(reports) - max(1, len(reports) // 60) :, "split"] = "validate"
    listing.to_csv(listed, index=False)
    places = ("--DATA_ROOT", listed, "--INITIAL_WEIGHTS", denoiser, "--RUN_DIR", work / "autoencoder")
    run_script("train_bart.py", "--config", CONFIG, *places)
    wide = ReportAutoencoder.from_pretrained(work / "autoencoder" / "best")
    widen_decoder(wide.bart, DECODER_WIDTH)
    wide.save_pretrained(work / "wide")
    places = ("--DATA_ROOT", listed, "--INITIAL_WEIGHTS", work / "wide", "--RUN_DIR", work / "decoder")
    steps = ("--FREEZE_ENCODER", True, "--LATENT_NOISE", DECODER_NOISE, "--BATCH_SIZE", 64)
    steps += ("--MAX_STEPS", BART_DECODER_STEPS)
    run_script("train_bart.py", "--config", CONFIG, *places, *steps)
    ReportAutoencoder.from_pretrained(work / "decoder" / "best").half().save_pretrained(folder)


def make_prior(folder: Path) -> None:
    """A prior from the ViT's class tokens to BART's latents, folder/vit and folder/bart.

    On chests that the ViT has not seen: of those it was trained on its class tokens are surer than of others.
    """
    work = Path(WORK)
    unseen = work / "unseen"
    draw_tree(unseen, UNSEEN, SEED + 10_000)
    places = ("--DATA_ROOT", unseen, "--CACHE_DIR", work / "cache", "--RUN_DIR", work / "prior")
    parts = ("--BASE_MODEL", folder / "base_model", "--BART_CHECKPOINT", folder / "bart")
    start = ("--PRETRAINED", f"local-dir:{folder / 'vit'}")
    run_script("train_prior_model.py", "--config", CONFIG, *places, *parts, *start)
    save_half(Prior.from_pretrained(work / "prior" / "best"), folder / "prior")


def make(part: str, folder: Path) -> None:
    """Makes one of PARTS, which may need the parts before it."""
    torch.manual_seed(SEED)
    base_model = folder / "base_model"
    match part:
        case "chests":
            draw_chests()
            run_script("-m", "phantom", "--config", CONFIG, "--OUTPUT_ROOT", Path(WORK) / "phantom")
        case "vae":
            PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
                prediction_type="v_prediction",
            ).save_pretrained(base_model / "scheduler")
            save_half(make_vae(draw_chests()[0], VAE_CHANNELS, VAE_STEPS, 16, 2e-3, SEED), Path(WORK) / "vae")
        case "decoder":
            vae = load_vae(WORK)
            refine_decoder(vae, draw_chests()[0], DECODER_STEPS, CRITIC_FROM, CRITIC_WEIGHT, 16, SEED)
            save_half(vae, base_model / "vae")
        case "quick":
            quick = distil_decoder(load_vae(base_model), draw_chests()[0], QUICK_CHANNELS, QUICK_STEPS, 16, SEED)
            save_half(quick, folder / "decoder")
        case "clip":
            make_clip(folder, *draw_chests(), CLIP_STEPS)
        case "uvit":
            make_uvit(folder / "uvit")
        case "unet":
            make_unet(folder)
        case "vit":
            make_vit(folder, VIT_STEPS)
        case "bart":
            make_autoencoder(folder / "bart")
        case "prior":
            make_prior(folder)
        case "bert":
            make_bert(folder / "bert", base_model, *write_reports(), BERT_STEPS, SEED)
        case _:
            raise InputError(f"PARTS: there is no part {part!r}; choose from those at the top of the script")


def main():
    override_constants(globals())
    for part in PARTS:
        made = Path(WORK) / f"{part}.made"
        if made.exists():
            say(f"{part}: made before; delete {made} to make it again")
            continue
        make(part, Path(FOLDER))
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()


if __name__ == "__main__":
    run(main)
