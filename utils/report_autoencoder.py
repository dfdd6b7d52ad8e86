"""The report autoencoder: a report <=> one latent vector, by BART with a pooled latent between encoder and decoder.

    report              => tokens   (L,) with <s> in front and </s> behind, MAX_TOKENS at most
    tokens              => states   (L, D) of BART's encoder
    states              => latent   (D,) pooled: the mean over all tokens, the first (<s>) or the last one (</s>)
    latent              => report   BART's decoder, which sees the latent as an encoder sequence of length one

(CXR-IRGen, section 3.2.) For facebook/bart-base, D = 768. A checkpoint is a Hugging Face BART folder with its tokenizer
and with `pooling` in its config; BartForConditionalGeneration.from_pretrained opens it.
"""

import re
import unicodedata
from collections import Counter

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, BartForConditionalGeneration, GenerationConfig, LogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from utils.cache import weights_fingerprint
from utils.errors import InputError
from utils.mimic_cxr import say
from utils.seeds import keyed_generator

POOLINGS = ("mean", "bos", "eos")
DECODINGS = ("greedy", "beam", "nucleus")
MAX_TOKENS = 512  # of a report, <s> and </s> included; what is longer is cut
POOL_BATCHES = 50  # batches that are sorted by length together

# ---- the text ------------------------------------------------------------------------------------------------------

_MARK = re.compile(r"_{2,}|X{3,}")
_MARKED = r"[^\s,.;:()\[\]]*_{2,}[^\s,.;:()\[\]]*"  # a mark with what is joined to it, as in "___-year-old"
_LEADING_WORDS = (
    r"(?:(?:in |by |on |as |when )?(?:comparison|compared|comparing)|since|dated|from|of|on|at|to|with|by|and|or|the"
    r"|a|an|prior|previous|earlier|study|exam|examination|radiographs?|film|performed|obtained|done|date|time)"
)
_MARKED_PHRASE = re.compile(
    rf"(?:\b{_LEADING_WORDS}[ ,]+)*{_MARKED}(?:(?: and| at| to|,)? {_MARKED})*(?: (?:cm|mm|am|pm)\b)?", re.IGNORECASE
)
_UNSAYABLE = re.compile(
    r"\b(?:Drs?\b|notif|discuss|communicat|convey|report(?:ed|s)? (?:by|to)|telephon|phone|paged?\b|email)|X{3,}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!Drs\.)(?<!\b\d\.)(?<=[.!?])\s+")
_SECTION = re.compile(r"\b(FINDINGS:|IMPRESSION:)")
_TOKENIZER_SIGNS = re.compile(r"</?(?:s|pad|unk|mask)>")


def without_marks(text):
    """A report without its de-identification marks: `___` of MIMIC-CXR, `XXXX` of other sets.

    - `XXXX` stands for any word, so its sentence is dropped.
    - `___` stands for a date, a name or a place. Its sentence is dropped when it tells of a message between people
      ("Dr. ___ was notified at ___"). Elsewhere the mark goes with the word it is joined to ("___-year-old") and with
      the words that only lead up to it ("compared to the prior study of ___", "since ___"); the rest stays.
    - What is left of fewer than two words is dropped, and so is a heading without a sentence.

    A text without marks comes back with its white space collapsed and nothing else changed.
    """
    if not _MARK.search(text):
        return " ".join(text.split())
    parts = _SECTION.split(text)  # text, heading, text, heading, text ...
    pieces = [_sentences_without_marks(parts[0])]
    for heading, body in zip(parts[1::2], parts[2::2]):
        body = _sentences_without_marks(body)
        pieces.append(f"{heading} {body}" if body else "")
    return " ".join(filter(None, pieces))


