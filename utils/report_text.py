"""The text of a radiology report: from the file of a hospital to the one form used here, and back.

raw report file  => sections  (findings, impression), headings known as radiologists type them
sections         => text      "FINDINGS: ... IMPRESSION: ...", an absent section left out: the column `report`
text             => clean     for BART: no de-identification marks, control characters or tokenizer's signs
sections         => file      MIMIC-CXR's layout, lines of at most 78 characters
"""

import re
import textwrap
import unicodedata
from functools import lru_cache

# ---- sections ------------------------------------------------------------------------------------------------------

# Headings that have a name of their own, as regular expressions in capitals. "Findings and impression" is one text and
# counts as findings; a conclusion or a summary is an impression.
_FINDINGS = "FINDINGS?(?: ?(?:AND|&|/|,) ?IMPRESSIONS?)?|IMPRESSIONS? ?(?:AND|&|/) ?FINDINGS?"
_IMPRESSION = "IMPRESSIONS?|CONCLUSIONS?"
_OTHER = (
    r"(?:CLINICAL )?(?:INDICATIONS?|HISTORY|INFORMATION)|REASON FOR (?:THIS |THE )?(?:EXAM(?:INATION)?|STUDY)"
    r"|TECHNIQUES?|COMPARISONS?(?: (?:EXAM(?:INATION)?S?|STUDY|STUDIES))?"
    r"|WET READ|ADDENDUM|NOTIFICATIONS?|RECOMMENDATION(?:S|\(S\))?"
)
# These are headings at the start of a line only: "PA AND LATERAL VIEWS: clear lungs" may stand within the findings.
_LINE_START = {
    "findings": f"{_FINDINGS}|REPORT|INTERPRETATION",
    "impression": f"{_IMPRESSION}|SUMMARY",
    "other": f"{_OTHER}|(?:TYPE OF )?EXAM(?:INATION)?S?|STUDY|PROCEDURE|VIEWS?|DATE|ATTENDING|DICTATED BY",
}
_HEADING = re.compile(
    rf"^(?=[A-Z])(?i:{'|'.join(_LINE_START.values())}) ?(?::|$)"  # a known name, before a colon or alone on its line
    r"|^[A-Z][A-Z0-9 ,()/&.'_#-]*:(?=\s|$)"  # any words in capitals that begin a line, before a colon
    rf"|\b(?:{_FINDINGS}|{_IMPRESSION}|{_OTHER}) ?:",  # a known name in capitals where the line breaks were lost
    re.MULTILINE,
)
_VIEW_WORDS = re.compile(r"\b(?:CHEST|RADIOGRAPHS?|X-?RAYS?|FILMS?|VIEWS?|PA|AP|LATERAL|PORTABLE|FRONTAL)\b")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def report_sections(raw):
    """A report => (findings, impression), white space collapsed, "" for what it does not have.

    Headings are known as radiologists type them: "FINDINGS:", " Findings :", "IMPRESSION" alone on a line, "FINDINGS
    AND IMPRESSION:" (counts as findings), "CONCLUSION:" (as impression). Only what follows the last FINAL REPORT is
    read, so a wet read is not. A section ends at the next known heading; others inside it ("LUNGS:") are its text.

    - Text under a heading that names the views, in capitals ("PA AND LATERAL CHEST RADIOGRAPH:"), is the findings of a
      report without a FINDINGS heading.
    - A report with neither section has its last paragraphs without a heading as findings, if there are any.
    """
    text = _CONTROL_CHARACTERS.sub("", raw.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(" ".join(line.split()) if line.strip("_ ") or len(line) < 5 else "" for line in text.split("\n"))
    wet_read, _, final = text.rpartition("FINAL REPORT")
    text = final.strip() or wet_read.strip()

    sections = [["title", 0, len(text)]]  # kind, start and end of the text
    for match in _HEADING.finditer(text):
        heading, start = match[0].rstrip(" :"), match.start()
        before = text[max(0, start - 2) : start]
        if not match[0].endswith(":") and heading != heading.upper() and before not in ("", "\n\n"):
            continue  # the last word of a sentence
        kind = _heading_kind(heading)
        if kind in ("view", "unknown") and sections[-1][0] in ("findings", "impression", "view"):
            continue
        sections[-1][2] = start
        sections.append([kind, match.end(), len(text)])

    findings, impression, views = (
        _collapse(" ".join(text[start:end] for name, start, end in sections if name == kind))
        for kind in ("findings", "impression", "view")
    )
    if re.search("[a-z]{4}", views):  # words, not the date after a title
        findings = findings or views
    if not findings and not impression:
        findings = _last_paragraphs([(kind, text[start:end]) for kind, start, end in sections])
    return findings, impression


def report_text(raw):
    """A report in the one form used here, "FINDINGS: ... IMPRESSION: ...", an absent section left out.

    `report_sections` and `report_text` read this form too and give it back unchanged.
    """
    return join_sections(*report_sections(raw))


def join_sections(findings, impression):
    sections = {"FINDINGS": _collapse(findings), "IMPRESSION": _collapse(impression)}
    return " ".join(f"{heading}: {text}" for heading, text in sections.items() if text)


def report_file(findings, impression, further=None):
    """(findings, impression) => the text of a report file in MIMIC's layout, lines of at most 78 characters.

    The inverse of `report_sections`, white space aside. (A text in which FINDINGS: or another heading in capitals
    stands itself has no inverse.) further: {heading in capitals: text} of sections that stand first, for other readers;
    they are left out where one of them would be read as findings or impression.
    """
    last = {"FINDINGS": findings, "IMPRESSION": impression}
    for first in (further or {}, {}):
        sections = {heading: _collapse(text) for heading, text in {**first, **last}.items()}
        sections = {heading: text for heading, text in sections.items() if text}
        title = " " * 33 + "FINAL REPORT\n"
        wrapped = [f" {heading}: \n \n{_wrap(text)}\n" for heading, text in sections.items()]
        report = title + " \n".join(wrapped)
        if report_text(report) == join_sections(findings, impression):
            return report
        # a line break has made a heading of a word such as "Comparison:"; without line breaks it stays a word
        report = title + " \n".join(f" {heading}: {text}\n" for heading, text in sections.items())
        if report_text(report) == join_sections(findings, impression):
            return report
    return report


@lru_cache(maxsize=10_000)
def _heading_kind(heading):
    heading = heading.upper()
    for kind, pattern in _LINE_START.items():
        if re.fullmatch(pattern, heading):
            return kind
    for kind, pattern in (
        ("findings", "FINDINGS"),
        ("impression", "IMPRESSION|CONCLUSION"),
        ("other", "INDICATION|HISTORY|REASON|COMPARISON|TECHNIQUE|EXAM"),
        ("view", _VIEW_WORDS),
    ):
        if re.search(pattern, heading):
            return kind
    return "unknown"


def _last_paragraphs(sections):
    """The last paragraphs that stand under no heading: all but the first of a section; titles in capitals left out."""
    for kind, text in reversed(sections):
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        paragraphs = paragraphs if kind == "title" else paragraphs[1:]
        found = _collapse(" ".join(paragraph for paragraph in paragraphs if paragraph != paragraph.upper()))
        if found:
            return found
    return ""


def _collapse(text):
    return " ".join(_CONTROL_CHARACTERS.sub("", text).split())


def _wrap(text):
    return textwrap.fill(
        text, 78, initial_indent=" ", subsequent_indent=" ", break_long_words=False, break_on_hyphens=False
    )


# ---- cleaning ------------------------------------------------------------------------------------------------------

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
