"""What a chest X-ray report says of the 14 findings, by rules: text => codes.

The task is that of NegBio (Peng et al. 2018) and of the CheXpert labeler (Irvin et al. 2019): find the mentions of each
finding, tell what is said of each, and take the strongest. Rules and words are this project's own. Where a choice had
to be made it is that of the CheXpert labeler, unless a line below says otherwise.

How a report is read
    Findings and impression only (utils/report_text.py): an indication or a comparison says nothing of this image.
    Each sentence is read from left to right. A word of negation ("no", "free of", "resolution of") or of doubt ("may",
    "possible", "suggesting", "rule out") holds for what follows, through lists, until something ends it: ";", "but",
    "with", "there is", a clause with its own verb. "is absent" or "cannot be excluded" hold for the list before them.
    "X or Y", "X/Y" and "X versus Y", both unnegated, leave both uncertain. "No definite X" is absent, "no change in
    X" negates nothing, and "X is unlikely" is absent ("less likely": uncertain). "Likely" and "consistent with" do not
    make a finding uncertain. After "history of", "if", "evaluate for" and the like nothing is said.

What counts as what
    Atelectasis                 also collapse of a lung or lobe; not volume loss
    Cardiomegaly                also an enlarged heart; borderline, stable or unchanged heart size is uncertain; normal
                                size, up to its upper limits, is absent. Heart failure makes it uncertain
    Enlarged Cardiomediastinum  the same of the mediastinum and of the cardiomediastinal silhouette, which says nothing
                                of the heart
    Consolidation               "the lungs are clear" says nothing of it, nor of Lung Opacity
    Edema                       also heart failure, vascular congestion, fluid overload, Kerley lines
    Fracture                    also an old one; not a deformity of a rib or of a vertebra, nor a broken wire
    Lung Lesion                 nodule, mass, tumour, cancer, nodular opacity; not granuloma, nothing calcified
    Lung Opacity                also infiltrate, airspace disease, interstitial or reticular markings, scars of the lung
    Pleural Effusion            not a blunted angle, and not pericardial effusion
    Pleural Other               thickening, scar or plaque of the pleura, and any fibrosis (CheXpert's: no plaques)
    Pneumonia                   also infection; not aspiration, and not an old or previous infection
    Support Devices             tubes, lines, pacemakers, prosthetic valves and joints, orthopaedic hardware; not wires,
                                clips, sutures and stents
    No Finding                  present when the report says something and neither the 12 others (Support Devices aside)
                                nor other abnormalities (emphysema, granuloma, hernia, calcification ...) are present or
                                uncertain; else not mentioned

Of the mentions of a finding, present outweighs uncertain, and uncertain outweighs absent. An empty report, or one of
marks only, says nothing: 0 everywhere, No Finding included (there CheXpert's says 1: no report would be a normal one).
"""

import re
from bisect import bisect
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np

from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, NOT_MENTIONED, PRESENT, UNCERTAIN, from_prompt
from utils.report_text import report_text

_OTHER = "another abnormality"
_STRENGTH = (PRESENT, UNCERTAIN, ABSENT)  # of several mentions the first of these counts


def label_reports(texts):
    """N reports => their codes, (N, 14) int8, in the order of FINDINGS: `label_report` of each."""
    return np.array([label_report(text) for text in texts], dtype=np.int8).reshape(-1, len(FINDINGS))


def label_report(text):
    """A report => what it says of each finding, (14,) int8 in the order of FINDINGS.

    text: a report file, or "FINDINGS: ... IMPRESSION: ...", or sentences without a heading. 1 present, -1 absent, -2
    uncertain, 0 not mentioned. InputError for what is no text.
    """
    sentences = _codes_by_sentence(text)
    strongest = _strongest(chain.from_iterable(codes.items() for codes in sentences))
    found = {name for name, code in strongest.items() if code in (PRESENT, UNCERTAIN)}
    if sentences and not found - {"Support Devices"}:
        strongest["No Finding"] = PRESENT
    return np.array([strongest.get(name, NOT_MENTIONED) for name in FINDINGS], dtype=np.int8)


