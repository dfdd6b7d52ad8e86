"""What a chest X-ray report says of the 14 findings, by rules: text => codes.

The task is that of NegBio (Peng et al. 2018) and of the CheXpert labeler (Irvin et al. 2019): find the mentions of each
finding, tell what is said of each, and take the strongest. Rules and words (words.toml) are this project's own.
Choices are those of the CheXpert labeler, unless a line below says otherwise. What counts as what: docs/labeler.md.

How a report is read
    Findings and impression only (utils/report_text.py): an indication or a comparison says nothing of this image.
    How far a word of negation or of doubt reaches: evaluation/finding_scope.py. "No definite X" and "X is unlikely"
    are absent ("less likely": uncertain), "no change in X" negates nothing. "Likely" and "consistent with" do not make
    a finding uncertain. After "history of", "if", "evaluate for" and the like nothing is said.

Of the mentions of a finding, present outweighs uncertain, and uncertain outweighs absent. An empty report, or one of
marks only, says nothing: 0 everywhere, No Finding included (there CheXpert's says 1: no report would be a normal one).
"""

import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

import numpy as np

from evaluation.finding_scope import COPULA, Mention, leave_alternatives_open, read
from evaluation.finding_words import HEART_FAILURE, MENTIONS, ORGANS, SENTENCES, SIZE, SIZE_CODES, UNMEANT, well_spelt
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, NOT_MENTIONED, PRESENT, UNCERTAIN, from_prompt
from utils.report_cleaning import MARK
from utils.report_text import ADDENDUM, report_text

_STRENGTH = (PRESENT, UNCERTAIN, ABSENT)  # of several mentions the first of these counts


def label_reports(texts: Iterable[str]) -> np.ndarray:
    """N reports => their codes, (N, 14) int8, in the order of FINDINGS: `label_report` of each."""
    return np.array([label_report(text) for text in texts], dtype=np.int8).reshape(-1, len(FINDINGS))


def label_report(text: str) -> np.ndarray:
    """A report => what it says of each finding, (14,) int8 in the order of FINDINGS.

    text: a report file, or "FINDINGS: ... IMPRESSION: ...", or sentences without a heading. 1 present, -1 absent, -2
    uncertain, 0 not mentioned. InputError for what is no text.
    """
    report, addenda = (list(map(codes_of_sentence, sentences)) for sentences in report_and_addenda(text))
    strongest = _strongest(report) | _strongest(addenda)  # an addendum outweighs the report that it corrects
    found = {name for name, code in strongest.items() if code in (PRESENT, UNCERTAIN)}
    if report + addenda and not found - {"Support Devices"}:
        strongest["No Finding"] = PRESENT
    return np.array([strongest.get(name, NOT_MENTIONED) for name in FINDINGS], dtype=np.int8)


def contradictions(text: str) -> list[str]:
    """A report => the findings that one of its sentences calls present and another absent, a list in FINDINGS' order.

    The strongest of several mentions in one sentence counts, so "left effusion, no right effusion" is no contradiction.
    Sides, places and kinds are not compared: "Left effusion. No right effusion." is one, and so is a congestion without
    an edema. Radiologists write such reports too: compare with real ones. No Finding is never in the list, and an
    addendum corrects its report and does not contradict it.
    """
    found = set()
    for sentences in report_and_addenda(text):
        codes = set(chain.from_iterable(codes_of_sentence(sentence).items() for sentence in sentences))
        found |= {name for name in FINDINGS if {(name, PRESENT), (name, ABSENT)} <= codes}
    return [name for name in FINDINGS if name in found]


def _strongest(codes_of_sentences: Iterable[dict]) -> dict:
    """{finding: code} of each sentence => {finding: the strongest of its codes}."""
    codes = {}
    for name, code in chain.from_iterable(codes.items() for codes in codes_of_sentences):
        codes.setdefault(name, set()).add(code)
    return {name: next(code for code in _STRENGTH if code in found) for name, found in codes.items()}


_WORD = re.compile(r"[a-z]{2,}")
_LONGEST = 1000  # characters of a sentence: a longer text without an end is read in pieces
_ABOUT = re.compile(r"(?i)\b(?:indications?|history|comparisons?|technique|reason for \w+|exam(?:ination)?) ?:")


def report_and_addenda(text) -> tuple[list[str], list[str]]:
    """The sentences of findings and impression, and those of addenda, normalised; InputError for what is no text."""
    if not isinstance(text, str):
        raise InputError(f"a report to label is a text, not {type(text).__name__}")
    text = report_text(text) or ("" if _ABOUT.search(text) else text)  # a text in capitals, or under LUNGS: alone
    report, *addenda = text.split(ADDENDUM)
    return list(_sentences(report)), list(chain.from_iterable(map(_sentences, addenda)))


def _sentences(text: str) -> Iterator[str]:
    for sentence in SENTENCES["boundary"].split(normalise(text)):
        while _WORD.search(sentence):
            end = len(sentence) if len(sentence) <= _LONGEST else sentence.rfind(" ", 1, _LONGEST) + 1 or _LONGEST
            yield sentence[:end].strip(" ,.:-")
            sentence = sentence[end:]


