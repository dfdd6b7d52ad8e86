"""Makes counterfactual twins of films: one finding added or taken away, everything else the same. Either backbone.

    python sample_counterfactuals.py --CHECKPOINT runs/clipUViT/best --SPLIT test --MAX_TWINS 200
    python sample_counterfactuals.py --TOGGLE pneumothorax
    python sample_counterfactuals.py --FINDINGS "edema, not pneumothorax" --TOGGLE edema --IMAGES_PER_LABEL 8

Reads:  CHECKPOINT, of prompts of findings; what it was trained with; FILMS (a CXR tree), or FINDINGS to make films of
Writes: OUTPUT_ROOT, a CXR tree of films and twins with manifest.json, plan.csv, synthetic.csv; a second run adds what
        is missing. OUTPUT_ROOT/counterfactuals.csv, which joins twins and films: finding, from, to, method, strength
        OUTPUT_ROOT/counterfactuals.png, film, twin and difference of the first 16 twins

sample_prior_model.py writes the reports of both, evaluate_pairs.py measures what changed. A tree of real films holds
copies of them: it is as private as they are. All its rows are split "train", those of test films, too.
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from pathlib import Path

import pandas as pd

from sampling import counterfactuals
from sampling.images import ImageSampler
from sampling.plan import label_vectors, make_requests, plan_requests, real_rows
from sampling.tree import SyntheticTree, load_models, make_missing, sampling_settings
from utils.constants import save_constants
from utils.devices import make_accelerator
from utils.errors import InputError, run
from utils.folders import SYNTHETIC_TREE, making
from utils.latents import decode_in
from utils.mimic_cxr import read_table, split_rows

# what to load and where to write
CHECKPOINT = "runs/clipUViT/best"  # a checkpoint folder of either backbone, no student
OUTPUT_ROOT = "synthetic/counterfactuals"  # the tree of films and twins (a folder to write)
DATA_ROOT = ""  # the CXR tree that the checkpoint was trained on; empty: where it was then
BASE_MODEL = ""  # folder or hub id of the VAE and the text encoder; empty: the one of the training
TEXT_ENCODER = ""  # folder or hub id of the text encoder where it is another one; empty: the one of the training
REFERENCE_ENCODER = ""  # open_clip image tower of the training, which is only compared; empty: where it was then
# which films, and what changes in them
FILMS = ""  # a CXR tree, real or synthetic; empty: DATA_ROOT
SPLIT = "test"  # the films of one split (train, validate, test or empty)
FINDINGS = ""  # in place of FILMS: films are made for this label vector, e.g. "edema, not pneumothorax"
IMAGES_PER_LABEL = 1  # films made for FINDINGS (1 to 1000000)
TOGGLE = ""  # the finding that changes, e.g. "edema"; empty: every finding in turn
MAX_TWINS = 200  # twins at most, findings and directions in turn (0 or more; 0: all, about 13 of each film)
# how
TEXT_GUIDANCE = 7.5  # of the text (0 to 100; 1: none)
GUIDANCE_INTERVAL = (0.0, 1000.0)  # noise levels, sigma, with guidance (both 0 or more, 1000 at most; 1000: any)
STEPS = 20  # denoising steps of a whole film (1 to 1000)
STRENGTH = 0.7  # share of the steps that redraws where the prompts differ (0 to 1; 0: a twin is its film)
REDRAW_THRESHOLD = 0.2  # what is redrawn: where the prompts differ by this share of the 99th percentile (0 to 1)
MASK_THRESHOLD = 0.5  # what of it is kept: the same, compared once more with what was drawn (0 to 1)
LEAST_CHANGE = 24.0  # grey levels; where a twin would differ by less, it keeps its film's pixels (0 to 255)
BATCH_SIZE = 16  # twins at a time, a process; changes no picture but with the authors' weights (1 to 65536)
SEED = 1234  # of noise, and of which twins are made (0 or more)
# running
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    models = load_models("", constants, accelerator.device)
    trained, size = models.training["constants"], models.training["constants"]["IMAGE_SIZE"]
    if "student" in models.training or trained["PROMPT"] != "findings":
        what = "a student" if "student" in models.training else "trained on impressions"
        raise InputError(f"{CHECKPOINT} is {what}: take its teacher, or a checkpoint trained with PROMPT findings")
    fixed = {"CONDITION": "text", "REFERENCE_GUIDANCE": TEXT_GUIDANCE, "SCHEDULER": "DPMSolverMultistep"}
    settings = sampling_settings(models, constants | fixed, accelerator.mixed_precision)
    own = ("STRENGTH", "REDRAW_THRESHOLD", "MASK_THRESHOLD", "LEAST_CHANGE")
    settings |= {name.lower(): constants[name] for name in own}

    real, table = real_rows(trained, DATA_ROOT, "", with_prompts=False), None
    if not FINDINGS:
        as_trained = {"views": trained["VIEWS"], "hold_out": trained["HOLD_OUT"]}
        table = read_table(FILMS, **as_trained, with_reports=False) if FILMS else real
        table = (table.iloc[split_rows(table, SPLIT, FILMS)] if SPLIT else table).assign(split="films")
    vectors = label_vectors(table, SEED, findings=FINDINGS, split="films")
    films = make_requests(vectors, IMAGES_PER_LABEL if FINDINGS else 1, SEED, settings["checkpoint_sha256"])
    twins = counterfactuals.twins_of(films, TOGGLE, MAX_TWINS, SEED, real[real["split"] == "train"])
    films = films[films["dicom_id"].isin(twins["source"])]
    if not FINDINGS:
        films = counterfactuals.readable_films(films, table, size)
        twins = twins[twins["source"].isin(films["dicom_id"])]

    decode_in(models.vae, accelerator.mixed_precision)  # from here on weights may be cast
    sampler = ImageSampler(models.denoiser, models.vae, models.text_encoder, settings, None, accelerator.autocast)
    sampler.try_once(twins["prompt"].iloc[0])
    with making(SYNTHETIC_TREE, OUTPUT_ROOT, settings, main_process=accelerator.is_main_process):
        if accelerator.is_main_process:
            save_constants(OUTPUT_ROOT, constants)
        both = pd.concat([films, twins], ignore_index=True)
        _, plan = plan_requests(both, None, settings, CHECKPOINT, OUTPUT_ROOT)
        is_twin = plan["source"].isin(plan["dicom_id"])
        plan.loc[~is_twin & (plan["source"] != "findings"), "checkpoint"] = ""  # a film of another tree
        tree, rows = SyntheticTree(Path(OUTPUT_ROOT), plan), plan.set_index("dicom_id", drop=False)
        if FINDINGS:
            make_missing(tree, rows.loc[films["dicom_id"]], sampler, BATCH_SIZE, accelerator, plan[~is_twin])
        else:
            counterfactuals.copy_films(tree, rows.loc[films["dicom_id"]], table, size, accelerator)
        changes = counterfactuals.TwinSampler(**vars(sampler), films=rows[~is_twin.to_numpy()])
        there = plan["source"].isin(plan["dicom_id"][tree.exist(plan)])  # a run that was killed may lack films
        try:
            make_missing(tree, rows.loc[twins["dicom_id"]], changes, BATCH_SIZE, accelerator, plan[is_twin & there])
        finally:
            if accelerator.is_main_process:
                counterfactuals.save_twins(tree, STRENGTH, size)


if __name__ == "__main__":
    run(main)
