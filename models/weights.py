"""Other people's weights: the CXR-IRGen authors' four Lightning files and the official U-ViT => this project's models.

    python -m models.weights --CHECKPOINT clipUViT.ckpt --OUTPUT runs/authors/clipUViT

Reads:  CHECKPOINT, one of the authors' files; for a Stable Diffusion or U-ViT one also BASE_MODEL's configurations
Writes: OUTPUT, a checkpoint folder of this project with the same weights (safetensors), for CHECKPOINT constants

What a file is follows from the names of its tensors:

    unet.*                                          vision module, Stable Diffusion's U-Net
    uvit.uvit.*, uvit.text_embed.*                  vision module, U-ViT
    model.model.*, model.lm_head.*, ...             report autoencoder, BART
    prior_model.*                                   prior, a Hugging Face ViTModel in its names of 2023
    pos_embed, in_blocks.* ... without a prefix     official U-ViT (https://github.com/baofff/U-ViT)

The frozen models that Lightning stored beside them are skipped; any other name stops the loading, and so does a missing
or misshapen tensor, or a number that is not finite. Sizes follow from the shapes, a U-Net's from BASE_MODEL; only the
number of attention heads is in no shape: it follows from HEAD_WIDTH. A file is mapped into memory, not read, so that
only the tensors in use take part, and nothing in it is executed.
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
import math
import os
import pickle
import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from models.diffusion import PromptedDenoiser, noise_schedule
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from utils.checkpoints import check_finite, load_strictly, read_training
from utils.errors import InputError, reason, replacing, run, say, writing
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

_KINDS = {  # kind => (prefixes of its trained tensors, what it is, where to use it)
    "unet": (("unet.",), "the authors' U-Net", "sample_diffusion_clipSD.py"),
    "uvit": (("uvit.uvit.", "uvit.text_embed."), "the authors' U-ViT", "sample_diffusion_clipUViT.py"),
    "bart": (("model.",), "the authors' BART", "BART_CHECKPOINT"),
    "prior": (("prior_model.",), "the authors' prior", "sample_prior_model.py"),
    "official": (("",), "an official U-ViT", "INITIAL_WEIGHTS of train_diffusion_clipUViT.py"),
}
_FROZEN = ("vae.", "text_encoder.", "language_model.", "clipvisionmodel.")  # stored by Lightning, trained by nobody
_OFFICIAL_START = "imagenet256_uvit_large.pth"  # the file that the paper's U-ViT starts from
_VIT_NAMES = (  # timm's names => Hugging Face's of 2023
    (r"^head\.", "pooler.dense."),
    (r"^vit\.cls_token", "embeddings.cls_token"),
    (r"^vit\.pos_embed", "embeddings.position_embeddings"),
    (r"^vit\.patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^vit\.norm\.", "layernorm."),
    (r"^vit\.blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


# ---- what the scripts call -----------------------------------------------------------------------------------------
# A folder is a checkpoint of this project, which its network opens itself; a file is somebody else's, and is read here.


def load_vision(checkpoint, denoiser, base_model="", reference_encoder="", text_encoder="", head_width=HEAD_WIDTH):
    """A checkpoint folder, or an authors' file => (PromptedDenoiser, its training.json).

    denoiser: the class name it has to be of. base_model, reference_encoder, text_encoder: where they lie now; empty: where
    they were.
    head_width: channels an attention head of a U-ViT's file.
    """
    if not is_foreign(checkpoint, "CHECKPOINT"):
        model, training = PromptedDenoiser.from_pretrained(checkpoint, denoiser), read_training(checkpoint)
    else:
        training = _training(checkpoint, BASE_MODEL=base_model or BASE_MODEL, REFERENCE_ENCODER=REFERENCE_ENCODER)
        base = training["constants"]["BASE_MODEL"]
        if denoiser == "UViT":
            model = _uvit(checkpoint, read_tensors(checkpoint, "uvit"), base, head_width)
        else:
            model = _unet(checkpoint, read_tensors(checkpoint, "unet"), base)
    places = {"BASE_MODEL": base_model, "REFERENCE_ENCODER": reference_encoder, "TEXT_ENCODER": text_encoder}
    for name, place in places.items():
        training["constants"][name] = place or training["constants"][name]
    if model.fusion.config.prompting == "authors":
        if training["constants"]["TEXT_ENCODER"]:
            raise InputError(
                f"{checkpoint} is its authors', who read texts with BASE_MODEL's: leave TEXT_ENCODER empty"
            )
        say(f"{checkpoint} samples as its authors trained it: {_AUTHORS_PROMPTING[denoiser]}")
    return model, training


def load_prior(checkpoint, bart_checkpoint="", head_width=HEAD_WIDTH):
    """A checkpoint folder, or an authors' file => (Prior, its training.json)."""
    if not is_foreign(checkpoint, "CHECKPOINT"):
        training = read_training(checkpoint)  # first: it says so where the folder is no checkpoint
        return load_strictly(Prior, checkpoint), training
    training = _training(checkpoint, **_ALL_ROWS, BASE_MODEL=BASE_MODEL, BART_CHECKPOINT=bart_checkpoint)
    return _prior(checkpoint, read_tensors(checkpoint, "prior"), head_width), training


