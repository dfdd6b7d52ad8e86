"""Frozen text and image encoders, the two fusions of their outputs, and the null prompt.

    prompt           => text       (D,) pooled, or (77, D) tokens, always padded to 77; of CLIP, or of TEXT_ENCODER
    reference image  => reference  (R,) CLIP image tower, pooled, after its final layer norm, before the projection
    (text, reference) => the denoiser's prompt tokens, by PooledFusion (U-ViT) or TokenFusion (Stable Diffusion)

A dropped text is the encoding of the empty prompt; a dropped reference is the zero vector. For SD v1.4 and OpenAI's
ViT-B/32, D = R = 768. The CXR-IRGen authors prompt in another way, which their denoisers keep:

    texts      padded to the longest of their batch, not to 77; here a batch has one length: its size changes no image
    null       77 end tokens, pooled (U-ViT); the empty text, as long as text and reference together (Stable Diffusion)
    reference  the first training row with the same labels; the zero vector when there is none
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import Accelerator
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import check_config, check_finite, check_loaded, weights_fingerprint, why_unloaded
from utils.errors import InputError, as_input_error, say
from utils.findings import PROMPT_START
from utils.pixels import PREPROCESSING, read_pixels

NULL_PROMPT = ""  # the prompt of a dropped text
WITHOUT_POOLER = "without_pooler"  # in the config of a text model whose file has no pooler
LONGEST = 77  # tokens of a prompt: a BERT that reads 512 would fill cache and attention with padding
TEXT_BATCH = 64  # prompts that are encoded at a time


class TextEncoder:
    """A frozen text encoder and its tokenizer: the CLIP of a Stable-Diffusion-like folder (or hub id), or another one.

    pooled: True for the pooled output, (D,) a prompt (of a BERT without a trained pooler the state of its first token);
        False for all tokens, (77, D), or as many as a smaller model reads.
    name: TEXT_ENCODER, a folder or hub id of another CLIP or of a BERT; "": base_model's.
    loaded: the tokenizer and the model, where they are loaded already; base_model then counts for nothing.
    """

    def __init__(
        self, base_model: str, pooled: bool, device: str | torch.device = "cpu", name: str = "",
        loaded: tuple[PreTrainedTokenizerBase, PreTrainedModel] | None = None,
    ):  # fmt: skip
        self.pooled, self.name = pooled, name
        self.tokenizer, self.model = loaded or _load_text_model(name, base_model)
        if getattr(self.model.config, WITHOUT_POOLER, False):
            self.model.pooler = None  # a library that loads the model draws one at random
        self.model.eval().requires_grad_(False).to(device)
        self.width = self.model.config.hidden_size
        self.is_clip = isinstance(self.model, CLIPTextModel)
        self.longest = getattr(self.model.config, "max_position_embeddings", LONGEST)  # tokens, start and end included
        if name or loaded:
            self.longest = min(self.longest, self.tokenizer.model_max_length, LONGEST)
        if not name:
            return
        with as_input_error(partial(_no_text_encoder, name, "")):  # models of other kinds raise errors of any type
            text, null = self.encode([PROMPT_START, NULL_PROMPT])
            if torch.allclose(text, null):  # as of a model of images
                raise ValueError(f"it is a {type(self.model).__name__}, which encodes all texts alike")
        if pooled and not self.is_clip and getattr(self.model, "pooler", None) is None:
            say(f"{name} has no trained pooler: a text is the state of its first token")

    def encode(self, prompts: list[str], length: int = 0) -> torch.Tensor:
        """n prompts => (n, D) when pooled, else (n, length, D); length: 77 at most, 0 for 77."""
        return self._encode_tokens(*self._tokenise(list(prompts), length or self.longest))

    def _tokenise(self, prompts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, length) ids, padded, and the mask of what is no padding; None for a CLIP, which SD does not mask.

        CLIP's tokenizer writes the end token for a character that it does not know, and the pooled output would be that
        of the words before it. So such a character is left out, unless no word follows it.
        """
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if not self.is_clip:
            return tokens.input_ids, tokens.attention_mask
        ids, end, padding = tokens.input_ids, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        followed_by_a_word = (ids[:, 1:] != end) & (ids[:, 1:] != padding)
        has_unknown = ((ids[:, :-1] == end) & followed_by_a_word).any(dim=1)
        for row in has_unknown.nonzero().ravel().tolist():
            words = [self.tokenizer.bos_token_id, *self._known_ids(prompts[row])[: length - 2], end]
            ids[row] = torch.tensor(words + [padding] * (length - len(words)))
        return ids, None

    def _known_ids(self, prompt: str) -> list[int]:
        """The ids of a text without start, end and unknown characters."""
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        return [number for number in ids if number != self.tokenizer.eos_token_id]

    @torch.no_grad()
    def _encode_tokens(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        device = next(self.model.parameters()).device
        output = self.model(tokens.to(device), attention_mask=None if mask is None else mask.to(device))
        if not self.pooled:
            return output.last_hidden_state
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled

    def lengths(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, start and end included, 77 at most."""
        return [*map(len, self.tokenizer(list(prompts), truncation=True, max_length=self.longest).input_ids)]

    def print_lengths(self, prompts: list[str]) -> None:
        """Prints the number and length of the distinct prompts, and how many of them are cut."""
        lengths = np.array([len(self._known_ids(prompt)) + 2 for prompt in {*prompts}])  # with start and end
        cut = f"{(lengths > self.longest).sum()} of them cut at {self.longest}"
        say(f"prompts: {len(lengths)} distinct, {lengths.mean():.0f} tokens on average; {cut}")

    def null_prompt(self, prompting: str, length: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prompt that guidance leads away from => text (D,) or (77, D), reference (D,), None for the zero vector.

        prompting: "own" or "authors"; length: the tokens of the texts beside it, for Stable Diffusion's authors.
        The authors' null prompt has no part for a reference; the two parts here are such that their fusion equals it.
        """
        if prompting == "own":
            return self.encode([NULL_PROMPT])[0], None
        if self.pooled:
            text = self._encode_tokens(torch.full((1, self.longest), self.tokenizer.eos_token_id))[0]  # (D,)
            return text, text  # PooledFusion takes the mean of both
        tokens = self.encode([NULL_PROMPT], min(length + 1, self.longest))[0]  # (length + 1, D)
        return tokens[:length], tokens[-1]  # TokenFusion puts one behind the other

    def cache(
        self, prompts: list[str], cache_dir: str | Path, accelerator: Accelerator
    ) -> tuple[FeatureCache, list[str]]:
        """The features of the distinct prompts, and of the null prompt, computed once => (cache, each prompt's key)."""
        self.print_lengths(prompts)
        distinct = sorted({NULL_PROMPT, *prompts})
        digest, kind = weights_fingerprint(self.model), "pooled" if self.pooled else "tokens"
        folder, feature = f"text_{kind}", "CLIP text, pooled" if self.pooled else "CLIP text, 77 tokens"
        if self.name:  # another TEXT_ENCODER has a folder of its own
            folder = f"{folder}_{digest[:12]}"
            feature = f"text, {'pooled' if self.pooled else 'each'} of {self.longest} tokens"
        cache = FeatureCache(f"{cache_dir}/{folder}", {"feature": feature, "encoder": digest})
        served = cache.fill(
            [_text_key(prompt) for prompt in distinct],
            lambda row: distinct[row],
            lambda batch: self.encode(batch).cpu().numpy(),
            TEXT_BATCH, accelerator, "prompts",
        )  # fmt: skip
        if not served.all():
            raise InputError(f"the text encoder makes no finite features of {(~served).sum()} prompts (named above)")
        return cache, [_text_key(prompt) for prompt in prompts]


def _text_key(text: str) -> str:
    """The key of a text in a cache: a sentence of findings itself, the SHA-256 of any other: no report is stored."""
    if text == NULL_PROMPT or text.startswith(PROMPT_START):
        return text
    return hashlib.sha256(text.encode()).hexdigest()


def _load_text_model(name: str, base_model: str):
    """The tokenizer and the text model of TEXT_ENCODER, any folder or hub id that transformers reads, or of base_model.

    Code in a folder is not run. A pooler without weights is removed, for it would be random. A model of an unknown kind
    whose name ends in "bert", such as CXR-BERT, is read as a BERT. Further weights are left out.
    """
    folder, of_model, of_tokenizer = (name, "", "") if name else (base_model, "text_encoder", "tokenizer")
    # a broken file or a model of another kind raises errors of any type
    with as_input_error(partial(_no_text_encoder, name, base_model)):
        check_config(folder, of_model)
        config, _ = transformers.PretrainedConfig.get_config_dict(folder, subfolder=of_model)
        kind, options = str(config.get("model_type")), {}
        model_class, tokenizer_class = transformers.AutoModel, transformers.AutoTokenizer
        if not name or kind in ("clip", "clip_text_model"):
            model_class, tokenizer_class = CLIPTextModel, tokenizer_class if name else CLIPTokenizer
        elif kind not in transformers.CONFIG_MAPPING and kind.endswith("bert"):
            model_class, tokenizer_class = transformers.BertModel, transformers.BertTokenizer
            options["config"] = transformers.BertConfig.from_dict({**config, "model_type": "bert"})
        tokenizer = tokenizer_class.from_pretrained(folder, subfolder=of_tokenizer, trust_remote_code=False)
        model, info = model_class.from_pretrained(
            folder, subfolder=of_model, dtype=torch.float32, output_loading_info=True, trust_remote_code=False,
            **options,
        )  # fmt: skip
        missing = [key for key in info["missing_keys"] if "pooler." not in key]
        check_loaded(model, {**info, "unexpected_keys": [], "missing_keys": missing}, folder)
        if model_class is not CLIPTextModel:
            model = getattr(model, "text_model", model)  # of a model with two towers
        if len(missing) < len(info["missing_keys"]):
            setattr(model.config, WITHOUT_POOLER, True)
    return tokenizer, model


def _no_text_encoder(name: str, base_model: str, error: Exception) -> str:
    if name:
        way_out = "name a CLIP or a BERT with its tokenizer, or leave it empty for BASE_MODEL's"
        return f"no text encoder in TEXT_ENCODER {name!r}: {why_unloaded(name, error)}; {way_out}"
    why = f"{why_unloaded(base_model, error)}; set BASE_MODEL to a Stable Diffusion folder"
    return f"no CLIP tokenizer and text_encoder in {base_model!r}: {why}"


class ReferenceEncoder:
    """The frozen image tower of an open_clip model, without its projection.

    name: "ViT-B-32-quickgelu/openai" (architecture/weights), "hf-hub:..." or "local-dir:/folder".
    Images are scaled to mean and standard deviation 0.5, not to CLIP's own statistics, as the paper does.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        import open_clip  # takes seconds, and not every script needs it
        from open_clip.transformer import VisionTransformer

        self.name, architecture, weights, place = name, name, None, "."
        if name.startswith("local-dir:"):
            place = name.removeprefix("local-dir:")
        elif ":" not in name:
            architecture, _, weights = name.partition("/")
        form = "it is architecture/weights, such as 'ViT-B-32-quickgelu/openai', or 'local-dir:/a/folder'"
        failed = f"cannot load REFERENCE_ENCODER {name!r}"
        with as_input_error(lambda error: f"{failed}: {why_unloaded(place, error)}; {form}"):
            if place != ".":
                check_config(place, file="open_clip_config.json")
            tower = open_clip.create_model(architecture, pretrained=weights, require_pretrained=True).visual
        if not isinstance(tower, VisionTransformer):
            raise InputError(f"REFERENCE_ENCODER {name!r} has no ViT image tower, so there is no pooled output to take")
        check_finite(tower, name)
        tower.proj = None  # pooled, after the final layer norm, before the projection
        self.tower = tower.eval().requires_grad_(False).to(device)
        self.image_size = tower.image_size[0]
        self.width = tower.ln_post.normalized_shape[0]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, S, S) in [-1, 1], S = image_size => (B, R)."""
        return self.tower(pixels.to(self.tower.ln_post.weight.device))

    def component(self) -> "ReferenceTower":
        """The tower as a component of a pipeline, which is saved with its architecture."""
        import open_clip

        config = open_clip.get_model_config(self.name if ":" in self.name else self.name.partition("/")[0])
        component = ReferenceTower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
        component.tower.load_state_dict(self.tower.state_dict())
        return component.eval().requires_grad_(False)

    def cache(
        self, table: pd.DataFrame, cache_dir: str | Path, accelerator: Accelerator, batch_size: int, threads: int,
        keys: list[str | None] | None = None,
    ) -> tuple[FeatureCache, list[str | None], np.ndarray]:  # fmt: skip
        """The embeddings of every image of a table => (cache, keys, readable), as of `latents.cache_moments`."""
        fingerprint = {
            "feature": "CLIP image embedding before the projection", "encoder": weights_fingerprint(self.tower),
            "image_size": self.image_size, "preprocessing": PREPROCESSING,
        }  # fmt: skip
        cache = FeatureCache(f"{cache_dir}/references", fingerprint)
        keys, paths = keys or image_keys(table), table.image_path.tolist()
        readable = cache.fill(
            keys,
            lambda row: read_pixels(paths[row], self.image_size, refuse_blank=True),
            lambda images: self.encode(torch.stack(images)).cpu().numpy().astype(np.float32),
            batch_size, accelerator, "reference embeddings", threads,
        )  # fmt: skip
        return cache, keys, readable


class ReferenceTower(ModelMixin, ConfigMixin):
    """The image tower of a `ReferenceEncoder`. embed_dim, vision_cfg, quick_gelu: as in open_clip's configurations."""

    @register_to_config
    def __init__(self, embed_dim: int, vision_cfg: dict, quick_gelu: bool = False):
        import open_clip

        super().__init__()
        smallest = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}  # no text is read
        self.tower = open_clip.CLIP(embed_dim, vision_cfg, smallest, quick_gelu).visual
        self.tower.proj = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, S, S) in [-1, 1], S = tower.image_size[0] => (B, R)."""
        return self.tower(pixels)


class PooledFusion(ModelMixin, ConfigMixin):
    """The U-ViT's fusion (CXR-IRGen, section 3): one token, Linear((text + reference) / 2).

    A reference of another width is first projected (learned, no bias: zero stays zero). prompting: "own" or "authors".
    """

    @register_to_config
    def __init__(self, text_dim: int = 768, reference_dim: int = 768, embed_dim: int = 1024, prompting: str = "own"):
        super().__init__()
        self.project = nn.Identity() if reference_dim == text_dim else nn.Linear(reference_dim, text_dim, bias=False)
        self.text_embed = nn.Linear(text_dim, embed_dim)

    def forward(self, text: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        """text (B, D), reference (B, R) or None (not averaged then) => (B, 1, embed_dim)."""
        fused = text if reference is None else (text + self.project(reference)) / 2  # (B, D)
        return self.text_embed(fused)[:, None]


class TokenFusion(ModelMixin, ConfigMixin):
    """Stable Diffusion's fusion (CXR-IRGen, section 3): the 77 text tokens, then the reference as token 78.

    The reference passes a learned projection without a bias (no reference stays zero), which starts as the identity
    when the widths agree. prompting: "own" or "authors". token_dim: the width of the tokens in the U-Net's attention, 0
    for text_dim; texts of another width pass a learned projection, too.
    """

    @register_to_config
    def __init__(self, text_dim: int = 768, reference_dim: int = 768, prompting: str = "own", token_dim: int = 0):
        super().__init__()
        token_dim = token_dim or text_dim
        self.project = nn.Linear(reference_dim, token_dim, bias=False)
        if reference_dim == token_dim:
            nn.init.eye_(self.project.weight)
        self.project_text = nn.Identity() if text_dim == token_dim else nn.Linear(text_dim, token_dim)

    def forward(self, text: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        """text (B, 77, D), reference (B, R) or None (no token then) => (B, 78 or 77, token_dim)."""
        text = self.project_text(text)
        if reference is None:
            return text
        return torch.cat((text, self.project(reference)[:, None]), dim=1)
