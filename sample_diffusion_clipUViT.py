"""Samples the vision module on a U-ViT: a synthetic CXR tree for label vectors of a split, of a CSV, or in plain words.

    python sample_diffusion_clipUViT.py --CHECKPOINT runs/clipUViT/best --SPLIT test --OUTPUT_ROOT synthetic/clipUViT
    python sample_diffusion_clipUViT.py --FINDINGS "cardiomegaly, edema, not pneumothorax" --IMAGES_PER_LABEL 8
    python sample_diffusion_clipUViT.py --CHECKPOINT runs/impressions/best --TEXT "Large left pleural effusion."
    accelerate launch --num_processes 4 sample_diffusion_clipUViT.py --config my.toml

Reads:  CHECKPOINT, and what it was trained with: its CXR tree (label vectors, reference images), frozen encoders, cache
Writes: OUTPUT_ROOT, a CXR tree with manifest.json, plan.csv and synthetic.csv; a second run adds what is missing.
        OUTPUT_ROOT/first.png, the first 16 images of the run beside real ones with the same findings
        OUTPUT_ROOT/selector.csv where candidates are judged: the patients that the judge was trained on
"""

from utils.constants import check_command_line, override_constants, save_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from evaluation.judges import JudgeSettings
from evaluation.selection import Selection, needs_selector
from models.distillation import student_settings
from models.weights import load_vision
from sampling.images import bytes_an_image, check_settings, make_images, picture_first, start_setting, try_batch
from sampling.plan import label_vectors, plan_requests, real_rows
from sampling.reference_pool import ReferencePool
from training.preflight import check_run
from utils.checkpoints import check_encoders, encoder_fingerprints, weights_fingerprint
from utils.devices import make_accelerator
from utils.errors import run
from utils.folders import SYNTHETIC_TREE, making
from utils.latents import latent_shape, load_vae
from utils.prompts import ReferenceEncoder, TextEncoder

