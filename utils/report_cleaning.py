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

_NAMED = (
    r"(?:unk|date|time|age|name|person|patient|doctor|physician|hospital|location|place|city|address|phone|contact"
    r"|number|id|redacted|removed|masked|hidden|de-?identified|anonymi[sz]ed|organi[sz]ation|institution|year|month"
    r"|day)"
)
_WORD_MARK = re.compile(r"X{3,}|(?<![A-Za-z])x{3,}(?![A-Za-z])")
_PHRASE_MARK = re.compile(
    r"\[\*\*[^\n]{0,100}?\*\*\]"
    r"|[\[<{]{1,2}(?!SIC\b)[A-Z][A-Z0-9 _#-]{2,40}[\]>}]{1,2}"
    rf"|[\[<{{]{{1,2}}(?i:{_NAMED}(?:[ _-]?(?:{_NAMED}|\d+))?)[\]>}}]{{1,2}}"
    r"|\b[Xx]{1,2}[/-][Xx]{1,2}(?:[/-][Xx]{2,4})?\b|#{2,}(?:[/:-]#{2,})*|(?<=\w )\*{3,}(?=[ .,;]|$)"
    r"|_(?: ?_)+|(?<!\S)_(?=[\s.,;]|$)|(?<=\bDr\. )X{3,}|(?<=\bDr )X{3,}"
)
MARK = re.compile(f"{_PHRASE_MARK.pattern}|{_WORD_MARK.pattern}")

_JOINED = r"[^\s,.;:()\[\]]"  # a character that a mark may be joined with, as in "___-year-old"
_MARKED = rf"(?<!{_JOINED}){_JOINED}*_{{2,}}{_JOINED}*"  # a mark with what is joined to it
_MARKED_PHRASE = re.compile(rf"(?i){_MARKED}(?:(?: and| at| to|,)? {_MARKED})*(?: (?:cm|mm|am|pm|years?[ -]old)\b)?")


def _backwards(between, words):
    """A pattern of words, longer ones before what they end in, each with what may stand before it, for a text that is
    read from its end: forwards, each of a thousand would be tried as the first."""
    return re.compile(between.format("|".join(word[::-1] for word in words.split(", "))), re.IGNORECASE)


_LEADING = _backwards(  # words that lead up to a mark
    r"(?:[ ,(]+(?:{})\b)*",
    "comparison is made, comparison was made, comparison made, in comparison, by comparison, as compared, when compared"
    ", when comparing, comparison, compared, comparing, since, dated, from, of, on, at, to, with, by, and, or, the, a"
    ", an, prior, previous, earlier, study, exam, examination, radiograph, radiographs, film, performed, obtained, done"
    ", date, time, see",
)
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
            sentence = _without_marked_phrases(about)
            sentence = re.sub(r"\(\s*\)|\[\s*\]", "", " ".join(sentence.split()))
            sentence = re.sub(r" +([,.;:!?)])", r"\1", sentence)
            sentence = re.sub(r"(?<![,;:])[,;:]+([.;!?])", r"\1", sentence).lstrip(" ,;:.")
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) < least:
                continue
            sentence = sentence[0].upper() + sentence[1:]
        kept.append(sentence)
    return " ".join(" ".join(kept).split())


def _without_marked_phrases(sentence):
    """A sentence without its marks, what is joined to them, and the words that lead up to them; in linear time."""
    kept, end = [], 0
    for phrase in _MARKED_PHRASE.finditer(sentence):
        kept.append(_without_end(sentence[end : phrase.start()], _LEADING))
        end = phrase.end()
    return "".join(kept) + sentence[end:]


def _without_end(text, words):
    return text[: len(text) - words.match(text[::-1]).end()]


# ---- messages between people -----------------------------------------------------------------------------------------

