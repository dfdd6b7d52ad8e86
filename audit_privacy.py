"""Audits privacy: are patients found among the synthetic films, or reports, because the generator was trained on them?

    python audit_privacy.py                                     writes OUTPUT/requests.csv, for LABELS_CSV of a sampler
    python audit_privacy.py --SYNTHETIC synthetic/privacy       audits the films that were made for them

Reads:  DATA_ROOT (split "train" without the withheld studies: what the generator was trained on), SYNTHETIC, CACHE_DIR
Writes: OUTPUT/{requests.csv,audit.md,evaluation.json,constants.json}; OUTPUT/power.png: how many copies it takes
Prints: audit.md. What it can say and what not: docs/privacy.md
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import copies, privacy
from evaluation.images import Images, Loading
from evaluation.judges import Extractor, JudgeSettings
from evaluation.report import Stopwatch, as_json
from evaluation.verifier import WIDTH, embed, similarities, verifier_of
from utils.checkpoints import check_hold_out, check_hold_out_of_tree
from utils.constants import save_constants
from utils.csv_files import read_csv, write_csv
from utils.devices import make_accelerator
from utils.errors import InputError, as_input_error, run, say, write_whole, writing
from utils.findings import FINDINGS, to_physionet
from utils.mimic_cxr import ONE_STUDY, PROVENANCE_FILE, read_table
from utils.report_cleaning import clean_report
from utils.seeds import keyed_seed

# what is audited
DATA_ROOT = "data/mimic-cxr-jpg"  # the CXR tree that the generator was trained on
REPORTS_ROOT = ""  # where its reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p18", "p19", "one study")  # as in training: patient groups that are the split "test"; one study withheld
ATTACKER = ("p19",)  # those of these groups whose patients teach the attacker; the others are the held out
SYNTHETIC = ""  # films that were made for OUTPUT/requests.csv, a synthetic CXR tree; empty: the requests are written
BART_CHECKPOINT = ""  # a checkpoint of train_bart.py, for CANARY
CANARY = ""  # pattern of a sentence that was planted in reports, whose digits are a patient's own; empty: none was
OUTPUT = "runs/privacy"  # requests, figures and pictures (a folder to write)
PATIENTS = 1000  # members at most, and as many held out (10 to 1000000)
# the attacker
VERIFIER_MODEL = "resnet18"  # any timm network, trained from random weights
VERIFIER_IMAGE_SIZE = 128  # pixels (32 to 4096)
VERIFIER_STEPS = 8000  # optimiser steps, of two films of each of 128 patients (1 to 1000000)
VERIFIER_LEARNING_RATE = 2e-3  # of AdamW, the peak of one cycle (above 0, 1 at most)
# running
CACHE_DIR = "cache"  # verifiers and pixels (a folder to write)
BATCH_SIZE = 64  # images at a time (1 to 65536)
SEED = 1234  # of patients, and of the attacker's training (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def read_tables(
    data_root: str, reports_root: str, views: tuple, hold_out: tuple, attacker: tuple
) -> dict[str, pd.DataFrame]:
    """The rows of a tree by their part in the audit; InputError for a hold_out that makes none possible.

    trained: what the generator learnt from; held out: kept studies of the groups of hold_out; probes: the withheld
    studies of both; attacker: all studies of the groups that teach the attacker.
    """
    groups = {*hold_out} - {ONE_STUDY}
    if ONE_STUDY not in hold_out or not set() < {*attacker} < groups:
        needs = f"{ONE_STUDY!r} withheld, and groups held out of which some, but not all, teach the attacker"
        given = f"HOLD_OUT is {tuple(hold_out)}, ATTACKER {tuple(attacker)}"
        raise InputError(f"{given}: an audit needs {needs}; train with such a HOLD_OUT")
    table = read_table(data_root, reports_root, views, hold_out=sorted(groups))
    rest = read_table(data_root, "", views, hold_out=hold_out, with_reports=False, check_images=False)
    kept, group = table["dicom_id"].isin(rest["dicom_id"]), "p" + table["subject_id"].astype(str).str[:2]
    parts = {
        "trained": kept & (table["split"] == "train"),
        "held out": kept & group.isin(groups - {*attacker}),
        "probes": ~kept & ~group.isin(attacker),
        "attacker": group.isin(attacker),
    }
    return {name: table[rows].reset_index(drop=True) for name, rows in parts.items()}


def choose_requests(tables: dict[str, pd.DataFrame], limit: int, seed: int) -> pd.DataFrame:
    """The films whose labels are asked for, one a patient, members first; with `role`, "member" or "held out".

    As many of each, `limit` at most, all with a probe. InputError for fewer than privacy.MINIMUM.
    """
    chosen = {}
    for role, name in zip(privacy.ROLES, ("trained", "held out")):
        rows = tables[name][tables[name]["subject_id"].isin(tables["probes"]["subject_id"])]
        order = np.random.default_rng(keyed_seed(seed, "requests", role)).permutation(len(rows))
        chosen[role] = rows.iloc[order].drop_duplicates("subject_id").assign(role=role)
    count, chosen = min(limit, *map(len, chosen.values())), pd.concat(chosen.values(), ignore_index=True)
    check_counts(chosen, "have a withheld study: see HOLD_OUT, ATTACKER and VIEWS")
    return chosen.groupby("role").head(count).reset_index(drop=True)


def check_counts(requests: pd.DataFrame, what: str) -> None:
    """InputError for fewer than privacy.MINIMUM members or held-out patients; what: they are said to have, or not."""
    members, held_out = (int((requests["role"] == role).sum()) for role in privacy.ROLES)
    if min(members, held_out) < privacy.MINIMUM:
        raise InputError(f"{members} members and {held_out} held-out patients, not {privacy.MINIMUM} of each, {what}")


def save_requests(requests: pd.DataFrame, path: Path) -> None:
    """Writes requests.csv, for LABELS_CSV of the image samplers; InputError where the file has other requests."""
    ids = ["dicom_id", "subject_id", "role"]
    if not path.exists():
        write_csv(path, pd.concat([requests[ids], to_physionet(requests[[*FINDINGS]])], axis=1), "the requests")
    elif read_csv(path, ids, texts=("dicom_id", "role"))["dicom_id"].tolist() != requests["dicom_id"].tolist():
        raise InputError(f"{path} has requests of other patients than these constants choose: set another OUTPUT")


def read_films(synthetic: str, requests: pd.DataFrame, hold_out: tuple) -> pd.DataFrame:
    """The rows of a synthetic tree with `patient`, the subject_id of the request that each was made for.

    As many of each patient: of more films one would be nearer by chance. InputError for a model of another hold_out.
    """
    if not (Path(synthetic) / PROVENANCE_FILE).exists():
        raise InputError(f"{synthetic} has no {PROVENANCE_FILE}, so it is no synthetic tree: set SYNTHETIC to one")
    table = read_table(synthetic)
    made = read_csv(Path(synthetic) / PROVENANCE_FILE, ("dicom_id", "source"), ("dicom_id", "source"), ("checkpoint",))
    check_hold_out_of_tree(hold_out, synthetic, made["checkpoint"])
    sources = table["dicom_id"].map(made.set_index("dicom_id")["source"])
    table["patient"] = sources.map(requests.set_index("dicom_id")["subject_id"])
    of_patient = table.dropna(subset="patient").astype({"patient": "int64"}).groupby("patient")
    check_counts(requests[requests["subject_id"].isin(of_patient.groups)], f"have films in {synthetic}: see LABELS_CSV")
    fewest = int(of_patient.size().min())
    say(f"{len(of_patient)} of {len(requests)} requests have films in {synthetic}; {fewest} of each are compared")
    return of_patient.head(fewest).reset_index(drop=True)


def of_patients(embeddings: np.ndarray, whose: pd.Series, patients: pd.Series) -> np.ndarray:
    """The mean of each patient's embeddings, (P, D), NaN for one without; whose (N,): of whom the N embeddings are."""
    return pd.DataFrame(embeddings).groupby(whose.to_numpy()).mean().reindex(patients).to_numpy(dtype=np.float32)


