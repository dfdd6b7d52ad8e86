"""What a sentence says of the findings that it names: cues ("no", "possible", "has resolved"), each with its scope.

sentence => clauses   cut where a negation ends: ";", a dash, "but", "with", "after", or a phrase of its own
clause   => cues      words of negation or doubt, each with a direction
cue      => scope     forward: up to the end of the clause or the next cue, of doubt also up to a comma that begins no
                      list; backward: the finding before it and those that "and" or "or" joins with it
mention  => code      that of the last scope around it; present without one
"""

import re
from collections import namedtuple
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from utils.findings import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN


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


# ---- words of negation and doubt -------------------------------------------------------------------------------------

_BE = r"(?:is|are|was|were|be|been|has been|have been)"
_LY = r"(?: (?:\w+ly|much|far|very|quite|somewhat))?"  # entirely, completely, significantly
_SEEN = (
    r"(?:seen|identified|present|noted|evident|visuali[sz]ed|demonstrated|appreciated|detected|observed|apparent"
    r"|visible|found|shown|discerned|recogni[sz]ed|suspected|a feature)"
)
_GONE = (
    r"(?:resolved|cleared|removed|withdrawn(?! (?:and|to|into|by|\d|slightly|somewhat))|discontinued|excluded|ruled out"
    r"|disappeared|gone|evacuated|re[- ]?(?:expanded|inflated|aerated))"
)
_DOUBTED = (
    r"(?:possible|probable|questionable|questioned|suspected|suggested|equivocal|less likely(?! than)|doubtful"
    r"|considered(?! (?:\w+ )?unlikely))"
)
_HARD = r"(?:difficult|hard|impossible) to (?:entirely )?(?:exclude|rule out)"
_PROJECTION = (  # what only looks like a finding is due to
    r"(?:position\w*|projection\w*|techni\w+|rotat\w+|supine|portable|ap\b|inspirat\w+|expirat\w+|lung volumes?"
    r"|under-?inflat\w+|art[ei]fact\w*|magnification)"
)
_MISSED = r"(?:occult|missed|overlooked|in-?apparent|invisible|undetect\w+|imperceptible|hidden|obscured|masked)"
_PARTLY = r"(?:partial(?:ly)?|near(?:ly)?|almost|incomplete(?:ly)?|mostly|largely|substantially)"
_CHANGE = (
    r"(?:increases?|decreases?|worsening|progression|improvement|changes?(?! of)|growth|resolution|clearing|larger"
    r"|smaller|bigger|worse|better|different|complications?|kink\w*|malposition\w*|migration|displacement)"
)
_DEGREE = (
    r"(?:\w+ly|significant|substantial|appreciable|definite|evident|major|gross|interval|short|short-term"
    r"|short-interval|new|further|other|relevant|obvious|evidence of|acute|discernible|visible|convincing|great|much"
    r"|overall|recent|apparent|measurable|marked|dramatic|notable|meaningful|important|immediate|procedural"
    r"|postprocedural|any)"
)
_HOLD = r"(?:may|might|could|can|would)"


class _Rule(NamedTuple):
    code: int | None  # what the cue says; None: nothing, and other cues within these words say nothing either
    reach: str  # forward, backward, both (forward and backward), around (forward, or else backward), end or none
    patterns: tuple[str, ...]
    weak: bool = False  # after a negation it is only more of it: "no opacity to suggest pneumonia"


