"""The words of chest X-ray reports: how findings are named, what only sounds like one, and how large an organ is.

All patterns read text in lower case with single blanks and plain hyphens (`evaluation.labeler.normalise`). The patterns
of a finding are tried at the start of a word. No Finding has none: it is what is left (evaluation/labeler.py).
"""

import re
from functools import lru_cache, partial

from utils.findings import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN
from utils.report_text import misspells

OTHER = "another abnormality"  # counts against No Finding and is no label of its own

_MENTIONS = {
    "Atelectasis": (r"\w*atelecta\w*", r"collapsed?\b"),
    "Cardiomegaly": (r"cardiomegaly", r"(?:cardiac|atrial|ventricular) enlargement", r"cardiac dilat\w+"),
    "Consolidation": (r"consolidat\w*",),
    "Edema": (
        r"(?:\w+-)?o?edema\w*", r"(?:heart|cardiac|ventricular|early|mild) failure", r"chf\b", r"failure\b",
        r"congestive (?:changes?|failure)", r"congestion\b", r"kerley\b", r"b[- ]lines\b", r"cardiac decompensation",
        r"(?:fluid|volume) overload", r"vascular (?:prominence|indistinctness|engorgement)",
        r"(?:pulmonary|venous|hilar|vessel) engorgement",
        r"engorge(?:d|ment of)(?: the)?(?: \w+)? (?:vessel|vascul|vein)\w*",
        r"prominen(?:t|ce of the)(?: central| pulmonary)+ vascul\w+",
        r"indistinctness of (?:the )?(?:pulmonary )?(?:vessels|vascul\w+)",
    ),
    "Fracture": (r"fractur(?:es?|ed|ing)\b", r"fxs?\b"),
    "Lung Lesion": (
        r"mass(?:es)?\b", r"(?:micro)?nodul(?:es?|arity)\b", r"carcinomas?\b", r"neoplas\w+", r"tumou?rs?\b",
        r"malignancy\b", r"nodular (?:\w+ )?(?:opaci\w+|densit\w+|infiltrat\w+|lesions?|focus|foci|shadows?)",
        r"(?:lung|pulmonary|parenchymal|cavitary|cavitating|spiculated|coin|pleural[- ]based) lesions?\b",
        r"(?:lung|bronchogenic|pulmonary|lobe|hilar) (?:cancer|malignan\w+)", r"(?:lung|pulmonary) metasta\w+",
    ),
    "Lung Opacity": (
        r"opaci(?:ty|ties|fications?)\b", r"infiltrat(?:es?|ions?|ive)\b", r"scar(?:s|ring|red)?\b",
        r"air-? ?space (?:disease|process|change|shadow)(?:s|ing)?", r"ground[- ]glass", r"ggos?\b",
        r"interstitial (?:\w+ )?(?:markings?|patterns?|lung|diseases?|densit\w+|changes?|thickening|prominence)\b",
        r"(?:increased|prominent|coarse\w*|thickened|abnormal|chronic) (?:\w+ )?"
        r"(?:lung|pulmonary|perihilar|basilar|bronchovascular) markings?",
        r"(?:lung|pulmonary|bronchovascular) markings (?:is|are|appears?)(?: \w+ly)? (?:increased|prominent|coarse\w*"
        r"|thickened|accentuated)", r"reticul(?:ar|ations?|onodular)\b", r"(?:peri)?bronchial (?:wall )?thickening",
        r"(?:increased|hazy|patchy|streaky|linear|basilar|parenchymal|alveolar|ill-defined|vague|lung) densit(?:y"
        r"|ies)\b", r"(?:patchy|alveolar|interstitial|bas(?:al|ilar)|hazy|reticular) shadows\b", r"shadowing\b",
    ),
    "Pleural Effusion": (
        r"\w*effusions?\b", r"pleural (?:(?!air)\w+ )?(?:fluid|collections?)\b", r"empyema",
        r"(?:hydro|ha?emo)-?(?:pneumo)?thora(?:x|ces)\b",
    ),
    "Pleural Other": (
        r"pleural(?:[- /]based|[-/ ]?parenchymal)? ?(?:thickening|scar\w*|plaques?|calcifications?|reaction|fibrosis)",
        r"pleuro-?parenchymal (?:scar\w*|thickening)", r"(?:thickening|scarring) of the (?:\w+ )?pleura",
        r"plaques?\b(?= (?:\w+ ){0,3}pleura)", r"(?:bi)?apical (?:cap\w*|thickening)", r"fibrothorax", r"fibrosis\b",
        r"pleural other\b",
    ),
    "Pneumonia": (
        r"\w*pneumonias?\b", r"infect(?:ions?|ious|ive)\b", r"pna\b",
        r"pneumonic (?:infiltrat|process|consolidat|change|opaci|focus)\w*",
    ),
    "Pneumothorax": (r"\w*pneumothora(?:x|ces|xes)\b", r"ptx\b", r"pnx\b", r"pleural air\b"),
    "Support Devices": (
        r"(?:\w+-)?tubes?\b", r"lines\b", r"picc\b", r"ports?\b", r"port-?a-?cath\w*", r"(?:medi|infusa)ports?\b",
        r"\w*catheters?\b", r"(?:perma?|vas)-?cath\w*", r"hickman\b", r"groshong\b", r"pigtail\b",
        r"(?:central|venous|arterial|ij|jugular|subclavian|femoral|dialysis|access|picc) (?:\w+ )?line\b", r"swan\b",
        r"line (?:placement|insertion|removal|tip)", r"sheaths?\b", r"loop recorder", r"ppm\b", r"trach\b",
        r"pace-?makers?\b", r"pacers?\b", r"pacing\b", r"a?icds?\b", r"defibrillators?\b", r"generator\b",
        r"stimulator\w*", r"leads?\b(?= (?:\w+ ){0,6}(?:atri|ventric))", r"devices?\b", r"support apparatus",
        r"tracheostomy\b",
        r"(?:prosthe\w+|mechanical|replacement|bioprosthetic|artificial|replaced|porcine) (?:\w+ )?valves?\b",
        r"valves? (?:replacement|prosthe\w+|repair)", r"valvular prosthe\w+", r"annuloplasty",
        r"prosthe(?:sis|ses|tic)\b", r"hardware\b", r"arthroplast\w+", r"screws?\b", r"plates?\b", r"fixation\b",
        r"(?:e|n|o)tt\b", r"(?:n|o)gt\b", r"cv[cl]\b", r"dobb?hoff\b", r"cannula\w*", r"drains?\b", r"lvad\b",
        r"impella\b", r"balloon pump", r"iabp\b", r"ecmo\b", r"coils?\b", r"shunt tubing",
        r"tips?\b(?= (?:\w+ ){1,6}(?:svc|vena cava|cavo-?atrial|carina|atrium|ventricle|stomach)\b)",
    ),
    OTHER: (
        r"\w*emphysema\w*", r"copd\b", r"chronic obstructive", r"hyper(?:inflat|expan|aerat)\w+", r"bull(?:a|ae|ous)\b",
        r"granuloma\w*", r"calcifi\w+", r"herni\w+", r"atheroscler\w+", r"degenerat\w+", r"\w*scoliosis", r"kyphosis",
        r"osteopenia", r"deformit(?:y|ies)\b", r"eventration", r"volume loss", r"bronchiectasis", r"bronchitis",
        r"aspiration\b", r"blunt\w+", r"cephali[sz]ation", r"pulmonary (?:arterial )?hypertension",
        r"cavit(?:y|ies|ation)\b", r"metasta\w+", r"hilar (?:prominence|enlargement|fullness)",
        r"(?:peri)?bronchial cuffing", r"tuberculosis\b", r"pneumoperitoneum", r"sarcoid\w*", r"pericardial effusion",
    ),
}  # fmt: skip

