"""A procedural CXR tree: drawn chests with visible findings, and their reports. No patient was ever in front of it.

    python -m utils.phantom --OUTPUT_ROOT demo/phantom --STUDIES 1500 --IMAGE_SIZE 64

Reads:  nothing.
Writes: OUTPUT_ROOT, a CXR tree in MIMIC-CXR-JPG's layout (three CSVs, JPEGs, reports).

A chest is drawn in body coordinates: x runs from -1 (image left, the patient's right) to 1, y from -1 (neck) to 1
(abdomen). Organs are masks with soft edges; their attenuations add up to one thickness, and the film turns that into
brightness by 1 - exp(-thickness), as X-rays are absorbed. Views are PA and AP; no lateral view is drawn.

Every picture hangs on (seed, patient, study, image) alone, so a larger tree holds the pictures of a smaller one.
"""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from utils import findings as cxr
from utils.constants import override_constants
from utils.errors import InputError, run, writing

OUTPUT_ROOT = "demo/phantom"  # folder of the tree that is drawn
STUDIES = 1500  # studies; about 1.3 images and 0.5 patients each
IMAGE_SIZE = 256  # pixels, height and width
SEED = 1234  # same seed, same bytes

_SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is at the image's left
_ZONES = {"upper": -0.32, "mid": 0.0, "lower": 0.3}  # y of a zone's middle
_LUNG, _SOFT_TISSUE, _HEART, _ABDOMEN = 0.30, 1.05, 1.75, 1.75  # attenuation, thickness included; air 0
_MASS_EXTENT = 0.6  # a lung lesion larger than this is one mass, not nodules
_SPLIT_CYCLE = 25  # patients of a group after which the splits repeat: 20 train, 2 validate, 3 test
_TEST_PLACES, _VALIDATE_PLACES = (0, 9, 17), (5, 22)


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What a patient keeps from study to study. Lengths in body coordinates, where the image is 2 wide."""

    scale: float  # size on the film
    tilt: float  # radians
    shift: tuple  # (x, y)
    body_width: float  # half width of the trunk
    lung_width: float  # from the midline to the chest wall, inside
    apex: float  # y of the lungs' tops
    domes: tuple  # y of the diaphragm's tops, (right, left)
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
    """One finding as it is drawn and told: where it lies, how large, how plainly it shows."""

    name: str  # out of utils.findings.FINDINGS
    side: str  # "right", "left" or "both"
    zone: str  # "upper", "mid" or "lower"
    kind: str  # "" unless the finding has several looks, e.g. "rib" or "clavicle"
    extent: float  # 0 smallest to 1 largest
    strength: float  # 1 plain; well below that for what a report calls possible
    seed: int  # of its own irregularities


def random_anatomy(rng):
    """An Anatomy, every measure drawn within the range of adults without disease."""
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


def random_findings(rng):
    """What one study shows and says: (findings to draw, labels (14,) int8 in the coding of utils.findings).

    About a quarter of the studies is normal; the others show one to three findings, each of the 13 equally often. No
    Finding is present where nothing but support devices is present or uncertain. An uncertain finding is drawn faintly
    or not at all; those that are told but not drawn are in the list too, with strength 0.
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


def random_chest(rng, image_size):
    """A chest of a patient never seen before: (image (H, W) uint8, labels (14,) int8, report str)."""
    anatomy = random_anatomy(rng)
    drawn, labels = random_findings(rng)
    view = str(rng.choice(["PA", "AP"], p=[0.7, 0.3]))
    image = draw_chest(anatomy, drawn, view, image_size, int(rng.integers(2**31)))
    return _to_bytes(image), labels, write_report(drawn, labels, rng)


def _place(name, strength, taken, rng):
    """A Finding of that name where `taken`, a set of (side, zone), leaves room; what it covers is added to `taken`."""
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
    }.get(name, tuple(_ZONES))
    covers = {
        "Pneumonia": ("mid", "lower"),
        "Pneumothorax": ("upper", "mid"),
        "Pleural Other": ("upper", "mid"),
    }
    places = [(side, zone) for side in _SIDES for zone in zones]
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


# ---------------------------------------------------------------------------------------------- drawing


def draw_chest(anatomy, drawn, view, image_size, seed):
    """A chest film as (image_size, image_size) float32 in [0, 1].

    anatomy: an Anatomy; drawn: Findings (those of strength 0 leave no trace); view: "PA" or "AP"; seed: of pose,
    exposure and film noise, which do not depend on the findings, so two films of one seed differ by findings alone.
    """
    if view not in ("PA", "AP"):
        raise InputError(f"view {view!r} cannot be drawn; the phantom's views are PA and AP")
    rng = np.random.default_rng(seed)
    drawn = [finding for finding in drawn if finding.strength > 0]
    by_name = {finding.name: finding for finding in drawn}
    anatomy = _as_seen(anatomy, by_name, view)
    canvas = _Canvas(anatomy, image_size, rng)
    lungs = {side: _Lung(canvas, anatomy, side) for side in _SIDES}

    film = _trunk(canvas, anatomy)
    body = np.clip(film / 0.4, 0, 1)
    for lung in lungs.values():
        inside = _LUNG + 0.08 * np.clip(canvas.y + 0.4, 0, 1) + 0.15 * np.clip(1 - lung.to_wall / 0.12, 0, 1)
        film += lung.abdomen * (_ABDOMEN - film)
        film += lung.mask * (inside - film)
    film += _breasts(canvas, anatomy)
    film += _vessels(canvas, anatomy, lungs, by_name)
    for finding in drawn:
        if finding.name in _LUNG_FINDINGS:
            for side in _SIDES if finding.side == "both" else (finding.side,):
                film += finding.strength * lungs[side].mask * _LUNG_FINDINGS[finding.name](canvas, lungs[side], finding)
    if "Pneumothorax" in by_name:
        finding = by_name["Pneumothorax"]
        film = _pneumothorax(canvas, film, lungs[finding.side], finding)

    heart = _mediastinum(canvas, anatomy)
    film += heart * (np.maximum(film, _HEART) - film)
    film -= _trachea(canvas)
    film -= _stomach_gas(canvas, anatomy)
    film += _spine(canvas)
    film += _ribs(canvas, anatomy, by_name.get("Fracture"))
    film += body * _shoulders(canvas, anatomy, view, by_name.get("Fracture"))
    if "Support Devices" in by_name:
        film += by_name["Support Devices"].strength * _devices(canvas, anatomy, by_name["Support Devices"])
    return _expose(canvas, film, view, rng)