def _sentences_without_marks(text):
    kept = []
    for sentence in _SENTENCE_END.split(text.strip()):
        if _MARK.search(sentence):
            if _UNSAYABLE.search(sentence):
                continue
            sentence = _MARKED_PHRASE.sub("", sentence)
            sentence = re.sub(r"\(\s*\)|\[\s*\]", "", " ".join(sentence.split()))
            sentence = re.sub(r" +([,.;:!?)])", r"\1", sentence)
            sentence = re.sub(r"([,;:])[,;:]*([.;!?])", r"\2", sentence).lstrip(" ,;:.")
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) < 2:
                continue
            sentence = sentence[0].upper() + sentence[1:]
        kept.append(sentence)
    return " ".join(" ".join(kept).split())


def clean_report(text):
    """The text for BART: without control characters, the tokenizer's own signs and marks; "" may be left."""
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return without_marks(_TOKENIZER_SIGNS.sub(" ", text))


def study_reports(table):
    """The distinct studies of a table with their cleaned reports => columns subject_id, study_id, split, report.

    A study with several images has one report, so it stands here once. Prints what was dropped.
    """
    studies = table.drop_duplicates(["subject_id", "study_id"])[["subject_id", "study_id", "split", "report"]]
    without = (studies["report"].str.strip() == "").sum()
    studies = studies.assign(report=studies["report"].map(clean_report))
    kept = studies[studies["report"] != ""].reset_index(drop=True)
    emptied = len(studies) - without - len(kept)
    say(
        f"reports: {len(kept)} of {len(studies)} studies; dropped {without} studies without a report and {emptied} of "
        "which de-identification left no sentence"
    )
    if kept.empty:
        raise InputError("not one study has a report; set REPORTS_ROOT to where the .txt files are")
    return kept


# ---- the model -----------------------------------------------------------------------------------------------------


