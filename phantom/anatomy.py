"""What is drawn: a patient's anatomy, and the findings of a study with their place, size and visibility.

Lengths are in body coordinates: x runs from -1 (image left, the patient's right) to 1, y from -1 (neck) to 1 (abdomen).
"""

import dataclasses

import numpy as np

from utils import findings as cxr

SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is at the image's left
ZONES = {"upper": -0.32, "mid": 0.0, "lower": 0.3}  # y of a zone's middle
MASS_EXTENT = 0.6  # a lung lesion larger than this is one mass, not nodules


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What stays the same in all studies of a patient. Lengths are in body coordinates, where the image is 2 wide."""

    scale: float  # size on the film
    tilt: float  # radians
    shift: tuple[float, float]  # (x, y)
    body_width: float  # half width of the trunk
    lung_width: float  # from the midline to the chest wall, inside
    apex: float  # y of the lungs' tops
    domes: tuple[float, float]  # y of the diaphragm's tops, (right, left)
    heart_ratio: float  # cardiothoracic ratio
    mediastinum: float  # half width above the heart
    aortic_knob: float  # radius
    rib_spacing: float
    rib_offset: float  # y of the first posterior rib at the spine
    clavicle_slope: float
    bubble: float  # radius of the stomach's gas
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
    """An Anatomy with every measure drawn within the range of adults without disease."""
    return Anatomy(
        scale=rng.uniform(0.93, 1.05),
        tilt=rng.uniform(-0.04, 0.04),
        shift=(rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.05)),
        body_width=rng.uniform(0.86, 0.97),
        lung_width=rng.uniform(0.69, 0.75),
        apex=rng.uniform(-0.78, -0.70),
        domes=(rng.uniform(0.45, 0.53), rng.uniform(0.52, 0.59)),
        heart_ratio=rng.uniform(0.39, 0.46),
        mediastinum=rng.uniform(0.12, 0.15),
        aortic_knob=rng.uniform(0.07, 0.095),
        rib_spacing=rng.uniform(0.145, 0.17),
        rib_offset=rng.uniform(-0.70, -0.64),
        clavicle_slope=rng.uniform(0.10, 0.28),
        bubble=rng.uniform(0.04, 0.10),
        breast=rng.choice([0.0, rng.uniform(0.04, 0.12)]),
        vessel_seed=int(rng.integers(2**31)),
    )


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
        for name in names:
            labels[cxr.finding_index(name)] = code
    if not uncertain and set(present) <= {"Support Devices"}:
        labels[cxr.finding_index("No Finding")] = cxr.PRESENT

    taken = set()
    drawn = [_place(name, rng.uniform(0.85, 1.1), taken, rng) for name in present]
    drawn += [_place(name, rng.choice([0.0, 0.0, 0.25]), taken, rng) for name in uncertain]
    return drawn, labels


def _place(name, strength, taken, rng):
    """A Finding of that name in a free place. `taken`: the set of (side, zone) in use, to which its own are added."""
    kinds = {
        "Fracture": ("rib", "rib", "clavicle"),
        "Pleural Other": ("thickening", "thickening", "cap", "plaque"),
        "Support Devices": ("pacemaker", "lines"),
    }
    kind = str(rng.choice(kinds.get(name, ("",))))
    zones = {
        "Atelectasis": ("lower",),
        "Pleural Effusion": ("lower",),
        "Pneumothorax": ("upper",),
        "Pneumonia": ("mid", "lower"),
        "Fracture": ("mid",) if kind == "rib" else ("upper",),
        "Pleural Other": ("upper",) if kind == "cap" else ("mid",),
    }.get(name, tuple(ZONES))
    covers = {
        "Pneumonia": ("mid", "lower"),
        "Pneumothorax": ("upper", "mid"),
        "Pleural Other": ("upper", "mid"),
    }
    places = [(side, zone) for side in SIDES for zone in zones]
    free = [
        (side, zone) for side, zone in places if not taken & {(side, covered) for covered in covers.get(name, (zone,))}
    ]
    side, zone = (free or places)[rng.integers(len(free or places))]
    if name in ("Cardiomegaly", "Edema", "Enlarged Cardiomediastinum"):
        side, zone = "both", "mid"
    elif name == "Support Devices":
        side = str(rng.choice(["right", "left"], p=[0.3, 0.7] if kind == "pacemaker" else [0.7, 0.3]))
    else:
        taken |= {(side, covered) for covered in covers.get(name, (zone,))}
    return Finding(name, side, zone, kind, rng.random(), float(strength), int(rng.integers(2**31)))


def nodule_count(finding: Finding) -> int:
    """How many lesions are drawn and reported: one mass, or one to three nodules."""
    return 1 if finding.extent > MASS_EXTENT else 1 + finding.seed % 3