_SENT = re.compile(
    r"(?i)\b(?:notif\w+|discuss\w*|communicat\w+|convey\w*|report(?:ed|s)? (?:by|to)|telephon\w*|phoned?|called|paged?"
    r"|informed|relayed|e-?mail\w*|texted|told|alerted|made aware|d/w|reviewed with)\b"
)
_PERSON = re.compile(
    r"(?i)\b(?:Drs?|doctor|physician|nurse|team|clinician|service|resident|surgeon|provider|RN|NP|PA)\b"
)
_LEADS_UP = _backwards(  # words before a message that belong to it: "..., and these findings were"
    r"(?:[\s,;(-]+|(?:{})(?![a-z]))*",
    "was, were, is, are, has been, have been, being, and, as, which, that, this, these, those, it, the, all, above"
    ", findings, finding, results, result, impression, also, then, immediately, subsequently, urgently, verbally"
    ", directly, promptly, preliminary",
)
_SUBJECT_MATTER = re.compile(
    r"(?:.{0,60}?\b(?:of|about|regarding|concerning|that|re) |\W*)"
    r"(?P<matter>.+?)(?: (?:by|at|on|via|over|with|to|in|during|who|immediately|from)\b.*)?[.!?]?$"
)
_CLAUSE_SIGNS = (",", ";", "(", " - ", " and ")
_NO_MATTER = re.compile(
    r"(?i)(?:(?:the|these|this|those|all|above|critical|aforementioned|preliminary|final|urgent|her|his|their) ?)*"
    r"(?:findings?|results?|impression|report|above|same|study|exam\w*)?$"
)


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


# ---- comparisons with earlier films --------------------------------------------------------------------------------

_EARLIER = r"(?:prior|previous|earlier|last|preceding|old|older|outside|comparison|baseline|most recent|recent|remote)"
_FILM = r"(?:stud(?:y|ies)|exam\w*|radiographs?|films?|x-?rays?|images?|imaging|cxr|ct|chest|report|day|time|one|scan)"
_STEADY = r"(?:unchanged|stable|similar|the same|not (?:\w+ly )?changed|persistent)"
_COURSE = (
    r"(?:stable|unchanged|persist(?:ent|ing)|new(?:ly)?|worsen(?:ing|ed)|improv(?:ed|ing)|residual|recurrent"
    r"|progressive|increasing|decreasing|enlarging|resolving|evolving|continued|redemonstrated|interval"
    r"|previously (?:seen|noted|described|identified|demonstrated|visualized|mentioned))"
)
_MOVED = r"(?:(?:in|de)creased|(?:improv|worsen|progress|enlarg|chang|develop|recurr|regress|diminish)ed|grown)"
_GONE = r"(?:resolved|cleared|disappeared|been removed|been withdrawn)"
_MOVE = (
    r"(?:(?:in|de)crease|(?:improve|enlarge|develop)ment|progression|worsening|appearance|reduction|growth|changes?)"
)
_HOW = (
    r"(?:(?:\w+ly|interval|significant|substantial|slight|mild|moderate|marked|further|some|overall|appreciable|an?) )*"
)