_HARDWARE = r"(?:wires?|leads?|screws?|catheters?|rods?|hardware|pacemaker)"
_BE = r"(?:is|are|was|were|appears?|represents?|may represent|may be|could be)"
_UNMEANT = {  # where the words of a finding mean something else
    "Atelectasis": (
        r"(?:vertebra\w*|body|bodies|tracheal|airway) collapse", r"collapse of (?:the )?(?:[tl]\d|vertebra)",
    ),
    "Edema": (
        r"(?:soft[- ]tissue|subcutaneous|wall|leg|ankle) o?edema", r"nasal congestion",
        r"engorgement (?:is|are|appears?) (?:within|normal|not)", r"failure (?:to|of)\b",
        r"(?:respiratory|ventilatory|renal|kidney|liver|hepatic|lead|device|hardware) failure",
    ),
    "Fracture": (
        rf"{_HARDWARE}(?: (?:is|are|appears?))?(?: \w+ly)? fractur\w+",
        rf"fractur(?:e|es|ed) (?:(?:of|through|in|the|a) )*(?:[\w-]+ ){{0,4}}{_HARDWARE}\b",
    ),
    "Lung Lesion": (
        r"(?<!partially )(?<!partly )calcifi(?:ed|c) (?:(?!and\b|or\b|with\b|in\b|of\b)\w+ ){0,2}nodul\w+"
        r"(?: densit\w+| opacit\w+)?", r"nodul\w+ calcification",
        r"nodul\w+(?: \w+){0,6}? (?:is|are|was|were|appears?|has|have)(?: (?!probab|possib|part)\w+ly| also| now)?"
        r" calcified\b", r"nodul\w+,? (?:which|that) (?:is|are|appears?)(?: \w+ly)? calcified\b",
        r"nodul\w+(?: \w+){0,6}?,? (?:(?:is|are|represents?|reflects?|likely|consistent with|compatible with"
        r"|correspond(?:s|ing)? to|due to|from|the|a|both|bilateral|most|representing|reflecting) )+"
        r"(?:nipples?(?: shadows?)?|art[ei]facts?)\b", r"nipple (?:shadows? )?(?:or |versus )?nodul\w+",
        r"breast mass(?:es)?", r"mass[- ](?:effect|like)", r"(?:thyroid|adrenal|renal|abdominal) (?:mass|nodule)",
    ),
    "Lung Opacity": (
        r"(?:bony|osseous|sclerotic|metallic) opacit\w+", r"(?<!post )(?<!post-)surgical scar\w*",
        r"(?:breast|nipple) shadowing", r"pleur\w*(?:[-/ ]?parenchymal)? scar\w*", r"scar\w+ of the (?:\w+ )?pleura",
        r"normal (?:\w+ ){0,2}markings", r"markings (?:is|are|appears?)(?: \w+ly)? (?:normal|unremarkable|within)",
    ),
    "Pleural Effusion": (
        r"(?<!pleural or )(?<!pleural and )pericardial effusions?", r"(?:joint|knee|elbow) effusions?",
    ),
    "Pleural Other": (r"cystic fibrosis",),
    "Pneumonia": (
        r"(?:prior|previous|old|remote|past|granulomatous)(?: (?:granulomatous|tubercul\w+|histoplasm\w+|fungal|active"
        r"|pulmonary|healed)){0,4} (?:infections?|pneumonias?)",
    ),
    "Support Devices": (
        r"(?:pleural|b|lung|suture|septal|fracture|fissural|mid\w*|visceral|skin|joint) lines?",
        r"(?:end|growth)[- ]?plates?", r"plate[- ]like", r"b-lines", r"breast prosthe\w+",
    ),
}  # fmt: skip


