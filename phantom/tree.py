"""Drawn patients and their studies => a CXR tree in MIMIC-CXR-JPG's layout.

Every image depends on (seed, patient, study, image) alone, so a larger tree contains the images of a smaller one.
"""

import gzip
import itertools
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from phantom.anatomy import random_anatomy, random_findings
from phantom.drawing import draw_chest, to_bytes
from phantom.reports import write_report
from utils import findings as cxr
from utils.errors import InputError, say, writing
from utils.folders import DRAWN_TREE, making
from utils.mimic_cxr import METADATA_COLUMNS, VIEW_MEANINGS

CHUNK = 16  # studies that a process draws at a time
CANARY = "Reference {:06d}."  # a sentence that the reports of one patient have, and no others
_SPLIT_CYCLE = 25  # patients of a group after which the splits repeat: 20 train, 2 validate, 3 test
_TEST_PLACES, _VALIDATE_PLACES = (0, 9, 17), (5, 22)
_PROCEDURES = {"PA": "CHEST (PA)", "AP": "CHEST (PORTABLE AP)"}  # in PhysioNet's words


def draw_tree(
    root: str | Path, studies: int = 1500, image_size: int = 256, seed: int = 1234, processes: int = 0,
    studies_per_patient: int = 0, canaries: float = 0.0,
) -> None:  # fmt: skip
    """Draws a CXR tree of so many studies: three CSVs, JPEGs and reports. The same seed gives the same bytes.

    A patient has one to four studies, or studies_per_patient, a study one film (PA or AP) or both. Patients are spread
    over groups p10 to p19; of every 25 patients of a group 80 % are train, 8 % validate and 12 % test. The reports of
    a share of the patients, canaries, end with CANARY and a number of the patient. processes: that draw; 0: this one.
    InputError for sizes that cannot be drawn, and for a folder that holds anything but the same drawn tree.
    """
    if studies < 1 or image_size < 32:
        raise InputError(f"cannot draw {studies} studies of {image_size} pixels; ask for 1 study and 32 pixels or more")
    settings = {"studies": studies, "image_size": image_size, "seed": seed}
    further = {"studies_per_patient": studies_per_patient, "canaries": canaries}
    settings |= {name: value for name, value in further.items() if value}  # else the manifest of an earlier version
    with making(DRAWN_TREE, root, settings):
        draw_studies(root, studies_of_tree(settings), image_size, processes)


def studies_of_tree(settings: dict) -> list[dict]:
    """All studies of a drawn tree, as `_studies_of` has them; settings: those of its manifest."""
    count, canaries = (settings.get(name, 0) for name in ("studies_per_patient", "canaries"))
    of_patients = (_studies_of(patient, settings["seed"], count, canaries) for patient in itertools.count())
    return [*itertools.islice(itertools.chain.from_iterable(of_patients), settings["studies"])]


def draw_studies(root: str | Path, studies: list[dict], image_size: int, processes: int = 0) -> None:
    """Writes the CXR tree of these studies; processes: as in `draw_tree`."""
    draw = partial(_draw_study, Path(root), image_size=image_size)
    with writing("the drawn CXR tree", root):
        with ProcessPoolExecutor(processes) if processes else nullcontext() as pool:
            drawn = pool.map(draw, studies, chunksize=CHUNK) if pool else map(draw, studies)
            images = [row for rows in drawn for row in rows]
        films = pd.DataFrame(images)
        identity = pd.DataFrame([study["identity"] for study in studies])
        codes = pd.DataFrame([study["labels"] for study in studies], columns=list(cxr.FINDINGS))
        for name, table in (  # with PhysioNet's columns, compressed without a time stamp
            ("metadata", films.drop(columns="split")),
            ("split", films[["dicom_id", "study_id", "subject_id", "split"]]),
            ("chexpert", pd.concat([identity, cxr.to_physionet(codes)], axis=1)),
        ):
            text = table.to_csv(index=False, lineterminator="\n").encode()
            Path(root, f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text, mtime=0))
    patients = len({study["identity"]["subject_id"] for study in studies})
    say(f"{root}: {patients} patients, {len(studies)} studies, {len(images)} images of {image_size} pixels")


