"""The report autoencoder: a report <=> one latent vector, by BART with a pooled latent between encoder and decoder.

    report              => tokens   (L,) with <s> in front and </s> behind, MAX_TOKENS at most
    tokens              => states   (L, D) of BART's encoder
    states              => latent   (D,) pooled: the mean over all tokens, the first (<s>) or the last one (</s>); or,
                                    by "sentences", the mean over all tokens that attend to their own sentence alone
    latent              => report   BART's decoder attends to the latent as an encoder sequence of length one

(CXR-IRGen, section 3.2.) For facebook/bart-base, D = 768. A checkpoint is a Hugging Face BART folder with its tokenizer
and with `pooling` in its config; BartForConditionalGeneration.from_pretrained opens it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, BartForConditionalGeneration, GenerationConfig, LogitsProcessor
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.modeling_outputs import BaseModelOutput

from utils.checkpoints import check_config, check_loaded, load_weights, weights_fingerprint, why_unloaded
from utils.errors import InputError, as_input_error, writing
from utils.report_cleaning import clean_report
from utils.seeds import keyed_generator

POOLINGS = ("mean", "bos", "eos", "sentences")
READOUT_FILE = "readout.safetensors"  # beside BART's weights
PROBE = "No acute process."  # a tokenizer of reports knows at least part of it
MAX_TOKENS = 512  # of a report, <s> and </s> included; a longer report is cut


class ReportAutoencoder(nn.Module):
    """BART with one pooled latent between encoder and decoder.

    Args:
        bart: a BartForConditionalGeneration. tokenizer: of the same vocabulary, adding <s> and </s>.
        pooling: one of POOLINGS, as above. Of "sentences" the latent is a sum over the sentences, in which the side of
            a finding depends less on what else the report says; with a readout a linear layer finds it.
    """

    def __init__(self, bart: BartForConditionalGeneration, tokenizer: Tokenizer, pooling: str):
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"POOLING {pooling!r} is none of {', '.join(POOLINGS)}")
        if len(tokenizer) > bart.config.vocab_size:
            sizes = f"{len(tokenizer)} tokens and BART {bart.config.vocab_size}"
            raise InputError(f"the tokenizer has {sizes}: not of one model")
        ids = tokenizer(PROBE).input_ids  # of an empty tokenizer, transformers' for a folder without one, unknown
        ends = ids[0], ids[-1], tokenizer.pad_token_id
        expected = bart.config.bos_token_id, bart.config.eos_token_id, bart.config.pad_token_id
        if set(ids[1:-1]) <= {tokenizer.unk_token_id} or ends != expected:
            codes = f"its <s>, </s> and padding are {ends}, BART's {expected}"
            raise InputError(f"the tokenizer is not BART's ({codes}): copy the one of BART's training into its folder")
        bart.config.pooling = pooling
        bart.config.decoder_start_token_id = bart.config.eos_token_id  # decoding starts from </s>
        names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
        # without a summariser's rules, such as no repeated trigram
        bart.generation_config = GenerationConfig(**{name: getattr(bart.config, name) for name in names})
        self.bart, self.tokenizer, self.pooling = bart, tokenizer, pooling
        self.width = bart.config.d_model  # D of the latent
        self.readout = None  # linear, by `add_readout`
        self.max_tokens = min(MAX_TOKENS, bart.config.max_position_embeddings)
        if pooling == "sentences":
            words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            ends, begins = [word.endswith(tuple(".?!;")) for word in words], [word.startswith("Ġ") for word in words]
            self.register_buffer("ends_sentence", torch.tensor(ends), persistent=False)  # (V,)
            self.register_buffer("begins_word", torch.tensor(begins), persistent=False)  # (V,), after a space

    @classmethod
    def from_pretrained(cls, folder: str | Path, pooling: str = "") -> "ReportAutoencoder":
        """Loads a folder or hub id; pooling: "" for the one in its config. InputError if anything does not fit."""
        failed, way_out = f"no BART with its tokenizer in {str(folder)!r}", "name a folder such as runs/bart/best"
        with as_input_error(lambda error: f"{failed}: {why_unloaded(folder, error)}; {way_out}"):
            check_config(folder)
            options = {"dtype": torch.float32, "output_loading_info": True}
            bart, info = BartForConditionalGeneration.from_pretrained(folder, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        check_loaded(bart, info, repr(str(folder)))
        pooling = pooling or getattr(bart.config, "pooling", "")
        if not pooling:
            raise InputError(f"{str(folder)!r} is no report autoencoder (no pooling in its config): run train_bart.py")
        autoencoder, file = cls(bart, tokenizer, pooling), Path(folder) / READOUT_FILE
        if file.exists():
            names = getattr(bart.config, "flags", [])
            autoencoder.add_readout(names, [0.5] * len(names))
            load_weights(autoencoder.readout, load_file(file), f"the readout {file}", "take another checkpoint")
        return autoencoder

    def save_pretrained(self, folder: str | Path) -> None:
        self.bart.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.readout:
            save_file(self.readout.state_dict(), Path(folder) / READOUT_FILE)

    def add_readout(self, names: Sequence[str], rates: Sequence[float]) -> None:
        """Gives it a readout, linear on the latent's direction, to be trained to tell what a report says.

        names: of K flags, as `evaluation.details.detail_flags` has them; rates: the share of reports in which each is
        set. Where a linear layer finds a side in the latent, a prior learns it from images. Same flags change nothing.
        """
        if self.readout and self.bart.config.flags == list(names):
            return
        self.readout = nn.Linear(self.width, len(names))
        nn.init.zeros_(self.readout.weight)
        self.readout.bias.data = torch.as_tensor(rates, dtype=torch.float32).clamp(1e-4, 1 - 1e-4).logit()
        self.bart.config.flags = list(names)

    def freeze_encoder(self) -> None:
        """Ends the training of what latents depend on: the encoder, and the words that the decoder shares with it."""
        self.bart.get_encoder().requires_grad_(False)
        self.bart.lm_head.requires_grad_(False)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L), mask (B, L) with 1 for a token and 0 for padding behind => latents (B, D)."""
        attended = attention_mask
        if self.pooling == "sentences":  # a sentence begins at a word after "." or the like
            begins = self.begins_word[input_ids[:, 1:]] & self.ends_sentence[input_ids[:, :-1]]
            numbers = functional.pad(begins.cumsum(dim=1), (1, 0))  # (B, L), of each token's sentence
            numbers = numbers.masked_fill(attention_mask == 0, -1)  # padding attends to padding
            attended = numbers[:, None, :, None] == numbers[:, None, None, :]  # (B, 1, L, L)
        states = self.bart.get_encoder()(input_ids, attention_mask=attended).last_hidden_state  # (B, L, D)
        if self.pooling == "bos":
            return states[:, 0]
        lengths = attention_mask.sum(dim=1)  # (B,)
        if self.pooling == "eos":
            return states[torch.arange(len(states), device=states.device), lengths - 1]
        return (states * attention_mask[:, :, None]).sum(dim=1) / lengths[:, None]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, noise: torch.Tensor | None = None,
        others: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Teacher forcing: tokens (B, L), mask (B, L), noise (B, D) or None => logits of the same tokens (B, L, V).

        In training `blur` adds the noise to the latents; others: tokens and mask (B, L') of another report for each.
        Beside them the logits of the readout's flags, (B, K), or None without one.
        """
        latents = self.encode(input_ids, attention_mask)  # (B, D)
        if noise is not None and self.training:
            with torch.no_grad():
                others = self.encode(*others)  # (B, D)
            latents = blur(latents, noise, others)
        start = torch.full_like(input_ids[:, :1], self.bart.config.decoder_start_token_id)
        before = torch.cat([start, input_ids[:, :-1]], dim=1)  # (B, L), the token before each one
        encoded = BaseModelOutput(last_hidden_state=latents[:, None])  # (B, 1, D)
        flags = self.readout(functional.layer_norm(latents, latents.shape[1:])) if self.readout else None
        return self.bart(encoder_outputs=encoded, decoder_input_ids=before, use_cache=False).logits, flags

    @torch.no_grad()
    def encode_reports(self, reports: Sequence[str]) -> torch.Tensor:
        """Cleaned reports => latents (n, D)."""
        tokens, _ = tokenise(reports, self.tokenizer, self.max_tokens)
        return self.encode(**self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.bart.device))

    @torch.no_grad()
    def losses(self, reports: Sequence[str]) -> torch.Tensor:
        """The mean cross-entropy of each report's tokens, given its own latent; (n,)."""
        tokens, _ = tokenise(reports, self.tokenizer, self.max_tokens)
        batch = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.bart.device)
        logits, _ = self(batch.input_ids, batch.attention_mask)  # (n, L, V)
        each = functional.cross_entropy(logits.transpose(1, 2), batch.input_ids, reduction="none")  # (n, L)
        return ((each * batch.attention_mask).sum(dim=1) / batch.attention_mask.sum(dim=1)).cpu()

    @torch.no_grad()
    def generate(
        self, latents: torch.Tensor, decoding: str = "greedy", beams: int = 4, top_p: float = 0.9,
        temperature: float = 1.0, max_tokens: int = MAX_TOKENS, seeds: Iterable[int] = (),
    ) -> list[str]:  # fmt: skip
        """Latents (B, D) => B reports. A report ends at its </s>, or after max_tokens tokens.

        decoding: "greedy"; "beam", the best of `beams`; or "nucleus", draws among the likeliest tokens that hold top_p
        of the probability (Holtzman et al. 2020), by a seed for each report.
        """
        latents = latents.to(self.bart.device, self.bart.dtype)
        tokens = self.bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=latents[:, None]),  # (B, 1, D)
            attention_mask=torch.ones(len(latents), 1, dtype=torch.long, device=latents.device),
            logits_processor=[_SeededNucleus(seeds, top_p, temperature)] if decoding == "nucleus" else [],
            num_beams=beams if decoding == "beam" else 1,
            do_sample=False,  # a nucleus draw leaves one token to choose from
            max_new_tokens=min(max_tokens, self.max_tokens - 1),
        )
        return [clean_report(text) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def fingerprint(self) -> str:
        return weights_fingerprint(self.bart)


def blur(latents: torch.Tensor, noise: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Latents (B, D) plus noise (B, D), in units of each dimension's standard deviation over the reports.

    So the encoder cannot evade the noise by larger latents. others (B, D): of a random other report for each: half the
    squared difference of two reports is on average the variance, whatever the batch.
    """
    return latents + noise * (latents.detach() - others) / 2**0.5


class _SeededNucleus(LogitsProcessor):
    """Draws each row's next token with the row's own random numbers, and leaves it as the only one possible."""

    def __init__(self, seeds, top_p, temperature):
        self.generators = [keyed_generator("report", seed) for seed in seeds]
        self.top_p, self.temperature = top_p, temperature

    def __call__(self, input_ids, scores):
        scores = scores.float() / self.temperature  # (B, V)
        probabilities, tokens = scores.softmax(dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities  # of the more probable tokens together
        probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        cumulative = probabilities.cumsum(dim=-1)
        draws = torch.cat([torch.rand((1, 1), generator=generator) for generator in self.generators])  # (B, 1)
        # inverse transform sampling
        places = (cumulative <= draws.to(scores) * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        chosen = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def tokenise(reports: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> tuple[list[list[int]], int]:
    """Texts => (token numbers of each with <s> and </s>, how many were longer than max_tokens and cut)."""
    tokens = tokenizer(list(reports), truncation=False, verbose=False).input_ids
    cut = sum(len(ids) > max_tokens for ids in tokens)
    return [ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]] for ids in tokens], cut


def reconstruct(autoencoder: ReportAutoencoder, reports: Iterable[str], batch_size: int) -> list[str]:
    """Each report decoded greedily from its own latent."""
    reports, written = list(reports), []
    for start in range(0, len(reports), batch_size):
        written += autoencoder.generate(autoencoder.encode_reports(reports[start : start + batch_size]))
    return written


def write_pairs(path: Path, columns: dict[str, list[str]]) -> None:
    """Writes a text file with one block for each report; columns: {title: the texts under it}."""
    blocks = ["\n".join(f"{title}: {text}" for title, text in zip(columns, texts)) for texts in zip(*columns.values())]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def write_evaluation(folder: Path, file: str, columns: dict[str, list[str]], scores: dict[str, float]) -> None:
    """Writes and prints what a trainer finds at its end: `write_pairs` to a file, and the scores to evaluation.json."""
    with writing("the evaluation", folder):
        write_pairs(folder / file, columns)
        (folder / "evaluation.json").write_text(json.dumps(scores, indent=2) + "\n")
    print("\n".join(f"{name}: {score:.3g}" for name, score in scores.items()))