def audit_films(
    requests: pd.DataFrame, films: Images, real: dict[str, Images], attacker: Extractor, seed: int
) -> tuple[dict, dict]:
    """=> (how well the attacker knows patients, the audit of films); real: the images of `read_tables`.

    Patients count if their images can be read: the request's, the probe's and films; InputError for too few of them.
    """
    asked = Images(requests, "the requests", attacker.image_size, films.loading)
    probed, kept = real["probes"], real["held out"]
    whose, probed_of = films.table["patient"], probed.table["subject_id"]
    rows = np.flatnonzero(asked.table["subject_id"].isin(whose) & asked.table["subject_id"].isin(probed_of))
    chosen = asked.table.iloc[rows]
    check_counts(chosen, "have images that can be read")
    patients, members = chosen["subject_id"], (chosen["role"] == "member").to_numpy()
    encode = partial(embed, attacker, device=films.device)
    probes = of_patients(encode(probed.pixels())[:, :WIDTH], probed_of, patients)
    alike = pd.DataFrame(similarities(probes, encode(films.pixels())).T)  # a row a film
    alike = alike.groupby(whose.to_numpy()).max().loc[patients].to_numpy().T  # (P, P), of probes and patients' films
    score, threshold = privacy.stranger_scores(alike, chosen[[*FINDINGS]].to_numpy())
    copied = {kind: encode(changed) for kind, changed in copies.plant_copies(asked.pixels(rows)).items()}
    others = kept.table.assign(asked=kept.table["subject_id"].map(chosen.set_index("subject_id")["study_id"]))
    others = others[others["asked"].notna() & (others["asked"] != others["study_id"])].drop_duplicates("subject_id")
    if len(others):  # another study, with other findings
        further = of_patients(encode(kept.pixels(others.index)), others["subject_id"], patients)
        copied["another film of the patient"] = further
    own, planted = np.diagonal(alike), {}
    for kind, embeddings in copied.items():
        of_copy = similarities(probes[:, None], embeddings[:, None])[:, 0, 0]
        planted[kind] = score(np.maximum(own, of_copy))[~members]
    scores, known = score(own), similarities(probes, copied["exact"])
    return privacy.verification(known), privacy.audit(scores[members], scores[~members], planted, seed, threshold)


