"""Draws a chest film: the attenuation of organs and findings adds up, and the film turns it into brightness.

Organs are masks with soft edges, (S, S) each, in the body coordinates of phantom.anatomy; brightness is
1 - exp(-attenuation), as X-rays are absorbed. Views are PA and AP; no lateral view is drawn.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.interpolate import CubicHermiteSpline

from phantom.anatomy import SIDES, Anatomy, Finding
from phantom.lesions import LUNG_FINDINGS, draw_pneumothorax
from utils.errors import InputError

_LUNG, _SOFT_TISSUE, _HEART, _ABDOMEN = 0.30, 1.05, 1.75, 1.75  # attenuation, thickness included; air 0


def draw_chest(anatomy: Anatomy, drawn: list[Finding], view: str, image_size: int, seed: int) -> np.ndarray:
    """A chest film as (image_size, image_size) float32 in [0, 1].

    drawn: findings (those of strength 0 leave no trace); view: "PA" or "AP"; seed: of pose, exposure and film noise,
    which do not depend on the findings: two films of one seed differ by their findings alone.
    """
    if view not in ("PA", "AP"):
        raise InputError(f"view {view!r} cannot be drawn; the phantom's views are PA and AP")
    rng = np.random.default_rng(seed)
    drawn = [finding for finding in drawn if finding.strength > 0]
    by_name = {finding.name: finding for finding in drawn}
    anatomy = _in_view(anatomy, by_name, view)
    canvas = _Canvas(anatomy, image_size, rng)
    lungs = {side: _Lung(canvas, anatomy, side) for side in SIDES}

    film = _trunk(canvas, anatomy)
    body = np.clip(film / 0.4, 0, 1)
    for lung in lungs.values():
        inside = _LUNG + 0.08 * np.clip(canvas.y + 0.4, 0, 1) + 0.15 * np.clip(1 - lung.to_wall / 0.12, 0, 1)
        film += lung.abdomen * (_ABDOMEN - film)
        film += lung.mask * (inside - film)
    film += _breasts(canvas, anatomy)
    film += _vessels(canvas, anatomy, lungs, by_name)
    for finding in drawn:
        if finding.name in LUNG_FINDINGS:
            draw, both = LUNG_FINDINGS[finding.name], finding.side == "both"
            for side in SIDES if both else (finding.side,):
                own = np.random.default_rng([finding.seed, side == "left"] if both else finding.seed)
                film += finding.strength * lungs[side].mask * draw(canvas, lungs[side], finding, own)
    if finding := by_name.get("Pneumothorax"):
        film = draw_pneumothorax(canvas, film, lungs[finding.side], finding)

    film += _mediastinum(canvas, anatomy) * (np.maximum(film, _HEART) - film)
    film -= _trachea(canvas)
    film -= _stomach_gas(canvas, anatomy)
    film += _spine(canvas)
    film += _ribs(canvas, anatomy, by_name.get("Fracture"))
    film += body * _shoulders(canvas, anatomy, view, by_name.get("Fracture"))
    if finding := by_name.get("Support Devices"):
        film += finding.strength * _devices(canvas, anatomy, finding)
    return _expose(canvas, film, view, rng)


def _in_view(anatomy, by_name, view):
    """The anatomy as this study and view show it: AP magnifies heart and diaphragm, findings change its shape."""
    heart_ratio, mediastinum, domes = anatomy.heart_ratio, anatomy.mediastinum, list(anatomy.domes)
    if finding := by_name.get("Cardiomegaly"):
        heart_ratio += finding.strength * (0.60 + 0.10 * finding.extent - heart_ratio)
    if finding := by_name.get("Enlarged Cardiomediastinum"):
        mediastinum += finding.strength * (0.29 + 0.09 * finding.extent - mediastinum)
    if view == "AP":
        heart_ratio, mediastinum = 1.05 * heart_ratio, 1.12 * mediastinum
        domes = [dome - 0.05 for dome in domes]
    if finding := by_name.get("Atelectasis"):
        domes[finding.side == "left"] -= finding.strength * (0.20 + 0.10 * finding.extent)
    return dataclasses.replace(anatomy, heart_ratio=heart_ratio, mediastinum=mediastinum, domes=tuple(domes))


class _Canvas:
    """The body coordinates of every pixel, and shapes in them. Small images are drawn at twice their size."""

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

    def on_film(self, points, zoom):
        """Points (N, 2) as pixels of a picture of `zoom` times the canvas's size."""
        return [*map(tuple, (np.asarray(points) @ self.turn.T + self.shift + 1) * (zoom * self.size / 2))]

    def strokes(self, paths):
        """Lines drawn anti-aliased: paths holds (points (N, 2), width, brightness 0..1); (S, S) in [0, 1]."""
        picture = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(picture)
        for points, width, brightness in paths:
            pixels = max(1, round(width * self.size))
            pen.line(self.on_film(points, 2), fill=round(255 * brightness), width=pixels, joint="curve")
        return np.asarray(picture.reduce(2), dtype=np.float32) / 255

    def disc(self, x, y, radius, softness=0.02):
        """A disc with an edge of that softness; (S, S) in [0, 1]."""
        return self.edge(radius - np.hypot(self.x - x, self.y - y), softness)

    def cloud(self, x, y, width, height):
        """A Gaussian blob; (S, S) in [0, 1]."""
        return np.exp(-(((self.x - x) / width) ** 2) - ((self.y - y) / height) ** 2)

    def texture(self, rng, cells):
        """Smooth noise of so many cells across, about unit variance; (S, S)."""
        coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC))