def _as_seen(anatomy, by_name, view):
    """The anatomy as this study and view show it: AP magnifies heart and diaphragm, findings reshape it."""
    heart_ratio, mediastinum, domes = anatomy.heart_ratio, anatomy.mediastinum, list(anatomy.domes)
    if "Cardiomegaly" in by_name:
        finding = by_name["Cardiomegaly"]
        heart_ratio += finding.strength * (0.60 + 0.10 * finding.extent - heart_ratio)
    if "Enlarged Cardiomediastinum" in by_name:
        finding = by_name["Enlarged Cardiomediastinum"]
        mediastinum += finding.strength * (0.29 + 0.09 * finding.extent - mediastinum)
    if view == "AP":
        heart_ratio, mediastinum = 1.05 * heart_ratio, 1.12 * mediastinum
        domes = [dome - 0.05 for dome in domes]
    if "Atelectasis" in by_name:
        finding = by_name["Atelectasis"]
        domes[finding.side == "left"] -= finding.strength * (0.20 + 0.10 * finding.extent)
    return dataclasses.replace(anatomy, heart_ratio=heart_ratio, mediastinum=mediastinum, domes=tuple(domes))


class _Canvas:
    """Body coordinates of every pixel, and strokes in them. Small images are drawn at twice their size."""

    def __init__(self, anatomy, image_size, rng):
        self.image_size = image_size
        self.size = image_size * (2 if image_size <= 128 else 1)
        self.pixel = 2 / self.size  # length of a pixel, body coordinates
        tilt = anatomy.tilt + rng.normal(0, 0.012)
        scale = anatomy.scale * rng.uniform(0.985, 1.015)
        self.turn = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])  # body => film
        self.shift = np.array(anatomy.shift) + rng.normal(0, 0.012, size=2)
        centres = np.linspace(-1 + self.pixel / 2, 1 - self.pixel / 2, self.size)
        film = np.stack(np.meshgrid(centres, centres)).reshape(2, -1) - self.shift[:, None]
        body = np.linalg.solve(self.turn, film).astype(np.float32)
        self.x, self.y = body.reshape(2, self.size, self.size)  # (S, S) each

    def edge(self, distance, softness=0.012):
        """0 outside (distance < 0) to 1 inside, over `softness` but never less than a pixel; (S, S)."""
        return np.clip(0.5 + distance / max(softness, self.pixel), 0, 1)

    def strokes(self, paths):
        """Lines drawn anti-aliased: paths holds (points (N, 2), width, brightness 0..1); (S, S) in [0, 1]."""
        picture = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(picture)
        for points, width, brightness in paths:
            # body => pixels of the picture at twice the size
            on_film = (np.asarray(points) @ self.turn.T + self.shift + 1) * self.size
            pixels = max(1, round(width * self.size))
            pen.line([tuple(point) for point in on_film], fill=round(255 * brightness), width=pixels, joint="curve")
        return np.asarray(picture.reduce(2), dtype=np.float32) / 255

    def disc(self, x, y, radius, softness=0.02):
        """A disc with an edge of that softness; (S, S) in [0, 1]."""
        return self.edge(radius - np.hypot(self.x - x, self.y - y), softness)

    def cloud(self, x, y, width, height):
        """A Gaussian blob; (S, S) in [0, 1]."""
        return np.exp(-(((self.x - x) / width) ** 2) - ((self.y - y) / height) ** 2)

    def texture(self, rng, cells):
        """Smooth random relief of so many cells across, about unit variance; (S, S)."""
        coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC))


class _Lung:
    """One lung's outline. across: distance from the midline; to_wall: from the lateral wall inwards; (S, S) each."""

    def __init__(self, canvas, anatomy, side):
        self.side = side
        self.sign = _SIDES[side]
        self.apex = anatomy.apex
        self.dome = anatomy.domes[side == "left"]
        self.width = anatomy.lung_width
        self.across = self.sign * canvas.x
        inner, outer = self.borders(canvas.y)
        self.floor = self.dome + 0.17 * (np.abs(self.across - 0.33) / 0.37) ** 2.3  # y of the diaphragm
        self.to_wall = outer - self.across
        self.from_midline = self.across - inner
        depth = np.minimum(np.minimum(self.to_wall, self.from_midline), canvas.y - self.apex)
        self.mask = canvas.edge(depth, 0.03) * canvas.edge(self.floor - canvas.y, 0.02)
        beside = canvas.edge(self.across, 0.02) * canvas.edge(anatomy.body_width - 0.06 - self.across, 0.1)
        self.abdomen = beside * canvas.edge(canvas.y - self.floor, 0.02)

    def borders(self, y):
        """How far from the midline the lung begins and ends at height y."""
        rise = np.clip((0.12 - y) / (0.12 - self.apex), 0, 1)
        half = (self.width - 0.06) / 2 * np.sqrt(1 - rise**2.6)
        centre = (self.width + 0.06) / 2 - 0.11 * rise**1.5
        return centre - half, centre + half + 0.03 * np.clip(y - 0.12, 0, 1)