def _any_of(patterns):
    return re.compile(rf"\b(?:{'|'.join(patterns)})")


MENTIONS = {name: _any_of(patterns) for name, patterns in _MENTIONS.items()}
UNMEANT = {name: _any_of(patterns) for name, patterns in _UNMEANT.items()}
HEART_FAILURE = re.compile(r"\bchf\b|\b(?:heart|cardiac|ventricular|congestive) failure")

# ---- organs ----------------------------------------------------------------------------------------------------------

# Heart and mediastinum are named whether they are normal or not: what is said of them stands in a word of their size.
_SHAPES = r"(?:size|silhouettes?|shadows?|contours?|borders?|outlines?|configuration|structures|width|diameter)"
_NOT_CARDIO = r"(?<!cardio)(?<!cardio-)(?<!cardio )"
ORGANS = {
    "Cardiomegaly": re.compile(
        rf"\bheart\b(?! (?:failure|valve|valves|rate|disease|transplant|block)\b)(?: {_SHAPES})?"
        rf"|\b(?:cardiac|(?:cardio-?)?pericardial) {_SHAPES}"
        r"|\bcardiac(?=,? (?:and |hilar )?(?:and )?(?:upper |superior )?(?:mediastin|hilar|aortic))"
        r"|\b(?:cardio-?thoracic|ct) ratio|\bctr\b"
    ),
    "Enlarged Cardiomediastinum": re.compile(
        rf"\bcardio(?:-| )?mediastin(?:al|um)\b(?: {_SHAPES})?|{_NOT_CARDIO}\bmediastinum\b"
        rf"|{_NOT_CARDIO}\bmediastinal (?:(?:and|aortic|hilar|cardiac|or) ){{0,3}}"
        rf"(?:{_SHAPES}|(?=widening|enlargement|prominence|fullness))"
    ),
}
_SIZES = {  # the code that a word of size stands for; the first that fits counts
    UNCERTAIN: r"borderline\b|top[- ](?:of[- ])?normal\b"
    r"|normal (?:to|or|versus) (?:(?:top|upper|at|the|limits?|of|slightly|mildly|minimally|borderline|mild) )*"
    r"(?:enlarged|prominent|increased|enlargement|cardiomegaly)\b",
    ABSENT: r"normal(?:ly)?\b|within (?:the )?(?:\w+ ){0,2}limits?\b|unremarkable\b|non-?enlarged\b",
    PRESENT: r"enlarg(?:ed|ement)\b|widen(?:ed|ing)\b|larger?\b|prominen(?:t|ce)\b|full(?:ness)?\b|dilat\w+"
    r"|increased?\b|abnormal\b(?! configuration)|globular\b|big\b",
    NOT_MENTIONED: r"stable\b|unchanged\b|similar\b|same\b",  # the size itself is not said
}
SIZE = re.compile("|".join(rf"\b({pattern})" for pattern in (f"(?:{words})" for words in _SIZES.values())))
SIZE_CODES = tuple(_SIZES)  # of the groups of SIZE
ATTRIBUTE = re.compile(  # what may stand between a word of size and what it is said of: "normal size of the heart"
    rf"(?: and(?= stable| unchanged))? (?:(?:in|of|the|overall|appearance|left|right|stable|mild|mildly|upper|superior"
    rf"|unchanged|{_SHAPES}|cardiac|heart|hilar|aortic|mediastinal),? (?:(?:or|and) )?)*"
)