class _Lung:
    """The outline of a lung. across: distance from the midline; to_wall: from the lateral wall inwards; (S, S) each."""

    def __init__(self, canvas, anatomy, side):
        self.sign, self.width = SIDES[side], anatomy.lung_width
        self.apex, self.dome = anatomy.apex, anatomy.domes[side == "left"]
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
        """The distances from the midline at which the lung begins and ends at height y."""
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
    for side, sign in SIDES.items():
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
    right_border, left_border = waist_right + (right - waist_right) * bulge, waist_left + (left - waist_left) * slanted
    heart = np.minimum(x - right_border, left_border - x)
    above, below = np.clip((-0.42 - y) / 0.35, 0, 1), np.clip((y + 0.12) / 0.5, 0, 1)
    narrowing = (1 - 0.45 * above**2) * (1 - 0.9 * below**2 * (3 - 2 * below))  # to the neck, and behind the heart
    vessels = anatomy.mediastinum * narrowing - np.abs(x - 0.01)
    knob = anatomy.aortic_knob - np.hypot(x - (anatomy.mediastinum - 0.02), y + 0.27)
    return canvas.edge(np.maximum.reduce([heart, vessels, knob]), 0.035)


def _trachea(canvas):
    """The air column down to the carina and the two main bronchi; (S, S), to be subtracted."""
    trachea = ((0.0, -1.2), (0.0, -0.6), (-0.01, -0.22))
    bronchi = [(((-0.01, -0.22), end), 0.05, 0.7) for end in ((-0.13, -0.10), (0.15, -0.12))]
    return 0.45 * canvas.strokes([(trachea, 0.075, 1.0), *bronchi])


def _stomach_gas(canvas, anatomy):
    """The gastric bubble under the left dome; (S, S), to be subtracted."""
    top = anatomy.domes[1] + 0.07 + 0.6 * anatomy.bubble
    distance = 1 - np.hypot((canvas.x - 0.33) / (1.7 * anatomy.bubble), (canvas.y - top) / (0.8 * anatomy.bubble))
    return 0.8 * canvas.edge(distance, 0.4)


def _spine(canvas):
    """Vertebral bodies, visible through the mediastinum; (S, S)."""
    column = canvas.edge(0.075 - np.abs(canvas.x), 0.03)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * canvas.y / 0.125)
    return column * (0.16 + 0.14 * np.sqrt(discs)) * np.clip(1.3 - 0.4 * canvas.y, 0, 1.6)