def _trunk(canvas, anatomy):
    """Soft tissue of neck, shoulders and trunk; (S, S) attenuation, 0 in the air around the patient."""
    width = anatomy.body_width
    heights = [-1.3, -1.0, -0.93, -0.87, -0.81, -0.74, -0.64, -0.5, -0.3, 0.3, 1.3]
    widths = [0.25, 0.27, 0.33, 0.46, 0.68, 0.90, 1.02, 1.05, width + 0.02, width, width + 0.03]
    outline = np.interp(canvas.y, heights, widths).astype(np.float32)
    across = np.abs(canvas.x)
    thickness = np.sqrt(np.clip(1 - (across / outline) ** 6, 0, 1))
    return canvas.edge(outline - across, 0.03) * _SOFT_TISSUE * (0.45 + 0.55 * thickness)


def _breasts(canvas, anatomy):
    """Faint shadows over both lower zones, clearer below than above; (S, S)."""
    across = np.abs(canvas.x) - 0.42
    return anatomy.breast * canvas.edge(0.27 - np.hypot(across, (canvas.y - 0.28) / 1.05), 0.12)


def _vessels(canvas, anatomy, lungs, by_name):
    """Hila and the branching vessels, thick in edema, confined to the lungs; (S, S)."""
    rng = np.random.default_rng(anatomy.vessel_seed)
    edema = by_name["Edema"].strength if "Edema" in by_name else 0.0
    paths, hila = [], np.zeros_like(canvas.x)
    for side, sign in _SIDES.items():
        hilum = np.array([0.19 * sign, -0.06 if side == "right" else -0.10])
        hila += 0.30 * canvas.cloud(*hilum, 0.075, 0.13)
        for angle in np.linspace(-1.25, 1.35, 8) + rng.normal(0, 0.08, 8):
            _branch(paths, rng, hilum, angle, sign, length=0.20, width=0.026 * (1 + edema), depth=3)
    field = 0.22 * canvas.strokes(paths) * (1 + 0.8 * edema) + hila
    return field * (lungs["right"].mask + lungs["left"].mask)


def _branch(paths, rng, start, angle, sign, length, width, depth):
    """Appends one vessel and, recursively, the two it forks into."""
    middle = start + 0.5 * length * np.array([sign * np.cos(angle), np.sin(angle)])
    bent = angle + rng.normal(0, 0.2)
    end = middle + 0.5 * length * np.array([sign * np.cos(bent), np.sin(bent)])
    paths.append(((start, middle, end), width, 0.35 + 0.2 * depth))
    if depth > 1:
        for turn in (-0.35, 0.35):
            _branch(paths, rng, end, bent + turn + rng.normal(0, 0.12), sign, 0.75 * length, 0.62 * width, depth - 1)


def _mediastinum(canvas, anatomy):
    """Heart, great vessels and aortic knob as one silhouette; (S, S) in [0, 1]."""
    x, y = canvas.x, canvas.y
    span = 2 * anatomy.lung_width * anatomy.heart_ratio  # transverse diameter of the heart
    right, left = -0.32 * span, 0.68 * span
    floor = max(anatomy.domes) + 0.03
    top, middle = floor - 0.62 - 0.28 * span, floor - 0.10 - 0.13 * span
    # each border bulges from the great vessels above to its widest place and turns in towards the diaphragm
    bulge = np.where(y < middle, np.clip((y - top) / (middle - top), 0, 1), np.clip(1 - (y - middle) / 0.55, 0, 1))
    bulge = bulge * bulge * (3 - 2 * bulge)
    waist_right, waist_left = -min(0.11, anatomy.mediastinum), min(0.12, anatomy.mediastinum)
    slanted = np.where(y < middle, bulge**1.1, bulge)
    heart = np.minimum(
        x - (waist_right + (right - waist_right) * bulge), waist_left + (left - waist_left) * slanted - x
    )
    above, below = np.clip((-0.42 - y) / 0.35, 0, 1), np.clip((y + 0.12) / 0.5, 0, 1)
    narrowing = (1 - 0.45 * above**2) * (1 - 0.9 * below**2 * (3 - 2 * below))  # to the neck, and behind the heart
    vessels = anatomy.mediastinum * narrowing - np.abs(x - 0.01)
    knob_x = anatomy.mediastinum - 0.02
    silhouette = np.maximum(heart, vessels)
    silhouette = np.maximum(silhouette, anatomy.aortic_knob - np.hypot(x - knob_x, y + 0.27))
    return canvas.edge(silhouette, 0.035)


def _trachea(canvas):
    """The air column down to the carina and the two main bronchi; (S, S), to be taken away."""
    bronchi = canvas.strokes(
        [
            (((0.0, -1.2), (0.0, -0.6), (-0.01, -0.22)), 0.075, 1.0),
            (((-0.01, -0.22), (-0.13, -0.10)), 0.05, 0.7),
            (((-0.01, -0.22), (0.15, -0.12)), 0.05, 0.7),
        ]
    )
    return 0.45 * bronchi


def _stomach_gas(canvas, anatomy):
    """The gastric bubble under the left dome; (S, S), to be taken away."""
    top = anatomy.domes[1] + 0.07 + 0.6 * anatomy.bubble
    distance = 1 - np.hypot((canvas.x - 0.33) / (1.7 * anatomy.bubble), (canvas.y - top) / (0.8 * anatomy.bubble))
    return 0.8 * canvas.edge(distance, 0.4)


def _spine(canvas):
    """Vertebral bodies, seen through the mediastinum; (S, S)."""
    column = canvas.edge(0.075 - np.abs(canvas.x), 0.03)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * canvas.y / 0.125)
    return column * (0.16 + 0.14 * np.sqrt(discs)) * np.clip(1.3 - 0.4 * canvas.y, 0, 1.6)


