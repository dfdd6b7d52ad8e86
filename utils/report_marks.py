"""De-identification marks, and a report's text for BART: without marks, control characters and the tokenizer's signs."""

import re
import unicodedata

_MARK = re.compile(r"_{2,}|X{3,}")
_JOINED = r"[^\s,.;:()\[\]]"  # a character that a mark may be joined with, as in "___-year-old"
_MARKED = rf"(?<!{_JOINED}){_JOINED}*_{{2,}}{_JOINED}*"  # a mark with what is joined to it
_MARKED_PHRASE = re.compile(rf"{_MARKED}(?:(?: and| at| to|,)? {_MARKED})*(?: (?:cm|mm|am|pm)\b)?", re.IGNORECASE)
_LEADING_WORDS = (  # longer ones before what they end in
    *(f"{word} {told}" for told in ("comparison", "compared", "comparing") for word in ("in", "by", "on", "as", "when")),
    "comparison", "compared", "comparing", "since", "dated", "from", "of", "on", "at", "to", "with", "by", "and", "or",
    "the", "a", "an", "prior", "previous", "earlier", "study", "exam", "examination", "radiograph", "radiographs",
    "film", "performed", "obtained", "done", "date", "time",
)  # fmt: skip
# the words that lead up to a mark, read from the mark backwards: forwards, each of a thousand would be tried as the first
_LEADING_BACKWARDS = re.compile(rf"(?:[ ,]+(?:{'|'.join(word[::-1] for word in _LEADING_WORDS)})\b)*", re.IGNORECASE)
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
            sentence = _without_marked_phrases(sentence)
            sentence = re.sub(r"\(\s*\)|\[\s*\]", "", " ".join(sentence.split()))
            sentence = re.sub(r" +([,.;:!?)])", r"\1", sentence)
            sentence = re.sub(r"(?<![,;:])[,;:]+([.;!?])", r"\1", sentence).lstrip(" ,;:.")
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) < 2:
                continue
            sentence = sentence[0].upper() + sentence[1:]
        kept.append(sentence)
    return " ".join(" ".join(kept).split())


def _without_marked_phrases(sentence):
    """A sentence without its marks, what is joined to them, and the words that lead up to them; in linear time."""
    kept, end = [], 0
    for phrase in _MARKED_PHRASE.finditer(sentence):
        before = sentence[end : phrase.start()]
        leading = _LEADING_BACKWARDS.match(before[::-1]).end()
        kept.append(before[: len(before) - leading])
        end = phrase.end()
    return "".join(kept) + sentence[end:]


def has_marks(text):
    """Whether a de-identification mark, `___` or `XXXX`, stands in a text."""
    return bool(_MARK.search(text))


def clean_report(text):
    """The text for BART: without control characters, the tokenizer's own signs and marks; "" may be left."""
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return without_marks(_TOKENIZER_SIGNS.sub(" ", text))
