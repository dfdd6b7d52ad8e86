"""What a sentence says of the findings that it names: cues ("no", "possible", "has resolved"), each with its scope.

sentence => clauses   cut where a negation ends: ";", a dash, "but", "with", "after", or a phrase of its own
clause   => cues      words of negation or doubt, each with a direction
cue      => scope     forward: up to the end of the clause or the next cue, of doubt also up to a comma that begins no
                      list; backward: the finding before it and those that "and" or "or" joins with it
mention  => code      that of the last scope around it; present without one

The words are those of evaluation/words.toml, [cues] and [clauses].
"""

import re
from collections import namedtuple
from collections.abc import Iterable, Sequence
from itertools import pairwise

from evaluation.finding_words import CODES, WORDS
from utils.findings import NOT_MENTIONED, PRESENT, UNCERTAIN


class Mention:
    """A finding, or a word of size, in a sentence.

    name: the finding; "" of a word of size. meaning: the code that it stands for where nothing denies it: a finding and
    "enlarged" PRESENT, "normal" ABSENT, "stable" NOT_MENTIONED. code: what the sentence says of it.
    """

    __slots__ = ("code", "end", "meaning", "name", "start")

    def __init__(self, match: re.Match, name: str = "", meaning: int = PRESENT):
        self.start, self.end = match.span()
        self.name, self.meaning, self.code = name, meaning, meaning

    def read_as(self, code: int):
        """ "Not enlarged" is absent; "not normal" is still a word of normal size."""
        self.code = code if self.meaning == PRESENT else self.meaning


# code: what the cue says; None: nothing, and other cues within these words say nothing either
# reach: forward, backward, both (forward and backward), around (forward, or else backward), end or none
# weak: after a negation it is only more of it: "no opacity to suggest pneumonia"
_Rule = namedtuple("_Rule", ("code", "reach", "weak"))
# at one place of a sentence the first rule that fits counts
_CUES = WORDS["cues"].values()
_RULE_OF = [_Rule({"": None, **CODES}[cue["code"]], cue["reach"], cue.get("weak", False)) for cue in _CUES]
_CUE = re.compile("|".join(f"({'|'.join(cue['patterns'])})" for cue in _CUES))

_SEPARATOR = re.compile(r",(?: and| plus| as well as)?(?= )| (?:and|plus|as well as)(?= )")
_VERB = re.compile(rf"\b{WORDS['parts']['verbs']}\b")
_CLAUSES = {name: re.compile(pattern) for name, pattern in WORDS["clauses"].items()}
_OR = re.compile(r"\b(?:or|nor)\b")
_LIST = 80  # characters of a list that an "or" may close


def read(sentence: str, mentions: Sequence[Mention]) -> list[int]:
    """Gives each mention of a sentence, in their order, its code; returns the places of words that cut the sentence."""
    cues = [(_RULE_OF[match.lastindex - 1], match.start(), match.end()) for match in _CUE.finditer(sentence)]
    ends = [start for rule, start, _ in cues if rule.reach == "end"]
    starts = sorted({0, *ends, *_phrase_starts(sentence, mentions, ends)})
    for start, end in pairwise([*starts, len(sentence) + 1]):
        if inside := [mention for mention in mentions if start <= mention.start < end]:
            within = [cue for cue in cues if start <= cue[1] < end and cue[0].code is not None]
            _read_clause(sentence, inside, within, end)
    return [end for end in ends if sentence[end] != ":"]  # "heart: enlarged" is said of the heart


def _phrase_starts(sentence: str, mentions: Sequence[Mention], ends: Sequence[int]) -> Iterable[int]:
    """Where, after a comma or "and", a phrase begins that no negation before it reaches."""
    begin = 0
    for separator in _SEPARATOR.finditer(sentence):
        place = separator.start()
        begin = max([begin, *(end for end in ends if end < place)])
        limit = min([end for end in ends if end > place], default=len(sentence))
        if _stands_for_itself(sentence, separator.end() + 1, limit, sentence[begin:place], mentions):
            yield place
            begin = place


def _stands_for_itself(sentence, start, limit, before, mentions) -> bool:
    """Whether the words from `start` are a phrase of their own, not the next item of the list in the text `before`."""
    if _CLAUSES["condition"].search(before) or _CLAUSES["relative"].match(sentence, start):
        return False
    verb = _VERB.search(sentence, start, limit)
    if _CLAUSES["own_verb"].match(sentence, start, limit) or _CLAUSES["event"].match(sentence, start, limit):
        return True
    if verb and _VERB.search(before) and not _OR.match(sentence, start):
        return True  # "cardiomegaly persists, edema has resolved"
    if _OR.search(sentence, start, min(limit, start + _LIST, verb.start() if verb else limit)):
        return False  # "no consolidation, large effusion or pneumothorax"
    last = next((mention for mention in reversed(mentions) if mention.start < start), None)
    item = next((mention for mention in mentions if mention.start >= start), None)
    devices = [bool(mention) and mention.name == "Support Devices" for mention in (last, item)]
    if _CLAUSES["own_words"].match(sentence, start):
        return not _CLAUSES["adjective"].search(before) and not (all(devices) and sentence[start - 4 : start] == "and ")
    return devices == [False, True] and bool(last and last.name)