def load_autoencoder(checkpoint, pooling, tokenizer, head_width=HEAD_WIDTH):
    """A trained checkpoint folder, which knows its pooling and tokenizer, or an authors' file => ReportAutoencoder."""
    if not checkpoint:
        raise InputError("this prior does not say which BART it was trained with: set BART_CHECKPOINT")
    if not is_foreign(checkpoint, "BART_CHECKPOINT"):
        return ReportAutoencoder.from_pretrained(checkpoint)
    return _bart(checkpoint, read_tensors(checkpoint, "bart"), pooling, tokenizer, head_width)


def initial_autoencoder(weights, pooling, tokenizer):
    """Any BART, a folder or a hub id with its tokenizer, or an authors' file => ReportAutoencoder, to be trained."""
    if not os.path.isfile(weights):
        return ReportAutoencoder.from_pretrained(weights, pooling)
    return _bart(weights, read_tensors(weights, "bart"), pooling, tokenizer, HEAD_WIDTH)


def start_from(model, weights):
    """Starts a PromptedDenoiser or a Prior from a checkpoint folder or an authors' file; says what was loaded.

    A U-ViT may start from an official one too: only `label_emb` is left over, and the fusion stays as it was drawn.
    What the model is, its number of heads included, is the script's to say.
    """
    if not is_foreign(weights, "INITIAL_WEIGHTS"):
        model.start_from(weights)
        return
    if isinstance(model, Prior):
        head_width = model.config.embed_dim // model.config.num_heads
        model.take(_prior(weights, read_tensors(weights, "prior"), head_width), weights)
        return
    if isinstance(model.denoiser, UNet2DConditionModel):
        _fill(weights, read_tensors(weights, "unet"), (model.denoiser, _prefixed("unet.")), copy=True)
        return
    tensors = read_tensors(weights, "uvit", "official")
    if "pos_embed" in tensors:
        tensors.pop("label_emb.weight", None)
        _fill(weights, tensors, (model.denoiser, _prefixed("")), copy=True)
    else:
        _fill(weights, tensors, (model.denoiser, _prefixed("uvit.uvit.")), _text_embed(model.fusion), copy=True)
    _say_heads(weights, model.denoiser.config.num_heads, model.denoiser.config.embed_dim)


def is_foreign(weights, constant):
    """Whether a constant's value names a file, which is somebody else's, and not a folder, which is this project's.

    InputError when it names neither.
    """
    if os.path.isdir(weights):
        return False
    if os.path.isfile(weights):
        return True
    way_out = f"set {constant} to a folder (a trainer's RUN_DIR/best) or to an authors' .ckpt"
    if Path(weights).name == _OFFICIAL_START:
        way_out = (
            "it is ImageNet's U-ViT-L/2 at 256 x 256, from the table of pretrained models in the README of "
            f"https://github.com/baofff/U-ViT; set {constant} to where it lies, or to '' for random weights"
        )
    raise InputError(f"there is no checkpoint {weights}: {way_out}")


# ---- reading -------------------------------------------------------------------------------------------------------


def read_tensors(path, *kinds):
    """The trained tensors of a file, by name, mapped into memory; prints what is loaded and what is skipped.

    kinds: what it may be, of "unet", "uvit", "bart", "prior" and "official". InputError when it is something else,
    when it has a name that belongs to no model, when it is broken, or when it holds anything but plain data.
    """
    state = _state(path)
    kind = _kind_of(state, path)
    prefixes, what, use = _KINDS[kind]
    if kind not in kinds:
        raise InputError(f"{path} holds {what}, which is of no use here: it is for {use}")

    frozen = {} if kind == "official" else {name: tensor for name, tensor in state.items() if name.startswith(_FROZEN)}
    tensors = {name: tensor for name, tensor in state.items() if name.startswith(prefixes) and name not in frozen}
    unknown = [name for name in state if name not in tensors and name not in frozen]
    if unknown:
        raise InputError(f"{path} holds {what} and {_few(unknown)} that belong to no model known here")
    skipped = ", ".join(sorted({name.split(".")[0] for name in frozen}))
    say(
        f"{path}: {what}, {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} parameters"
        + (f"; {len(frozen)} tensors of frozen models ({skipped}) skipped" if frozen else "")
    )
    return tensors