def _ribs(canvas, anatomy, fracture):
    """Posterior ribs and fainter anterior ones, broken where a rib fracture lies; (S, S).

    All ribs of a side are one field: the height above the nearest rib's curve is periodic in y.
    """
    across, y = np.abs(canvas.x), canvas.y
    rise = np.clip((0.12 - y) / (0.12 - anatomy.apex), 0, 1)
    wall = anatomy.lung_width * (1 - 0.45 * rise**3) + 0.05
    cage = canvas.edge(wall - across, 0.02) * canvas.edge(across - 0.07, 0.03)
    cage = cage * (0.45 + 0.55 * canvas.edge(max(anatomy.domes) + 0.05 - y, 0.15))
    whole, brighter = 1.0, 1.0
    if fracture and fracture.kind == "rib":
        side = _SIDES[fracture.side] * canvas.x
        rng = np.random.default_rng(fracture.seed)
        height = rng.uniform(-0.12, 0.12)
        half = 0.30 + 0.10 * fracture.extent
        reach = canvas.edge(half - np.abs(y - height), 0.10) * canvas.edge(side, 0.02)
        # the break runs across the ribs, aslant
        place = rng.uniform(0.40, 0.50) + 0.25 * (y - height) * rng.choice([-1.0, 1.0])
        step = rng.choice([-1.0, 1.0]) * rng.uniform(0.42, 0.5) * anatomy.rib_spacing
        y = y + fracture.strength * reach * step * canvas.edge(side - place, 0.01)
        whole = 1 - fracture.strength * reach * canvas.edge(0.034 - np.abs(side - place), 0.02)
        ends = np.exp(-(((np.abs(side - place) - 0.065) / 0.05) ** 2))
        brighter = 1 + fracture.strength * reach * (0.5 + 1.6 * ends)
    lateral = np.clip((across - 0.07) / (anatomy.lung_width - 0.07), 0, 1.1)
    posterior = anatomy.rib_offset - 0.055 * np.sin(2.6 * lateral) + 0.17 * lateral**3
    anterior = anatomy.rib_offset + 0.05 + 0.34 * (1.1 - lateral) ** 0.8
    spacing = anatomy.rib_spacing
    from_posterior = np.abs((y - posterior + spacing / 2) % spacing - spacing / 2)
    from_anterior = np.abs((y - anterior + spacing / 2) % spacing - spacing / 2)
    band = canvas.edge(0.030 - from_posterior, 0.025) * (0.75 + 0.25 * (from_posterior / 0.03).clip(0, 1))
    front = canvas.edge(0.034 - from_anterior, 0.03) * canvas.edge(lateral - 0.42, 0.15)
    below_first = canvas.edge(y - posterior + 0.08, 0.03)
    return cage * whole * brighter * (0.25 * band * below_first + 0.10 * front)


def _shoulders(canvas, anatomy, view, fracture):
    """Clavicles, scapulae (over the lungs in AP only) and heads of the humerus; (S, S)."""
    bones = np.zeros_like(canvas.x)
    paths = []
    for side, sign in _SIDES.items():
        along = np.linspace(0, 1, 14)
        clavicle_x = 0.09 + 0.70 * along
        clavicle_y = -0.56 - anatomy.clavicle_slope * along - 0.035 * np.sin(2 * np.pi * along)
        points = np.stack([sign * clavicle_x, clavicle_y], axis=1)
        if fracture and fracture.kind == "clavicle" and fracture.side == side:
            drop = fracture.strength * np.array([0.02 * sign, 0.19 + 0.07 * fracture.extent])
            paths += [(points[:6], 0.07, 1.0), (points[5:] + drop, 0.07, 1.0)]
        else:
            paths.append((points, 0.062, 0.72))
        inward = 0.14 if view == "AP" else 0.0
        blade = [(0.86 - inward, -0.62), (0.64 - inward, -0.50), (0.76 - inward, -0.02), (0.92 - inward, -0.45)]
        bones += 0.15 * _polygon(canvas, [(sign * x, y) for x, y in blade])
        bones += 0.35 * canvas.disc(sign * 0.93, -0.58, 0.105, 0.04)
    return bones + 0.55 * canvas.strokes(paths)


def _polygon(canvas, corners):
    """A filled polygon, its edge softened; (S, S) in [0, 1]."""
    picture = Image.new("L", (canvas.size, canvas.size))
    on_film = (np.asarray(corners) @ canvas.turn.T + canvas.shift + 1) * canvas.size / 2
    ImageDraw.Draw(picture).polygon([tuple(point) for point in on_film], fill=255)
    return ndimage.uniform_filter(np.asarray(picture, dtype=np.float32) / 255, max(1, round(0.03 / canvas.pixel)))


