"""What is removed from a report's text: de-identification marks, and comparisons with films that are not there.

Two kinds of marks, each in many spellings:

XXXX  stands for any word (Indiana's reports): also xxxx
___   stands for a date, a name or a place (MIMIC-CXR's): also _ _, [**2101-3-4**], [DATE], <unk>, XX/XX/XXXX, ##/##

Comparisons: a lone image cannot show what has changed since an earlier film. Each sentence that compares is rewritten
to what it says of this image ("The effusion has increased." => "There is effusion."), or dropped where nothing is left
("Heart size is unchanged.").
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


def has_marks(text: str) -> bool:
    """Whether a de-identification mark, `___`, `XXXX` or another spelling of them, stands in a text."""
    return bool(MARK.search(text))


def clean_report(text: str) -> str:
    """The text for BART: without control characters, the tokenizer's own signs and marks; "" may be left."""
    text = text.translate(_LIGATURES)
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return without_marks(_TOKENIZER_SIGNS.sub(" ", text.replace("ADDENDUM:", " ")))


def without_marks(text: str) -> str:
    """A report without its de-identification marks: `___` of MIMIC-CXR, `XXXX` of other sets, in every spelling.

    - `XXXX` stands for any word, so its sentence is dropped.
    - `___` stands for a date, a name or a place. A message between people goes ("Dr. ___ was notified at ___"), and the
      finding that it is about stays ("Pneumothorax, discussed with Dr. ___": "Pneumothorax."). Elsewhere the mark goes
      with the word it is joined to ("___-year-old") and with the words that only lead up to it ("compared to the prior
      study of ___", "since ___"); the rest stays.
    - What is left of fewer than two words is dropped, and so is a heading without a sentence.

    A text without marks comes back with its white space collapsed and nothing else changed.
    """
    if not MARK.search(text):
        return " ".join(text.split())
    return _section_by_section(_WORD_MARK.sub("XXXX", _PHRASE_MARK.sub("___", text)), _sentences_without_marks)


def _section_by_section(text, change):
    """A report with the text under each heading changed; a heading without a sentence is dropped."""
    parts = _SECTION.split(text)  # text, heading, text, heading, text ...
    changed = ((heading, change(body.strip())) for heading, body in zip(["", *parts[1::2]], parts[::2]))
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


_COMPARES, _NO_IMAGE_OF, _STATES_NOTHING = (
    re.compile(WORDS["comparisons"][name]) for name in ("compares", "no_image_of", "states_nothing")
)


def count_comparisons(text: str) -> int:
    """How many sentences of a report compare its image with an earlier one."""
    return sum(bool(_COMPARES.search(sentence)) for sentence in _SENTENCE_END.split(text))


def drop_comparisons(text: str) -> tuple[str, int]:
    """A report => (the report without comparisons with earlier films, how many sentences were changed or dropped).

    Headings without a sentence are dropped too; a report that compares nothing comes back unchanged.
    """
    if not _COMPARES.search(text):
        return text, 0

    def of_these_images(section):
        sentences = _SENTENCE_END.split(section)
        rest = (_of_this_image(sentence) if _COMPARES.search(sentence) else sentence for sentence in sentences)
        return " ".join(filter(None, rest))

    return _section_by_section(text, of_these_images), sum(map(count_comparisons, _SECTION.split(text)))


def _of_this_image(sentence):
    """What a sentence that compares says of its own image; "" where that is nothing."""
    number = re.match(r"(?:\d{1,2}[.)] +)?", sentence)[0]
    rest = sentence[len(number) :]
    for clause in WORDS["comparisons"]["clauses"]:
        rest = re.sub(clause, "", rest, flags=re.IGNORECASE).strip()
    for restated, changes in WORDS["restated"].items():
        found = next(filter(None, (re.match(change, rest, re.IGNORECASE) for change in changes)), None)
        if found:
            what = found["what"].strip()
            restated = restated.replace(" is ", " are ") if re.search(r" (?:are|have)\b", found[0]) else restated
            if _NO_IMAGE_OF.search(what):
                return ""
            rest = restated.format(what[0].lower() + what[1:] if what[1:2].islower() else what) + rest[found.end() :]
            break
    rest = re.sub(r"\b(remain|persist|continue)(s?)(?: to be)?\b(?= \w)", lambda verb: "is" if verb[2] else "are", rest)
    rest = re.sub(rf"\b{WORDS['parts']['course']}\b,? ?(?=\w)", "", rest, flags=re.IGNORECASE)
    rest = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", re.sub(r"\b([Aa])n (?=[^aeiou\W])", r"\1 ", rest))
    rest = re.sub(r" +([,.;])", r"\1", re.sub(r"^[\s,;.]+|[\s,;]+(?=[.]?$)", "", rest))
    if _COMPARES.search(rest) or _STATES_NOTHING.match(rest) or not re.search(r"[A-Za-z]{3}", rest):
        return ""
    return number + rest[0].upper() + rest[1:]
