"""Other people's weights: the CXR-IRGen authors' four Lightning files and the official U-ViT => this project's models.

    python -m models.weights --CHECKPOINT clipUViT.ckpt --OUTPUT runs/authors/clipUViT

Reads:  CHECKPOINT, one of the authors' files; for a Stable Diffusion or U-ViT one also BASE_MODEL's configurations
Writes: OUTPUT, a checkpoint folder of this project with the same weights (safetensors), for CHECKPOINT constants

A folder is a checkpoint of this project; a file is somebody else's, and read as docs/weights.md says. Sizes follow from
the shapes, a U-Net's from BASE_MODEL. A model is built without memory and takes over the file's mapped tensors.
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
import os
import re
import zipfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from models.diffusion import PromptedDenoiser, noise_schedule
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from utils.checkpoints import check_finite, load_strictly, read_training, why_unloaded
from utils.errors import InputError, as_input_error, reason, replacing, run, say, writing
from utils.prompts import PooledFusion, TokenFusion
from uvit.model import UViT

CHECKPOINT = ""  # one of the authors' .ckpt files
OUTPUT = ""  # the checkpoint, converted (a folder to write or empty; a new one)
HEAD_WIDTH = 64  # channels an attention head of a transformer, which no file says (1 or more; authors: 64)
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # folder or hub id: its scheduler, and its U-Net's sizes
REFERENCE_ENCODER = "ViT-B-32-quickgelu/openai"  # open_clip image tower of the authors' vision modules
POOLING = "mean"  # of a BART file, which does not say it (mean, bos or eos)
TOKENIZER = "facebook/bart-base"  # folder or hub id: the tokenizer of a BART file
BART_CHECKPOINT = ""  # of a prior's file: the converted folder of its BART; empty: to be named when it is sampled

_UVIT = (  # what the names in an official file begin with
    "pos_embed", "patch_embed.", "time_embed.", "label_emb.", "in_blocks.", "mid_block.", "out_blocks.", "norm.",
    "decoder_pred.", "final_layer.",
)  # fmt: skip
_KINDS = {  # kind => (what the names of its trained tensors begin with, what it is, where to use it)
    "unet": (("unet.",), "the authors' U-Net", "sample_diffusion_clipSD.py"),
    "uvit": (("uvit.uvit.", "uvit.text_embed."), "the authors' U-ViT", "sample_diffusion_clipUViT.py"),
    "bart": (("model.",), "the authors' BART", "BART_CHECKPOINT"),
    "prior": (("prior_model.",), "the authors' prior", "sample_prior_model.py"),  # transformers' ViTModel of 2023
    "official": (_UVIT, "an official U-ViT", "INITIAL_WEIGHTS of train_diffusion_clipUViT.py"),  # of baofff/U-ViT
}
_FROZEN = ("vae.", "text_encoder.", "language_model.", "clipvisionmodel.")  # stored by Lightning, but not trained
_OFFICIAL_START = "imagenet256_uvit_large.pth"  # the file that the paper's U-ViT starts from
_VIT_NAMES = (  # timm's names => Hugging Face's of 2023
    (r"^head\.", "pooler.dense."), (r"^vit\.cls_token", "embeddings.cls_token"),
    (r"^vit\.pos_embed", "embeddings.position_embeddings"),
    (r"^vit\.patch_embed\.proj", "embeddings.patch_embeddings.projection"), (r"^vit\.norm\.", "layernorm."),
    (r"^vit\.blocks\.", "encoder.layer."), (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."), (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)  # fmt: skip
_ALL_ROWS = {"VIEWS": [], "HOLD_OUT": []}  # the authors trained BART and prior on every view and patient group


def load_vision(
    checkpoint: str, denoiser: str, base_model: str = "", reference_encoder: str = "", text_encoder: str = "",
    head_width: int = HEAD_WIDTH,
) -> tuple[PromptedDenoiser, dict]:  # fmt: skip
    """A checkpoint folder, or an authors' file => (PromptedDenoiser, its training.json).

    denoiser: its class name. base_model, reference_encoder, text_encoder: where they are now, if not where they were in
    training. head_width: channels an attention head of a U-ViT's file.
    """
    if not is_foreign(checkpoint, "CHECKPOINT"):
        model, training = PromptedDenoiser.from_pretrained(checkpoint, denoiser), read_training(checkpoint)
    else:
        base = base_model or BASE_MODEL
        training = _training(checkpoint, BASE_MODEL=base, REFERENCE_ENCODER=REFERENCE_ENCODER)
        model = _uvit(checkpoint, base, head_width) if denoiser == "UViT" else _unet(checkpoint, base)
    constants = training["constants"]
    places = {"BASE_MODEL": base_model, "REFERENCE_ENCODER": reference_encoder, "TEXT_ENCODER": text_encoder}
    constants |= {name: place for name, place in places.items() if place}
    if model.fusion.config.prompting == "authors":
        if constants["TEXT_ENCODER"]:
            raise InputError(f"{checkpoint} was trained on the texts of BASE_MODEL's encoder: leave TEXT_ENCODER empty")
        say(f"{checkpoint} samples as its authors trained it: texts, null prompt and references as in utils/prompts.py")
    return model, training


def load_prior(checkpoint: str, bart_checkpoint: str = "", head_width: int = HEAD_WIDTH) -> tuple[Prior, dict]:
    """A checkpoint folder, or an authors' file => (Prior, its training.json)."""
    if not is_foreign(checkpoint, "CHECKPOINT"):
        training = read_training(checkpoint)  # first: its error says when the folder is no checkpoint
        return load_strictly(Prior, checkpoint), training
    training = _training(checkpoint, **_ALL_ROWS, BASE_MODEL=BASE_MODEL, BART_CHECKPOINT=bart_checkpoint)
    return _prior(checkpoint, head_width), training