def contradictions(text):
    """A report => the findings that one of its sentences calls present and another absent, a list in FINDINGS' order.

    Of several mentions in one sentence the strongest counts, so "left effusion, no right effusion" alone is none. Sides,
    places and kinds are not told apart between sentences: "Left effusion. No right effusion." is one, and so is a
    congestion without an edema. Radiologists write such reports too: the count is to be read beside that of real ones.
    No Finding is said by no sentence, and never in the list.
    """
    codes = set(chain.from_iterable(codes.items() for codes in _codes_by_sentence(text)))
    return [name for name in FINDINGS if {(name, PRESENT), (name, ABSENT)} <= codes]


def _codes_by_sentence(text):
    """What each sentence of a report says, a list of {finding: the strongest code}; InputError for what is no text."""
    if not isinstance(text, str):
        raise InputError(f"a report to label is a text, not {type(text).__name__}")
    return [_strongest(_label_sentence(sentence)) for sentence in _sentences(text)]


def _strongest(mentions):
    """(finding, code) pairs => {finding: the strongest of its codes}."""
    codes = {}
    for name, code in mentions:
        codes.setdefault(name, set()).add(code)
    return {name: next(code for code in _STRENGTH if code in found) for name, found in codes.items()}


# ---- sentences -----------------------------------------------------------------------------------------------------

_MARK = re.compile(r"\b[Xx]{3,}\b|_{2,}|<(?:br|BR) */?>")
_BOUNDARY = re.compile(
    r"(?:(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bvs)(?<!\bst)(?<!\bapprox)(?<!\.)\.+"
    r"|(?<![!?])[!?]+(?! [a-z]))"  # "? edema" asks of edema
    r"(?:(?=[a-z])(?<=[a-z)]\.)|\s+|$)"  # "1.8 cm" is no end; "seen.There" is one
    r"|\b(?:findings|impression|conclusion): *"
    r"|(?:^|(?<=\s))\(?\d{1,2}[.)]\s+"  # the number of a list
    r"|\s[-*\u2022]\s"
)
_WORD = re.compile(r"[a-z]{2,}")
_ABOUT = re.compile(
    r"\b(?:indications?|history|comparisons?|technique|reason for \w+|exam(?:ination)?) ?:", re.IGNORECASE
)


def _sentences(text):
    """The sentences of findings and impression: in lower case, single blanks, without marks."""
    text = report_text(text) or ("" if _ABOUT.search(text) else text)  # a text in capitals, or under LUNGS: alone
    text = " ".join(_MARK.sub(" ", text).lower().replace("\u2019", "'").split())
    for sentence in _BOUNDARY.split(text):
        if _WORD.search(sentence):
            yield sentence.strip(" ,.:-")


# ---- mentions ------------------------------------------------------------------------------------------------------

