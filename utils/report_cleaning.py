"""What is removed from a report's text, de-identification marks, and what is counted in it: comparisons.

Two kinds of marks, each in many spellings:

XXXX  stands for any word (Indiana's reports): also xxxx
___   stands for a date, a name or a place (MIMIC-CXR's): also _ _, [**2101-3-4**], [DATE], <unk>, XX/XX/XXXX, ##/##

Comparisons with earlier films: a lone image cannot show what has changed ("The effusion has increased.").
"""

import re
import unicodedata

from utils.report_text import WORDS

_WORD_MARK, _PHRASE_MARK = (re.compile(WORDS["marks"][name]) for name in ("word", "phrase"))
MARK = re.compile(f"{_PHRASE_MARK.pattern}|{_WORD_MARK.pattern}")

_JOINED = r"[^\s,.;:()\[\]]"  # a character that a mark may be joined with, as in "___-year-old"
_MARKED = rf"(?<!{_JOINED}){_JOINED}*_{{2,}}{_JOINED}*"  # a mark with what is joined to it
_MARKED_PHRASE = re.compile(rf"(?i){_MARKED}(?:(?: and| at| to|,)? {_MARKED})*(?: (?:cm|mm|am|pm|years?[ -]old)\b)?")


def _backwards(between, words):
    """A pattern of words, longer ones before what they end in, each with what may stand before it, for a text that is
    read from its end: forwards, each of a thousand would be tried as the first."""
    return re.compile(between.format("|".join(word[::-1] for word in words)), re.IGNORECASE)


_LEADING = _backwards(r"(?:[ ,(]+(?:{})\b)*", WORDS["marks"]["leading"])  # words that lead up to a mark
_SENTENCE_END = re.compile(r"(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!Drs\.)(?<!\b\d\.)(?<=[.!?])\s+")
_SECTION = re.compile(r"\b(FINDINGS:|IMPRESSION:)")
_TOKENIZER_SIGNS = re.compile(r"</?(?:s|pad|mask)>")
_LIGATURES = {0xAD: ""} | {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB05)}


def clean_report(text: str) -> str:
    """The text for BART: without control characters, the tokenizer's own signs and marks; "" may be left."""
    text = text.translate(_LIGATURES)
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return without_marks(_TOKENIZER_SIGNS.sub(" ", text.replace("ADDENDUM:", " ")))


def without_marks(text: str) -> str:
    """A report without its de-identification marks: `___` of MIMIC-CXR, `XXXX` of other sets, in every spelling.

    - `XXXX` stands for any word, so its sentence is dropped.
    - With `___`, a message between people goes ("Dr. ___ was notified at ___"), and the finding that it is about stays
      ("Pneumothorax, discussed with Dr. ___": "Pneumothorax."). Elsewhere the mark goes with the word it is joined to
      ("___-year-old") and with words that only lead up to it ("the prior study of ___", "since ___"); the rest stays.
    - What is left of fewer than two words is dropped, and so is a heading without a sentence.
    - A text without marks comes back with its white space collapsed and nothing else changed.
    """
    if not MARK.search(text):
        return " ".join(text.split())
    # text, heading, text, heading, text ...
    parts = _SECTION.split(_WORD_MARK.sub("XXXX", _PHRASE_MARK.sub("___", text)))
    sections = zip(["", *parts[1::2]], parts[::2])
    changed = ((heading, _sentences_without_marks(body.strip())) for heading, body in sections)
    return " ".join(f"{heading} {body}".strip() for heading, body in changed if body)


def _sentences_without_marks(text):
    kept = []
    for sentence in _SENTENCE_END.split(text):
        if MARK.search(sentence):
            if "XXXX" in sentence:
                continue
            about = _without_message(sentence)
            least = 2 if about == sentence else 1  # words
            parts, end = [], 0  # without the marks, what is joined to them, and the words that lead up to them
            for phrase in _MARKED_PHRASE.finditer(about):
                parts.append(_without_end(about[end : phrase.start()], _LEADING))
                end = phrase.end()
            sentence = "".join([*parts, about[end:]])
            sentence = re.sub(r"\(\s*\)|\[\s*\]", "", " ".join(sentence.split()))
            sentence = re.sub(r" +([,.;:!?)])", r"\1", sentence)
            sentence = re.sub(r"(?<![,;:])[,;:]+([.;!?])", r"\1", sentence).lstrip(" ,;:.")
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) < least:
                continue
            sentence = sentence[0].upper() + sentence[1:]
        kept.append(sentence)
    return " ".join(" ".join(kept).split())


def _without_end(text, words):
    return text[: len(text) - words.match(text[::-1]).end()]


_SENT, _PERSON, _SUBJECT_MATTER, _NO_MATTER = (
    re.compile(WORDS["messages"][name]) for name in ("sent", "person", "subject_matter", "no_matter")
)
# words before a message that belong to it: "..., and these findings were"
_LEADS_UP = _backwards(r"(?:[\s,;(-]+|(?:{})(?![a-z]))*", WORDS["messages"]["leads_up"])
_CLAUSE_SIGNS = (",", ";", "(", " - ", " and ")


def _without_message(sentence):
    """A sentence with a mark without what it reports of a message between people: what the message is about stays.

    "Pneumothorax, discussed with Dr. ___." => "Pneumothorax."; "Dr. ___ was told of the effusion." => "The effusion."
    """
    sent, person = _SENT.search(sentence), _PERSON.search(sentence)
    if not sent and not person:
        return sentence
    end = "." if sentence.rstrip().endswith((".", "!", "?", ")")) else ""
    about = _without_end(sentence[: sent.start()], _LEADS_UP) if sent else sentence
    person = _PERSON.search(about)
    if person:  # "edema; Dr. ___ was paged", "edema, as seen by Dr. ___": what stands before this clause
        about = about[: max(0, *(about.rfind(sign, 0, person.start()) for sign in _CLAUSE_SIGNS))].rstrip(" ,;(-")
    if re.search(r"[A-Za-z]{3}", about) or not sent:
        return about and about + end
    rest = _SUBJECT_MATTER.fullmatch(sentence[sent.end() :].strip())
    matter = rest["matter"].strip(" ,;(") if rest else ""
    if not re.search(r"[A-Za-z]{3}", matter) or _NO_MATTER.match(matter) or _PERSON.search(matter) or "__" in matter:
        return ""
    return matter + end


_COMPARES = re.compile(WORDS["patterns"]["compares"])


def count_comparisons(text: str) -> int:
    """How many sentences of a report compare its image with an earlier one."""
    return sum(bool(_COMPARES.search(sentence)) for sentence in _SENTENCE_END.split(text))