def load_autoencoder(checkpoint: str, pooling: str, tokenizer: str, head_width: int = HEAD_WIDTH) -> ReportAutoencoder:
    """A trained checkpoint folder, which has its pooling and tokenizer, or an authors' file => ReportAutoencoder."""
    if not checkpoint:
        raise InputError("this prior's file does not say which BART it was trained with: set BART_CHECKPOINT")
    if not is_foreign(checkpoint, "BART_CHECKPOINT"):
        return ReportAutoencoder.from_pretrained(checkpoint)
    return _bart(checkpoint, pooling, tokenizer, head_width)


def start_from(model: PromptedDenoiser | Prior, weights: str) -> None:
    """Starts a model from a checkpoint folder or an authors' file, with its own number of attention heads.

    A U-ViT may start from an official one too; the fusion then stays as it is.
    """
    foreign = is_foreign(weights, "INITIAL_WEIGHTS")
    if isinstance(model, Prior):
        head_width = model.config.embed_dim // model.config.num_heads
        model.take(_prior(weights, head_width) if foreign else load_strictly(Prior, weights), weights)
    elif not foreign:
        model.start_from(weights)
    elif isinstance(model.denoiser, UNet2DConditionModel):
        _fill(weights, read_tensors(weights, "unet"), (model.denoiser, "unet."), copy=True)
    else:
        tensors = read_tensors(weights, "uvit", "official")
        places = [(model.denoiser, "uvit.uvit."), (model.fusion, "uvit.")]
        if "pos_embed" in tensors:
            tensors.pop("label_emb.weight", None)  # of ImageNet's classes
            places = [(model.denoiser, "")]
        _fill(weights, tensors, *places, copy=True)
        _say_heads(weights, model.denoiser.config.num_heads, model.denoiser.config.embed_dim)


def is_foreign(weights: str, constant: str) -> bool:
    """Whether a constant names a file, somebody else's, or a folder, this project's; InputError if neither is there."""
    if os.path.isdir(weights) or os.path.isfile(weights):
        return os.path.isfile(weights)
    way_out = f"set {constant} to a folder (a trainer's RUN_DIR/best) or to an authors' .ckpt"
    if Path(weights).name == _OFFICIAL_START:
        way_out = f"get it from https://github.com/baofff/U-ViT; set {constant} to its path, or '' for random weights"
    raise InputError(f"there is no checkpoint {weights}: {way_out}")


def read_tensors(path: str, *kinds: str) -> dict[str, torch.Tensor]:
    """The trained tensors of a file, by name, mapped into memory; prints what is loaded and what is skipped.

    kinds: what it may be, of _KINDS. InputError for anything else, an unknown name, a broken file, or code in it.
    """
    state = _read_state(path)
    kind = _kind_of(state, path)
    prefixes, what, use = _KINDS[kind]
    if kind not in kinds:
        raise InputError(f"{path} holds {what}, which is of no use here: it is for {use}")

    tensors = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    frozen = [name for name in state if name.startswith(_FROZEN)]
    unknown = [name for name in state if name not in tensors and name not in frozen]
    if unknown:
        raise InputError(f"{path} holds {what} and {_few(unknown)} that belong to no model known here")
    models = ", ".join(sorted({name.split(".")[0] for name in frozen}))
    skipped = f"; {len(frozen)} tensors of frozen models ({models}) skipped" if frozen else ""
    count = sum(tensor.numel() for tensor in tensors.values())
    say(f"{path}: {what}, {len(tensors)} tensors, {count:,} parameters{skipped}")
    return tensors