_MENTIONS = {  # how reports name a finding
    "Atelectasis": r"atelecta\w*|\bcollapsed?\b",
    "Cardiomegaly": r"\bcardiomegaly|\bcardiac enlargement|\b(?:atrial|ventricular) enlargement|\bcardiac dilat\w+",
    "Consolidation": r"\bconsolidat\w*",
    "Edema": (
        r"\bo?edema\w*|\b(?:heart|cardiac|ventricular|early|mild) failure|\bchf\b|\bcongestive (?:changes?|failure)"
        r"|\bcongestion\b|\bkerley\b|\bb[- ]lines\b|\b(?:fluid|volume) overload|\bcardiac decompensation"
        r"|\bvascular (?:prominence|indistinctness)|\bprominen(?:t|ce of the)(?: central| pulmonary)+ vascul\w+"
        r"|\bindistinctness of (?:the )?(?:pulmonary )?(?:vessels|vascul\w+)"
    ),
    "Fracture": r"\bfractur(?:es?|ed|ing)\b|\bfx\b",
    "Lung Lesion": (
        r"\bmass(?:es)?\b|\b(?:micro)?nodul(?:es?|arity)\b|\bcarcinomas?\b|\bneoplas\w+|\btumou?rs?\b|\bmalignancy\b"
        r"|\bnodular (?:\w+ )?(?:opaci\w+|densit\w+|infiltrat\w+|lesions?|focus|foci|shadows?)"
        r"|\b(?:lung|pulmonary|parenchymal|cavitary|cavitating|spiculated|pleural[- ]based) lesions?\b"
        r"|\b(?:lung|bronchogenic|pulmonary|lobe|hilar) (?:cancer|malignan\w+)|\b(?:lung|pulmonary) metasta\w+"
    ),
    "Lung Opacity": (
        r"\bopaci(?:ty|ties|fication|fications)\b|\binfiltrat(?:es?|ions?|ive)\b|\bscar(?:s|ring|red)?\b"
        r"|\bair-? ?space (?:disease|process|change)s?|\bground[- ]glass"
        r"|\binterstitial (?:\w+ )?(?:markings?|patterns?|lung|diseases?|densit\w+|changes?|thickening)\b"
        r"|\b(?:increased|prominent|coarse\w*|thickened|abnormal|chronic) (?:\w+ )?(?:lung|pulmonary|perihilar|basilar"
        r"|bronchovascular) markings?|reticul(?:ar|ations?|onodular)\b"
        r"|\b(?:peri)?bronchial (?:wall )?thickening"
        r"|\b(?:increased|hazy|patchy|streaky|linear|basilar|parenchymal|alveolar|ill-defined|vague|lung) densit(?:y"
        r"|ies)\b"
    ),
    "Pleural Effusion": (
        r"\beffusions?\b|\bpleural (?:\w+ )?fluid\b|\b(?:hydro|hemo)(?:pneumo)?thora(?:x|ces)\b|\bempyema"
    ),
    "Pleural Other": (
        r"\bpleural(?:[- /]based|[-/ ]?parenchymal)? ?(?:thickening|scar\w*|plaques?|calcifications?|reaction|fibrosis)"
        r"|\bpleuro-?parenchymal (?:scar\w*|thickening)"
        r"|\b(?:thickening|scarring) of the (?:\w+ )?pleura"
        r"|\bplaques?\b(?= (?:\w+ ){0,3}pleura)|\b(?:bi)?apical (?:cap\w*|thickening)|\bfibrothorax|\bfibrosis\b"
        r"|\bpleural other\b"
    ),
    "Pneumonia": r"pneumonias?\b|\binfect(?:ions?|ious)\b",
    "Pneumothorax": r"pneumothora(?:x|ces|xes)\b|\bptx\b|\bpleural air\b",
    "Support Devices": (
        r"\b(?:\w+-)?tubes?\b|\blines\b|\bpicc\b|\bports?\b|\bport-?a-?cath\w*|\b(?:medi|infusa)ports?\b|catheters?\b"
        r"|\b(?:central|venous|arterial|ij|jugular|subclavian|femoral|dialysis|access) (?:\w+ )?line\b|\bswan\b"
        r"|\bpace-?makers?\b|\bpacers?\b|\bpacing\b|\ba?icds?\b|\bdefibrillators?\b|\bgenerator\b|\bstimulator\w*"
        r"|\bleads?\b(?= (?:\w+ ){0,6}(?:atri|ventric))|\bdevices?\b|\bsupport apparatus|\btracheostomy\b"
        r"|\b(?:prosthe\w+|mechanical|replacement|bioprosthetic|artificial|replaced|porcine) (?:\w+ )?valves?\b"
        r"|\bvalves? (?:replacement|prosthe\w+|repair)|\bvalvular prosthe\w+|\bannuloplasty|\bprosthe(?:sis|ses|tic)\b"
        r"|\bhardware\b|\barthroplast\w+|\bscrews?\b|\bplates?\b|\bfixation\b|\bett\b|\bngt\b|\bdobb?hoff\b"
        r"|\bcannula\w*|\bdrains?\b|\blvad\b|\bimpella\b|\bballoon pump|\biabp\b|\bcoils?\b|\bshunt tubing"
        r"|\btips?\b(?= (?:\w+ ){1,6}(?:svc|vena cava|cavo-?atrial|carina|atrium|ventricle|stomach)\b)"
    ),
    _OTHER: (
        r"emphysema\w*|\bcopd\b|\bchronic obstructive|\bhyper(?:inflat|expan|aerat)\w+|\bbull(?:a|ae|ous)\b"
        r"|\bgranuloma\w*|\bcalcifi\w+|\bherni\w+|\batheroscler\w+|\bdegenerat\w+|scoliosis|\bkyphosis"
        r"|\bosteopenia|\bdeformit(?:y|ies)\b|\beventration|\bvolume loss|\bbronchiectasis|\bbronchitis|\baspiration\b"
        r"|\bblunt\w+|\bcephali[sz]ation|\bpulmonary (?:arterial )?hypertension|\bcavit(?:y|ies|ation)\b|\bmetasta\w+"
        r"|\bhilar (?:prominence|enlargement|fullness)|\b(?:peri)?bronchial cuffing|\btuberculosis\b"
        r"|\bpneumoperitoneum|\bsarcoid\w*|\bpericardial effusion"
    ),
}
_HARDWARE = r"(?:wires?|leads?|screws?|catheters?|rods?|hardware|pacemaker)"
_UNMEANT = {  # where the words of a finding mean something else
    "Atelectasis": r"\b(?:vertebra\w*|body|bodies|tracheal|airway) collapse|\bcollapse of (?:the )?(?:[tl]\d|vertebra)",
    "Edema": r"\b(?:soft[- ]tissue|subcutaneous|wall|leg|ankle) edema|\bnasal congestion",
    "Fracture": (
        rf"\b{_HARDWARE}(?: (?:is|are|appears?))?(?: \w+ly)? fractur\w+"
        rf"|\bfractur(?:e|es|ed) (?:(?:of|through|in|the|a) )*(?:[\w-]+ ){{0,4}}{_HARDWARE}\b"
    ),
    "Lung Lesion": (
        r"\bcalcifi(?:ed|c) (?:\w+ ){0,2}nodul\w+(?: densit\w+| opacit\w+)?|\bnodul\w+ calcification"
        r"|\bbreast mass(?:es)?|\bmass[- ](?:effect|like)|\b(?:thyroid|adrenal|renal|abdominal) (?:mass|nodule)"
    ),
    "Lung Opacity": (
        r"\b(?:bony|osseous|sclerotic|metallic) opacit\w+|\bsurgical scar\w*|\bpleur\w*(?:[-/ ]?parenchymal)? scar\w*"
        r"|\bscar\w+ of the (?:\w+ )?pleura|\bnormal (?:\w+ ){0,2}markings"
        r"|\bmarkings (?:is|are|appears?)(?: \w+ly)? (?:normal|unremarkable|within)"
    ),
    "Pleural Effusion": r"(?<!pleural or )(?<!pleural and )\bpericardial effusions?|\b(?:joint|knee|elbow) effusions?",
    "Pleural Other": r"\bcystic fibrosis",
    "Pneumonia": (
        r"\b(?:prior|previous|old|remote|past"
        r"|granulomatous)(?: (?:granulomatous|tubercul\w+|histoplasm\w+|fungal|active"
        r"|pulmonary|healed)){0,4} (?:infections?|pneumonias?)"
    ),
    "Support Devices": (
        r"\b(?:pleural|b|lung|suture|septal|fracture|fissural|mid\w*|visceral|skin|joint) lines?"
        r"|\b(?:end|growth)[- ]?plates?|\bplate[- ]like|\bb-lines|\bbreast prosthe\w+"
    ),
}
_MENTIONS = {name: re.compile(words) for name, words in _MENTIONS.items()}
_UNMEANT = {name: re.compile(words) for name, words in _UNMEANT.items()}
_HEART_FAILURE = re.compile(r"\bchf\b|\b(?:heart|cardiac|ventricular|congestive) failure")