def _ribs(canvas, anatomy, fracture):
    """Posterior ribs and fainter anterior ones, broken where a rib fracture lies; (S, S)."""
    across, y = np.abs(canvas.x), canvas.y
    rise = np.clip((0.12 - y) / (0.12 - anatomy.apex), 0, 1)
    wall = anatomy.lung_width * (1 - 0.45 * rise**3) + 0.05
    cage = canvas.edge(wall - across, 0.02) * canvas.edge(across - 0.07, 0.03)
    cage = cage * (0.45 + 0.55 * canvas.edge(max(anatomy.domes) + 0.05 - y, 0.15))
    whole, brighter = 1.0, 1.0
    if fracture and fracture.kind == "rib":
        side = SIDES[fracture.side] * canvas.x
        rng = np.random.default_rng(fracture.seed)
        height = rng.uniform(-0.12, 0.12)
        reach = canvas.edge(0.30 + 0.10 * fracture.extent - np.abs(y - height), 0.10) * canvas.edge(side, 0.02)
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
    from_posterior = np.abs((y - posterior + spacing / 2) % spacing - spacing / 2)  # of the nearest of all ribs
    from_anterior = np.abs((y - anterior + spacing / 2) % spacing - spacing / 2)
    band = canvas.edge(0.030 - from_posterior, 0.025) * (0.75 + 0.25 * (from_posterior / 0.03).clip(0, 1))
    front = canvas.edge(0.034 - from_anterior, 0.03) * canvas.edge(lateral - 0.42, 0.15)
    below_first = canvas.edge(y - posterior + 0.08, 0.03)
    return cage * whole * brighter * (0.25 * band * below_first + 0.10 * front)


def _shoulders(canvas, anatomy, view, fracture):
    """Clavicles, scapulae (over the lungs in AP only) and heads of the humerus; (S, S)."""
    bones, paths = np.zeros_like(canvas.x), []
    for side, sign in SIDES.items():
        along = np.linspace(0, 1, 14)
        clavicle_y = -0.56 - anatomy.clavicle_slope * along - 0.035 * np.sin(2 * np.pi * along)
        points = np.stack([sign * (0.09 + 0.70 * along), clavicle_y], axis=1)
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
    ImageDraw.Draw(picture).polygon(canvas.on_film(corners, 1), fill=255)
    return ndimage.uniform_filter(np.asarray(picture, dtype=np.float32) / 255, max(1, round(0.03 / canvas.pixel)))


def _devices(canvas, anatomy, finding):
    """A pacemaker with its leads, or an endotracheal tube, a central line and electrodes; (S, S)."""
    rng = np.random.default_rng(finding.seed)
    sign = SIDES[finding.side]
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
    for side in SIDES.values():
        x, y = side * rng.uniform(0.48, 0.60), rng.uniform(-0.34, -0.22)
        electrodes += canvas.disc(x, y, 0.05)
        cable = _curve([(x, y), (side * 0.55, 0.15), (side * rng.uniform(0.3, 0.45), 0.6), (0.2, 1.2)])
        lines.append((cable, 0.045, 0.8))
    return 1.5 * canvas.strokes(lines) + 1.5 * electrodes


def _curve(points):
    """A smooth path through the given points, (24, 2): a cubic Hermite spline in each coordinate."""
    places = np.arange(len(points))
    return CubicHermiteSpline(places, points, np.gradient(points, axis=0))(np.linspace(0, places[-1], 24))


def _expose(canvas, film, view, rng):
    """Attenuation (S, S) => brightness (H, W) float32 in [0, 1], as the film shows it."""
    film = film * (1 + 0.025 * canvas.texture(rng, 6)) + 0.012 * canvas.texture(rng, 40) * np.minimum(film, 1)
    gradient = rng.normal(0, 0.03) * canvas.x + rng.normal(0, 0.03) * canvas.y
    brightness = 1 - np.exp(-np.clip(film * rng.uniform(0.95, 1.15), 0, None))
    brightness = np.clip(brightness, 0, 1) ** rng.uniform(0.95, 1.15) * rng.uniform(0.98, 1.10) + gradient * brightness
    if view == "AP":
        brightness = ndimage.gaussian_filter(brightness, 0.006 / canvas.pixel)
    if canvas.size > canvas.image_size:
        brightness = brightness.reshape(canvas.image_size, 2, canvas.image_size, 2).mean(axis=(1, 3))
    noise = rng.normal(0, 0.014 if view == "AP" else 0.009, brightness.shape)
    return np.clip(brightness + noise + 0.01, 0, 1).astype(np.float32)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] float => 8-bit grey."""
    return np.round(255 * image).astype(np.uint8)