def _read_state(path):
    """The named tensors of a file: at its top level, or under "state_dict" as Lightning has them."""
    way_out = "get the file from its authors again"
    with as_input_error(lambda error: f"cannot read {path}: {why_unloaded(path, error)}; {way_out}"):
        # only the zip files that torch has written since 2020 can be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{path} is no checkpoint: there is no dictionary of named tensors in it")
    return state


def _kind_of(state, path):
    for kind, (prefixes, _, _) in _KINDS.items():
        if any(name.startswith(prefixes) for name in state):
            return kind
    raise InputError(f"{path} is none of the authors' four files and no official U-ViT: it has {_few(state)}")


def _uvit(path, base_model, head_width):
    tensors = read_tensors(path, "uvit")
    shape, count = _shapes(path, tensors, "uvit.uvit.")
    _, tokens, width = shape("pos_embed", 3)
    _, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    text_width = _shapes(path, tensors, "uvit.")[0]("text_embed.weight", 2)[1]
    with torch.device("meta"):
        side = round((tokens - 2) ** 0.5) * patch  # without the prompt's token and the time's
        uvit = UViT(
            side, patch, channels, width, depth=2 * count("in_blocks."),
            num_heads=_heads(path, width, head_width),
            mlp_ratio=shape("mid_block.mlp.fc1.weight", 2)[0] / width,
            mlp_time_embed="uvit.uvit.time_embed.0.weight" in tensors,
        )  # fmt: skip
        fusion = PooledFusion(text_width, text_width, width, prompting="authors")
    _fill(path, tensors, (uvit, "uvit.uvit."), (fusion, "uvit."))
    return PromptedDenoiser(uvit, fusion, noise_schedule(base_model, "epsilon"))