def _state(path):
    """The named tensors of a file: at its top level, or under "state_dict" as Lightning has them."""
    state = _unpickle(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and _is_plain(tensor) for name, tensor in state.items()
    ):
        raise InputError(f"{path} is no checkpoint: there is no dictionary of named tensors in it")
    return state


def _is_plain(tensor):
    """Whether it is a tensor with all its numbers in the file: neither sparse nor quantised nor without memory."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


def _unpickle(path):
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):  # a file in torch's format before 2020 cannot be mapped
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise InputError(
                f"{path} holds code ({forbidden[1]}) and not only weights; nothing of it was run, and it is not "
                "loaded: get the file from its authors again"
            ) from error
        raise InputError(f"{path} is no archive of tensors: get the file from its authors again") from error
    except Exception as error:  # a broken archive fails in whatever reads it
        if "weights_only" in str(error):  # TorchScript, or torch's .tar of 2017
            raise InputError(
                f"{path} is in a format that cannot be read without running code in it, so it was not read: "
                "get its state_dict, saved with torch.save, from its authors"
            ) from error
        raise InputError(
            f"{path} is broken or incomplete ({reason(error)}): get the file from its authors again"
        ) from error


def _kind_of(state, path):
    for kind in ("uvit", "unet", "prior"):
        if any(name.startswith(_KINDS[kind][0]) for name in state):
            return kind
    if any(name.startswith("model.model.") for name in state):
        return "bart"
    if "pos_embed" in state:
        return "official"
    raise InputError(
        f"{path} is none of the authors' four files and no official U-ViT: "
        + (f"it has {_few(state)}" if state else "it is empty")
    )


# ---- building ------------------------------------------------------------------------------------------------------
# Each model is built without memory and takes over the mapped tensors, so that it is in memory once, if at all.


def _uvit(path, tensors, base_model, head_width):
    shapes = _Shapes(path, tensors, "uvit.uvit.")
    _, tokens, width = shapes.of("pos_embed", 3)
    _, channels, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    heads = _heads(path, width, head_width)
    side = round(max(tokens - 2, 1) ** 0.5) * patch  # beside the prompt's token and the time's
    with torch.device("meta"):
        uvit = UViT(
            img_size=side,
            patch_size=patch,
            in_chans=channels,
            embed_dim=width,
            depth=2 * shapes.count("in_blocks."),
            num_heads=heads,
            mlp_ratio=_ratio(shapes.of("mid_block.mlp.fc1.weight", 2)[0], width),
            mlp_time_embed="uvit.uvit.time_embed.0.weight" in tensors,
        )
        text_width = _Shapes(path, tensors, "uvit.").of("text_embed.weight", 2)[1]
        fusion = PooledFusion(text_width, text_width, width, prompting="authors")
    _fill(path, tensors, (uvit, _prefixed("uvit.uvit.")), _text_embed(fusion))
    _say_heads(path, heads, width)
    return PromptedDenoiser(uvit, fusion, noise_schedule(base_model, "epsilon"))


def _unet(path, tensors, base_model):
    try:
        config = UNet2DConditionModel.load_config(base_model, subfolder="unet")
    except (OSError, ValueError) as error:
        raise InputError(f"no U-Net's config.json in BASE_MODEL {base_model!r}: {reason(error)}") from error
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    _fill(path, tensors, (unet, _prefixed("unet.")))
    width = unet.config.cross_attention_dim
    return PromptedDenoiser(unet, TokenFusion(width, width, prompting="authors"), noise_schedule(base_model, "epsilon"))


def _prior(path, tensors, head_width):
    shapes = _Shapes(path, tensors, "prior_model.")
    _, tokens, width = shapes.of("embeddings.position_embeddings", 3)
    _, channels, patch, _ = shapes.of("embeddings.patch_embeddings.projection.weight", 4)
    report_width, _ = shapes.of("pooler.dense.weight", 2)
    heads = _heads(path, width, head_width)
    with torch.device("meta"):
        prior = Prior(
            latent_channels=channels,
            latent_side=round(max(tokens - 1, 1) ** 0.5) * patch,  # beside the class token
            patch_size=patch,
            embed_dim=width,
            depth=shapes.count("encoder.layer."),
            num_heads=heads,
            mlp_ratio=_ratio(shapes.of("encoder.layer.0.intermediate.dense.weight", 2)[0], width),
            report_dim=report_width,
            pooler="tanh",
            layer_norm_epsilon=1e-12,
        )
    statistics = {"report_mean": torch.zeros(report_width), "report_std": torch.ones(report_width)}
    _fill(path, tensors | statistics, (prior, _vit_names))
    _say_heads(path, heads, width)
    return prior


def _bart(path, tensors, pooling, tokenizer, head_width):
    shapes = _Shapes(path, tensors, "model.model.")
    vocabulary, width = shapes.of("shared.weight", 2)
    heads = _heads(path, width, head_width)
    config = BartConfig(  # what is not said here, bart-base has in common with the defaults
        attention_dropout=0.1,
        activation_dropout=0.1,
        vocab_size=vocabulary,
        d_model=width,
        max_position_embeddings=max(1, shapes.of("encoder.embed_positions.weight", 2)[0] - 2),  # two are never used
        **{
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in (
                ("layers", shapes.count(f"{half}.layers.")),
                ("attention_heads", heads),
                ("ffn_dim", shapes.of(f"{half}.layers.0.fc1.weight", 2)[0]),
            )
        },
    )
    with torch.device("meta"):
        bart = BartForConditionalGeneration(config)
    _fill(path, tensors, (bart, _prefixed("model.")))
    shared = tensors["model.model.shared.weight"]
    for name in ("model.model.encoder.embed_tokens", "model.model.decoder.embed_tokens", "model.lm_head"):
        if not torch.equal(tensors[f"{name}.weight"], shared):
            raise InputError(f"{path}: {name}.weight is not model.model.shared.weight, but BART has one embedding only")
    bart.tie_weights()
    try:
        tokenizer_of_bart = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no tokenizer in TOKENIZER {tokenizer!r}: {reason(error)}") from error
    _say_heads(path, heads, width)
    say(f"{path}: pooling {pooling!r} and the tokenizer of {tokenizer}, which the file does not say")
    return ReportAutoencoder(bart, tokenizer_of_bart, pooling)


def _fill(path, tensors, *modules, copy=False):
    """Puts each tensor into its place, none left over and none missing.

    modules: (module, function from a name in it to the names in the file whose tensors, joined, belong there).
    copy: whether the modules keep their own memory, or take over the file's.
    """
    left, missing, misshapen, states = dict(tensors), [], [], []
    for module, names_of in modules:
        state = {}
        for name, own in module.state_dict().items():
            names = names_of(name)
            missing += [part for part in names if part not in tensors]
            parts = [left.pop(part) for part in names if part in left]
            shape = (own.shape[0] // len(names), *own.shape[1:]) if len(names) > 1 else tuple(own.shape)
            misshapen += [
                f"{part} {tuple(tensor.shape)} instead of {shape}"
                for part, tensor in zip(names, parts)
                if len(parts) == len(names) and tuple(tensor.shape) != shape
            ]
            state[name] = (own, parts)
        states.append(state)
    problems = [f"{_few(found)} {what}" for found, what in (
        (missing, "missing"), (list(left), "left over"), (misshapen, "misshapen")
    ) if found]  # fmt: skip
    if problems:
        raise InputError(
            f"{path} does not fit this architecture: {'; '.join(problems)}"
            + ("; set the sizes in the script's constants, IMAGE_SIZE among them, to the file's" if copy else "")
        )
    for (module, _), state in zip(modules, states):
        module.load_state_dict(
            {
                name: (parts[0] if len(parts) == 1 else torch.cat(parts)).to(own.dtype)
                for name, (own, parts) in state.items()
            },
            assign=not copy,
        )
        check_finite(module, path)


def _prefixed(prefix):
    return lambda name: [prefix + name]


def _text_embed(fusion):
    return fusion, _prefixed("uvit.")


def _vit_names(name):
    """A name in Prior => those in the authors' file: one, or three of queries, keys and values."""
    if name in ("report_mean", "report_std"):
        return [name]
    for pattern, replacement in _VIT_NAMES:
        name = re.sub(pattern, replacement, name)
    parts = ("query", "key", "value") if ".attn.qkv." in name else ("",)
    return [f"prior_model.{name.replace('.attn.qkv.', f'.attention.attention.{part}.')}" for part in parts]


