"""What a report says of earlier films: a lone image cannot show it, so a model that reads or writes one cannot know it.

Each sentence that compares is rewritten to what it says of this image ("The effusion has increased." => "There is
effusion."), or dropped where nothing is left ("Heart size is unchanged.").
"""

import re

from utils.report_marks import SECTION, SENTENCE_END

_EARLIER = r"(?:prior|previous|earlier|last|preceding|old|older|outside|comparison|baseline|most recent|recent|remote)"
_FILM = r"(?:stud(?:y|ies)|exam\w*|radiographs?|films?|x-?rays?|images?|imaging|cxr|ct|chest|report|day|time|one|scan)"
_STEADY = r"(?:unchanged|stable|similar|the same|not (?:\w+ly )?changed|persistent)"
_COURSE = (
    r"(?:stable|unchanged|persist(?:ent|ing)|new(?:ly)?|worsen(?:ing|ed)|improv(?:ed|ing)|residual|recurrent"
    r"|progressive"
    r"|increasing|decreasing|enlarging|resolving|evolving|continued|redemonstrated|interval|previously (?:seen|noted"
    r"|described|identified|demonstrated|visualized|mentioned))"
)
_MOVED = (
    r"(?:increased|decreased|improved|worsened|progressed|enlarged|changed|developed|recurred|regressed|grown"
    r"|diminished)"
)
_GONE = r"(?:resolved|cleared|disappeared|been removed|been withdrawn)"
_MOVE = (
    r"(?:increase|decrease|progression|worsening|improvement|enlargement|development|appearance|reduction|growth"
    r"|change|changes)"
)
_HOW = (
    r"(?:\w+ly |interval |significant |substantial |slight |mild |moderate |marked |further |some |overall |a "
    r"|an |appreciable )*"
)

_COMPARES = re.compile(
    rf"\b(?:compar(?:ed|ison|ing|able)|interval|again|{_COURSE}|similar (?:to|in)|as before|remains?|persists?"
    rf"|no longer|still"
    rf"|{_EARLIER} {_FILM}|from (?:the )?(?:prior|previous)|since (?:the )?(?:{_EARLIER}|\w+ \d|\d)|than (?:before"
    rf"|previously|on)"
    rf"|(?:has|have|had) (?:since |now |also |been )*(?:\w+ly )*(?:{_MOVED}|{_GONE})|resolution of|previously"
    rf"|continues?"
    rf"|no {_HOW}change|without {_HOW}change|(?:larger|smaller|better|worse|more|less) than (?:before|on|previously))\b"
    r"|\bin the interim\b|\b(?:from|than|to|with|since|on) (?:the )?(?:\w+ )?(?:prior|previous)\b"
    r"|\bprior(?= ?(?:X{3}|_|[,.;]|$))",
    re.IGNORECASE,
)
_SINCE = (
    rf"(?:(?:as|when|in) )?(?:compar(?:ed|ison|ing) (?:to|with)|since|from|relative to|versus|than)"
    rf"(?: (?:the|a|an|that of|those of|his|her|on|to))*(?: \w+)? {_EARLIER}\b[^,.;]*"
)
_WITHOUT_CLAUSE = tuple(  # clauses that only compare
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?:{_SINCE}|(?:as |when |in )?(?:compar(?:ed|ison|ing))\b[^,.;]*|in the (?:interval|interim)"
        r"|(?:once )?again|since [^,.;]*), ?",
        r"^(?:as |when )?compar(?:ed|ison|ing) (?:to|with) [\w /]*?(?=there (?:is|are|has|have)\b)",
        rf",? ?\b{_SINCE}",
        r",? ?\b(?:as |when )?(?:compared|in comparison) (?:to|with)\b[^,.;]*",
        r",? ?\b(?:in|over|during) the (?:interval|interim)\b(?: since[^,.;]*)?",
        rf",(?: (?:which|that) (?:is|are|appears?|remains?))?(?: (?:likely|grossly|overall|essentially"
        rf"|\w+ly))* {_STEADY}\b"
        r"(?: in (?:appearance|size|position|extent|configuration))?(?: (?:as|to|from|since|when)\b[^,.;]*)?(?=[.;,]"
        r"|$)",
        r",? as before\b|,? (?:without|with no) (?:\w+ ){0,3}change\b[^,.;]*",
        rf"(?<=\w) and {_COURSE}(?= \w)|\b{_STEADY}(?: and|,) (?=\w)|,? and {_STEADY}(?=[.;,]|$)",
        r"\b(?:once )?again ?(?=\w)|(?<=\w) again\b|\bstill ?(?=\w)",
    )
)
_STEADY_AT_THE_END = re.compile(  # "mild cardiomegaly unchanged", but "the effusion is unchanged"
    rf"(?<!\bis)(?<!\bare)(?<!remain)(?<!remains)(?<!appear)(?<!appears)(?<!ly)(?<!\bnot) {_STEADY}(?=[.;]?$)",
    re.IGNORECASE,
)
_RESTATED = tuple(  # (what a sentence says of a change, what it then says of this image)
    (re.compile(pattern, re.IGNORECASE), restated)
    for pattern, restated in (
        (
            rf"^(?:there (?:is|are|has been|have been) )?{_HOW}(?:resolution|clearing"
            rf"|removal) of (?:the )?(?P<what>[^.;]+)",
            "No {}",
        ),
        (
            rf"^(?:there (?:is|are|has been|have been) )?(?:no |without )?{_HOW}{_MOVE} (?:of|in)(?: the)?(?: size of"
            rf"| extent of"
            r"| amount of| degree of)?(?: the)? (?P<what>[^.;]+)",
            "There is {}",
        ),
        (
            rf"^(?:the |an? )?(?P<what>[^.,;]+?) (?:has|have|is|are)(?: (?:since|now|also|been"
            rf"|\w+ly))* {_GONE}\b[^,.;]*",
            "No {}",
        ),
        (
            rf"^(?:the |an? )?(?P<what>[^.,;]+?) (?:has|have)(?: (?:not|since|now|also|\w+ly))* {_MOVED}(?: in (?:size"
            rf"|extent|amount))?"
            r"\b(?:[^,.;]*)",
            "There is {}",
        ),
        (
            rf"^(?:the |an? )?(?P<what>[^.,;]+?) (?:is|are|remains?|appears?)(?: (?:grossly|overall"
            rf"|\w+ly))* {_STEADY}\b[^,.;]*",
            "There is {}",
        ),
        (r"^(?:the |an? )?(?P<what>[^.,;]+?) (?:persists?|continues?)\b(?: to be (?:seen|present))?", "There is {}"),
        (
            r"^(?:the |an? )?(?P<what>[^.,;]+?) (?:is|are) no longer (?:seen|present|visible|identified|evident"
            r"|visualized)",
            "No {}",
        ),
    )
)
_NO_IMAGE_OF = re.compile(  # said to be there, these say nothing
    r"\b(?:heart|mediastin\w*|silhouettes?|size|lungs?|volumes?|aeration|inflation|position|appearance|contours?"
    r"|exam\w*|study"
    r"|chest|findings?|vascul\w+|structures?|thorax|hila|aorta|diaphragm)\b(?! (?:opaci|nodul|effus|edema|congest"
    r"|mass|tube|wall|port))"
    r"|^(?:no|not|without|it|this|that|these|those|which|there|otherwise)\b|\b(?:is|are|was|were|has|have)\b",
    re.IGNORECASE,
)
_STATES_NOTHING = re.compile(
    r"^(?:the |an? )?(?:(?:overall|cardiac|cardiomediastinal|mediastinal|hilar|lung|and|chest|heart|aortic|general"
    r"|of|the) )*"
    r"(?:silhouettes?|size|contours?|appearance|volumes?|exam\w*|study|chest|findings?|change|heart|mediastinum"
    r"|lungs)\W*$",
    re.IGNORECASE,
)