def _unet(path, base_model):
    tensors = read_tensors(path, "unet")
    with as_input_error(lambda error: f"no U-Net's config.json in BASE_MODEL {base_model!r}: {reason(error)}"):
        config = UNet2DConditionModel.load_config(base_model, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    _fill(path, tensors, (unet, "unet."))
    width = unet.config.cross_attention_dim
    return PromptedDenoiser(unet, TokenFusion(width, width, prompting="authors"), noise_schedule(base_model, "epsilon"))


def _prior(path, head_width):
    tensors = read_tensors(path, "prior")
    shape, count = _shapes(path, tensors, "prior_model.")
    _, tokens, width = shape("embeddings.position_embeddings", 3)
    _, channels, patch, _ = shape("embeddings.patch_embeddings.projection.weight", 4)
    report_width, _ = shape("pooler.dense.weight", 2)
    with torch.device("meta"):
        side = round((tokens - 1) ** 0.5) * patch  # without the class token
        prior = Prior(
            channels, side, patch, width, depth=count("encoder.layer."),
            num_heads=_heads(path, width, head_width), report_dim=report_width, pooler="tanh", layer_norm_epsilon=1e-12,
            mlp_ratio=shape("encoder.layer.0.intermediate.dense.weight", 2)[0] / width,
        )  # fmt: skip
    statistics = {"report_mean": torch.zeros(report_width), "report_std": torch.ones(report_width)}
    _fill(path, tensors | statistics, (prior, _vit_names))
    return prior


def _bart(path, pooling, tokenizer, head_width):
    tensors = read_tensors(path, "bart")
    shape, count = _shapes(path, tensors, "model.model.")
    vocabulary, width = shape("shared.weight", 2)
    heads = _heads(path, width, head_width)
    config = BartConfig(  # the rest of bart-base's configuration is the default
        vocab_size=vocabulary, d_model=width, encoder_attention_heads=heads, decoder_attention_heads=heads,
        max_position_embeddings=shape("encoder.embed_positions.weight", 2)[0] - 2,  # BART skips the first two
        encoder_layers=count("encoder.layers."), decoder_layers=count("decoder.layers."),
        encoder_ffn_dim=shape("encoder.layers.0.fc1.weight", 2)[0],
        decoder_ffn_dim=shape("decoder.layers.0.fc1.weight", 2)[0], attention_dropout=0.1, activation_dropout=0.1,
    )  # fmt: skip
    with torch.device("meta"):
        bart = BartForConditionalGeneration(config)
    _fill(path, tensors, (bart, "model."))
    bart.tie_weights()  # the file has the one embedding four times
    with as_input_error(lambda error: f"no tokenizer in TOKENIZER {tokenizer!r}: {reason(error)}"):
        tokenizer_of_bart = AutoTokenizer.from_pretrained(tokenizer)
    say(f"{path}: the file does not say its pooling and tokenizer: {pooling!r} and {tokenizer} are used")
    return ReportAutoencoder(bart, tokenizer_of_bart, pooling)


def _shapes(path, tensors, prefix):
    """Two functions: a name behind the prefix and its dimensions => the shape; what precedes a number => how many."""

    def shape(name, dimensions):
        if prefix + name not in tensors or tensors[prefix + name].ndim != dimensions:
            raise InputError(f"{path} is incomplete: it has no {prefix}{name} of {dimensions} dimensions")
        return tuple(tensors[prefix + name].shape)

    def count(name):
        start = prefix + name
        return len({key[len(start) :].split(".")[0] for key in tensors if key.startswith(start)})

    return shape, count


def _heads(path, width, head_width):
    """How many heads share a width, two or more; prints it, for the file does not say it."""
    if width % head_width or width == head_width:
        heads = f"which is not two or more attention heads of {head_width} channels"
        raise InputError(f"{path} has a width of {width}, {heads}: use `python -m models.weights --HEAD_WIDTH N`")
    _say_heads(path, width // head_width, width)
    return width // head_width


def _say_heads(path, heads, width):
    say(f"{path}: {heads} attention heads of {width // heads} channels, which the file does not say")


def _fill(path, tensors, *places, copy=False):
    """Loads the tensors of a file into modules.

    places: (module, what the names in the file begin with before its own; or a function from a name in it to the names
    in the file whose tensors, joined, belong there). copy: not to take over the file's memory. InputError unless each
    tensor has a place of its shape, and is finite.
    """
    shapes = {}  # name in the file => the shape that belongs there
    parts_of = {}  # (number of the place, own name) => names in the file
    for place, (module, of_file) in enumerate(places):
        for name, own in module.state_dict().items():
            parts = parts_of[place, name] = [of_file + name] if isinstance(of_file, str) else of_file(name)
            shapes |= dict.fromkeys(parts, (own.shape[0] // len(parts), *own.shape[1:]))
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [
        f"{name} is {found.get(name, 'missing')} instead of {shapes.get(name, 'absent')}"
        for name in {**shapes, **found}
        if found.get(name) != shapes.get(name)
    ]
    if problems:
        way_out = "; set the sizes in the script's constants to the file's" if copy else ""
        raise InputError(f"{path} does not fit this architecture: {_few(problems)}{way_out}")

    for place, (module, _) in enumerate(places):
        state = {}
        for name, own in module.state_dict().items():
            parts = [tensors[part] for part in parts_of[place, name]]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)  # cat would copy a mapped tensor
            state[name] = whole.to(own.dtype)
        module.load_state_dict(state, assign=not copy)
        check_finite(module, path)


def _vit_names(name):
    """A name in Prior => those in the authors' file: one, or three of queries, keys and values."""
    if name in ("report_mean", "report_std"):
        return [name]
    for pattern, replacement in _VIT_NAMES:
        name = re.sub(pattern, replacement, name)
    parts = ("query", "key", "value") if ".attn.qkv." in name else ("",)
    return [f"prior_model.{name.replace('.attn.qkv.', f'.attention.attention.{part}.')}" for part in parts]


def _few(names):
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _training(checkpoint, **constants):
    """The training.json of an authors' file: what is known of its training, in the names of this project."""
    known = {
        "DATA_ROOT": "data/mimic-cxr-jpg", "CACHE_DIR": "cache", "VIEWS": ["PA"], "HOLD_OUT": ["p19"],
        "IMAGE_SIZE": 256, "PROMPT": "findings", "TEXT_ENCODER": "", "REPORTS_ROOT": "",
    }  # fmt: skip
    return {"source": Path(checkpoint).name, "constants": known | constants, "encoders": {}}


def main():
    override_constants(globals())
    if not CHECKPOINT or not OUTPUT:
        raise InputError("set CHECKPOINT to one of the authors' files, and OUTPUT to the folder to write")
    if Path(OUTPUT).exists() and any(Path(OUTPUT).iterdir()):
        raise InputError(f"OUTPUT {OUTPUT} has files in it already: name a new folder")
    kind = _kind_of(_read_state(CHECKPOINT), CHECKPOINT)
    if kind == "bart":
        model = load_autoencoder(CHECKPOINT, POOLING, TOKENIZER, HEAD_WIDTH)
        training = _training(CHECKPOINT, **_ALL_ROWS)
    elif kind == "prior":
        model, training = load_prior(CHECKPOINT, BART_CHECKPOINT, HEAD_WIDTH)
    else:
        denoiser = "UNet2DConditionModel" if kind == "unet" else "UViT"
        model, training = load_vision(CHECKPOINT, denoiser, BASE_MODEL, REFERENCE_ENCODER, head_width=HEAD_WIDTH)
    with writing("the checkpoint", OUTPUT), replacing(OUTPUT) as temporary:
        model.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    say(f"{OUTPUT}: written")


if __name__ == "__main__":
    run(main)