class _Shapes:
    """The shapes of a file's tensors, by their names behind a prefix."""

    def __init__(self, path, tensors, prefix):
        self.path, self.tensors, self.prefix = path, tensors, prefix

    def of(self, name, dimensions):
        """The shape of a tensor, of so many dimensions."""
        if self.prefix + name not in self.tensors:
            raise InputError(f"{self.path} is incomplete: {self.prefix}{name} is missing")
        shape = tuple(self.tensors[self.prefix + name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise InputError(f"{self.path}: {self.prefix}{name} has the shape {shape}, not {dimensions} sizes above 0")
        return shape

    def count(self, name):
        """How many numbered parts there are, `name` being what stands before the number."""
        start = self.prefix + name
        return len({key[len(start) :].split(".")[0] for key in self.tensors if key.startswith(start)})


def _heads(path, width, head_width):
    """How many heads share a width, two or more; InputError where that cannot be."""
    if head_width < 1 or width % head_width or width == head_width:
        raise InputError(
            f"{path} has a width of {width}, which is not two or more attention heads of {head_width} channels, and it "
            "does not say how wide its heads are: convert it with `python -m models.weights --HEAD_WIDTH N`, and name the "
            "folder instead"
        )
    return width // head_width


def _say_heads(path, heads, width):
    say(f"{path}: {heads} attention heads of {width // heads} channels, which the file does not say")


def _ratio(hidden, width):
    """The MLP ratio r of a block, for which int(r * width) is just its hidden width."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


# ---- what goes with the weights ------------------------------------------------------------------------------------

_AUTHORS_PROMPTING = {
    "UViT": "null prompt = 77 end tokens, pooled, not averaged with a reference; reference = the first training row "
    "with the same labels, zeros where there is none",
    "UNet2DConditionModel": "texts without padding to 77; null prompt = the empty text, as long as text and reference "
    "together; reference = the first training row with the same labels, zeros where there is none",
}


_ALL_ROWS = {"VIEWS": [], "HOLD_OUT": []}  # the authors' BART and prior: every view and every patient group


def _training(checkpoint, **constants):
    """The training.json of an authors' file: what is known of its training, in the names of this project."""
    known = {
        "DATA_ROOT": "data/mimic-cxr-jpg",
        "CACHE_DIR": "cache",
        "VIEWS": ["PA"],
        "HOLD_OUT": ["p19"],
        "IMAGE_SIZE": 256,
        "PROMPT": "findings",
        "TEXT_ENCODER": "",
        "REPORTS_ROOT": "",
    }
    return {"source": Path(checkpoint).name, "constants": known | constants, "encoders": {}}


def _few(names, shown=3):
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def main():
    override_constants(globals())
    if not CHECKPOINT or not OUTPUT:
        raise InputError("set CHECKPOINT to one of the authors' files, and OUTPUT to the folder to write")
    if Path(OUTPUT).exists() and any(Path(OUTPUT).iterdir()):
        raise InputError(f"OUTPUT {OUTPUT} has files in it already: name a new folder")
    if not is_foreign(CHECKPOINT, "CHECKPOINT"):
        raise InputError(f"CHECKPOINT {CHECKPOINT} is a folder, and not one of the authors' files")
    kind = _kind_of(_state(CHECKPOINT), CHECKPOINT)
    if kind == "official":
        raise InputError(f"{CHECKPOINT} is an official U-ViT: it needs no conversion, so name it as INITIAL_WEIGHTS")
    if kind == "bart":
        model = load_autoencoder(CHECKPOINT, POOLING, TOKENIZER, HEAD_WIDTH)
        training = _training(CHECKPOINT, **_ALL_ROWS)
    elif kind == "prior":
        model, training = load_prior(CHECKPOINT, BART_CHECKPOINT, HEAD_WIDTH)
    else:
        denoiser = {"uvit": "UViT", "unet": "UNet2DConditionModel"}[kind]
        model, training = load_vision(CHECKPOINT, denoiser, BASE_MODEL, REFERENCE_ENCODER, head_width=HEAD_WIDTH)
    with writing("the checkpoint", OUTPUT), replacing(OUTPUT) as temporary:
        model.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    say(f"{OUTPUT}: written; name it as {'BART_CHECKPOINT' if kind == 'bart' else 'CHECKPOINT'}")


if __name__ == "__main__":
    run(main)