# Heart and mediastinum are named whether they are normal or not: what is said of them stands in a word of their size.
_SHAPES = r"(?:size|silhouettes?|shadows?|contours?|borders?|outlines?|configuration|structures|width)"
_ORGANS = {
    "Cardiomegaly": re.compile(
        rf"\bheart\b(?! (?:failure|valve|valves|rate|disease|transplant|block)\b)(?: {_SHAPES})?"
        rf"|\bcardiac {_SHAPES}|\bcardiac(?=,? (?:and |hilar )?(?:and )?(?:upper |superior )?(?:mediastin|hilar"
        rf"|aortic))"
    ),
    "Enlarged Cardiomediastinum": re.compile(
        rf"\bcardio(?:-| )?mediastin(?:al|um)\b(?: {_SHAPES})?|(?<!cardio)(?<!cardio-)(?<!cardio )\bmediastinum\b"
        rf"|(?<!cardio)(?<!cardio-)(?<!cardio )\bmediastinal (?:(?:and|aortic|hilar|cardiac|or) ){{0,3}}"
        rf"(?:{_SHAPES}|(?=widening|enlargement|prominence|fullness))"
    ),
}
_SIZES = {
    UNCERTAIN: r"\bborderline\b|\btop[- ](?:of[- ])?normal\b",
    ABSENT: r"\bnormal(?:ly)?\b|\bwithin (?:the )?(?:\w+ ){0,2}limits?\b|\bunremarkable\b|\bnon-?enlarged\b",
    PRESENT: (
        r"\benlarg(?:ed|ement)\b|\bwiden(?:ed|ing)\b|\blarger?\b|\bprominen(?:t|ce)\b|\bfull(?:ness)?\b|\bdilat\w+"
        r"|\bincreased?\b|\babnormal\b|\bglobular\b|\bbig\b"
    ),
    NOT_MENTIONED: r"\bstable\b|\bunchanged\b|\bsimilar\b|\bsame\b",  # the size itself is not said
}
_SIZE = re.compile("|".join(f"({pattern})" for pattern in _SIZES.values()))
_SIZE_CODES = tuple(_SIZES)
_ATTRIBUTE = re.compile(  # what may stand between a word of size and what it is said of: "normal size of the heart"
    rf"(?: and(?= stable| unchanged))? (?:(?:in|of|the|overall|appearance|left|right|stable|mild|mildly"
    rf"|upper|superior|unchanged|{_SHAPES}|cardiac|heart|hilar|aortic|mediastinal),? "
    r"(?:(?:or|and) )?)*"
)
_PREDICATE = re.compile(r"(?<!there )\b(?:is|are|was|were|be|appears?|remains?|within)(?: \w+ly)? $")
_VERB = re.compile(r"\b(?:is|are|was|were|appears?|remains?|demonstrates?|shows?|has|have)\b")
_SUBJECT = re.compile(
    r"\b(?:aort\w+|vascul\w+|arter\w+|pleura\w*|bon[ey]\w*|osseous|trachea\w*|diaphragm\w*|media\w+)\b"
)
_LUNGS = re.compile(r"\blungs?\b")
_PLACE = re.compile(
    r"\b(?:over|overl\w+|behind|above|below|beneath|near|adjacent to|left of|right of|border of"
    r"|posterior to) (?:the )?$"
)

