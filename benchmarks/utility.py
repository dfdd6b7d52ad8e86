"""What are synthetic films good for? Classifiers trained on real and on synthetic films, tested on real ones.

    python -m benchmarks.utility --CONFIG demo.toml --TABLES shares,shortcut

shares    On a share of the real training patients; on a synthetic film for each label vector of the training films; on
          both. The generator learnt from *all* training films: a share of 0.1 is someone who has a tenth of them, and
          was given the synthetic ones.
shortcut  A shortcut is planted by selection: of the real training films those stay in which TARGET and SHORTCUT are
          both present, or neither is. A classifier is trained on these; on these and counterfactual twins of them, with
          TARGET or SHORTCUT toggled; on these and as many ordinary synthetic films, with the label vectors of the
          twins' films, or of the twins. The generator learnt from films *without* the planted shortcut.

All trainings have the same number of steps; nothing is chosen on the films that test them, real ones of the split test.

Reads:  CONFIG and what its sample_diffusion_clipUViT.py and sample_counterfactuals.py read
Writes: OUTPUT (trees, a cache with the classifiers), benchmarks/results/{utility,shortcut}.json; a second run resumes
Prints: mean AUROC (shares); AUROC of TARGET, and the lower one of those with and without SHORTCUT (shortcut)
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from benchmarks.record import run_script, write_record
from evaluation.images import Images, Loading
from evaluation.judges import JudgeSettings, image_judge
from evaluation.metrics import MINIMUM_POSITIVES, auroc_table, positives
from phantom import draw_tree
from utils.constants import REPOSITORY, override_constants
from utils.csv_files import write_csv
from utils.devices import make_accelerator
from utils.errors import run, say
from utils.findings import FINDINGS, PRESENT, UNCERTAIN, finding_index, to_physionet
from utils.mimic_cxr import image_files, read_table, read_twins, write_tree

CONFIG = "demo.toml"  # the constants of all scripts; its U-ViT's DATA_ROOT, VIEWS and HOLD_OUT name the real films
OUTPUT = "demo/utility"  # folder of trees and classifiers (a folder to write)
TABLES = ("shares", "shortcut")  # what is measured (each shares or shortcut)
SEEDS = (1, 2, 3)  # of patients, data order and weights (each 0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
MAX_LABELS = 0  # shares: label vectors of the training split, a film each (0 or more; 0: all)
SHARES = (1.0, 0.1)  # shares: of the real training patients (each above 0, 1 at most)
TARGET = "Pneumothorax"  # shortcut: the finding that is to be recognised
SHORTCUT = "Support Devices"  # shortcut: the finding that gives it away
MAX_TWINS = (60, 1000)  # shortcut: twins at most, half of them with each finding toggled (each 2 or more)
STUDIES = 6000  # shortcut: of a drawn tree, larger than the demo's (1 or more)

_CLASSIFIER = JudgeSettings("test_resnet", steps=600)  # and the seed of the training


def share_trainings(train: pd.DataFrame, output: Path, constants: dict) -> list[tuple[int, str, pd.DataFrame]]:
    """(seed, what is trained on, its table) of each; a share is of the patients, of one at least."""
    own = ("--SPLIT", "train", "--MAX_LABELS", constants["MAX_LABELS"], "--IMAGES_PER_LABEL", 1)
    synthetic = make_films("sample_diffusion_clipUViT.py", output / "synthetic", constants, *own)
    patients, trainings = pd.Series(train["subject_id"].unique()), []
    for seed in constants["SEEDS"]:
        for share in constants["SHARES"]:
            drawn = patients.sample(max(1, round(share * len(patients))), random_state=seed)
            real, name = train[train["subject_id"].isin(drawn)], f"real ({share:.0%})"
            trainings += [(seed, name, real), (seed, f"{name} + synthetic", pd.concat([real, synthetic]))]
        trainings.append((seed, "synthetic", synthetic))
    return trainings


def shortcut_trainings(train: pd.DataFrame, output: Path, constants: dict) -> list[tuple[int, str, pd.DataFrame]]:
    """As `share_trainings`; train: rows where neither of the two findings is uncertain."""
    findings = [FINDINGS[finding_index(constants[name])] for name in ("TARGET", "SHORTCUT")]
    output, present = output / "-".join(findings), train[findings] == PRESENT
    real = train[present.all(axis=1) | ~present.any(axis=1)]
    films = ("--FILMS", link_tree(output / "planted", real), "--SPLIT", "train")
    tables = {"real": real, "real, another choice, without the shortcut": train.sample(len(real), random_state=0)}
    for limit in constants["MAX_TWINS"]:
        for finding in findings:  # all twins in one tree
            own = (*films, "--TOGGLE", finding, "--MAX_TWINS", limit // 2)
            made = make_films("sample_counterfactuals.py", output / f"{limit} twins", constants, *own)
        pairs, made = read_twins(output / f"{limit} twins"), made.set_index("dicom_id", drop=False)
        twins, sources = made.loc[pairs["dicom_id"]], made.loc[pairs["film_dicom_id"]]  # these: copies of real films
        tables[f"real + {len(twins):,} counterfactual twins"] = pd.concat([real, twins])
        for whose, like in (("the twins' films", sources), ("the twins", twins)):
            folder = output / f"{limit} twins, ordinary films, labels of {whose}"
            write_csv(folder / "labels.csv", to_physionet(like[[*FINDINGS]]))
            own = ("--LABELS_CSV", folder / "labels.csv", "--MAX_LABELS", 0, "--IMAGES_PER_LABEL", 1)
            ordinary = make_films("sample_diffusion_clipUViT.py", folder / "tree", constants, *own)
            tables[f"real + {len(twins):,} ordinary synthetic films, labels of {whose}"] = pd.concat([real, ordinary])
    return [(seed, name, table) for seed in constants["SEEDS"] for name, table in tables.items()]


def make_films(script: str, root: Path, constants: dict, *arguments) -> pd.DataFrame:
    """Runs a sampler => the table of its tree."""
    run_script(script, "--config", constants["CONFIG"], *arguments, "--OUTPUT_ROOT", root)
    return read_table(root, with_reports=False).assign(synthetic=True)


def link_tree(root: Path, table: pd.DataFrame) -> Path:
    """Writes a CXR tree of these rows, whose images are links => its folder."""
    for image, link in zip(table["image_path"], map(Path, image_files(root, table))):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(Path(image).resolve())
    write_tree(root, table)
    return root


def scores_of(table: pd.DataFrame, probabilities: np.ndarray, findings: list[str]) -> dict[str, float]:
    """The mean AUROC; of two findings that of the first, and the lower one of those with and without the second."""
    labels = positives(table)
    if not findings:
        return {"mean AUROC": auroc_table(labels, probabilities).loc["mean", "auroc"]}
    short, every = labels[:, FINDINGS.index(findings[1])], np.full(len(labels), True)
    of = [auroc_table(labels[rows], probabilities[rows]).loc[findings[0], "auroc"] for rows in (every, short, ~short)]
    return {f"AUROC of {findings[0]}": of[0], "worst-group AUROC": np.min(of[1:])}  # NaN: too few films


def measure(trainings: list, test: pd.DataFrame, findings: list, cache: Path, accelerator: Accelerator) -> pd.DataFrame:
    """Trainings => mean and deviation over the seeds of the scores on the test rows."""
    rows, loading = [], Loading(cache, _CLASSIFIER.image_size, _CLASSIFIER.batch_size, accelerator)
    for seed, name, table in trainings:
        judge = image_judge(table, table[:0], replace(_CLASSIFIER, seed=seed), cache, accelerator)  # without thresholds
        images, made = Images(test, "the test films", judge.image_size, loading), table["synthetic"]
        rows.append({"trained on": name, "real films": (~made).sum(), "synthetic films": made.sum()})
        rows[-1] |= scores_of(images.table, images.encode(judge)[1], findings)
        say(f"seed {seed}: {', '.join(map(str, rows[-1].values()))}")

    def cell(values):
        few, text = f"fewer than {MINIMUM_POSITIVES} films in a group", f"{values.mean():.3f} ± {values.std():.3f}"
        return round(values.mean()) if values.dtype == int else text.replace("nan ± nan", few)

    return pd.DataFrame(rows).groupby("trained on", sort=False).agg(cell).reset_index()


def main():
    constants = override_constants(globals())
    accelerator, output = make_accelerator(DEVICE, "no"), Path(OUTPUT).resolve()
    trained = override_constants({"__file__": str(REPOSITORY / "train_diffusion_clipUViT.py")}, ("--config", CONFIG))
    for part in TABLES:
        findings, root = [], trained["DATA_ROOT"]
        if part == "shortcut":
            findings, root = [FINDINGS[finding_index(name)] for name in (TARGET, SHORTCUT)], output / "phantom"
            draw_tree(root, STUDIES, trained["IMAGE_SIZE"], seed=4321)
        real = read_table(root, views=trained["VIEWS"], hold_out=trained["HOLD_OUT"], with_reports=False)
        real = real[(real[findings] != UNCERTAIN).all(axis=1)].assign(synthetic=False)
        train, test = (real[real["split"] == split] for split in ("train", "test"))
        trainings = (share_trainings if part == "shares" else shortcut_trainings)(train, output, constants)
        table = measure(trainings, test, findings, output / "cache", accelerator)
        title = f"Classifiers trained on synthetic films: {part}"
        note = f"The generator learnt from all of CONFIG's training films, without a shortcut; {len(test)} test films."
        write_record("utility" if part == "shares" else part, title, table, constants, note, accelerator.device)


if __name__ == "__main__":
    run(main)