# what to load and where to write
CHECKPOINT = "runs/clipUViT/best"  # a checkpoint folder of train_diffusion_clipUViT.py, or the authors' .ckpt
OUTPUT_ROOT = "synthetic/clipUViT"  # the synthetic CXR tree (a folder to write; new, or made with the same settings)
DATA_ROOT = ""  # the CXR tree of label vectors and references; empty: the one trained on
REPORTS_ROOT = ""  # where its reports are, for a model trained on impressions; empty: where they were in the training
CACHE_DIR = ""  # features of the frozen encoders (a folder to write or empty; empty: the one of the training)
BASE_MODEL = ""  # folder or hub id of its VAE and text encoder; empty: the one of the training
TEXT_ENCODER = ""  # folder or hub id of the text encoder where it was another one; empty: the one of the training
REFERENCE_ENCODER = ""  # open_clip image tower; empty: the one of the training
# what to make images of: TEXT, else FINDINGS, else LABELS_CSV, else SPLIT
TEXT = ""  # in the words of an impression, e.g. "Large left pleural effusion.", of a model that was trained on them
FINDINGS = ""  # one label vector in words, e.g. "cardiomegaly, edema, not pneumothorax"; beside TEXT: that of TEXT
LABELS_CSV = ""  # a CSV with PhysioNet's 14 columns, with the authors' `label`, or with a free text a row in `prompt`
SPLIT = "test"  # whose label vectors, or impressions, of DATA_ROOT (train, validate, test or empty)
MAX_LABELS = 0  # label vectors at most, drawn at random (0 or more; 0: all)
IMAGES_PER_LABEL = 1  # images a label vector, each with its own seed and reference (1 to 1000000)
# how to sample
CONDITION = "both"  # what prompts an image (both, text or reference)
TEXT_GUIDANCE = 7.5  # of the text (0 to 100; 1: none; equal guidances: ordinary classifier-free guidance)
REFERENCE_GUIDANCE = 7.5  # of the reference image (0 to 100; 1: none)
GUIDANCE_LOW = 0.0  # noise level, sigma, down to which there is guidance (0 to 1000; paper: 0)
GUIDANCE_HIGH = 1000.0  # noise level up to which there is (0 to 1000; 1000: any; SD ends at 14.6; paper: any)
START = "noise"  # noise alone, or training's last noise on the reference (noise or reference; paper: noise)
SCHEDULER = "DPMSolverMultistep"  # a diffusers scheduler for images, such as DDIM (paper: PNDM)
STEPS = 25  # denoising steps (1 to 1000; paper: 50)
BATCH_SIZE = 16  # images at a time, a process; changes no picture (1 to 65536)
SEED = 1234  # of noise and references (0 or more)
KEEP_LATENTS = True  # keep OUTPUT_ROOT/latents, from which the prior writes reports without the VAE
# which images are kept: a judge of half the training patients chooses, by whom no evaluation may judge
CANDIDATES = 1  # images made for a request at most, until one shows all that was asked (1 to 1000)
KEEP = "all"  # which pairs the tree lists (all or agreeing; agreeing: whose image shows each finding as it was asked)
MAX_REQUESTS = 0  # requests at most, with those in place of pairs that KEEP dropped (0 or more; 0: none is replaced)
SELECTOR_MODEL = "resnet18"  # any timm classifier, trained from random weights
SELECTOR_IMAGE_SIZE = 128  # pixels (32 to 4096)
SELECTOR_STEPS = 8000  # optimiser steps (1 to 1000000)
SELECTOR_BATCH_SIZE = 64  # images an optimiser step (2 to 65536)
SELECTOR_LEARNING_RATE = 2e-3  # of AdamW, the highest of one cycle (above 0, 1 at most)
# running
CHECK = False  # True: only try what the run needs, and say what would end it
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode reference images (0 to 256)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device

    model, training = load_vision(CHECKPOINT, "UViT", BASE_MODEL, REFERENCE_ENCODER, TEXT_ENCODER)
    trained = training["constants"]
    model = model.to(device).eval()
    vae = load_vae(trained["BASE_MODEL"], device)
    text_encoder = TextEncoder(trained["BASE_MODEL"], pooled=True, device=device, name=trained["TEXT_ENCODER"])
    reference_encoder = ReferenceEncoder(trained["REFERENCE_ENCODER"], device)
    encoders = encoder_fingerprints(vae, text_encoder, reference_encoder)
    check_encoders(training, **encoders)
    settings = {
        "condition": CONDITION,
        "text_guidance": TEXT_GUIDANCE,
        "reference_guidance": REFERENCE_GUIDANCE,
        "guidance_low": GUIDANCE_LOW,
        "guidance_high": GUIDANCE_HIGH,
        "steps": STEPS,
        "scheduler": SCHEDULER,
        "checkpoint_sha256": weights_fingerprint(model),
        "image_size": trained["IMAGE_SIZE"],
        "precision": accelerator.mixed_precision,
        **start_setting(START, training),
        **encoders,
        **student_settings(training),
    }
    check_settings(settings, model.schedule)
    table, pool = None, None
    by_split = not (TEXT or FINDINGS or LABELS_CSV)
    if CONDITION != "text" or by_split or needs_selector(CANDIDATES, KEEP):
        table = real_rows(trained, DATA_ROOT, REPORTS_ROOT, with_prompts=by_split)
    vectors = label_vectors(FINDINGS, LABELS_CSV, table, SPLIT, MAX_LABELS, SEED, TEXT, trained["PROMPT"])
    text_encoder.print_lengths(vectors["prompt"])
    selector = JudgeSettings(
        SELECTOR_MODEL, SELECTOR_IMAGE_SIZE, SELECTOR_STEPS, SELECTOR_BATCH_SIZE, SELECTOR_LEARNING_RATE
    )
    selection = Selection(CANDIDATES, KEEP, selector, table)
    settings |= selection.settings

    with making(SYNTHETIC_TREE, OUTPUT_ROOT, settings, main_process=accelerator.is_main_process and not CHECK):
        cache_dir = CACHE_DIR or trained["CACHE_DIR"]
        if CONDITION != "text":
            pool = ReferencePool(
                table, reference_encoder, model.fusion, cache_dir, BATCH_SIZE, NUM_WORKERS, accelerator
            )
        shape = latent_shape(vae, trained["IMAGE_SIZE"])
        if CHECK:
            count = max(len(vectors) * IMAGES_PER_LABEL, MAX_REQUESTS)
            size = min(BATCH_SIZE, count)
            try_batch(vectors, settings, model, vae, text_encoder, shape, size, accelerator)
            places = {OUTPUT_ROOT: count * bytes_an_image(trained["IMAGE_SIZE"], shape, KEEP_LATENTS)}
            places |= selection.check(cache_dir, device)
            read = [] if pool is None and not selection.selects else table.image_path[table.split == "train"]
            return check_run(places, read, accelerator)
        selection.train(cache_dir, OUTPUT_ROOT, accelerator, NUM_WORKERS)
        if accelerator.is_main_process:
            save_constants(OUTPUT_ROOT, constants)
        copies = IMAGES_PER_LABEL
        while copies is not None:  # once, or until as many pairs are kept as were asked for
            requests, plan = plan_requests(vectors, copies, pool, settings, CHECKPOINT, SEED, OUTPUT_ROOT)
            listed = make_images(
                requests, plan, settings, model, vae, text_encoder, pool, shape, BATCH_SIZE, KEEP_LATENTS, selection,
                OUTPUT_ROOT, accelerator,
            )  # fmt: skip
            copies = selection.more_copies(copies, vectors, listed, IMAGES_PER_LABEL, MAX_REQUESTS)
        if accelerator.is_main_process:
            selection.report(requests, listed)
            picture_first(listed, table, OUTPUT_ROOT, trained["IMAGE_SIZE"], SEED)


if __name__ == "__main__":
    run(main)