# ---- what is said of them ------------------------------------------------------------------------------------------

_BE = r"(?:is|are|was|were|be|been|has been|have been)"
_LY = r"(?: \w+ly)?"  # entirely, completely, significantly
_SEEN = (
    r"(?:seen|identified|present|noted|evident|visuali[sz]ed|demonstrated|appreciated|detected|observed|apparent"
    r"|visible|found|shown|discerned|recogni[sz]ed)"
)
_GONE = r"(?:resolved|cleared|removed|withdrawn|discontinued|excluded|ruled out)"
_DOUBTED = r"(?:possible|probable|questionable|questioned|suspected|equivocal|considered|less likely)"
_VERBS = r"(?:is|are|was|were|remains?|appears?|has|have|demonstrates?|shows?)"
_NEW = (  # words that begin another finding, unless the list ends in "or"
    r"(?:stable|unchanged|mild|mildly|moderate|minimal|persistent|chronic|improved|improving|decreased|worsening"
    r"|small|low|tiny|trace|this|these)"
)

# Words that say something of findings; at one place of a sentence the first kind that fits counts.
_CUES = {
    "nothing": (  # the words of another kind in them mean nothing here
        r"\b(?:no|without)(?: (?:\w+ly|significant|substantial|appreciable|definite|evident|major|gross|interval|new"
        r"|further"
        r"|short-term|other|relevant|obvious|evidence of))* (?:increase|decrease|worsening|progression|improvement"
        r"|changes?|growth)\b",
        rf"\bnot{_LY} (?:changed|increased|decreased|improved|resolved|cleared|worsened)\b",
        r"\b(?:has|have) not (?:yet )?(?:\w+ly )?(?:resolved|cleared)\b",
        r"\bnot only\b",
        r"\bno doubt\b",
        r"\bnot (?:\w+ )?well (?:seen|visuali[sz]ed|evaluated|assessed)\b",
        r"\b(?:partial|partially|nearly|almost|incomplete|incompletely|near|mostly)(?:[- ]complete(?:ly)?)? "
        rf"(?:resolution|clearing|removal|{_GONE})\b",
        r"\b(?:versus|vs) (?:the )?(?:prior|previous|last|earlier)\b",
    ),
    "doubt_before": (  # of the list before them
        rf"\b(?:should|must|to|needs? to|has to) be{_LY} (?:excluded|ruled out)\b",
        rf"\b(?:can(?:not| not|'t)|could not|may not|not){_LY} be{_LY} (?:excluded|ruled out)\b",
        rf"\b(?:{_BE} )?not{_LY} (?:excluded|ruled out)\b",
        rf"\b(?:may|might|could)(?: also)? be (?:{_SEEN}|there)\b",
        rf"(?<!there )\b{_BE}(?: also| still)?{_LY} {_DOUBTED}\b",
        r"\b(?:is|are|remains?|(?:would|could|may|might) be)(?: also)? (?:an? )?(?:possibility|consideration"
        r"|concern)\b",
        r"\b(?:suspected|possible|questioned|probable)$",
        r"(?<!\bit )\b(?:is|are) (?:difficult|hard) to exclude\b",
    ),
    "unsaid_before": (rf"\b(?:may|might|can|could) not be{_LY} {_SEEN}\b",),
    "unsaid": (  # what follows is not said to be there or not, up to a comma
        r"\bif\b(?: there (?:is|are|remains?)| with)?",
        r"\b(?:history|hx) of\b|\bh/o\b",
        r"\bevaluat\w+\b|\bassess\w*\b|\bscreening for\b|\bcorrelat\w+\b",
        r"\b(?:to|for) (?:identify|detect|look for)\b|\bdetect(?:ing|ion of)\b|\bsensitive\b",
        r"\b(?:to|document|ensure|confirm|until|for|demonstrate)(?: complete| the)* (?:resolution|clearing"
        r"|stability)\b",
        r"\b(?:may|could|can|might) (?:obscure|mask|hide)\b",
    ),
    "doubt": (  # of what follows
        r"\b(?:may|might|could)\b|\bpossib(?:le|ly|ility)\b|\bprobabl[ey]\b|\bquestionabl[ey]\b|\bpresum\w+"
        r"|\bperhaps\b",
        r"\bpotential(?:ly)?\b|\bconceivabl[ey]\b|\bequivocal\b|\bless likely\b|\bdifferential\b|\br/o\b|\?",
        rf"\b(?:can(?:not|'t| not)|could not|do(?:es)? not|not|difficult to|hard to){_LY} (?:exclude|rule out)\b",
        r"\brul(?:e|ing) out\b|\bto exclude\b|\braises?\b|\bin the (?:\w+ )?clinical (?:setting|context)\b",
    ),
    "or_else": (r"\bversus\b|\bvs\b",),
    "weak_doubt": (  # after a negation it is only more of it: "no opacity to suggest pneumonia"
        r"\bsuggest\w*\b|\bsuspici(?:ous|on)\b|\bsuspect(?:ed|s)?\b|\bconcern\w*\b|\bworrisome\b|\bquestion\b",
        r"\bconsider(?:ed|ation)?\b|\bfavor\w*\b|\bborderline\b|\bindeterminate\b",
    ),
    "negated_before": (  # of the list before them
        rf"\b(?:{_BE} )?(?:not|no longer){_LY}(?: (?:\w+ly|be|been|being))? {_SEEN}\b|\b(?:{_BE} )?absent\b",
        rf"\b(?:has|have|had|is|are|was|were"
        rf"|been)(?: (?!nearly|mostly|partial|incomplete)(?:\w+ly|since|interval|now|also|been))* {_GONE}\b",
        rf"\b{_GONE}$",
        r"(?<!there )\b(?:is|are|appears?|considered|felt to be)(?: \w+)? unlikely\b",
        r"(?<=\w): (?:none|no|negative|absent)$|\bnegative$|\b(?:is|are) negative$",
    ),
    "negated": (  # of what follows
        r"\bno longer\b|\bno\b|\bnot\b|\bwithout\b|\bw/o\b|\bnever\b|\bneither\b|\bnor\b|\bunlikely\b",
        r"\bnegative for\b|\b(?:free|clear) of\b|\bclear (?=air|focal )|\babsence of\b|\black(?:s|ing)?\b"
        r"|\brather than\b|\binstead of\b",
        r"\b(?:resolution|removal|clearing|clearance|disappearance)\b|\b(?:resolved|cleared|removed)\b"
        r"|\bexclud(?:es|ing)\b",
        r"\bfail(?:s|ed)? to (?:show|demonstrate|reveal)\b",
    ),
    "end": (
        r"[;()]|\bbut\b|\bhowever\b|\b(?:al)?though\b|\bexcept\b|\b(?:aside|apart) from\b|\bother than\b|\bwhile\b",
        r"\bwhereas\b|\byet\b|\bnevertheless\b",
        r"\bthere(?:'s|(?= (?:is|are|has|have|was|were|may|might|could|remains?|appears?)))\b",
        r"(?<!consistent )(?<!compatible )(?<!associated )(?<!along )(?<!together )\bwith\b",
    ),
    "clause": (  # "no effusion and the heart is enlarged", "no effusion, stable cardiomegaly"
        rf"(?:,| and)(?= (?!or )(?:[\w'/-]+ ){{1,8}}?{_VERBS}\b"
        rf"(?! (?:(?:not|also|\w+ly|been|no longer) )*(?:{_SEEN}|{_GONE}|{_DOUBTED}|absent|negative|unlikely)))",
        rf"(?:,(?: and)?| and)(?= (?:a |the )?{_NEW}\b(?![^;]{{0,80}}\bor\b))",
    ),
    "comma": (r",",),
}
_CUE = re.compile("|".join(f"(?P<{kind}>{'|'.join(patterns)})" for kind, patterns in _CUES.items()))
_NO_CHANGE = re.compile(r"\b(?:no|without)\b[^,;]*\b(?:increase|decrease|worsening|improvement|changes?)\b[^,;]*$")
_OF_LIST_BEFORE = {"doubt_before": UNCERTAIN, "negated_before": ABSENT, "unsaid_before": NOT_MENTIONED}
_LIST_GAP = re.compile(r"(?! (?:with|in|at|on|of|is|are)\b)[ \w-]{0,40}?(?:,| and\b| or\b|/)[ \w,-]{0,40}$")
_OR_GAP = re.compile(r"[ \w/-]{0,40}?(?:\bor\b|/)[ \w/-]{0,40}$")
_REACH = 120  # characters that may stand between an organ and the word of its size
_AFTER = 80  # characters that may stand between a finding and what is said of it afterwards