_Scope = namedtuple("_Scope", ("start", "end", "code"))
_CONJOINED = re.compile(r"(?! (?:with|in|at|on|of|is|are)\b)[ \w-]{0,40}?(?:,? and\b|,? or\b|/)[ \w,-]{0,40}$")
_LISTED = re.compile(r"(?! (?:with|in|at|on|of|is|are)\b)[ \w-]{0,40}?(?:,| and\b| or\b|/)[ \w,-]{0,40}$")
_LISTED_ON = re.compile(r"\b(?:and|or|versus|vs|etc|less)\b|/")
_AFTER = 80  # characters that may stand between a finding and what is said of it afterwards
_AROUND = 40  # characters between "if any" and its finding
COPULA = re.compile(r"\b(?:is|are|was|were|appears?|remains?|demonstrates?|shows?|has|have)\b")
_SINGULAR = re.compile(r"(?:is|was|has)\b")


def _read_clause(sentence, mentions, cues, end):
    """Gives the mentions of one clause, which ends at `end`, the codes of the scopes that they stand in."""
    scopes, backward = [], []
    for rule, start, stop in cues:
        within = scopes[-1].code if scopes and start < scopes[-1].end else PRESENT
        reach = rule.reach
        if reach == "around":
            # "if any pleural effusion": whether a finding stands right after, without a verb between
            after = next((mention.start for mention in mentions if mention.start >= stop), stop + _AROUND + 1)
            reach = "backward" if after - stop > _AROUND or COPULA.search(sentence, stop, after) else "forward"
        is_part = rule.weak or (within, rule.code) == (NOT_MENTIONED, UNCERTAIN)
        if is_part and reach != "backward" and within != PRESENT:
            continue
        if scopes:
            scopes[-1] = scopes[-1]._replace(end=min(scopes[-1].end, start))
        if reach != "forward":
            backward.append((start, rule.code))
        if reach != "backward":
            comma = _comma_after(sentence, mentions, rule.code, stop, end)
            scopes.append(_Scope(stop, end if comma < 0 else comma, rule.code))

    for mention in mentions:
        around = [scope.code for scope in scopes if scope.start <= mention.start < scope.end]
        mention.read_as(around[-1] if around else PRESENT)
    for place, code in backward:
        _read_list_before(sentence, [mention for mention in mentions if mention.start < place], place, code)


def _comma_after(sentence, mentions, code, start, end) -> int:
    """The place of the comma that ends a forward scope before its clause ends; -1 where none does."""
    if code == NOT_MENTIONED:
        return sentence.find(",", start, end)
    first = next((mention.end for mention in mentions if mention.start >= start), None)
    if code != UNCERTAIN or first is None:
        return -1
    comma = sentence.find(",", first, end)  # "probable effusion, cardiomegaly", but "possible edema, pneumonia or ..."
    return -1 if _LISTED_ON.search(sentence, comma + 1, end) or sentence[:start].endswith("differential") else comma


def _read_list_before(sentence, mentions, place, code):
    """Gives a code to the finding before `place`, and to those that "and" or "or" joins it with."""
    findings = [mention for mention in reversed(mentions) if mention.name] or mentions[-1:]
    end, link = place, None
    singular = _SINGULAR.match(sentence, place)
    for mention in findings:
        gap = sentence[mention.end : end]
        if len(gap) > _AFTER or COPULA.search(gap):
            return
        if link is not None and gap.strip() and not link.match(gap):
            return
        if link is _CONJOINED and singular and ", and" in gap:
            return  # "small effusion, and pneumothorax is not seen"
        mention.read_as(code)
        link = _LISTED if link or sentence[place] == ":" else _CONJOINED  # "edema, effusion: none"
        end = min(end, mention.start)


_OR_GAP = re.compile(r"[ \w/-]{0,40}?(?:\bor\b|/)[ \w/-]{0,40}$")
_NO_CHANGE = re.compile(r"\b(?:no|without)\b[^,;]*\b(?:increase|decrease|worsening|improvement|changes?)\b[^,;]*$")


def leave_alternatives_open(sentence: str, mentions: Iterable[Mention]):
    """ "Atelectasis or pneumonia", both said to be present: each becomes uncertain."""
    for one, other in pairwise(mentions):
        if not one.code == other.code == PRESENT or one.name == other.name:
            continue
        if not one.end < other.start <= one.end + _AFTER or not _OR_GAP.match(sentence[one.end : other.start]):
            continue
        if not _NO_CHANGE.search(sentence, max(0, one.start - _AFTER), one.start):
            one.code = other.code = UNCERTAIN