_LOST = re.compile("[\u00ad\u200d\u2060\ufeff]")  # soft hyphens and joiners, within words
_DASH = re.compile(r"(?<=\d) ?[\u2012-\u2015\u2212] ?(?=\d)")
_TIGHT_DASH = re.compile(r"(?<![a-z])([a-z]+)[\u2012\u2013\u2212](?=[a-z])")
_BREAK = re.compile(r"\s+-+\s+|--+|\s*(?:[\u2012-\u2015\u2212\u2192]|->|=>)\s*")
_CHARACTERS = str.maketrans({"\u2019": "'", "\u2010": "-", "\u2011": "-", "\u200b": " "})


def normalise(text: str) -> str:
    """Lower case, single blanks, no marks; one spelling of characters, words and dashes (" - " where one breaks)."""
    text = unicodedata.normalize("NFKC", MARK.sub(" ", _LOST.sub("", text))).lower().translate(_CHARACTERS)
    text = " ".join(text.split())
    text = _BREAK.sub(" - ", _TIGHT_DASH.sub(_after_word, _DASH.sub("-", text)))
    text = re.sub(r"\b(?:non|un|not)[ -]?(?=calcified)", "non", text.replace("can't", "cannot").replace("n't", " not"))
    return " ".join(well_spelt(text).split())


def _after_word(match):
    """What a dash between two words stands for: a break after a finding, else a hyphen, as in "air-space"."""
    return match[1] + (" - " if any(words.fullmatch(match[1]) for words in MENTIONS.values()) else "-")


@lru_cache(maxsize=20_000)
def codes_of_sentence(sentence: str) -> dict:
    """What a normalised sentence says => {finding: the strongest code}; not to be changed."""
    mentions, sizes, ends = read_mentions(sentence)
    found = [{mention.name: mention.code} for mention in mentions if mention.code != NOT_MENTIONED]
    if HEART_FAILURE.search(sentence) and any(codes.get("Edema") in (PRESENT, UNCERTAIN) for codes in found):
        found.append({"Cardiomegaly": UNCERTAIN})
    for name, organ in ORGANS.items():
        found += [{name: code} for code in _organ_codes(sentence, organ, sizes, ends)]
    return _strongest(found)


def read_mentions(sentence: str) -> tuple[list[Mention], list[Mention], list[int]]:
    """A normalised sentence => its findings and its words of size, each with its code, and the places of its cuts."""
    mentions = []
    for name, words in MENTIONS.items():
        found = [Mention(match, name) for match in words.finditer(sentence)]
        if found and name in UNMEANT:
            spans = [(0, 0), *(match.span() for match in UNMEANT[name].finditer(sentence))]
            found = [it for it in found if spans[bisect(spans, (it.end,)) - 1][1] <= it.start]
        mentions += found
    mentions.sort(key=lambda mention: mention.start)
    sizes = [Mention(match, meaning=SIZE_CODES[match.lastindex - 1]) for match in SIZE.finditer(sentence)]
    ends = read(sentence, sorted((*mentions, *sizes), key=lambda mention: mention.start))
    leave_alternatives_open(sentence, mentions)
    return mentions, sizes, ends


_REACH = 120  # characters that may stand between an organ and the word of its size


def _organ_codes(sentence, organ, sizes, ends):
    """What is said of the size of an organ, a code a mention; nothing where nothing is said."""
    for match in organ.finditer(sentence):
        if SENTENCES["place"].search(sentence[max(0, match.start() - 20) : match.start()]):
            continue
        place, before = match.start(), bisect(sizes, match.start(), key=lambda size: size.end)
        code, listed = _attribute(sentence, sizes[max(0, before - 2) : before], place)
        if listed or code in (None, NOT_MENTIONED):
            end = bisect(ends, match.end())
            end = min(ends[end] if end < len(ends) else len(sentence), match.end() + _REACH)
            after = bisect(sizes, end, key=lambda size: size.start)
            code = _predicate(sentence, sizes[before:after], match.end(), code)
        if code is not None:
            yield UNCERTAIN if code == NOT_MENTIONED else code  # said to be stable, not how large


def _attribute(sentence, sizes, place):
    """=> (the code of the words of size before an organ at `place`, None without; whether another organ is between)."""
    code, listed = None, False
    for size in reversed(sizes):
        if SENTENCES["predicate"].search(sentence[max(0, size.start - 25) : size.start]):
            break
        if place - size.end > _REACH or not SENTENCES["attribute"].fullmatch(sentence, size.end, place):
            break
        code, listed = size.code, "," in sentence[size.end : place]
        if code != NOT_MENTIONED:  # "normal and stable" is normal
            break
    return code, listed


def _predicate(sentence, sizes, place, code):
    """The code of the first of the words of size that is said of the organ that ends at `place`; `code` without one."""
    for size in sizes:
        if size.start < place:
            continue
        gap = sentence[place : size.start]
        verb = COPULA.search(gap)
        rest = gap[verb.end() :] if verb else gap
        if SENTENCES["lungs"].search(gap) or (verb and (SENTENCES["subject"].search(rest) or COPULA.search(rest))):
            break
        if size.meaning == PRESENT and len(rest.split()) > 3:
            break
        if size.code != NOT_MENTIONED:
            return size.code
        code = size.code
    return code


def labels_of_prompt(text):
    """The label vector that a prompt asks for, (14,) int8: a sentence of findings states it, else the rules read it."""
    labels = from_prompt(text)
    return label_report(text) if labels is None else labels