class _Mention:
    """A finding, or a word of size, at a place of a sentence; code: what is said of it."""

    __slots__ = ("code", "end", "start", "what")

    def __init__(self, match, what):
        (self.start, self.end), self.what, self.code = match.span(), what, NOT_MENTIONED

    def say(self, code):
        """Word of size: "enlarged" is what it is said to be, "normal" stays normal, "stable" says nothing."""
        self.code = code if self.what in _MENTIONS or self.what == PRESENT else self.what


@lru_cache(maxsize=20_000)
def _label_sentence(sentence):
    """A sentence => ((finding, code), ...), a pair a mention."""
    mentions = _mentions(sentence)
    sizes = [_Mention(match, _SIZE_CODES[match.lastindex - 1]) for match in _SIZE.finditer(sentence)]
    ends = _read(sentence, mentions, sizes)
    _leave_alternatives_open(sentence, mentions)
    found = [(mention.what, mention.code) for mention in mentions if mention.code != NOT_MENTIONED]
    if _HEART_FAILURE.search(sentence) and {("Edema", PRESENT), ("Edema", UNCERTAIN)} & set(found):
        found.append(("Cardiomegaly", UNCERTAIN))
    for name, organ in _ORGANS.items():
        found += [(name, code) for code in _organ_codes(sentence, organ, sizes, ends)]
    return tuple(found)