# ---- spelling --------------------------------------------------------------------------------------------------------

_TERMS = (
    "atelectasis", "atelectatic", "calcified", "cardiac", "cardiomediastinal", "cardiomegaly", "catheter", "congestion",
    "consolidation", "consolidations", "effusion", "effusions", "emphysema", "endotracheal", "enlarged", "enlargement",
    "fracture", "fractures", "granuloma", "infection", "infiltrate", "infiltrates", "interstitial", "mediastinal",
    "mediastinum", "nodule", "nodules", "opacification", "opacities", "opacity", "pacemaker", "pericardial", "pleural",
    "pneumonia", "pneumothorax", "pneumothoraces", "pulmonary", "silhouette", "thickening", "tracheostomy", "vascular",
)  # fmt: skip
_WELL_SPELT = re.compile(
    "|".join(f"(?:{pattern.pattern})" for pattern in MENTIONS.values())
    + r"|\b(?:pneumonic|nodular|cardio(?:thoracic|pulmonary|vascular|respiratory|mediastinum|phrenic)|cardia"
    r"|mediastinitis|enlarg(?:es?|ed|ing)|calcif(?:y|ying|ic|ications?)|thicken(?:s|ed)?|engorg\w+|pleura|plural"
    r"|silhouettes|interstitium|opacify|injections?|vascul\w+)\b"
)
_undoubled = partial(re.compile(r"(.)\1").sub, r"\1")  # "efussion" => "efusion"
_LONG = 11  # letters of a word of which two may be wrong
_SHORT_FORMS = {  # abbreviations, and what is too short to be compared with the terms
    "edma": "edema", "edmea": "edema", "eodema": "edema", "edeama": "edema", "edmema": "edema", "masss": "mass",
    "abn": "abnormal", "atx": "atelectasis", "cmg": "cardiomegaly", "consol": "consolidation", "infil": "infiltrate",
    "neg": "negative", "nl": "normal", "poss": "possible", "prob": "probable", "susp": "suspected", "sz": "size",
    "wnl": "within normal limits", "c/w": "consistent with", "d/t": "due to", "s/o": "suggestive of", "w/": "with",
    "w/o": "without",
}  # fmt: skip
_WORD = re.compile(r"(?<![\w/])(?:[cs]/[wo]|d/t|w/o)(?![\w/])|(?<![\w/])w/|[a-z]{2,}")


def well_spelt(text):
    """A text in lower case with its words as `_corrected` spells them, and a blank after "w/"."""
    return _WORD.sub(lambda word: _corrected(word[0]) + " " * (word[0] == "w/"), text)


@lru_cache(maxsize=50_000)
def _corrected(word):
    """A word of a report => the medical term that it misspells by a letter (two of a long word), or the word itself."""
    if len(word) < 6:
        return _SHORT_FORMS.get(word, word)
    if word in _TERMS or _WELL_SPELT.fullmatch(word):
        return word
    for term in _TERMS:
        if word[0] == term[0] and misspells(_undoubled(word), _undoubled(term), 2 if len(term) >= _LONG else 1):
            return term
    return word
