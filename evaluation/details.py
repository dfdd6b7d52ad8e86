"""What a report says of a finding that it calls present, beyond its presence: side, zone, degree and kind, by rules.

A sentence is cut between its findings (evaluation/labeler.py), so that each finding has the words before and after it
that are said of it: "left basilar atelectasis and | small right effusion". Of these words

side    left, right, bilateral. "both", "bibasilar", "bases" and left with right are bilateral; RLL is right
zone    upper (apex), middle (perihilar, lingula), lower (base, costophrenic, retrocardiac); several: "lower, upper"
degree  small (trace, mild), moderate, large (severe, marked, extensive). "Mild to moderate" is moderate; what is said
        of a change ("mildly increased") is no degree
kind    of fractures, devices, nodules, opacities ..., see words.toml; several: "line, tube"

A finding shares side and zone of the one beside it where it names neither itself: "left base opacity, likely
atelectasis", and of lungs and pleura "left effusion and atelectasis". Of all that a report names of one finding, sides
are united, zones and kinds are listed in alphabetical order, and the largest degree counts.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
import pandas as pd

from evaluation.finding_scope import Mention
from evaluation.finding_words import ORGANS, WORDS
from evaluation.labeler import codes_of_sentence, label_reports, read_mentions, report_and_addenda
from utils.findings import FINDINGS, PRESENT

DETAILS = ("side", "zone", "degree", "kind")
DEGREES = ("small", "moderate", "large")  # the last one that is named counts
LEAST_REPORTS = 20  # that name a flag, for a network to learn it
_UNPLACED = ("Cardiomegaly", "Enlarged Cardiomediastinum", "No Finding")  # have neither side nor zone
APPLIES = {  # detail => the findings that have it; kinds are those of words.toml
    "side": {*FINDINGS} - {*_UNPLACED},
    "zone": {*FINDINGS} - {*_UNPLACED, "Support Devices", "Fracture"},
    "degree": {*FINDINGS} - {"Support Devices", "Fracture", "No Finding"},
}
_SHARING = APPLIES["zone"] - {"Edema"}  # "left effusion and edema" says no side of the edema


def _compiled(words, end=""):
    return {value: re.compile(rf"\b(?:{pattern}){end}") for value, pattern in words.items()}


_ENDS = {"degree": WORDS["parts"]["no_change"]}  # "mildly increased" is no degree
_WORDS = {name: _compiled(words, _ENDS.get(name, "")) for name, words in WORDS["details"].items()}
_KINDS = {finding: _compiled(words) for finding, words in WORDS["kinds"].items()}


def read_details(reports: Iterable[str]) -> dict[str, np.ndarray]:
    """N reports => {detail: (N, 14) texts}, in the order of DETAILS and FINDINGS; "" where a report names none.

    Reports are read as by `evaluation.labeler.label_report`, with its InputError. Only present findings have details.
    """
    rows = []  # of each report {(finding, detail): value}
    for report in reports:
        named = {}
        for sentence in chain(*report_and_addenda(report)):
            for place, values in _details_of_sentence(sentence).items():
                named.setdefault(place, set()).update(values)
        rows.append({place: joined(place[1], values) for place, values in named.items() if values})
    values = [[[row.get((name, detail), "") for name in FINDINGS] for row in rows] for detail in DETAILS]
    return dict(zip(DETAILS, np.array(values, dtype=object).reshape(len(DETAILS), -1, len(FINDINGS))))


def detail_flags(
    reports: Sequence[str], names: Sequence[str] = (), counted: slice | np.ndarray = slice(None)
) -> tuple[list[str], np.ndarray]:
    """What N reports say of their findings, as flags => (K names, (N, K) bool). Each distinct report is read once.

    names: those that are wanted, e.g. "Edema" (it is present) or "Edema, degree: small"; (): all findings, and each of
    their details that LEAST_REPORTS or more of the counted reports name. counted: rows of reports; all by default.
    """
    places, distinct = pd.factorize(np.asarray(reports, dtype=object))
    found = [("", label_reports(distinct) == PRESENT)]
    for detail, values in ({} if names and {*names} <= {*FINDINGS} else read_details(distinct)).items():
        found += [(f", {detail}: {value}", values == value) for value in sorted({*values.ravel()} - {""})]
    columns = {f"{one}{what}": said[places, column] for what, said in found for column, one in enumerate(FINDINGS)}
    if not names:
        names = [name for name, said in columns.items() if name in FINDINGS or said[counted].sum() >= LEAST_REPORTS]
    never = np.zeros(len(places), dtype=bool)
    return list(names), np.stack([columns.get(name, never) for name in names], axis=1)


def joined(detail: str, values: Iterable[str]) -> str:
    """One or more values of a detail of one finding => the text that stands for them, as the module says."""
    values = set(values)
    if detail == "side" and len(values) > 1:
        return "bilateral"
    if detail == "degree":
        return max(values, key=DEGREES.index)
    return ", ".join(sorted(values))


@lru_cache(maxsize=20_000)
def _details_of_sentence(sentence):
    """A normalised sentence => {(finding, detail): values}; not to be changed."""
    named, phrases = {}, _phrases(sentence)
    _share_places(sentence, phrases)
    for phrase in phrases:
        for name in (mention.name for mention in phrase.mentions if mention.code == PRESENT):
            found = {detail: values for detail, values in phrase.details.items() if name in APPLIES[detail]}
            for detail, values in (found | {"kind": phrase.kinds(name)}).items():
                named.setdefault((name, detail), set()).update(values)
    return named


_PHRASES = {name: re.compile(pattern) for name, pattern in WORDS["phrases"].items()}
_STOP, _SAME, _SEPARATOR, _AND, _JOINT = (_PHRASES[name] for name in ("stop", "same", "separator", "and", "joint"))
_REACH = 120  # characters after a finding that may be said of it
_LINK = 40  # characters between two findings that share a place


class _Phrase:
    """Findings that share their words ("nodular opacity"), with the text before and after that is said of them.

    It has the text of a sentence from `begin` to `end`, where the words of its neighbours begin. before, after: texts;
    details: {detail: values} that these name.
    """

    def __init__(self, mentions: list[Mention], sentence: str, begin: int, end: int):
        self.mentions, (self.start, self.end) = mentions, _span(mentions)
        self.own, self.before = sentence[self.start : self.end], sentence[begin : self.start]
        found = (_PHRASES[name].search(sentence, self.end, end) for name in ("stop", "other_clause"))
        limits = [match.start() for match in found if match]
        if self.mentions[0].name == "Support Devices":  # where its tip lies is no side of a line
            limits += [match.start() for match in _PHRASES["tip"].finditer(sentence, self.end, end)]
        self.after = sentence[self.end : min([end, self.end + _REACH, *limits])]
        near = f"{self.before}{self.own} | {self.after}"
        self.details = {detail: _found(_WORDS[detail], near) for detail in ("side", "zone")}
        self.details["degree"] = _found(_WORDS["degree"], f"{self.before}{self.own}")
        # afterwards: "is small", "moderate in size"; not "and small nodes"
        for value, words in _WORDS["degree"].items():
            for match in words.finditer(self.after):
                is_said = _PHRASES["said"].search(self.after[: match.start()])
                if is_said or self.after[match.end() :].startswith(" in ") or self.mentions[0].name in ORGANS:
                    self.details["degree"].add(value)

    def kinds(self, name: str) -> set[str]:
        """The kinds of a finding that its own words and those before it name, of a fracture also those after it."""
        return _found(_KINDS.get(name, {}), f"{self.before}{self.own}{self.after if name == 'Fracture' else ''}")

    def is_placed(self) -> bool:
        return bool(self.details["side"] or self.details["zone"])


def _found(words, text):
    return {value for value, pattern in words.items() if pattern.search(text)}


def _phrases(sentence):
    """The phrases of a normalised sentence, read, from left to right."""
    mentions, _, _ = read_mentions(sentence)
    names = {mention.name for mention in mentions}
    for name, code in codes_of_sentence(sentence).items():
        organ = ORGANS[name].search(sentence) if name in ORGANS and name not in names and code == PRESENT else None
        mentions += [Mention(organ, name)] if organ else []
    groups = []  # of mentions that overlap
    for mention in sorted(mentions, key=lambda mention: mention.start):
        if groups and mention.start < _span(groups[-1])[1]:
            groups[-1].append(mention)
        else:
            groups.append([mention])
    begins = [_begin(sentence, end, start) for (_, end), (start, _) in pairwise([(0, 0), *map(_span, groups)])]
    ends = [*begins[1:], len(sentence)]
    return [_Phrase(group, sentence, begin, end) for group, begin, end in zip(groups, begins, ends)]


def _span(mentions):
    return mentions[0].start, max(mention.end for mention in mentions)


def _begin(sentence, start, end):
    """Where the words that are said of the finding at `end` begin; start: the end of the finding before it, or 0."""
    stops = [match for pattern in (_STOP, _SAME) for match in pattern.finditer(sentence, start, end)]
    stop = max(stops, key=lambda match: match.end(), default=None)
    first = stop.end() if stop else start
    named = (_PHRASES[name].finditer(sentence, first, end) for name in ("joined", "together"))
    joined = [match.span() for match in chain(*named)]
    places = [
        match.end() for match in _SEPARATOR.finditer(sentence, first, end)
        if not any(low <= match.start() < high for low, high in joined)
    ]  # fmt: skip
    if stop or start == 0:  # no words of the finding before are between
        clean = (place for place in [first, *places] if not _JOINT.search(sentence, place, end))
        begin = next(clean, [first, *places][-1])
    elif places:
        begin = places[-1]
    else:
        begin = end if _JOINT.search(sentence, start, end) else start
    for place in (stop.start() if stop else begin, begin):
        if locative := _PHRASES["locative"].search(sentence[start:place]):
            return start + locative.start()
    return begin


def _share_places(sentence, phrases):
    """Gives a phrase without side and zone those of the phrase that it is joined with."""
    for one, other in pairwise(phrases):
        gap = sentence[one.end : other.start]
        if one.is_placed() == other.is_placed():
            continue
        if not _SAME.search(gap):
            linked = gap == " " or (len(gap) <= _LINK and _AND.search(gap) and not re.search(r"[,;]|\bthere\b", gap))
            if not linked or not all(mention.name in _SHARING for mention in (*one.mentions, *other.mentions)):
                continue
            if _found(_WORDS["side"] | _WORDS["zone"], gap):
                continue  # "opacity in the left base and effusion", "effusion and left basilar atelectasis"
        source, target = (one, other) if one.is_placed() else (other, one)
        target.details |= {detail: source.details[detail] for detail in ("side", "zone")}