_RULES = {  # at one place of a sentence the first rule that fits counts
    "no cue": _Rule(None, "none", (
        rf"\b(?:no|without|not)(?: {_DEGREE})* {_CHANGE}\b(?! or (?!(?:\w+ )?{_CHANGE}))",
        rf"\bnot{_LY}(?: yet| fully)? (?:changed|increased|decreased|improved|resolved|cleared|worsened)\b",
        r"\b(?:has|have) not (?:yet )?(?:\w+ly )?(?:resolved|cleared)\b", r"\bnot (?:only|just|necessarily)\b",
        r"\b(?:no|without) (?:doubt|question)\b", r"\bnot (?:\w+ )?well (?:seen|visuali[sz]ed|evaluated|assessed)\b",
        rf"\btips?\b(?: \w+){{0,6}}? (?:is|are) not{_LY} {_SEEN}\b",
        rf"\b{_PARTLY}(?:[- ]complete(?:ly)?)? (?:resolution|clearing|removal|{_GONE})\b",
        r"\b(?:versus|vs) (?:the )?(?:prior|previous|last|earlier)\b",
    )),
    "if any": _Rule(UNCERTAIN, "around", (
        r"\bif (?:there is |there are )?(?:any|present|at all|anything|real|there at all|existent)\b"
        r"(?! (?:\w+ ){0,2}(?:concern|doubt|question|symptom))",
        r"\bat most\b",
    )),
    "only seems so": _Rule(UNCERTAIN, "both", (
        rf"\b(?:which |that )?(?:{_BE} )?(?:{_HOLD}|likely|probably|possibly|perhaps|felt|thought)(?: also| well| to)*"
        rf"(?: be)?{_LY}(?: \w+)? (?:due|related|secondary|attribut\w+|owing|caused|from|because|result\w*|reflects?"
        r"|represents?)(?: (?:to|from|of|by|in|an?|the|ap|pa|supine|portable|patient\w*|low|shallow|poor))*?"
        rf" {_PROJECTION}",
        rf"\b{_HOLD} be{_LY} (?:projectional|positional|technical|art[ei]factual|spurious)\b",
    )),
    "doubted before": _Rule(UNCERTAIN, "backward", (
        rf"\b(?:should|must|to|needs? to|has to) be{_LY} (?:excluded|ruled out|considered)\b",
        rf"\b(?:can ?not|(?:could |may |has |have )?not){_LY} be(?:en)?{_LY} (?:excluded|ruled out|discounted)\b",
        rf"\b(?:{_BE} )?not{_LY} (?:excluded|ruled out|out of the question)\b|\b(?:needs?|requires?) exclusion\b",
        rf"\b(?:may|might|could)(?: also| well| still)? be (?:{_SEEN}|there|responsible|the cause|a factor)\b",
        rf"\b{_HOLD}(?: also| well)? (?:have|give|produce|cause|account|explain|look|present|contribute|coexist)\b",
        rf"(?<!there )\b(?:{_BE}|remains?)(?: also| still| thought| felt| to be)*{_LY} (?:an? )?{_DOUBTED}\b"
        r"(?: (?:possibility|consideration))?",
        rf"(?<!there )\b(?:is|are|remains?|(?:would|could|may|might) be)(?: also| still)?{_LY}"
        r" (?:an? |of |one |another )?(?:real |strong |leading |main |differential |diagnostic )?"
        r"(?:possibilit(?:y|ies)|considerations?|concerns?)\b(?! (?:for|of|that))",
        r"\b(?:is |are |remains? |also |included |would be )*(?:in|on|within|part of) (?:the|my|our) differential\b",
        r"\b(?:suspected|possibl[ey]|questioned|probabl[ey]|suggested|favou?red|less likely|considered|perhaps)$|\?$"
        r"|\(\?\)|\b(?:suspected|questioned)(?= (?:in|at|on|over|within)\b)",
        rf"(?<!\bit )\b(?:is|are|would be|may be|remains?){_LY} {_HARD}\b",
    )),
    "not to be seen before": _Rule(NOT_MENTIONED, "backward", (
        rf"\b(?:may|might|can|could) not be{_LY} {_SEEN}\b",
        rf"\b(?:{_HOLD} be|(?:is|are)(?= (?:often|commonly|frequently|sometimes))){_LY}(?: often| easily)?{_LY}"
        rf" {_MISSED}\b",
        rf"\bcannot be{_LY} (?:{_SEEN}|evaluated|assessed|determined|commented)\b",
    )),
    "not said": _Rule(NOT_MENTIONED, "forward", (  # up to a comma
        r"\bif\b(?: there (?:is|are|remains?)| with)?",
        r"\b(?:history|hx) of\b|\bh/o\b",
        r"\bevaluat\w+\b|\bassess\w*\b|\bscreening for\b|\bcorrelat\w+\b",
        r"\b(?:to|for) (?:identify|detect|look for)\b|\bdetect(?:ing|ion of)\b|\bsensitive\b",
        r"\b(?:to|document|ensure|confirm|until|for|demonstrate)(?: complete| the)* (?:resol|clear|stabil)\w+",
        r"\b(?:may|could|can|might) (?:obscure|mask|hide)\b|\bmimic\w*\b|\bsimulat\w+\b",
    )),
    "doubt": _Rule(UNCERTAIN, "forward", (
        r"(?<!that )(?<!which )\b(?:may|might|could)\b|\bpossib(?:le|ly|ility)\b|\bprobabl[ey]\b|\bquestionabl[ey]\b"
        r"|\bpresum\w+|\bperhaps\b|\bmaybe\b",
        r"\bquery\b|\bpotential(?:ly)?\b|\bconceivabl[ey]\b|\bequivocal\b|\bless likely\b(?! than)|\bdifferential\b"
        r"|\br/o\b|\?",
        rf"\b(?:can ?not|could not|do(?:es)? not|not|difficult to|hard to|unable to){_LY} (?:exclude|rule out)\b",
        r"\b(?:not |un)(?:certain|clear|sure) (?:if|whether)\b|\bmore likely\b(?! than)(?=[^,;]* than\b)",
        r"\brul(?:e|ing) out\b|\bto exclude\b|\braises?\b|\bin the (?:\w+ )?clinical (?:setting|context)\b",
    )),
    "one or the other": _Rule(UNCERTAIN, "both", (
        r"\bversus\b|\bvs\b|\bas opposed to\b", r"\b(?:is|are|was|were) (?:\w+ly )?favou?red(?! to\b)",
        rf"\b(?:{_BE} )?(?:thought |felt )?(?:to be )?(?:more|less) likely than\b",
    ), weak=True),
    "weak doubt": _Rule(UNCERTAIN, "forward", (
        r"\bsuggest\w*\b|\bsuspici(?:ous|on)\b|\bsuspect(?:ed|s)?\b|\bconcern\w*\b|\bworrisome\b|\bquestion\b",
        r"\bconsider(?:ed|ation)?\b|\bfavou?r\w*\b|\bborderline\b"
        r"|(?<!\bage[ -])\bindeterminate\b(?! age)|\b(?:that|which) (?:may|might|could)\b",
    ), weak=True),
    "absent before": _Rule(ABSENT, "backward", (
        rf"\b(?:{_BE} )?(?:not|no longer){_LY}(?: (?:\w+ly|be|been|being))? {_SEEN}\b|\b(?:{_BE} )?(?<!^)absent\b",
        r"\b(?:has|have|had) not (?:\w+ly )?(?:developed|recurred|reaccumulated|occurred)\b",
        rf"\b(?:has|have|had|is|are|was|were|been)(?: (?!{_PARTLY})(?:\w+ly|since|interval|now|also|been|all"
        rf"|both))* {_GONE}\b",
        rf"\b{_GONE}(?=$|[,;)]| and\b| since\b| in the interval\b| with(?:out)?\b| - )",
        r"(?<=\w )(?<!interval )(?<!after )(?<!post )(?<!the )(?<!for )(?:resolution|removal)\b(?! of\b)",
        rf"(?<!there )\b(?:{_BE} )?(?:{_BE}|appears?|seems?|considered|felt|thought|deemed)(?: to be| \w+)? unlikely\b"
        r"(?! (?:to|that|malignant|significant|acute|infectious|related|due|clinically|of|an?|the)\b)",
        rf"\b(?:{_BE} )?unlikely to (?:be (?:{_SEEN}|there|the cause|responsible)|explain|account|cause)\b"
        rf"|\bunlikely(?=$|[,;)])",
        r"\b(?:is|are|was|were) not (?:\w+ly )?(?:likely|favou?red|a (?:\w+ )?(?:consideration|concern"
        r"|possibility))(?! to\b)",
        r"\b(?:was|were) (?:\w+ ){0,3}?(?:in error|erroneous\w*|incorrect\w*|mistaken\w*|by mistake)\b",
        r"(?<=\w)(?: [-=])?:? (?:none|no|nil|negative|absent)$|\b(?:is|are) (?:negative|not)$|\bnegative$",
    )),
    "absent": _Rule(ABSENT, "forward", (
        r"\bno longer\b|\bno\b|\bnot\b|\bwithout\b|\bw/o\b|\bnever\b|\bneither\b|\bnor\b|\bnothing\b|\bnil\b"
        r"|\bdevoid of\b",
        r"\bunlikely(?: to\b| that(?: there (?:is|are))?\b)?|\b(?:argu\w+|speak\w*|militat\w+|evidence) against\b",
        r"\brather than\b|\binstead of\b|\bnegative for\b|\b(?:free|clear) (?:of|from)\b|\bclear (?=air|focal )",
        r"\babsence of\b|^absent\b|\black(?:s|ing)?\b|(?:^|interval )(?:resolution|removal|clearing)\b",
        r"\b(?:resolution|removal|clearing|clearance|disappearance|re[- ]?expansion) of\b",
        r"\b(?:resolved|cleared|removed)\b|\bexclud(?:es|ing)\b",
        r"\bfail(?:s|ed|ure)? to (?:show|demonstrate|reveal)\b",
    )),
    "end": _Rule(None, "end", (
        r"[;)]|\((?!if |\?)| - |:(?! (?:none|no|nil|negative|absent|unlikely|possible|probable|not seen)(?:$|,))",
        r"\bpositive for\b|\bbut\b|\bhowever\b|\b(?:al)?though\b|\bexcept(?:ing)?\b|\bwhile\b|\bother than\b",
        r"\b(?:aside|apart) from\b|\bbesides\b|\bsave for\b",
        r"\b(?:more|most) likely\b|\bwhereas\b|\byet\b|\bnevertheless\b|\bdespite\b|\bin spite of\b|\bgiven\b",
        r"\binstead\b|\bin (?:a )?patient\b",
        r"\b(?:after|following|since|s/p)\b|\bstatus[- ]post\b|\bpost(?= (?:[\w-]+ ){0,3}(?:removal|placement|insertion"
        r"|\w*tomy|\w*centesis))",
        r"\bin (?:the )?(?:setting|presence) of\b",
        r"\bthere(?:'s|(?= (?:is|are|has|have|was|were|may|might|could|remains?|appears?)))\b",
        r"(?<!consistent )(?<!compatible )(?<!associated )(?<!along )(?<!together )\bwith\b",
        r"\b(?:around|near(?! the upper)|along|adjacent to|surrounding|underlying|associated with|related to|caused by)"
        r" (?=(?:the|this|these|those|an?) )",
    )),
}  # fmt: skip
_RULE_OF = tuple(_RULES.values())
_CUE = re.compile("|".join(f"({'|'.join(rule.patterns)})" for rule in _RULE_OF))