def _devices(canvas, anatomy, finding):
    """A pacemaker with its leads, or an endotracheal tube, a central line and electrodes; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    sign = _SIDES[finding.side]
    if finding.kind == "pacemaker":
        x, y = sign * rng.uniform(0.46, 0.54), rng.uniform(-0.50, -0.38)
        half_width, half_height = rng.uniform(0.10, 0.13), rng.uniform(0.08, 0.11)
        box = np.maximum(np.abs(canvas.x - x) - half_width, np.abs(canvas.y - y) - half_height)
        apex = (rng.uniform(0.14, 0.24), anatomy.domes[1] - rng.uniform(0.06, 0.14))
        leads = [
            (_curve([(x, y), (sign * 0.30, -0.62), (-0.09, -0.42), (-0.13, 0.0), apex]), 0.052, 1.0),
            (_curve([(x, y), (sign * 0.32, -0.58), (-0.05, -0.36), (-0.17, 0.05), (-0.12, 0.16)]), 0.052, 1.0),
        ]
        return 2.2 * canvas.edge(-box, 0.03) + 1.5 * canvas.strokes(leads)
    tip = rng.uniform(-0.36, -0.28)
    start = (sign * rng.uniform(0.50, 0.62), -0.66)
    lines = [
        (((0.01, -1.2), (0.0, tip)), 0.06, 1.0),
        (_curve([start, (sign * 0.26, -0.58), (-0.10, -0.36), (-0.12, rng.uniform(-0.06, 0.06))]), 0.055, 1.0),
    ]
    electrodes = np.zeros_like(canvas.x)
    for side in _SIDES.values():
        x, y = side * rng.uniform(0.48, 0.60), rng.uniform(-0.34, -0.22)
        electrodes += canvas.disc(x, y, 0.05)
        lines.append(
            (_curve([(x, y), (side * 0.55, 0.15), (side * rng.uniform(0.3, 0.45), 0.6), (0.2, 1.2)]), 0.045, 0.8)
        )
    return 1.5 * canvas.strokes(lines) + 1.5 * electrodes


def _curve(points):
    """A smooth path through the given points, (24, 2): a Catmull-Rom-like cubic in each coordinate."""
    points = np.asarray(points, dtype=float)
    places = np.linspace(0, len(points) - 1, 24)
    tangents = np.gradient(points, axis=0)
    index = np.minimum(places.astype(int), len(points) - 2)
    t = (places - index)[:, None]
    start, end = points[index], points[index + 1]
    return (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * tangents[index]
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * tangents[index + 1]
    )


def _atelectasis(canvas, lung, finding):
    """Plate-like bands above the raised dome (which `_as_seen` raised); (S, S)."""
    rng = np.random.default_rng(finding.seed)
    slope = rng.uniform(-0.25, 0.25)
    height = lung.dome - rng.uniform(0.11, 0.15) + slope * (lung.across - 0.4)
    reach = canvas.edge(lung.across - rng.uniform(0.16, 0.22), 0.16) * canvas.edge(lung.to_wall - 0.06, 0.14)
    half = 0.024 + 0.010 * finding.extent
    band = canvas.edge(half - np.abs(canvas.y - height), 0.02)
    if finding.extent > 0.66:
        band = np.maximum(band, canvas.edge(half - np.abs(canvas.y - height + 0.11), 0.02))
    return 0.95 * reach * band


def _consolidation(canvas, lung, finding):
    """A dense lobar block with one sharp, fissural edge and dark air bronchograms; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    slope = rng.uniform(0.05, 0.3) * rng.choice([-1.0, 1.0])
    height = 0.26 + 0.12 * finding.extent
    if finding.zone == "upper":  # above the fissure
        fissure = rng.uniform(-0.20, -0.10)
        depth = fissure + slope * (lung.across - 0.4) - canvas.y
    else:  # below it
        fissure = rng.uniform(-0.14, -0.04) if finding.zone == "mid" else rng.uniform(0.08, 0.16)
        depth = canvas.y - fissure - slope * (lung.across - 0.4)
        height = height if finding.zone == "mid" else 0.26
    block = canvas.edge(depth, 0.015) * canvas.edge(height - depth, 0.14)
    hilum = np.array([0.20 * lung.sign, -0.08])
    ends = np.stack([lung.sign * rng.uniform(0.4, 0.6, 4), _ZONES[finding.zone] + np.linspace(-0.15, 0.15, 4)], axis=1)
    bronchograms = canvas.strokes([((hilum, end), 0.022, 1.0) for end in ends])
    return block * (1.05 - 0.3 * bronchograms + 0.05 * canvas.texture(rng, 10))


def _edema(canvas, lung, finding):
    """One wing of a bat-wing haze around the hilum, with Kerley B lines at the wall; (S, S)."""
    rng = np.random.default_rng([finding.seed, lung.side == "left"])
    wing = canvas.cloud(0.26 * lung.sign, -0.02, 0.25 + 0.04 * finding.extent, 0.34 + 0.06 * finding.extent)
    heights = rng.uniform(0.02, 0.06) + 0.085 * np.arange(5)
    wall = np.array([lung.borders(height)[1] for height in heights])
    lines = [
        (((lung.sign * (edge - 0.17), height - 0.02), (lung.sign * edge, height)), 0.028, 1.0)
        for edge, height in zip(wall, heights)
    ]
    relief = np.clip(1 + 0.22 * canvas.texture(rng, 12), 0.4, 1.6)
    return (0.62 + 0.2 * finding.extent) * wing * relief + 0.32 * canvas.strokes(lines)


def _nodule_count(finding):
    """How many lesions are drawn and told: one mass, or one to three nodules."""
    return 1 if finding.extent > _MASS_EXTENT else 1 + finding.seed % 3


def _lesion_places(lung, finding):
    """Centres (x, y) and radii of one to three nodules or of one mass."""
    rng = np.random.default_rng(finding.seed)
    count = _nodule_count(finding)
    radii = rng.uniform(0.105, 0.14, 1) if finding.extent > _MASS_EXTENT else rng.uniform(0.062, 0.085, count)
    across = np.array([0.46, 0.34, 0.56])[:count] + rng.uniform(-0.04, 0.04, count)
    heights = _ZONES[finding.zone] + np.array([0.0, 0.20, -0.20])[:count] + rng.uniform(-0.05, 0.05, count)
    return [(lung.sign * a, min(y, lung.dome - 0.1), radius) for a, y, radius in zip(across, heights, radii)]


def _lung_lesion(canvas, lung, finding):
    """Round, sharp nodules or one mass; (S, S)."""
    discs = [canvas.disc(x, y, radius, 0.015) for x, y, radius in _lesion_places(lung, finding)]
    return 1.05 * np.maximum.reduce(discs)