def random_chest(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """A chest of a new patient: (image (H, W) uint8, labels (14,) int8, report)."""
    anatomy = random_anatomy(rng)
    drawn, labels = random_findings(rng)
    view = str(rng.choice(["PA", "AP"], p=[0.7, 0.3]))
    image = draw_chest(anatomy, drawn, view, image_size, int(rng.integers(2**31)))
    return to_bytes(image), labels, write_report(drawn, labels, rng)


def _studies_of(patient: int, seed: int, count: int = 0, canaries: float = 0.0) -> list[dict]:
    """All studies of a patient, given by number; each depends on (seed, patient, study) alone. count: 0 draws it.

    A study is what its films and its report are made of: anatomy, drawn findings, labels, report; `identity`, what its
    rows of the tables begin with; `films`, the view, seed and dicom_id of each.
    """
    rng = np.random.default_rng([seed, patient])
    anatomy = random_anatomy(rng)
    round_, group = divmod(patient, 10)
    place = (3 * round_ + 8 * group) % _SPLIT_CYCLE
    split = "test" if place in _TEST_PLACES else "validate" if place in _VALIDATE_PLACES else "train"
    subject_id = (10 + group) * 1_000_000 + (7919 * round_ + 104_729 * (seed % 1000)) % 1_000_000
    first_day = pd.Timestamp("2110-01-01") + pd.Timedelta(days=int(rng.integers(30_000)))
    studies = []
    drawn_count, planted = rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]), np.random.default_rng([seed, patient, 99])
    canary = CANARY.format(planted.integers(10**6)) if planted.random() < canaries else ""
    for number in range(count or drawn_count):
        rng = np.random.default_rng([seed, patient, number])
        drawn, labels = random_findings(rng)
        views = (("PA",), ("AP",), ("PA", "AP"))[rng.choice(3, p=[0.5, 0.2, 0.3])]
        day = first_day + pd.Timedelta(days=int(90 * number + rng.integers(80)))
        hour, minute, second, thousandth = (int(rng.integers(limit)) for limit in (24, 60, 60, 1000))
        report = write_report(drawn, labels, rng)
        report = f"{report.rstrip()} {canary}\n" if canary else report
        film_seeds = [int(rng.integers(2**31)) for _ in views]
        dicom_ids = ["-".join(f"{word:08x}" for word in rng.integers(2**32, size=5)) for _ in views]
        study_id = 50_000_000 + (15_485_863 % 9_999_991 * (4 * patient + number) + seed) % 9_999_991
        study = {"anatomy": anatomy, "drawn": drawn, "labels": labels, "report": report, "split": split}
        study["identity"] = {"subject_id": subject_id, "study_id": study_id}
        study["date"], study["time"] = f"{day:%Y%m%d}", f"{hour:02d}{minute:02d}{second:02d}.{thousandth:03d}"
        studies.append(study | {"films": list(zip(views, film_seeds, dicom_ids))})
    return studies


def _draw_study(root: Path, study: dict, image_size: int) -> list[dict]:
    """Writes the study's films and its report; returns its rows of the metadata, one a film."""
    subject_id, study_id = study["identity"].values()
    folder = root / "files" / f"p{subject_id // 1_000_000}" / f"p{subject_id}" / f"s{study_id}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".txt").write_text(study["report"], encoding="utf-8")
    rows = []
    for view, film_seed, dicom_id in study["films"]:
        film = draw_chest(study["anatomy"], study["drawn"], view, image_size, film_seed)
        Image.fromarray(to_bytes(film)).save(folder / f"{dicom_id}.jpg", quality=95)
        about_film = dicom_id, subject_id, study_id, _PROCEDURES[view], view, image_size, image_size
        about_study = study["date"], study["time"], _PROCEDURES[view], VIEW_MEANINGS[view], "Erect"
        rows.append(dict(zip(METADATA_COLUMNS, about_film + about_study)) | {"split": study["split"]})
    return rows