# ---- clauses ---------------------------------------------------------------------------------------------------------

_SEPARATOR = re.compile(r",(?: and| plus| as well as)?(?= )| (?:and|plus|as well as)(?= )")
_VERBS = (
    r"(?:is|are|was|were|remains?|appears?|has|have|demonstrates?|shows?|persists?|continues?|improves?|increases?"
    r"|decreases?|worsens?|progresses|enlarges|resolves?|develops|extends?|terminates?|ends|projects?|lies|overlies"
    r"|may|might|could|in (?:place|situ|(?:\w+ )?position))"
)
_VERB = re.compile(rf"\b{_VERBS}\b")
_OWN_VERB = re.compile(  # "no effusion and the heart is enlarged", but "no effusion, edema or pneumothorax is seen"
    rf"(?!(?:or|nor|which|that|if|suggest\w*) )(?:[\w'/-]+ ){{1,8}}?{_VERBS}\b"
    rf"(?! (?:(?:not|also|all|both|now|\w+ly|be|been|no longer) )*(?:{_SEEN}|{_GONE}|{_DOUBTED}|absent|negative"
    rf"|unlikely))"
)
_SIDE = r"(?:right|left|bilateral|bibasilar|bibasal|biapical)"
_OWN_WORDS = re.compile(  # an article, a size, a course or a side begins a phrase that stands for itself
    r"(?:an?|the|this|these|those|some|multiple|several|few|scattered|numerous|\d+|small|tiny|trace|mild|mildly"
    r"|moderate|moderately|minimal|minimally|slight|slightly|severe|subtle|low|extensive|definite(?:ly)?|certain(?:ly)?"
    r"|clearly|stable|unchanged|persistent|persisting|chronic|improv(?:ed|ing)|decreas(?:ed|ing)|increas(?:ed|ing)"
    rf"|worsen(?:ed|ing)|enlarg(?:ed|ing)|known|new|recurrent|residual|evolving|resolving|old|healed|healing"
    rf"|(?:large )?{_SIDE}|only|now|otherwise|rather(?! than)|likely|patchy|streaky|platelike|linear)\b"
)
_ADJECTIVE = re.compile(  # its noun is still to come: "no left and right effusion", "no acute, displaced fracture"
    r"\b(?:acute|focal|new|old|large|small|discrete|definite|significant|suspicious|gross|overt|(?<!the )right"
    r"|(?<!the )left|dense|displaced|obvious|confluent|lobar|upper|lower)$"
)
_CONDITION = re.compile(r"\bif (?:any|present|at all|anything)$")  # "if present, the effusion is small"
_RELATIVE = re.compile(rf"(?:which|that) (?:{_HOLD}\b|is (?:likely|probably))")
_EVENT = re.compile(
    r"(?:(?:the|interval|new|subsequent|further) )*"
    r"(?:development|appearance|placement|insertion|accumulation|reaccumulation|recurrence|progression|worsening"
    r"|increase)\b"
)
_OR = re.compile(r"\b(?:or|nor)\b")
_LIST = 80  # characters of a list that an "or" may close


