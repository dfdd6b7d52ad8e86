"""The demo's BART: small, pretrained by denoising phantom reports, as facebook/bart-base was on other texts.

In part of the steps the decoder is given only the mean of the encoder's states, unlike bart-base's: minutes on two
cores are too few to learn both the language and the bottleneck.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import nn
from tqdm import trange
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from utils.report_cleaning import clean_report
from utils.report_text import report_text

VOCABULARY = 600  # tokens: the 256 bytes, the five special ones, the rest whole words or pieces
WIDTH = 128  # of a token and of the latent
LAYERS = 2  # of the encoder, and of the decoder
HIDDEN = 256  # width inside a feed-forward layer
MAX_POSITIONS = 256  # tokens a report
MASKED = 0.3  # of a report's tokens (Lewis et al. 2020)
SPAN = 3.0  # mean length of a masked span, of a Poisson distribution
POOLED = 0.5  # share of the steps in which the decoder is given only the mean of the encoder's states
BATCH_SIZE = 32  # reports an optimiser step
LEARNING_RATE = 2e-3  # of AdamW, falling to zero along a cosine


def make_bart(folder: Path, reports: list[str], steps: int, seed: int) -> float:
    """Trains a tokenizer and a small BART on reports, by text infilling and sentence permutation; saves it in float16.

    reports: texts, as in their files or in one line; steps: of the optimiser. Returns the mean loss of the last tenth
    of the steps.
    """
    reports = [clean_report(report_text(report)) for report in reports]
    tokenizer = make_tokenizer(reports)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=HIDDEN,
            decoder_ffn_dim=HIDDEN,
            max_position_embeddings=MAX_POSITIONS,
            dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(bart.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in trange(steps, desc="denoising"):
        batch = [reports[row] for row in rng.integers(len(reports), size=BATCH_SIZE)]
        noisy = [noised(report, tokenizer, rng) for report in batch]
        targets = tokenizer(batch, padding=True, return_tensors="pt")
        inputs = tokenizer.pad({"input_ids": noisy}, return_tensors="pt")
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        states = bart.get_encoder()(**inputs).last_hidden_state  # (B, L, D)
        mask = inputs["attention_mask"]
        if rng.random() < POOLED:
            states = (states * mask[:, :, None]).sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]  # (B, 1, D)
            mask = mask[:, :1]
        states = BaseModelOutput(last_hidden_state=states)
        logits = bart(encoder_outputs=states, attention_mask=mask, labels=labels).logits  # (B, L, V)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bart.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    bart.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def widen_decoder(bart: BartForConditionalGeneration, width: int) -> None:
    """Gives the decoder's MLPs this width; the new units are without effect until they are trained."""
    for layer in bart.model.decoder.layers:
        narrow, own = layer.fc1.out_features, layer.embed_dim
        first, second = nn.Linear(own, width), nn.Linear(width, own)
        with torch.no_grad():
            first.weight[:narrow], first.bias[:narrow] = layer.fc1.weight, layer.fc1.bias
            second.weight[:, :narrow], second.bias[:] = layer.fc2.weight, layer.fc2.bias
            second.weight[:, narrow:] = 0
        layer.fc1, layer.fc2 = first, second
    bart.config.decoder_ffn_dim = width


def make_tokenizer(reports: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BART's special tokens, trained on reports; it can encode any text."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(reports, vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer = tokenizer._tokenizer
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_POSITIONS,
    )


def noised(report: str, tokenizer, rng: np.random.Generator) -> list[int]:
    """A report's tokens, with its sentences permuted and spans of tokens replaced by one <mask> each."""
    sentences = report.split(". ")
    ids = tokenizer(". ".join(sentences[place] for place in rng.permutation(len(sentences)))).input_ids
    inner = ids[1:-1]
    masked = 0
    while masked < MASKED * len(ids):
        length = int(min(rng.poisson(SPAN), len(inner)))
        start = rng.integers(len(inner) - length + 1)
        inner[start : start + length] = [tokenizer.mask_token_id]
        masked += max(length, 1)
    return [ids[0], *inner, ids[-1]]
