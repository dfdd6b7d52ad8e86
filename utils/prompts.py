"""Frozen CLIP text and image encoders, the two fusions of their outputs, and the null prompt.

    prompt sentence  => text       (D,) pooled, or (77, D) tokens, always padded to 77
    reference image  => reference  (R,) CLIP image tower, pooled, after its final layer norm, before the projection
    (text, reference) => the denoiser's prompt tokens, by PooledFusion (U-ViT) or TokenFusion (Stable Diffusion)

A dropped text is the encoding of the empty prompt; a dropped reference is the zero vector. For SD v1.4 and OpenAI's
ViT-B/32, D = R = 768. The CXR-IRGen authors prompted otherwise, and a denoiser of theirs goes on so (PROMPTINGS):

    texts      padded to the longest of their batch, not to 77; here a batch has texts of one length, so that the
               batch size changes no picture
    null       77 end tokens, pooled (U-ViT); the empty text, as long as text and reference together (Stable Diffusion)
    reference  the first training row with the same labels; the zero vector when there is none
"""

import numpy as np
import open_clip
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import check_config, check_finite, check_loaded, weights_fingerprint, why_unloaded
from utils.errors import InputError, say
from utils.latents import PREPROCESSING, read_pixels

NULL_PROMPT = ""  # what stands for a dropped text
PROMPTINGS = ("own", "authors")  # whose prompts a denoiser was trained with


class TextEncoder:
    """The frozen CLIP text encoder and tokenizer of a Stable-Diffusion-like folder (or hub id).

    pooled: True for the pooled output, (D,) a prompt; False for all tokens, (77, D).
    """

    def __init__(self, base_model, pooled, device="cpu"):
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(base_model, subfolder="tokenizer")
            check_config(base_model, "text_encoder")
            self.model, info = CLIPTextModel.from_pretrained(
                base_model, subfolder="text_encoder", dtype=torch.float32, output_loading_info=True
            )
            check_loaded({**info, "unexpected_keys": []}, base_model)  # a whole CLIP has an image tower besides
            check_finite(self.model, base_model)
        except Exception as error:  # a broken file fails in whatever reads it
            raise InputError(
                f"no CLIP tokenizer and text_encoder in {base_model!r}: {why_unloaded(base_model, error)}; "
                "set BASE_MODEL to a Stable Diffusion folder"
            ) from error
        self.model.eval().requires_grad_(False).to(device)
        self.pooled = pooled
        self.width = self.model.config.hidden_size
        self.longest = self.model.config.max_position_embeddings  # tokens of a prompt, start and end included

    def encode(self, prompts, length=0):
        """A list of prompts => (n, D) when pooled, else (n, length, D); length: 77 at most, 0 for 77."""
        return self._encode_tokens(self._tokenise(list(prompts), length or self.longest))

    def _tokenise(self, prompts, length):
        """(n, length) ids, padded. A character that the tokenizer does not know is left out, for its id is the end token's.

        At the end of a text it makes no difference; before it, the pooled output would be of the words up to it.
        """
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        end = self.tokenizer.eos_token_id
        ended_before = (ids[:, :-1] == end) & (ids[:, 1:] != end) & (ids[:, 1:] != self.tokenizer.pad_token_id)
        for row in ended_before.any(dim=1).nonzero().ravel().tolist():
            words, _ = self._words(prompts[row])
            words = [self.tokenizer.bos_token_id, *words[: length - 2], end]
            ids[row] = torch.tensor(words + [self.tokenizer.pad_token_id] * (length - len(words)))
        return ids

    def _words(self, prompt):
        """The ids of a text, start, end and unknown characters left out, and how many of these there are."""
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        known = [number for number in ids if number != self.tokenizer.eos_token_id]
        return known, len(ids) - len(known)

    def tell(self, prompts):
        """Prints how long the distinct prompts are, how many of them are cut, and what of them is not read."""
        distinct = sorted({*prompts})
        words = [self._words(prompt) for prompt in distinct]
        lengths = np.array([len(ids) + 2 for ids, _ in words])
        unknown = sum(count for _, count in words)
        say(
            f"prompts: {len(distinct)} distinct, {lengths.mean():.0f} tokens on average; {(lengths > self.longest).sum()} of "
            f"them cut at {self.longest}"
            + f"; {unknown} signs that the tokenizer does not know left out"
            * bool(unknown)
        )

    @torch.no_grad()
    def _encode_tokens(self, tokens):
        output = self.model(tokens.to(self.model.device))
        return output.pooler_output if self.pooled else output.last_hidden_state

    def lengths(self, prompts):
        """Tokens of each prompt, start and end included, 77 at most."""
        tokens = self.tokenizer(list(prompts), truncation=True, max_length=self.longest).input_ids
        return list(map(len, tokens))

    def null_prompt(self, prompting, length=0):
        """What guidance leads away from => text, (D,) or (77, D), and reference, (D,), or None for the zero vector.

        prompting: one of PROMPTINGS; length: the tokens of the texts beside it, for Stable Diffusion's authors.
        The authors' null prompt has no part for a reference, so the two parts are such that their fusion is just it.
        """
        if prompting == "own":
            return self.encode([NULL_PROMPT])[0], None
        if self.pooled:
            text = self._encode_tokens(torch.full((1, self.longest), self.tokenizer.eos_token_id))[0]  # (D,)
            return text, text  # the mean of both
        tokens = self.encode([NULL_PROMPT], min(length + 1, self.longest))[0]  # (length + 1, D)
        return tokens[:length], tokens[-1]  # one behind the other

    def cache(self, prompts, cache_dir, accelerator, batch_size=64):
        """The features of the distinct prompts among `prompts`, and of the null prompt => FeatureCache by prompt."""
        self.tell(prompts)
        distinct = sorted({NULL_PROMPT, *prompts})
        fingerprint = {
            "feature": "CLIP text, pooled" if self.pooled else "CLIP text, 77 tokens",
            "encoder": self.fingerprint(),
        }
        cache = FeatureCache(f"{cache_dir}/text_{'pooled' if self.pooled else 'tokens'}", fingerprint)
        served = cache.fill(
            distinct,
            lambda row: distinct[row],
            lambda batch: self.encode(batch).cpu().numpy(),
            batch_size,
            accelerator,
            "prompts",
        )
        if not served.all():
            raise InputError(f"BASE_MODEL's text encoder makes no numbers of {(~served).sum()} prompts (named above)")
        return cache

    def fingerprint(self):
        return weights_fingerprint(self.model)