def _mentions(sentence):
    """The mentions of findings in a sentence, from left to right."""
    mentions = []
    for name, words in _MENTIONS.items():
        found = [_Mention(match, name) for match in words.finditer(sentence)]
        if found and name in _UNMEANT:
            spans = [(0, 0), *(match.span() for match in _UNMEANT[name].finditer(sentence))]
            found = [it for it in found if spans[bisect(spans, (it.end,)) - 1][1] <= it.start]
        mentions += found
    return sorted(mentions, key=lambda mention: mention.start)


def _read(sentence, mentions, sizes):
    """Gives each mention and word of size its code, from left to right; returns the places of ends."""
    places = [(cue.start(), 0, cue) for cue in _CUE.finditer(sentence)]
    places += [(thing.start, 1, thing) for thing in (*mentions, *sizes)]
    code, clause, ends = PRESENT, [], []
    for start, is_mention, thing in sorted(places, key=lambda place: place[:2]):
        if is_mention:
            thing.say(code)
            clause.append(thing)
            continue
        kind = thing.lastgroup
        if kind in ("end", "clause"):
            code, clause = PRESENT, []
            if kind == "end":
                ends.append(start)
        elif kind in _OF_LIST_BEFORE:
            _say_of_list(sentence, clause, start, _OF_LIST_BEFORE[kind])
            code, clause = PRESENT, []
        elif kind == "or_else" and code != ABSENT:
            _say_of_list(sentence, clause, start, UNCERTAIN)
            code = UNCERTAIN
        elif (kind == "doubt" and code != NOT_MENTIONED) or (kind == "weak_doubt" and code == PRESENT):
            code = UNCERTAIN
        elif kind == "negated":
            code = ABSENT
        elif kind == "unsaid":
            code = NOT_MENTIONED
        elif kind == "comma" and code == NOT_MENTIONED:
            code = PRESENT
    return ends