def _lung_opacity(canvas, lung, finding):
    """A soft, ill-defined haze in one zone; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    across = rng.uniform(0.38, 0.48)
    size = 0.20 + 0.05 * finding.extent
    height = _ZONES[finding.zone] + rng.uniform(-0.04, 0.04)
    return 0.78 * canvas.cloud(lung.sign * across, height, size, size * rng.uniform(0.8, 1.0))


def _pleural_effusion(canvas, lung, finding):
    """Fluid over the diaphragm, its surface rising to the wall as a meniscus; (S, S)."""
    level = lung.dome + 0.12 - 0.62 * finding.extent
    surface = level - 0.24 * np.clip(lung.from_midline / (lung.width - 0.06), 0, 1) ** 3
    return 1.35 * canvas.edge(canvas.y - surface, 0.05)


def _pleural_other(canvas, lung, finding):
    """A rind along the chest wall, an apical cap, or calcified plaques; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    ripple = 0.018 * np.sin(canvas.y * rng.uniform(14, 22) + rng.uniform(0, 6))
    if finding.kind == "cap":
        depth = lung.apex + 0.20 + 0.08 * finding.extent + ripple - canvas.y - 0.15 * (lung.across - 0.3)
        return 1.15 * canvas.edge(depth, 0.03)
    thickness = 0.085 + 0.035 * finding.extent + ripple
    reach = canvas.edge(canvas.y + rng.uniform(0.42, 0.5), 0.05) * canvas.edge(rng.uniform(0.28, 0.36) - canvas.y, 0.05)
    if finding.kind == "plaque":
        beads = canvas.edge(np.sin(canvas.y * rng.uniform(24, 30) + rng.uniform(0, 6)) + 0.5, 0.6)
        return 1.7 * reach * beads * canvas.edge(thickness - lung.to_wall, 0.015)
    return 1.15 * reach * canvas.edge(thickness - lung.to_wall, 0.02)


