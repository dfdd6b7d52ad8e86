"""The words of chest X-ray reports: how findings are named, what only sounds like one, and how large an organ is.

The vocabulary stands in words.toml, with the cues of finding_scope.py and the details of details.py. All patterns read
text in lower case with single blanks and plain hyphens (`labeler.normalise`). No Finding has no words: it is the rest.
"""

import re
from functools import lru_cache, partial
from pathlib import Path

from utils.findings import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN
from utils.report_text import misspells, read_words

CODES = {"present": PRESENT, "absent": ABSENT, "uncertain": UNCERTAIN, "not mentioned": NOT_MENTIONED}
WORDS = read_words(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
MENTIONS, UNMEANT = (
    {name: re.compile(rf"\b(?:{'|'.join(patterns)})") for name, patterns in WORDS[kind].items()}
    for kind in ("mentions", "unmeant")
)
HEART_FAILURE = re.compile(r"\bchf\b|\b(?:heart|cardiac|ventricular|congestive) failure")
ORGANS = {name: re.compile(pattern) for name, pattern in WORDS["organs"].items()}
SENTENCES = {name: re.compile(pattern) for name, pattern in WORDS["sentences"].items()}
SIZE = re.compile("|".join(rf"\b((?:{pattern}))" for pattern in WORDS["sizes"].values()))
SIZE_CODES = tuple(CODES[name] for name in WORDS["sizes"])  # of the groups of SIZE

_TERMS, _SHORT_FORMS = WORDS["spelling"]["terms"], WORDS["short_forms"]
_WELL_SPELT = re.compile(
    "|".join([*(f"(?:{pattern.pattern})" for pattern in MENTIONS.values()), WORDS["spelling"]["no_terms"]])
)
_undoubled = partial(re.compile(r"(.)\1").sub, r"\1")  # "efussion" => "efusion"
_LONG = 11  # letters of a word of which two may be wrong
_WORD = re.compile(r"(?<![\w/])(?:[cs]/[wo]|d/t|w/o)(?![\w/])|(?<![\w/])w/|[a-z]{2,}")


def well_spelt(text):
    """A text in lower case with its words as `_corrected` spells them, and a blank after "w/"."""
    return _WORD.sub(lambda word: _corrected(word[0]) + " " * (word[0] == "w/"), text)


@lru_cache(maxsize=50_000)
def _corrected(word):
    """A word of a report => the medical term that it misspells by a letter (two of a long word), or the word itself."""
    if len(word) < 6:
        return _SHORT_FORMS.get(word, word)
    if word in _TERMS or _WELL_SPELT.fullmatch(word):
        return word
    for term in _TERMS:
        if word[0] == term[0] and misspells(_undoubled(word), _undoubled(term), 2 if len(term) >= _LONG else 1):
            return term
    return word