class ReportAutoencoder(nn.Module):
    """BART with one pooled latent between encoder and decoder.

    Args:
        bart: a BartForConditionalGeneration. tokenizer: of the same vocabulary, adding <s> and </s>.
        pooling: "mean" (over all tokens, <s> and </s> included), "bos" or "eos".
    Attributes: width, D of the latent; max_tokens.
    """

    def __init__(self, bart, tokenizer, pooling):
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"POOLING {pooling!r} is none of {', '.join(POOLINGS)}")
        if len(tokenizer) > bart.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens and BART {bart.config.vocab_size}: not of one model"
            )
        bart.config.pooling = pooling
        bart.config.decoder_start_token_id = bart.config.eos_token_id  # decoding starts from </s>
        bart.generation_config = GenerationConfig(  # none of a summariser's rules, such as no repeated trigram
            decoder_start_token_id=bart.config.eos_token_id,
            bos_token_id=bart.config.bos_token_id,
            eos_token_id=bart.config.eos_token_id,
            pad_token_id=bart.config.pad_token_id,
        )
        self.bart = bart
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.width = bart.config.d_model
        self.max_tokens = min(MAX_TOKENS, bart.config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, folder, pooling=""):
        """Loads BART and its tokenizer from a folder or a hub id.

        pooling: "" for the one in its config, which a folder written by `save_pretrained` has. InputError when there
        is none, when the folder holds no BART, or when its weights do not fit its config.
        """
        try:
            bart, info = BartForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"no BART with its tokenizer in {str(folder)!r}: {' '.join(str(error).split())[:200]}"
            ) from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                names = sorted(map(str, info[problem]))
                raise InputError(
                    f"the weights in {str(folder)!r} are not of a BART of its config.json: {len(names)} "
                    f"{problem.replace('_', ' ')}, e.g. {names[:3]}"
                )
        pooling = pooling or getattr(bart.config, "pooling", "")
        if not pooling:
            raise InputError(
                f"{str(folder)!r} is a BART that was not trained as a report autoencoder (no pooling in its config); "
                "train it with train_bart.py, and name its RUN_DIR/best"
            )
        return cls(bart, tokenizer, pooling)

    def save_pretrained(self, folder):
        self.bart.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def encode(self, input_ids, attention_mask):
        """Tokens (B, L), mask (B, L) with 1 for a token and 0 for padding behind => latents (B, D)."""
        states = self.bart.get_encoder()(input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, D)
        if self.pooling == "bos":
            return states[:, 0]
        lengths = attention_mask.sum(dim=1)  # (B,)
        if self.pooling == "eos":
            return states[torch.arange(len(states), device=states.device), lengths - 1]
        return (states * attention_mask[:, :, None]).sum(dim=1) / lengths[:, None]

    def forward(self, input_ids, attention_mask, noise=None):
        """Teacher forcing: tokens (B, L), mask (B, L), noise (B, D) or None => logits of the same tokens (B, L, V).

        noise is added to the latents while training, in units of their standard deviation over the batch, dimension by
        dimension: so the encoder cannot outgrow it, and 0.5 stands for a prior that explains 3/4 of the variance.
        """
        latents = self.encode(input_ids, attention_mask)  # (B, D)
        if noise is not None and self.training:
            latents = latents + noise * latents.detach().std(dim=0, correction=0)
        start = torch.full_like(input_ids[:, :1], self.bart.config.decoder_start_token_id)
        return self.bart(
            encoder_outputs=BaseModelOutput(last_hidden_state=latents[:, None]),  # (B, 1, D)
            decoder_input_ids=torch.cat([start, input_ids[:, :-1]], dim=1),  # (B, L), each token sees those before it
            use_cache=False,
        ).logits

    @torch.no_grad()
    def encode_reports(self, reports):
        """Cleaned reports, a list of texts => latents (n, D)."""
        device = self.bart.device
        tokens = [torch.tensor(ids) for ids in tokenise(reports, self.tokenizer, self.max_tokens)[0]]
        batch = pad_tokens(tokens, self.bart.config.pad_token_id)
        return self.encode(batch["input_ids"].to(device), batch["attention_mask"].to(device))

    @torch.no_grad()
    def generate(
        self,
        latents,
        decoding="greedy",
        beams=4,
        top_p=0.9,
        temperature=1.0,
        max_tokens=MAX_TOKENS,
        seeds=(),
        use_cache=True,
    ):
        """Latents (B, D) => reports, a list of B texts. A report ends at its </s>, or after max_tokens tokens.

        decoding: "greedy"; "beam", the best of `beams`; or "nucleus", a draw among the likeliest tokens that hold top_p
        of the probability (Holtzman et al. 2020), with one seed a report in `seeds`, so that no report depends on the
        others of its batch.
        """
        if decoding not in DECODINGS:
            raise InputError(f"DECODING {decoding!r} is none of {', '.join(DECODINGS)}")
        if decoding == "nucleus" and not (0 < top_p <= 1 and temperature > 0):
            raise InputError(f"TOP_P {top_p} has to be above 0 and at most 1, and TEMPERATURE {temperature} above 0")
        processors = [_SeededNucleus(seeds, top_p, temperature)] if decoding == "nucleus" else []
        latents = latents.to(self.bart.device, self.bart.dtype)
        tokens = self.bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=latents[:, None]),  # (B, 1, D)
            attention_mask=torch.ones(len(latents), 1, dtype=torch.long, device=latents.device),
            logits_processor=processors,
            num_beams=beams if decoding == "beam" else 1,
            do_sample=False,  # a nucleus draw leaves one token to choose from
            max_new_tokens=min(max_tokens, self.max_tokens - 1),
            use_cache=use_cache,
        )
        return [clean_report(text) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def fingerprint(self):
        return weights_fingerprint(self.bart)


class _SeededNucleus(LogitsProcessor):
    """Draws each row's next token with the row's own random numbers, and leaves it as the only one possible."""

    def __init__(self, seeds, top_p, temperature):
        self.generators = [keyed_generator("report", seed) for seed in seeds]
        self.top_p, self.temperature = top_p, temperature

    def __call__(self, input_ids, scores):
        scores = scores.float() / self.temperature  # (B, V)
        probabilities, tokens = scores.softmax(dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens hold
        probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        up_to = probabilities.cumsum(dim=-1)
        draws = torch.cat([torch.rand((1, 1), generator=generator) for generator in self.generators])  # (B, 1)
        places = (up_to <= draws.to(scores) * up_to[:, -1:]).sum(dim=-1, keepdim=True)  # inverse of the distribution
        chosen = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


# ---- training examples ---------------------------------------------------------------------------------------------


def tokenise(reports, tokenizer, max_tokens):
    """Texts => (lists of token numbers with <s> and </s>, how many were longer than max_tokens and cut)."""
    tokens = tokenizer(list(reports), truncation=False, verbose=False).input_ids
    cut = sum(len(ids) > max_tokens for ids in tokens)
    return [ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]] for ids in tokens], cut


