"""The findings that lie in a lung, as attenuation, (S, S) each.

canvas: the _Canvas of `phantom.drawing`; lung: the _Lung that the finding lies in; rng: its irregularities.
"""

import numpy as np

from phantom.anatomy import MASS_EXTENT, ZONES, Finding, nodule_count


def _atelectasis(canvas, lung, finding, rng):
    """Plate-like bands above the dome, which `phantom.drawing._in_view` has raised; (S, S)."""
    slope = rng.uniform(-0.25, 0.25)
    height = lung.dome - rng.uniform(0.11, 0.15) + slope * (lung.across - 0.4)
    reach = canvas.edge(lung.across - rng.uniform(0.16, 0.22), 0.16) * canvas.edge(lung.to_wall - 0.06, 0.14)
    half = 0.024 + 0.010 * finding.extent
    band = canvas.edge(half - np.abs(canvas.y - height), 0.02)
    if finding.extent > 0.66:
        band = np.maximum(band, canvas.edge(half - np.abs(canvas.y - height + 0.11), 0.02))
    return 0.95 * reach * band


def _consolidation(canvas, lung, finding, rng):
    """A dense lobar block with one sharp, fissural edge and dark air bronchograms; (S, S)."""
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
    ends = np.stack([lung.sign * rng.uniform(0.4, 0.6, 4), ZONES[finding.zone] + np.linspace(-0.15, 0.15, 4)], axis=1)
    bronchograms = canvas.strokes([((hilum, end), 0.022, 1.0) for end in ends])
    return block * (1.05 - 0.3 * bronchograms + 0.05 * canvas.texture(rng, 10))


def _edema(canvas, lung, finding, rng):
    """One wing of a bat-wing haze around the hilum, with Kerley B lines at the wall; (S, S)."""
    wing = canvas.cloud(0.26 * lung.sign, -0.02, 0.25 + 0.04 * finding.extent, 0.34 + 0.06 * finding.extent)
    heights = rng.uniform(0.02, 0.06) + 0.085 * np.arange(5)
    wall = np.array([lung.borders(height)[1] for height in heights])
    lines = [
        (((lung.sign * (edge - 0.17), height - 0.02), (lung.sign * edge, height)), 0.028, 1.0)
        for edge, height in zip(wall, heights)
    ]
    relief = np.clip(1 + 0.22 * canvas.texture(rng, 12), 0.4, 1.6)
    return (0.62 + 0.2 * finding.extent) * wing * relief + 0.32 * canvas.strokes(lines)


def _lung_lesion(canvas, lung, finding, rng):
    """One to three round, sharp nodules or one mass; (S, S)."""
    count = nodule_count(finding)
    radii = rng.uniform(0.105, 0.14, 1) if finding.extent > MASS_EXTENT else rng.uniform(0.062, 0.085, count)
    across = np.array([0.46, 0.34, 0.56])[:count] + rng.uniform(-0.04, 0.04, count)
    heights = ZONES[finding.zone] + np.array([0.0, 0.20, -0.20])[:count] + rng.uniform(-0.05, 0.05, count)
    places = [(lung.sign * a, min(y, lung.dome - 0.1), radius) for a, y, radius in zip(across, heights, radii)]
    return 1.05 * np.maximum.reduce([canvas.disc(*place, 0.015) for place in places])


def _lung_opacity(canvas, lung, finding, rng):
    """A soft, ill-defined haze in one zone; (S, S)."""
    across = rng.uniform(0.38, 0.48)
    size = 0.20 + 0.05 * finding.extent
    height = ZONES[finding.zone] + rng.uniform(-0.04, 0.04)
    return 0.78 * canvas.cloud(lung.sign * across, height, size, size * rng.uniform(0.8, 1.0))


def _pleural_effusion(canvas, lung, finding, rng):
    """Fluid over the diaphragm, its surface rising to the wall as a meniscus; (S, S)."""
    level = lung.dome + 0.12 - 0.62 * finding.extent
    surface = level - 0.24 * np.clip(lung.from_midline / (lung.width - 0.06), 0, 1) ** 3
    return 1.35 * canvas.edge(canvas.y - surface, 0.05)


def _pleural_other(canvas, lung, finding, rng):
    """A rind along the chest wall, an apical cap, or calcified plaques; (S, S)."""
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


def _pneumonia(canvas, lung, finding, rng):
    """Many small fluffy patches of bronchopneumonia; (S, S)."""
    count = 9 + round(5 * finding.extent)
    angles = np.arange(count) * 2.4 + rng.uniform(0, 6)  # a sunflower's spiral spreads them evenly
    radii = np.sqrt((np.arange(count) + 0.5) / count)
    across = 0.42 + 0.24 * radii * np.cos(angles) + rng.normal(0, 0.03, count)
    heights = ZONES[finding.zone] - 0.06 + 0.34 * radii * np.sin(angles) + rng.normal(0, 0.03, count)
    patches = np.zeros_like(canvas.x)
    for a, y, size in zip(across, heights, rng.uniform(0.04, 0.075, count)):
        patches += canvas.cloud(lung.sign * a, y, size, 0.85 * size)
    return np.clip(0.8 * patches * (1 + 0.4 * canvas.texture(rng, 24)), 0, 1.0)


def draw_pneumothorax(canvas, film: np.ndarray, lung, finding: Finding) -> np.ndarray:
    """The film (S, S) with air between chest wall and lung: dark, without vessels, behind a bright pleural line."""
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


LUNG_FINDINGS = {
    "Atelectasis": _atelectasis, "Consolidation": _consolidation, "Edema": _edema, "Lung Lesion": _lung_lesion,
    "Lung Opacity": _lung_opacity, "Pleural Effusion": _pleural_effusion, "Pleural Other": _pleural_other,
    "Pneumonia": _pneumonia,
}  # fmt: skip