def _pneumonia(canvas, lung, finding):
    """Many small fluffy patches of bronchopneumonia; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    count = 9 + round(5 * finding.extent)
    angles = np.arange(count) * 2.4 + rng.uniform(0, 6)  # a sunflower's spiral spreads them evenly
    radii = np.sqrt((np.arange(count) + 0.5) / count)
    across = 0.42 + 0.24 * radii * np.cos(angles) + rng.normal(0, 0.03, count)
    heights = _ZONES[finding.zone] - 0.06 + 0.34 * radii * np.sin(angles) + rng.normal(0, 0.03, count)
    patches = np.zeros_like(canvas.x)
    for a, y, size in zip(across, heights, rng.uniform(0.04, 0.075, count)):
        patches += canvas.cloud(lung.sign * a, y, size, 0.85 * size)
    return np.clip(0.8 * patches * (1 + 0.4 * canvas.texture(rng, 24)), 0, 1.0)


def _pneumothorax(canvas, film, lung, finding):
    """Air between chest wall and lung: markings gone, darker, behind a thin bright pleural line; (S, S) film."""
    width = 0.15 + 0.14 * finding.extent
    height = np.clip((canvas.y - lung.apex) / (lung.dome - lung.apex), 0, 1)
    from_wall, from_top = lung.to_wall - width * (1 - 0.75 * height), (canvas.y - lung.apex) - 1.1 * width
    rounding = np.maximum(0.16 - np.abs(from_wall - from_top), 0)
    from_edge = np.minimum(from_wall, from_top) - rounding**2 / 0.64
    pocket = lung.mask * canvas.edge(-from_edge, 0.02)
    line = lung.mask * canvas.edge(0.020 - np.abs(from_edge - 0.012), 0.015)
    film = film + finding.strength * pocket * (0.04 - film)
    shrunk = lung.mask * (1 - pocket) * 0.12  # the lung behind the line has less air
    return film + finding.strength * (0.60 * line + shrunk)


_LUNG_FINDINGS = {
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Lung Lesion": _lung_lesion,
    "Lung Opacity": _lung_opacity,
    "Pleural Effusion": _pleural_effusion,
    "Pleural Other": _pleural_other,
    "Pneumonia": _pneumonia,
}


def _expose(canvas, film, view, rng):
    """Attenuation (S, S) => brightness (H, W) float32 in [0, 1], as the film shows it."""
    film = film * (1 + 0.025 * canvas.texture(rng, 6)) + 0.012 * canvas.texture(rng, 40) * np.minimum(film, 1)
    gradient = rng.normal(0, 0.03) * canvas.x + rng.normal(0, 0.03) * canvas.y
    brightness = 1 - np.exp(-np.clip(film * rng.uniform(0.95, 1.15), 0, None))
    brightness = np.clip(brightness, 0, 1) ** rng.uniform(0.95, 1.15) * rng.uniform(0.98, 1.10) + gradient * brightness
    if view == "AP":
        brightness = ndimage.gaussian_filter(brightness, 0.006 / canvas.pixel)
    if canvas.size > canvas.image_size:
        half = canvas.image_size
        brightness = brightness.reshape(half, 2, half, 2).mean(axis=(1, 3))
    noise = rng.normal(0, 0.014 if view == "AP" else 0.009, brightness.shape)
    return np.clip(brightness + noise + 0.01, 0, 1).astype(np.float32)


def _to_bytes(image):
    """[0, 1] float => 8-bit grey."""
    return np.round(255 * image).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- reports

_DEGREES = {  # (smallest, middle, largest)
    "Cardiomegaly": ("mild", "moderate", "severe"),
    "Edema": ("mild", "moderate", "severe"),
    "Atelectasis": ("mild", "moderate", "severe"),
    "Enlarged Cardiomediastinum": ("mild", "moderate", "severe"),
}
_NAMES = {  # name of a finding, or of its kind, in a report; {degree}, {side} and {zone} as drawn
    "Atelectasis": "{degree} {side} basilar atelectasis",
    "Cardiomegaly": "{degree} cardiomegaly",
    "Consolidation": "{degree} consolidation in the {side} {zone} lung",
    "Edema": "{degree} pulmonary edema",
    "Enlarged Cardiomediastinum": "{degree} widening of the mediastinum",
    "rib": "displaced fractures of several {side} ribs",
    "clavicle": "displaced fracture of the {side} clavicle",
    "Lung Opacity": "{degree} hazy opacity in the {side} {zone} lung",
    "Pleural Effusion": "{degree} {side} pleural effusion",
    "thickening": "{degree} {side} pleural thickening",
    "cap": "{degree} {side} apical pleural thickening",
    "plaque": "calcified {side} pleural plaques",
    "Pneumonia": "{degree} patchy pneumonia in the {side} {zone} lung",
    "Pneumothorax": "{degree} {side} pneumothorax",
    "pacemaker": "{side} pacemaker with two leads",
    "lines": "endotracheal tube and {side} central line",
}
_UNQUALIFIED = {  # the finding named without place or size, to be negated
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "focal consolidation",
    "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "widening of the mediastinum",
    "Fracture": "displaced fracture",
    "Lung Lesion": "nodule or mass",
    "Lung Opacity": "hazy opacity",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Support Devices": "support device",
}
_PRESENT_WORDS = ("There is {}.", "{} is seen.", "{} is present.", "{}.")
_PRESENT_WORDS_PLURAL = ("There are {}.", "{} are seen.", "{} are present.", "{}.")
_UNCERTAIN_WORDS = ("Possible {}.", "There is possible {}.", "{} cannot be excluded.", "There may be {}.")
_ABSENT_WORDS = ("There is no {}.", "No {} is seen.", "No evidence of {}.", "No {}.")
_CLEAR = ("The lungs are clear.", "Both lungs are well expanded and clear.", "The lungs appear clear.")
_FILLERS = (
    ("The trachea is midline.", "The airway is midline."),
    ("The stomach bubble is in the usual place.", "The upper abdomen is unremarkable."),
    ("The patient is slightly rotated.", "The technique is adequate.", "Image quality is good."),
)
_NORMAL_IMPRESSIONS = ("No acute cardiopulmonary process.", "Normal chest.", "No acute cardiopulmonary abnormality.")
_INDICATIONS = (
    "___ year old {} with cough.",
    "___ year old {} with shortness of breath.",
    "___ year old {} with chest pain.",
    "___ year old {} with fever, please evaluate.",
    "___ year old {} after a fall.",
)


def write_report(drawn, labels, rng):
    """A report in MIMIC-CXR's layout that says what the labels say, each finding with side and size as drawn.

    drawn: the Findings of `random_findings`, uncertain ones included; labels: its (14,) codes.
    """
    by_name = {finding.name: finding for finding in drawn}
    labelled = {code: [n for n, label in zip(cxr.FINDINGS, labels) if label == code] for code in set(labels.tolist())}
    present = [by_name[name] for name in labelled.get(cxr.PRESENT, ()) if name != "No Finding"]
    uncertain = [by_name[name] for name in labelled.get(cxr.UNCERTAIN, ())]
    absent = list(rng.permutation(labelled.get(cxr.ABSENT, [])))

    positives = [_say(_words_for(finding), _mention(finding), rng) for finding in rng.permutation(present)]
    hedges = [_say(_UNCERTAIN_WORDS, _hedged(finding), rng) for finding in uncertain]
    # one sentence negates at most two findings
    pairs = [
        " or ".join(_UNQUALIFIED[name] for name in absent[start : start + 2]) for start in range(0, len(absent), 2)
    ]
    negatives = [_say(_ABSENT_WORDS, pair, rng) for pair in pairs]
    normal = labels[cxr.finding_index("No Finding")] == cxr.PRESENT
    blocks = [positives, hedges, negatives] if rng.random() < 0.7 else [negatives, positives, hedges]
    sentences = ([rng.choice(_CLEAR)] if normal else []) + [sentence for block in blocks for sentence in block]
    for place in rng.permutation(len(_FILLERS))[: max(1, 3 - len(sentences))]:
        if len(sentences) < 6:
            sentences.append(rng.choice(_FILLERS[place]))

    impression = [_capital(_mention(finding)) + "." for finding in present]
    impression += [f"Possible {_hedged(finding)}." for finding in uncertain]
    if normal:
        impression.insert(0, rng.choice(_NORMAL_IMPRESSIONS))
    elif not impression:
        impression = [sentences[0]]
    if len(impression) > 1 and rng.random() < 0.5:
        impression = [f"{number}. {sentence}" for number, sentence in enumerate(impression, 1)]
    heading = rng.choice(["EXAMINATION:  CHEST RADIOGRAPH", "EXAMINATION:  CHEST (SINGLE VIEW)"])
    parts = [
        str(heading),
        "INDICATION:  " + str(rng.choice(_INDICATIONS)).format(rng.choice(["man", "woman"])),
        "COMPARISON:  " + str(rng.choice(["None.", "Chest radiograph of ___.", "___."])),
        "FINDINGS: \n\n " + " ".join(sentences),
        "IMPRESSION: \n\n " + " ".join(impression),
    ]
    return " " * 33 + "FINAL REPORT\n " + "\n \n ".join(parts) + "\n"


def _mention(finding):
    """The finding in words, its degree, side and zone as drawn."""
    degree = _DEGREES.get(finding.name, ("small", "moderate", "large"))[min(2, int(3 * finding.extent))]
    if finding.name == "Lung Lesion":
        words = "mass in the {side} {zone} lung"
        if finding.extent <= _MASS_EXTENT:
            words = (
                "{side} {zone} lung nodule",
                "two nodules in the {side} {zone} lung",
                "three nodules in the {side} lung",
            )[_nodule_count(finding) - 1]
    else:
        words = _NAMES[finding.kind or finding.name]
    return words.format(degree=degree, side=finding.side, zone=finding.zone)


def _hedged(finding):
    """The finding in words of which a radiologist is not sure: a place, but no degree."""
    side = "" if finding.side == "both" or finding.name == "Support Devices" else finding.side + " "
    return side + _UNQUALIFIED[finding.name].removeprefix("focal ")


def _words_for(finding):
    """Sentences around a finding, singular or plural as `_mention` names it."""
    several = finding.kind in ("rib", "plaque") or (finding.name == "Lung Lesion" and _nodule_count(finding) > 1)
    return _PRESENT_WORDS_PLURAL if several or finding.kind == "lines" else _PRESENT_WORDS


def _say(templates, words, rng):
    """One of the templates around the words, as a sentence."""
    template = str(rng.choice(templates))
    if template.startswith("There is {}") and words.split()[0] not in ("severe", "mild", "moderate"):
        words = ("an " if words[0] in "aeiou" else "a ") + words
    return _capital(template.format(words))


def _capital(words):
    """The sentence with its first letter in upper case."""
    return words[0].upper() + words[1:]


# ---------------------------------------------------------------------------------------------- the tree


def draw_tree(root, studies=1500, image_size=256, seed=1234):
    """Draws a CXR tree of so many studies under `root`: three CSVs, JPEGs and reports, byte for byte its seed's.

    A patient has one to four studies, a study one film (PA or AP) or both. Patients go round p10 to p19; in each group
    80 % are train, 8 % validate and 12 % test, in every 25 patients. InputError for sizes that cannot be drawn.
    """
    if studies < 1 or image_size < 32:
        raise InputError(f"cannot draw {studies} studies of {image_size} pixels; ask for 1 study and 32 pixels or more")
    root = Path(root)
    images, labelled = [], []
    with writing("the drawn CXR tree", root):
        patient = 0
        while len(labelled) < studies:
            for study in _studies_of(patient, seed)[: studies - len(labelled)]:
                images += _draw_study(root, study, image_size)
                labelled.append(study)
            patient += 1
        _write_tables(root, images, labelled)
    print(f"{root}: {patient} patients, {len(labelled)} studies, {len(images)} images of {image_size} pixels")


@dataclasses.dataclass(frozen=True)
class _Study:
    """One visit of one patient, with all that its films and its report are made from."""

    subject_id: int
    study_id: int
    split: str
    anatomy: Anatomy
    drawn: list
    labels: np.ndarray  # (14,) int8
    views: tuple  # out of "PA", "AP"
    date: str  # YYYYMMDD, shifted into the future as MIMIC's dates are
    time: str  # HHMMSS.fff
    report: str
    film_seeds: tuple  # one a view
    dicom_ids: tuple  # one a view

    @property
    def folder(self):
        """files/pNN/pNNNNNNNN, where the study's report lies beside the folder of its images."""
        return Path("files") / f"p{str(self.subject_id)[:2]}" / f"p{self.subject_id}"