def pad_tokens(tokens, pad):
    """A list of (L,) => input_ids (B, L of the longest), padded behind, and attention_mask, 1 where a token stands."""
    lengths = torch.tensor([len(ids) for ids in tokens])
    input_ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=pad)
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class ReportExamples(Dataset):
    """Cleaned reports, tokenised once: `examples[row, seed]`; an epoch groups reports of a like length in a batch."""

    def __init__(self, reports, autoencoder, batch_size):
        self.reports = list(reports)
        self.tokens, cut = tokenise(self.reports, autoencoder.tokenizer, autoencoder.max_tokens)
        self.lengths = np.array([len(ids) for ids in self.tokens])
        self.batch_size, self.width = batch_size, autoencoder.width
        self.pad = autoencoder.bart.config.pad_token_id
        say(
            f"tokens: {self.lengths.mean():.0f} a report, {self.lengths.max()} at most; "
            f"{cut} of {len(self.tokens)} reports cut at {autoencoder.max_tokens}"
        )

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row_and_seed):
        row, seed = row_and_seed
        return {
            "input_ids": torch.tensor(self.tokens[row]),  # (L,)
            "noise": torch.randn(self.width, generator=torch.Generator().manual_seed(seed)),  # (D,)
        }

    def collate(self, examples):
        """=> input_ids and attention_mask (B, L of the longest), noise (B, D)."""
        batch = pad_tokens([example["input_ids"] for example in examples], self.pad)
        return {**batch, "noise": torch.stack([example["noise"] for example in examples])}

    def order(self, generator):
        """The positions of an epoch: shuffled, pools of POOL_BATCHES batches sorted by length, the batches shuffled."""
        shuffled = generator.permutation(len(self))
        batches = []
        for start in range(0, len(self), POOL_BATCHES * self.batch_size):
            pool = shuffled[start : start + POOL_BATCHES * self.batch_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[first : first + self.batch_size] for first in range(0, len(pool), self.batch_size)]
        return np.concatenate([batches[place] for place in generator.permutation(len(batches))])


# ---- how good it is ------------------------------------------------------------------------------------------------


def reconstruct(autoencoder, reports, batch_size):
    """Each report from its own latent, decoded greedily => a list of texts."""
    reports, written = list(reports), []
    for start in range(0, len(reports), batch_size):
        written += autoencoder.generate(autoencoder.encode_reports(reports[start : start + batch_size]))
    return written


def rouge_l(references, candidates):
    """The mean ROUGE-L F-measure (Lin 2004) of candidates against references, 0 to 1: words in common, in one order."""
    scorer = RougeScorer(["rougeL"])
    scores = [
        scorer.score(reference, candidate)["rougeL"].fmeasure for reference, candidate in zip(references, candidates)
    ]
    return float(np.mean(scores))


def constant_report(reports, candidates=30, judged=60):
    """The one report that, written for everybody, would do best in ROUGE-L: the baseline of everything that writes.

    It is looked for among the commonest `candidates` of the reports, and judged on `judged` of them, evenly spaced.
    """
    reports = list(reports)
    sample = reports[:: max(1, len(reports) // judged)]
    common = [report for report, _ in Counter(reports).most_common(candidates)]
    return max(common, key=lambda report: rouge_l(sample, [report] * len(sample)))


def write_pairs(path, columns):
    """A text file that shows reports beside what was written for them; columns: {title: list of texts}."""
    titles = list(columns)
    blocks = ["\n".join(f"{title}: {text}" for title, text in zip(titles, texts)) for texts in zip(*columns.values())]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
