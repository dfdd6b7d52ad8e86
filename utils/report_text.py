"""The text of a radiology report: from the file of a hospital to the one form used here, and back.

raw report file  => sections  (findings, impression), by headings that are known by their names
sections         => text      "FINDINGS: ... IMPRESSION: ...", an absent section left out: the column `report`
sections         => file      MIMIC-CXR's layout, lines of at most 78 characters

A heading is a known name, in any case, before a colon or a dash, with one letter wrong, or words in capitals that begin
a line, before a colon. Kinds:

findings, impression    what a report says of its images
addendum                what was added later
comparison, other       indication, history, technique ..., and how a report ends: signatures, attestations
final                   FINAL REPORT: what stands before it is a preliminary reading
view                    words in capitals that name the views; unknown: any other words in capitals
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from textwrap import TextWrapper


def read_words(text: str) -> dict:
    """The tables of a TOML text of words: patterns joined to one line, {name} replaced from [parts] (else KeyError)."""
    tables = tomllib.loads(text)

    def unfolded(value):
        if isinstance(value, dict):
            return {key: unfolded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [unfolded(item) for item in value]
        if isinstance(value, bool):
            return value
        one_line = re.sub(r"\n *", "", value)
        return re.sub(r"\{([a-z_]+)\}", lambda name: unfolded(tables["parts"][name[1]]), one_line)

    return unfolded(tables)


WORDS = read_words(Path(__file__).with_name("report_words.toml").read_text(encoding="utf-8"))
_PATTERNS, _BEGINNINGS, _KEYWORDS = (
    {name: re.compile(pattern) for name, pattern in WORDS[table].items()}
    for table in ("patterns", "beginnings", "keywords")
)
ADDENDUM = "ADDENDUM:"  # begins an addendum within the last section of a report
_LINES = TextWrapper(78, initial_indent=" ", subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\ufeff]")
_TAG = re.compile(r"(?i)</?(?:b|i|u|p|div|span|strong|em|h\d)(?: [^<>]*)?>")
_LINE_BREAK = re.compile(r"(?i)\r\n?|<br ?/?>")


def report_sections(raw: str) -> tuple[str, str]:
    """A report => (findings, impression), white space collapsed, "" for what it does not have.

    Headings are known by their names: "FINDINGS:", "findings:", "**Findings:**", "FINDINGS -", "IMPRESSION" alone on a
    line, "IMPRESSON:", "FINDINGS AND IMPRESSION:" (counts as findings), "CONCLUSION:" and "OPINION:" (as impression).
    A section ends at the next known heading; other words in capitals inside it ("LUNGS:") are its text.

    - Of a report with a FINAL REPORT only that is read, so a wet read is not.
    - An addendum, wherever it stands, ends the last section: "... ADDENDUM: ...".
    - A comparison in the midst of the findings ends where a line on this image follows its own sentence.
    - Signatures, attestations, accession numbers and what else stands behind the radiologist's words are left out.
    - Without a FINDINGS heading, text under one that names the views ("PA AND LATERAL CHEST RADIOGRAPH:") is findings.
    - A report with neither section has its last paragraphs without a heading as findings, if there are any.
    """
    text = _LINE_BREAK.sub("\n", _CONTROL_CHARACTERS.sub("", raw.replace("\r\n", "\n")).replace("\uff1a", ":"))
    text = _PATTERNS["emphasis"].sub("", _TAG.sub("", text))
    # with single blanks; a line of underscores is an empty one
    lines = (" ".join(line.split()) if line.strip("_ ") or len(line) < 5 else "" for line in text.split("\n"))
    sections = _sections("\n".join(lines))
    final = max((place for place, (kind, _) in enumerate(sections) if kind == "final"), default=0)
    addenda = _text_of("addendum", sections)
    if any(text.strip() for _, text in sections[final:]):
        sections = sections[final:]
    findings, impression, views = (_text_of(kind, sections) for kind in ("findings", "impression", "view"))
    findings = findings or (views if re.search("[a-z]{4}", views) else "")  # words, not the date after a title
    if not findings and not impression:
        findings = _last_paragraphs(sections)
    if addenda and not impression:
        return f"{findings} {ADDENDUM} {addenda}".lstrip(), ""
    return findings, f"{impression} {ADDENDUM} {addenda}" if addenda else impression


def _sections(text):
    """The text between the headings of a report => [(kind, text)]; what stands before the first is a title."""
    sections = [["title", 0, len(text)]]  # kind, start, end
    for kind, start, end in headings(text):
        said, back = sections[-1][0], kind == "comparison" and _PATTERNS["ends_comparison"].search(text, end)
        if kind in ("view", "unknown") and said in ("findings", "impression", "view", "addendum"):
            continue
        sections[-1][2] = start
        sections.append([kind, end, len(text)])
        if back and said in ("findings", "impression"):
            sections[-1][2] = back.end()
            sections.append([said, back.end(), len(text)])
    return [(kind, text[start:end]) for kind, start, end in sections]


def _text_of(kind, sections):
    return _collapse(" ".join(text for name, text in sections if name == kind))


def report_text(raw: str) -> str:
    """A report as "FINDINGS: ... IMPRESSION: ...", an absent section left out; such a text comes back unchanged."""
    return join_sections(*report_sections(raw))


def join_sections(findings: str, impression: str) -> str:
    sections = {"FINDINGS": _collapse(findings), "IMPRESSION": _collapse(impression)}
    return " ".join(f"{heading}: {text}" for heading, text in sections.items() if text)


def report_file(findings: str, impression: str, further: dict[str, str] | None = None) -> str:
    """(findings, impression) => the text of a report file in MIMIC's layout, lines of at most 78 characters.

    The inverse of `report_sections`, white space aside. (A text in which FINDINGS: or another heading in capitals
    stands itself has no inverse.) further: {heading in capitals: text} of sections that stand first, for other readers;
    they are left out where one of them would be read as findings or impression.
    """
    last, title = {"FINDINGS": findings, "IMPRESSION": impression}, " " * 33 + "FINAL REPORT\n"
    for first in (further or {}, {}):
        sections = [(heading, _collapse(text)) for heading, text in {**first, **last}.items() if _collapse(text)]
        wrapped = [f" {heading}: \n \n{_LINES.fill(text)}\n" for heading, text in sections]
        # where a line break would make a heading of a word such as "Comparison:", without line breaks
        for layout in (wrapped, [f" {heading}: {text}\n" for heading, text in sections]):
            report = title + " \n".join(layout)
            if report_text(report) == join_sections(findings, impression):
                return report
    return report


def _last_paragraphs(sections):
    """The last paragraphs that stand under no heading: all but the first of a section; titles in capitals left out."""
    for kind, text in reversed(sections):
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        paragraphs = paragraphs if kind in ("title", "final") else paragraphs[1:]
        found = _collapse(" ".join(paragraph for paragraph in paragraphs if paragraph != paragraph.upper()))
        if found:
            return found
    return ""


def _collapse(text):
    return " ".join(_CONTROL_CHARACTERS.sub("", text).split())


def _kinds(table):
    """{kind: names} => {name: kind}; "A/B OF C" stands for the names "A OF C" and "B OF C"."""
    return {
        " ".join(words): kind
        for kind, names in table.items()
        for name in names
        for words in product(*(word.split("/") for word in name.split()))
    }


_KINDS = _kinds(WORDS["headings"])
_KINDS_OF_A_LINE = _KINDS | _kinds(WORDS["headings_of_a_line"])  # at the start of a line only
_LEAST_LETTERS = 7  # of a name that may be misspelt
_LONGEST = 60  # characters of a heading
_MOST_WORDS = 5  # of a known name


def headings(text: str) -> Iterator[tuple[str, int, int]]:
    """The headings of a text (stripped lines, single blanks) => (kind, start, end) in order; sections begin at end."""
    found = [(match.lastgroup, *match.span()) for match in _PATTERNS["bare"].finditer(text)]
    for kind, pattern in _BEGINNINGS.items():
        found += [(kind, *match.span()) for match in pattern.finditer(text)]
    for match in _PATTERNS["bracketed"].finditer(text):
        closes, name = match.groups()
        kind = _kind_of_name(name, _KINDS)
        found += [("other" if closes else kind, *match.span())] if kind else []
    found += filter(None, (_heading_before(text, sign) for sign in _PATTERNS["sign"].finditer(text)))
    place = 0
    for kind, start, end in sorted(found, key=lambda heading: (heading[1], -heading[2])):
        if start >= place:
            yield kind, start, end
            place = max(end, start + 1)


def _heading_before(text, sign):
    """(kind, start, end) of the heading that ends in this colon, dash or end of line; None where there is none."""
    stop, bare = sign.start(), not sign[0].strip()
    line = text.rfind("\n", max(0, stop - _LONGEST), stop) + 1
    if line or stop <= _LONGEST:
        name = text[line:stop]
        kind = _kind_of_name(name, _KINDS_OF_A_LINE)
        alone = name == name.upper() or text[max(0, line - 2) : line] in ("", "\n\n")  # not the end of a sentence
        if kind and (alone if bare else ":" in sign[0] or name[0].isupper()):
            return kind, line, sign.end()
        if ":" in sign[0] and _PATTERNS["capitals"].fullmatch(name) and not text[sign.end() : sign.end() + 1].strip():
            kind = next((kind for kind, words in _KEYWORDS.items() if words.search(name)), "unknown")
            return _kind_of_name(name, _KINDS) or kind, line, sign.end()
    begin = max(line, stop - _LONGEST, 0)
    words = [] if bare else list(_PATTERNS["heading_word"].finditer(text[begin:stop]))[-_MOST_WORDS:]
    for start in (begin + word.start() for word in words):
        if text[start].isdigit() and not _PATTERNS["sentence_begins"].search(text[begin:start]):
            continue  # the number ends a sentence ("at T12. IMPRESSION:") and does not count the heading
        kind = _kind_of_name(text[start:stop], _KINDS)
        if kind and _may_stand_within(text, start, stop, sign[0]):
            return kind, start, sign.end()
    return None


def _may_stand_within(text, start, stop, sign):
    """Whether a known name within a line is a heading: where a sentence begins, or by its capitals."""
    name, before = text[start:stop].strip(" *_"), text[max(0, start - 25) : start]
    begins = bool(_PATTERNS["sentence_begins"].search(before))
    if ":" not in sign:
        return begins and name[0].isupper()
    if begins or (name == name.upper() and len(name) > 3):
        return True
    kind = _KINDS.get(_plain(name))  # a misspelt name has to begin a sentence
    named = kind in ("findings", "impression") or (kind and name[0].isupper())
    return bool(named) and len(name) > 6 and not _PATTERNS["article"].search(before)


@lru_cache(maxsize=20_000)
def _plain(name):
    name = unicodedata.normalize("NFKC", name).upper().strip(" .*_#\"'")
    return " ".join(re.sub(r"\s*[/&+,]\s*", " AND ", re.sub(r"^\d{1,2}[.)] ", "", name)).split())


@lru_cache(maxsize=20_000)
def _misspelt(name):
    """The known names that a name, in capitals, misspells by a letter."""
    return [known for known in _KINDS_OF_A_LINE if len(known) >= _LEAST_LETTERS and misspells(name, known, 1)]


def _kind_of_name(name, kinds):
    """The kind of a name, which may be misspelt by a letter; None of another."""
    name = _plain(name)
    if name in kinds or not name[:1].isalpha() or ":" in name:
        return kinds.get(name)
    return next((kinds[known] for known in _misspelt(name) if known in kinds), None)


def misspells(one: str, other: str, most: int) -> bool:
    """Whether at most `most` letters are wrong, missing, added or swapped with the next between two words."""
    same = next((place for place, (its, that) in enumerate(zip(one, other)) if its != that), min(len(one), len(other)))
    one, other = one[same:], other[same:]
    if not (one and other and most):
        return len(one) + len(other) <= most
    edited = [(one[1:], other), (one, other[1:]), (one[1:], other[1:])]
    if one[:2] == other[1::-1]:
        edited.append((one[2:], other[2:]))
    return abs(len(one) - len(other)) <= most and any(misspells(*words, most - 1) for words in edited)