def _say_of_list(sentence, clause, place, code):
    """Gives a code to the finding before `place`, and to those that it stands in a list with."""
    findings = (thing for thing in reversed(clause) if thing.what in _MENTIONS)
    nearest = next(findings, clause[-1] if clause else None)  # a word of size, where no finding is named
    end, first = place, True
    for mention in chain([nearest] if nearest else [], findings):
        gap = sentence[mention.end : end]
        if len(gap) > _AFTER or _VERB.search(gap) or not (first or not gap.strip() or _LIST_GAP.match(gap)):
            return
        mention.say(code)
        end, first = min(end, mention.start), False


def _leave_alternatives_open(sentence, mentions):
    """ "Atelectasis or pneumonia", both said to be present: each becomes uncertain."""
    for one, other in pairwise(mentions):
        if not one.code == other.code == PRESENT or one.what == other.what:
            continue
        if not one.end < other.start <= one.end + _AFTER or not _OR_GAP.match(sentence[one.end : other.start]):
            continue
        if not _NO_CHANGE.search(sentence, max(0, one.start - _AFTER), one.start):
            one.code = other.code = UNCERTAIN


def _organ_codes(sentence, organ, sizes, ends):
    """What is said of the size of an organ, a code a mention; nothing where nothing is said."""
    for match in organ.finditer(sentence):
        if _PLACE.search(sentence[max(0, match.start() - 20) : match.start()]):
            continue
        place, before = match.start(), bisect(sizes, match.start(), key=lambda size: size.end)
        code, listed = _attribute(sentence, sizes[max(0, before - 2) : before], place)
        if listed or code in (None, NOT_MENTIONED):
            end = bisect(ends, match.end())
            end = min(ends[end] if end < len(ends) else len(sentence), match.end() + _REACH)
            after = bisect(sizes, end, key=lambda size: size.start)
            code = _predicate(sentence, sizes[before:after], match.end(), code)
        if code is not None:
            yield UNCERTAIN if code == NOT_MENTIONED else code  # said to be stable, not how large


def _attribute(sentence, sizes, place):
    """The code of the words of size that stand before their organ, at `place`, and whether another organ is between.

    None where they are said of something else. "Normal and stable" is normal.
    """
    code, listed = None, False
    for size in reversed(sizes):
        if _PREDICATE.search(sentence[max(0, size.start - 25) : size.start]):
            break
        if place - size.end > _REACH or not _ATTRIBUTE.fullmatch(sentence, size.end, place):
            break
        code, listed = size.code, "," in sentence[size.end : place]
        if code != NOT_MENTIONED:
            break
    return code, listed


def _predicate(sentence, sizes, place, code):
    """The code of the first of the words of size that is said of the organ that ends at `place`; `code` without one."""
    for size in sizes:
        if size.start < place:
            continue
        gap = sentence[place : size.start]
        verb = _VERB.search(gap)
        rest = gap[verb.end() :] if verb else gap
        if _LUNGS.search(gap) or (verb and (_SUBJECT.search(rest) or _VERB.search(rest))):
            break
        if size.what == PRESENT and len(rest.split()) > 3:
            break
        if size.code != NOT_MENTIONED:
            return size.code
        code = size.code
    return code


def labels_of_prompt(text):
    """The label vector that a prompt asks for, (14,) int8: of a sentence of findings its own, else what the rules read."""
    labels = labels_of_sentence(text)
    return label_report(text) if labels is None else labels


def labels_of_sentence(text):
    """The label vector whose sentence a text is, None where it is no such sentence."""
    try:
        return from_prompt(text)
    except InputError:
        return None
