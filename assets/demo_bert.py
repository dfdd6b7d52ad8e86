"""The demo's BERT: small, for the impressions of drawn chests, as CXR-BERT is for those of real ones.

It learns to embed an impression as the demo's CLIP embeds the prompt of its findings, so that a denoiser which was
pretrained on prompts can use it at once, and to tell by a linear layer what the impression says, sides and zones too.
The embedding of a text is the state of its first token: there is no pooler.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer
from torch import nn
from tqdm import trange
from transformers import BertConfig, BertModel, BertTokenizer

from evaluation.details import detail_flags
from utils.findings import ABSENT, NOT_MENTIONED, to_prompt
from utils.prompts import TextEncoder
from utils.report_cleaning import clean_report
from utils.report_text import report_sections, report_text

VOCABULARY = 500  # tokens: the five special ones, letters, whole words or pieces
LAYERS = 2  # of the encoder
MAX_POSITIONS = 128  # tokens an impression
FLAGS_WEIGHT = 0.5  # of telling what is said, a sum over flags, against matching CLIP
BATCH_SIZE = 64  # impressions an optimiser step
LEARNING_RATE = 1e-3  # of AdamW, falling to zero along a cosine


def make_bert(folder: Path, base_model: Path, reports: list[str], labels: np.ndarray, steps: int, seed: int) -> float:
    """Trains a tokenizer and a small BERT on the impressions of reports; saves it in float16.

    base_model: the folder of the CLIP; labels: (N, 14) codes of the N reports; steps: of the optimiser. Returns the
    mean loss of the last tenth of the steps.
    """
    texts = [clean_report(report_sections(report_text(report))[1]) for report in reports]
    named = np.where(labels == ABSENT, NOT_MENTIONED, labels)  # an impression does not name absent findings
    clip = TextEncoder(str(base_model), pooled=True)
    vectors, rows = np.unique(named, axis=0, return_inverse=True)
    prompts = [to_prompt(vector) for vector in vectors]
    wanted = torch.cat([clip.encode(prompts[start : start + 64]) for start in range(0, len(prompts), 64)])
    wanted = wanted[torch.from_numpy(rows.ravel())]  # (N, D)

    tokenizer = make_tokenizer(folder, texts)
    torch.manual_seed(seed)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=clip.width, intermediate_size=2 * clip.width,
            num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=MAX_POSITIONS,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    flags = torch.from_numpy(detail_flags(texts)[1]).float()  # (N, K)
    readout = nn.Linear(clip.width, flags.shape[1])
    optimizer = torch.optim.AdamW([*bert.parameters(), *readout.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, losses = np.random.default_rng(seed), []
    for _ in trange(steps, desc="impressions"):
        batch = rng.integers(len(texts), size=BATCH_SIZE)
        tokens = tokenizer([texts[row] for row in batch], padding=True, return_tensors="pt")
        text = bert(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[:, 0]  # (B, D)
        flags_loss = F.binary_cross_entropy_with_logits(readout(text), flags[batch], reduction="none").sum(dim=1).mean()
        loss = F.mse_loss(text, wanted[batch]) + FLAGS_WEIGHT * flags_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(F.mse_loss(text, wanted[batch]).item())
    bert.half().save_pretrained(folder)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def make_tokenizer(folder: Path, texts: list[str]) -> BertTokenizer:
    """A WordPiece tokenizer, in lower case, trained on texts and saved."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    vocabulary = sorted(pieces.get_vocab(), key=pieces.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=MAX_POSITIONS)
    tokenizer.save_pretrained(folder)
    return tokenizer