def read(sentence: str, mentions: Sequence[Mention]) -> list[int]:
    """Gives each mention of a sentence, in their order, its code; returns the places of words that cut the sentence."""
    cues = [(_RULE_OF[match.lastindex - 1], match.start(), match.end()) for match in _CUE.finditer(sentence)]
    ends = [start for rule, start, _ in cues if rule.reach == "end"]
    starts = sorted({0, *ends, *_phrase_starts(sentence, mentions, ends)})
    for start, end in pairwise([*starts, len(sentence) + 1]):
        inside = [mention for mention in mentions if start <= mention.start < end]
        if inside:
            within = [cue for cue in cues if start <= cue[1] < end and cue[0].code is not None]
            _read_clause(sentence, inside, within, end)
    return [end for end in ends if sentence[end] != ":"]  # "heart: enlarged" is said of the heart


def _phrase_starts(sentence: str, mentions: Sequence[Mention], ends: Sequence[int]) -> Iterable[int]:
    """Where, after a comma or "and", a phrase begins that no negation before it reaches."""
    begin, _places = 0, [mention.start for mention in mentions]
    for separator in _SEPARATOR.finditer(sentence):
        place = separator.start()
        begin = max([begin, *(end for end in ends if end < place)])
        limit = min([end for end in ends if end > place], default=len(sentence))
        if _stands_for_itself(sentence, separator.end() + 1, limit, sentence[begin:place], mentions):
            yield place
            begin = place


