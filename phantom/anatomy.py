"""What is drawn: a patient's anatomy, and the findings of a study with their place, size and visibility.

Lengths are in body coordinates: x runs from -1 (image left, the patient's right) to 1, y from -1 (neck) to 1 (abdomen).
"""

import dataclasses

import numpy as np

from utils import findings as cxr

SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is at the image's left
ZONES = {"upper": -0.32, "mid": 0.0, "lower": 0.3}  # y of a zone's middle
MASS_EXTENT = 0.6  # a lung lesion larger than this is one mass, not nodules
_KINDS = {  # looks of a finding that has several, the usual one twice
    "Fracture": ("rib", "rib", "clavicle"),
    "Pleural Other": ("thickening", "thickening", "cap", "plaque"),
    "Support Devices": ("pacemaker", "lines"),
}
_ZONES_OF = {  # where a finding, or a kind of one, lies if not everywhere
    "Atelectasis": ("lower",), "Pleural Effusion": ("lower",), "Pleural Other": ("mid",), "Pneumonia": ("mid", "lower"),
    "Pneumothorax": ("upper",), "rib": ("mid",), "clavicle": ("upper",), "cap": ("upper",),
}  # fmt: skip
# the zones that a finding takes, if not its own alone
_COVERS = {"Pneumonia": ("mid", "lower"), "Pneumothorax": ("upper", "mid"), "Pleural Other": ("upper", "mid")}


def _within(*ranges: tuple[float, float]):
    """A field of Anatomy that is drawn within a range, or several numbers each within its own."""
    return dataclasses.field(metadata={"ranges": ranges})


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What stays the same in all studies of a patient, with the ranges of adults without disease."""

    scale: float = _within((0.93, 1.05))  # size on the film
    tilt: float = _within((-0.04, 0.04))  # radians
    shift: tuple[float, float] = _within((-0.04, 0.04), (-0.03, 0.05))  # (x, y)
    body_width: float = _within((0.86, 0.97))  # half width of the trunk
    lung_width: float = _within((0.69, 0.75))  # from the midline to the chest wall, inside
    apex: float = _within((-0.78, -0.70))  # y of the lungs' tops
    domes: tuple[float, float] = _within((0.45, 0.53), (0.52, 0.59))  # y of the diaphragm's tops, (right, left)
    heart_ratio: float = _within((0.39, 0.46))  # cardiothoracic ratio
    mediastinum: float = _within((0.12, 0.15))  # half width above the heart
    aortic_knob: float = _within((0.07, 0.095))  # radius
    rib_spacing: float = _within((0.145, 0.17))
    rib_offset: float = _within((-0.70, -0.64))  # y of the first posterior rib at the spine
    clavicle_slope: float = _within((0.10, 0.28))
    bubble: float = _within((0.04, 0.10))  # radius of the stomach's gas
    breast: float  # attenuation of the breasts' shadow
    vessel_seed: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding as it is drawn and reported: where it lies, how large and how visible it is."""

    name: str  # one of utils.findings.FINDINGS
    side: str  # "right", "left" or "both"
    zone: str  # "upper", "mid" or "lower"
    kind: str  # "" unless the finding has several looks, e.g. "rib" or "clavicle"
    extent: float  # 0 smallest to 1 largest
    strength: float  # 1 clearly visible; far below for what a report calls possible; 0 not drawn
    seed: int  # of its own irregularities


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """An Anatomy with every measure drawn within its range."""
    measures = {}
    for field in dataclasses.fields(Anatomy):
        if "ranges" in field.metadata:
            drawn = tuple(rng.uniform(*limits) for limits in field.metadata["ranges"])
            measures[field.name] = drawn if len(drawn) > 1 else drawn[0]
    breast = rng.choice([0.0, rng.uniform(0.04, 0.12)])
    return Anatomy(**measures, breast=breast, vessel_seed=int(rng.integers(2**31)))


def random_findings(rng: np.random.Generator) -> tuple[list[Finding], np.ndarray]:
    """The findings of one study: (Findings, labels (14,) int8 in the coding of utils.findings).

    About a quarter of the studies is normal; the others show one to three findings, each of the 13 equally often. No
    Finding is present if nothing but support devices is present or uncertain. An uncertain finding is drawn faintly or
    not at all; those that are reported but not drawn are in the list too, with strength 0.
    """
    pathologies = [name for name in cxr.FINDINGS if name != "No Finding"]
    present, uncertain = [], []
    if rng.random() < 0.24:
        if rng.random() < 0.1:
            present = ["Support Devices"]
    else:
        present = list(rng.choice(pathologies, size=rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]), replace=False))
        rest = [name for name in pathologies if name not in present]
        uncertain = list(rng.choice(rest, size=rng.choice([0, 1, 2], p=[0.6, 0.33, 0.07]), replace=False))
    absent = [name for name in pathologies if name not in present and name not in uncertain]
    often_negated = ("Pneumothorax", "Pleural Effusion", "Consolidation", "Edema", "Cardiomegaly", "Pneumonia")
    weights = np.array([4.0 if name in often_negated else 1.0 for name in absent])
    negated = rng.choice(absent, size=rng.integers(1, 5), replace=False, p=weights / weights.sum())

    labels = np.zeros(len(cxr.FINDINGS), dtype=np.int8)
    for names, code in ((present, cxr.PRESENT), (negated, cxr.ABSENT), (uncertain, cxr.UNCERTAIN)):
        labels[[cxr.finding_index(name) for name in names]] = code
    if not uncertain and set(present) <= {"Support Devices"}:
        labels[cxr.finding_index("No Finding")] = cxr.PRESENT

    taken = set()
    drawn = [place_finding(name, rng.uniform(0.85, 1.1), taken, rng) for name in present]
    drawn += [place_finding(name, rng.choice([0.0, 0.0, 0.25]), taken, rng) for name in uncertain]
    return drawn, labels


def place_finding(name, strength, taken, rng):
    """A Finding of that name in a free place. `taken`: the set of (side, zone) in use, to which its own are added."""
    kind = str(rng.choice(_KINDS.get(name, ("",))))
    zones = _ZONES_OF.get(kind) or _ZONES_OF.get(name, tuple(ZONES))
    places = {
        (side, zone): {(side, covered) for covered in _COVERS.get(name, (zone,))} for side in SIDES for zone in zones
    }
    free = [place for place, covered in places.items() if not taken & covered] or list(places)
    side, zone = place = free[rng.integers(len(free))]
    if name in ("Cardiomegaly", "Edema", "Enlarged Cardiomediastinum"):
        side, zone = "both", "mid"
    elif name == "Support Devices":
        side = str(rng.choice(["right", "left"], p=[0.3, 0.7] if kind == "pacemaker" else [0.7, 0.3]))
    else:
        taken |= places[place]
    return Finding(name, side, zone, kind, rng.random(), float(strength), int(rng.integers(2**31)))


def nodule_count(finding: Finding) -> int:
    """How many lesions are drawn and reported: one mass, or one to three nodules."""
    return 1 if finding.extent > MASS_EXTENT else 1 + finding.seed % 3