def audit_reports(
    requests: pd.DataFrame, films: pd.DataFrame, canary: str, checkpoint: str, device, seed: int
) -> dict[str, dict]:
    """{what is compared: its audit}: films' reports, if there are some; canaries, if a checkpoint of BART is given."""
    requests, synthetic = requests[requests["report"] != ""], films.loc[films["report"] != "", "report"].unique()
    compared = privacy.report_scores(requests["report"].tolist(), synthetic) if len(synthetic) else {}
    if canary and checkpoint:
        from models.weights import load_autoencoder  # BART takes seconds to import

        autoencoder = load_autoencoder(checkpoint, "", "").to(device).eval()
        exposed = privacy.exposures(requests["report"].map(clean_report), canary, autoencoder.losses, seed)
        compared["canaries"] = exposed, np.full(len(exposed), np.log2(privacy.ALTERNATIVES + 1))
    audits = {}
    for name, (scores, copied) in compared.items():
        known = ~np.isnan(scores)
        check_counts(requests[known], f"have reports for {name}: see REPORTS_ROOT and CANARY")
        members, held_out = (known & (requests["role"] == role).to_numpy() for role in privacy.ROLES)
        planted = {"whole reports": copied[held_out]}
        audits[f"reports, {name}"] = privacy.audit(scores[members], scores[held_out], planted, seed)
    return audits


def main():
    constants = override_constants(globals())
    accelerator, output, stopwatch = make_accelerator(DEVICE, "no"), Path(OUTPUT), Stopwatch()
    if accelerator.num_processes > 1:
        raise InputError("audit_privacy.py runs as one process: start it with python, not with accelerate launch")
    with as_input_error(lambda error: f"CANARY {CANARY!r} is no pattern: {error}", re.error):
        re.compile(CANARY)
    if BART_CHECKPOINT:
        check_hold_out(HOLD_OUT, BART_CHECKPOINT=BART_CHECKPOINT)
    tables = read_tables(DATA_ROOT, REPORTS_ROOT, VIEWS, HOLD_OUT, ATTACKER)
    requests = choose_requests(tables, PATIENTS, SEED)
    save_requests(requests, output / "requests.csv")
    if not SYNTHETIC:
        say(f"{len(requests)} requests: make films with LABELS_CSV {output}/requests.csv, then audit them as SYNTHETIC")
        return
    table = read_films(SYNTHETIC, requests, HOLD_OUT)
    loading = Loading(CACHE_DIR, VERIFIER_IMAGE_SIZE, BATCH_SIZE, accelerator)
    settings = JudgeSettings(VERIFIER_MODEL, VERIFIER_IMAGE_SIZE, VERIFIER_STEPS, 128, VERIFIER_LEARNING_RATE, SEED)
    real = {name: Images(rows, name, VERIFIER_IMAGE_SIZE, loading) for name, rows in tables.items()}
    attacker = verifier_of(real["attacker"], settings)
    stopwatch.lap("attacker")
    films = Images(table, SYNTHETIC, VERIFIER_IMAGE_SIZE, loading)
    known, of_films = audit_films(requests, films, real, attacker, SEED)
    stopwatch.lap("films")
    audits = {"films": of_films, **audit_reports(requests, table, CANARY, BART_CHECKPOINT, films.device, SEED)}
    stopwatch.lap("reports")
    trained = real["trained"]
    limit, distances = copies.limit_of(real["held out"], trained), copies.search(films.pixels(), trained)[0]
    roles = films.table["patient"].map(requests.set_index("subject_id")["role"])
    copied = [{"films for": role, **copies.copied_share(distances[roles == role], limit)} for role in privacy.ROLES]
    stopwatch.lap("copies")
    result = {"headline": privacy.headline(audits), "synthetic": SYNTHETIC, "attacker": known, "audits": audits}
    result |= {"copies": copied, "seconds": stopwatch.seconds}
    text = privacy.as_markdown(result)
    with writing("the audit", output):
        save_constants(output, constants)
        privacy.draw_power(result["audits"], output / "power.png")
        write_whole(output / "audit.md", text)
        write_whole(output / "evaluation.json", json.dumps(as_json(result), indent=2) + "\n")
    say(text)


if __name__ == "__main__":
    run(main)