class ReferenceEncoder:
    """The frozen image tower of an open_clip model, without its projection.

    name: "ViT-B-32-quickgelu/openai" (architecture/weights), "hf-hub:..." or "local-dir:/folder".
    Images are scaled to mean and standard deviation 0.5, not to CLIP's own statistics, as the paper does.
    """

    def __init__(self, name, device="cpu"):
        architecture, weights = (name, None) if ":" in name else name.split("/", 1) if "/" in name else (name, "")
        if weights == "":
            raise InputError(f"REFERENCE_ENCODER {name!r} names no weights: write it as architecture/weights")
        folder = name.removeprefix("local-dir:")
        try:
            if folder != name:
                check_config(folder, file="open_clip_config.json")
            model = open_clip.create_model(architecture, pretrained=weights, require_pretrained=True)
        except Exception as error:  # a broken file fails in whatever reads it
            raise InputError(
                f"cannot load REFERENCE_ENCODER {name!r}: {why_unloaded(folder if folder != name else '.', error)}; "
                "it is an open_clip name such as 'ViT-B-32-quickgelu/openai' or 'local-dir:/a/folder'"
            ) from error
        tower = model.visual
        if not isinstance(tower, open_clip.transformer.VisionTransformer):
            raise InputError(f"REFERENCE_ENCODER {name!r} has no ViT image tower, so there is no pooled output to take")
        check_finite(tower, name)
        tower.proj = None  # pooled, after the final layer norm, before the projection
        self.tower = tower.eval().requires_grad_(False).to(device)
        self.device = device
        self.image_size = tower.image_size[0]
        self.width = tower.ln_post.normalized_shape[0]

    @torch.no_grad()
    def encode(self, pixels):
        """pixels (B, 3, S, S) in [-1, 1], S = image_size => (B, R)."""
        return self.tower(pixels.to(self.device))

    def cache(self, table, cache_dir, accelerator, batch_size, threads, keys=None):
        """The embeddings of every image of a table => (cache, keys, readable), as `latents.cache_moments` has them."""
        fingerprint = {
            "feature": "CLIP image embedding before the projection",
            "encoder": self.fingerprint(),
            "image_size": self.image_size,
            "preprocessing": PREPROCESSING,
        }
        cache = FeatureCache(f"{cache_dir}/references", fingerprint)
        keys, paths = keys or image_keys(table), table.image_path.tolist()
        readable = cache.fill(
            keys,
            lambda row: read_pixels(paths[row], self.image_size),
            lambda images: self.encode(torch.stack(images)).cpu().numpy().astype(np.float32),
            batch_size,
            accelerator,
            "reference embeddings",
            threads,
        )
        return cache, keys, readable

    def fingerprint(self):
        return weights_fingerprint(self.tower)


class PooledFusion(ModelMixin, ConfigMixin):
    """The U-ViT's fusion (CXR-IRGen, section 3): one token, Linear((text + reference) / 2).

    A reference of another width than the text is first projected (learned, without a bias: no reference stays zero).
    prompting: one of PROMPTINGS.
    """

    @register_to_config
    def __init__(self, text_dim: int = 768, reference_dim: int = 768, embed_dim: int = 1024, prompting: str = "own"):
        super().__init__()
        self.project = nn.Identity() if reference_dim == text_dim else nn.Linear(reference_dim, text_dim, bias=False)
        self.text_embed = nn.Linear(text_dim, embed_dim)

    def forward(self, text, reference=None):
        """text (B, D), reference (B, R) or None (not averaged then) => (B, 1, embed_dim)."""
        fused = text if reference is None else (text + self.project(reference)) / 2  # (B, D)
        return self.text_embed(fused)[:, None]


class TokenFusion(ModelMixin, ConfigMixin):
    """Stable Diffusion's fusion (CXR-IRGen, section 3): the 77 text tokens, then the reference as token 78.

    The reference passes a learned projection without a bias (no reference stays zero), which starts as the identity
    when the widths agree. prompting: one of PROMPTINGS.
    """

    @register_to_config
    def __init__(self, text_dim: int = 768, reference_dim: int = 768, prompting: str = "own"):
        super().__init__()
        self.project = nn.Linear(reference_dim, text_dim, bias=False)
        if reference_dim == text_dim:
            nn.init.eye_(self.project.weight)

    def forward(self, text, reference=None):
        """text (B, 77, D), reference (B, R) or None (no token then) => (B, 78 or 77, D)."""
        if reference is None:
            return text
        return torch.cat((text, self.project(reference)[:, None]), dim=1)