def _stands_for_itself(sentence, start, limit, before, mentions) -> bool:
    """Whether the words from `start` are a phrase of their own, not the next item of the list in the text `before`."""
    if _CONDITION.search(before) or _RELATIVE.match(sentence, start):
        return False
    verb = _VERB.search(sentence, start, limit)
    if _OWN_VERB.match(sentence, start, limit) or _EVENT.match(sentence, start, limit):
        return True
    if verb and _VERB.search(before) and not _OR.match(sentence, start):
        return True  # "cardiomegaly persists, edema has resolved"
    if _OR.search(sentence, start, min(limit, start + _LIST, verb.start() if verb else limit)):
        return False  # "no consolidation, large effusion or pneumothorax"
    last = next((mention for mention in reversed(mentions) if mention.start < start), None)
    item = next((mention for mention in mentions if mention.start >= start), None)
    devices = [bool(mention) and mention.name == "Support Devices" for mention in (last, item)]
    if _OWN_WORDS.match(sentence, start):
        return not _ADJECTIVE.search(before) and not (all(devices) and sentence[start - 4 : start] == "and ")
    return devices == [False, True] and bool(last and last.name)


# ---- scopes ----------------------------------------------------------------------------------------------------------

_Scope = namedtuple("_Scope", ("start", "end", "code"))
_CONJOINED = re.compile(r"(?! (?:with|in|at|on|of|is|are)\b)[ \w-]{0,40}?(?:,? and\b|,? or\b|/)[ \w,-]{0,40}$")
_LISTED = re.compile(r"(?! (?:with|in|at|on|of|is|are)\b)[ \w-]{0,40}?(?:,| and\b| or\b|/)[ \w,-]{0,40}$")
_LISTED_ON = re.compile(r"\b(?:and|or|versus|vs|etc|less)\b|/")
_AFTER = 80  # characters that may stand between a finding and what is said of it afterwards
_AROUND = 40  # characters between "if any" and its finding
_COPULA = re.compile(r"\b(?:is|are|was|were|appears?|remains?|demonstrates?|shows?|has|have)\b")
_SINGULAR = re.compile(r"(?:is|was|has)\b")


def _read_clause(sentence, mentions, cues, end):
    """Gives the mentions of one clause, which ends at `end`, the codes of the scopes that they stand in."""
    scopes, backward = [], []
    for rule, start, stop in cues:
        within = scopes[-1].code if scopes and start < scopes[-1].end else PRESENT
        reach = rule.reach
        if reach == "around":
            reach = "forward" if _stands_next(sentence, mentions, stop) else "backward"
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


def _stands_next(sentence, mentions, place) -> bool:
    """Whether a finding stands right after `place`, without a verb between: "if any pleural effusion"."""
    after = next((mention.start for mention in mentions if mention.start >= place), None)
    return after is not None and after - place <= _AROUND and not _COPULA.search(sentence, place, after)


def _read_list_before(sentence, mentions, place, code):
    """Gives a code to the finding before `place`, and to those that "and" or "or" joins it with."""
    findings = [mention for mention in reversed(mentions) if mention.name] or mentions[-1:]
    end, link = place, None
    singular = _SINGULAR.match(sentence, place)
    for mention in findings:
        gap = sentence[mention.end : end]
        if len(gap) > _AFTER or _COPULA.search(gap):
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