_COMPARES = re.compile(
    rf"(?i)\b(?:compar(?:ed|ison|ing|able)|interval|again|{_COURSE}|similar (?:to|in)|as before|remains?|persists?"
    rf"|still|no longer|{_EARLIER} {_FILM}|from (?:the )?(?:prior|previous)|previously"
    rf"|since (?:the )?(?:{_EARLIER}|\w+ \d|\d)"
    rf"|(?:has|have|had) (?:since |now |also |been )*(?:\w+ly )*(?:{_MOVED}|{_GONE})|resolution of|continues?"
    rf"|(?:no|without) {_HOW}change|(?:(?:larger|smaller|better|worse|more|less) )?than (?:before|on|previously))\b"
    r"|\bin the interim\b|\b(?:from|than|to|with|since|on) (?:the )?(?:\w+ )?(?:prior|previous)\b"
    r"|\bprior(?= ?(?:X{3}|_|[,.;]|$))"
)
_SINCE = (
    rf"(?:(?:as|when|in) )?(?:compar(?:ed|ison|ing) (?:to|with)|since|from|relative to|versus|than)"
    rf"(?: (?:the|a|an|that of|those of|his|her|on|to))*(?: \w+)? {_EARLIER}\b[^,.;]*"
)
_WITHOUT_CLAUSE = (  # clauses that only compare
    rf"^(?:{_SINCE}|(?:as |when |in )?(?:compar(?:ed|ison|ing))\b[^,.;]*|in the (?:interval|interim)|(?:once )?again"
    r"|since [^,.;]*), ?",
    r"^(?:as |when )?compar(?:ed|ison|ing) (?:to|with) [\w /]*?(?=there (?:is|are|has|have)\b)",
    rf",? ?\b{_SINCE}",
    r",? ?\b(?:as |when )?(?:compared|in comparison) (?:to|with)\b[^,.;]*",
    r",? ?\b(?:in|over|during) the (?:interval|interim)\b(?: since[^,.;]*)?",
    rf",(?: (?:which|that) (?:is|are|appears?|remains?))?(?: (?:likely|grossly|overall|essentially|\w+ly))* {_STEADY}\b"
    r"(?: in (?:appearance|size|position|extent|configuration))?(?: (?:as|to|from|since|when)\b[^,.;]*)?(?=[.;,]|$)",
    r",? as before\b|,? (?:without|with no) (?:\w+ ){0,3}change\b[^,.;]*",
    rf"(?<=\w) and {_COURSE}(?= \w)|\b{_STEADY}(?: and|,) (?=\w)|,? and {_STEADY}(?=[.;,]|$)",
    r"\b(?:once )?again ?(?=\w)|(?<=\w) again\b|\bstill ?(?=\w)",
    # "mild cardiomegaly unchanged", but "the effusion is unchanged"
    rf"(?<!\bis)(?<!\bare)(?<!remain)(?<!remains)(?<!appear)(?<!appears)(?<!ly)(?<!\bnot) {_STEADY}(?=[.;]?$)",
)
_WHAT = r"^(?:the |an? )?(?P<what>[^.,;]+?)"
_THERE_IS = r"^(?:there (?:is|are|has been|have been) )?"
_RESTATED = {  # what a sentence then says of this image: what it says of a change
    "No {}": (
        rf"{_THERE_IS}{_HOW}(?:resolution|clearing|removal) of (?:the )?(?P<what>[^.;]+)",
        rf"{_WHAT} (?:has|have|is|are)(?: (?:since|now|also|been|\w+ly))* {_GONE}\b[^,.;]*",
        rf"{_WHAT} (?:is|are) no longer (?:seen|present|visible|identified|evident|visualized)",
    ),
    "There is {}": (
        rf"{_THERE_IS}(?:no |without )?{_HOW}{_MOVE} (?:of|in)(?: the)?(?: (?:size|extent|amount|degree) of)?(?: the)?"
        r" (?P<what>[^.;]+)",
        rf"{_WHAT} (?:has|have)(?: (?:not|since|now|also|\w+ly))* {_MOVED}(?: in (?:size|extent|amount))?\b[^,.;]*",
        rf"{_WHAT} (?:is|are|remains?|appears?)(?: (?:grossly|overall|\w+ly))* {_STEADY}\b[^,.;]*",
        rf"{_WHAT} (?:persists?|continues?)\b(?: to be (?:seen|present))?",
    ),
}
_ORGAN = r"(?:heart|mediastin\w*|silhouettes?|size|lungs?|volumes?|appearance|contours?|exam\w*|study|chest|findings?)"
_NO_IMAGE_OF = re.compile(  # said to be there, these say nothing
    rf"(?i)\b(?:{_ORGAN}|aeration|inflation|position|vascul\w+|structures?|thorax|hila|aorta|diaphragm)\b"
    r"(?! (?:opaci|nodul|effus|edema|congest|mass|tube|wall|port))"
    r"|^(?:no|not|without|it|this|that|these|those|which|there|otherwise)\b|\b(?:is|are|was|were|has|have)\b"
)
_STATES_NOTHING = re.compile(
    r"(?i)^(?:the |an? )?(?:(?:overall|cardiac|cardiomediastinal|mediastinal|hilar|lung|and|chest|heart|aortic|general"
    rf"|of|the) )*(?:{_ORGAN}|change)\W*$"
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
    return _section_by_section(text, _of_these_images), sum(map(count_comparisons, _SECTION.split(text)))


def _of_these_images(text):
    """Sentences => what they say of their own image, those that say nothing of it left out."""
    sentences = _SENTENCE_END.split(text)
    rest = (_of_this_image(sentence) if _COMPARES.search(sentence) else sentence for sentence in sentences)
    return " ".join(filter(None, rest))


def _of_this_image(sentence):
    """What a sentence that compares says of its own image; "" where that is nothing."""
    number = re.match(r"(?:\d{1,2}[.)] +)?", sentence)[0]
    rest = sentence[len(number) :]
    for clause in _WITHOUT_CLAUSE:
        rest = re.sub(clause, "", rest, flags=re.IGNORECASE).strip()
    for restated, changes in _RESTATED.items():
        found = next(filter(None, (re.match(change, rest, re.IGNORECASE) for change in changes)), None)
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