def count_comparisons(text: str) -> int:
    """How many sentences of a report compare its image with an earlier one."""
    return sum(bool(_COMPARES.search(sentence)) for sentence in SENTENCE_END.split(text))


def drop_comparisons(text: str) -> tuple[str, int]:
    """A report => (the report without comparisons with earlier films, how many sentences were changed or dropped).

    Headings without a sentence are dropped too; a report that compares nothing comes back unchanged.
    """
    if not _COMPARES.search(text):
        return text, 0
    parts = SECTION.split(text)  # text, heading, text, heading, text ...
    kept, count = [], 0
    for heading, body in zip(["", *parts[1::2]], parts[::2]):
        sentences = SENTENCE_END.split(body.strip())
        compares = [bool(_COMPARES.search(sentence)) for sentence in sentences]
        count += sum(compares)
        rest = [_of_this_image(text) if compares_too else text for text, compares_too in zip(sentences, compares)]
        rest = " ".join(filter(None, rest))
        kept.append(f"{heading} {rest}".strip() if rest else "")
    return " ".join(filter(None, kept)), count


def _of_this_image(sentence):
    """What a sentence that compares says of its own image; "" where that is nothing."""
    number = re.match(r"\d{1,2}[.)] +", sentence)
    number = number[0] if number else ""
    rest = sentence[len(number) :]
    for clause in _WITHOUT_CLAUSE:
        rest = clause.sub("", rest).strip()
    rest = _STEADY_AT_THE_END.sub("", rest)
    for change, restated in _RESTATED:
        found = change.match(rest)
        if found:
            what = found["what"].strip()
            restated = restated.replace(" is ", " are ") if re.search(r" (?:are|have)\b", found[0]) else restated
            if _NO_IMAGE_OF.search(what):
                return ""
            rest = restated.format(what[0].lower() + what[1:] if what[1:2].islower() else what) + rest[found.end() :]
            break
    rest = re.sub(r"\b(remain|persist|continue)(s?)(?: to be)?\b(?= \w)", lambda verb: "is" if verb[2] else "are", rest)
    rest = re.sub(rf"\b{_COURSE}\b,? ?(?=\w)", "", rest, flags=re.IGNORECASE)
    rest = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", re.sub(r"\b([Aa])n (?=[^aeiou\W])", r"\1 ", rest))
    rest = re.sub(r" +([,.;])", r"\1", re.sub(r"^[\s,;.]+|[\s,;]+(?=[.]?$)", "", rest))
    if _COMPARES.search(rest) or _STATES_NOTHING.match(rest) or not re.search(r"[A-Za-z]{3}", rest):
        return ""
    return number + rest[0].upper() + rest[1:]