def _studies_of(patient, seed):
    """All studies of one patient, given by number; each hangs on (seed, patient, study) alone."""
    rng = np.random.default_rng([seed, patient])
    anatomy = random_anatomy(rng)
    round_, group = divmod(patient, 10)
    place = (3 * round_ + 8 * group) % _SPLIT_CYCLE
    split = "test" if place in _TEST_PLACES else "validate" if place in _VALIDATE_PLACES else "train"
    subject_id = (10 + group) * 1_000_000 + (7919 * round_ + 104_729 * (seed % 1000)) % 1_000_000
    first_day = pd.Timestamp("2110-01-01") + pd.Timedelta(days=int(rng.integers(30_000)))
    studies = []
    for number in range(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])):
        rng = np.random.default_rng([seed, patient, number])
        drawn, labels = random_findings(rng)
        views = (("PA",), ("AP",), ("PA", "AP"))[rng.choice(3, p=[0.5, 0.2, 0.3])]
        day = first_day + pd.Timedelta(days=int(90 * number + rng.integers(80)))
        hour, minute, second, thousandth = (int(rng.integers(limit)) for limit in (24, 60, 60, 1000))
        studies.append(
            _Study(
                subject_id=subject_id,
                study_id=50_000_000 + (15_485_863 % 9_999_991 * (4 * patient + number) + seed) % 9_999_991,
                split=split,
                anatomy=anatomy,
                drawn=drawn,
                labels=labels,
                views=views,
                date=f"{day:%Y%m%d}",
                time=f"{hour:02d}{minute:02d}{second:02d}.{thousandth:03d}",
                report=write_report(drawn, labels, rng),
                film_seeds=tuple(int(rng.integers(2**31)) for _ in views),
                dicom_ids=tuple("-".join(f"{word:08x}" for word in rng.integers(2**32, size=5)) for _ in views),
            )
        )
    return studies


def _draw_study(root, study, image_size):
    """Writes the study's films and its report; its rows of the metadata, one a film."""
    folder = root / study.folder / f"s{study.study_id}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".txt").write_text(study.report, encoding="utf-8")
    rows = []
    for view, film_seed, dicom_id in zip(study.views, study.film_seeds, study.dicom_ids):
        film = draw_chest(study.anatomy, study.drawn, view, image_size, film_seed)
        Image.fromarray(_to_bytes(film)).save(folder / f"{dicom_id}.jpg", quality=95)
        rows.append(
            {
                "dicom_id": dicom_id,
                "subject_id": study.subject_id,
                "study_id": study.study_id,
                "PerformedProcedureStepDescription": "CHEST (PA)" if view == "PA" else "CHEST (PORTABLE AP)",
                "ViewPosition": view,
                "Rows": image_size,
                "Columns": image_size,
                "StudyDate": study.date,
                "StudyTime": study.time,
                "ProcedureCodeSequence_CodeMeaning": "CHEST (PA)" if view == "PA" else "CHEST (PORTABLE AP)",
                "ViewCodeSequence_CodeMeaning": "postero-anterior" if view == "PA" else "antero-posterior",
                "PatientOrientationCodeSequence_CodeMeaning": "Erect",
                "split": study.split,
            }
        )
    return rows


def _write_tables(root, images, studies):
    """The three CSVs with PhysioNet's columns, compressed without a time stamp."""
    images = pd.DataFrame(images)
    identity = pd.DataFrame([{"subject_id": study.subject_id, "study_id": study.study_id} for study in studies])
    codes = pd.DataFrame([study.labels for study in studies], columns=list(cxr.FINDINGS))
    tables = {
        "metadata": images.drop(columns="split"),
        "split": images[["dicom_id", "study_id", "subject_id", "split"]],
        "chexpert": pd.concat([identity, cxr.to_physionet(codes)], axis=1),
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, lineterminator="\n").encode()
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text, mtime=0))


def main():
    override_constants(globals())
    draw_tree(OUTPUT_ROOT, STUDIES, IMAGE_SIZE, SEED)


if __name__ == "__main__":
    run(main)
