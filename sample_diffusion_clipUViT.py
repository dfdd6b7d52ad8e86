"""Samples the vision module on a U-ViT: a synthetic CXR tree for label vectors or free text.

    python sample_diffusion_clipUViT.py --CHECKPOINT runs/clipUViT/best --SPLIT test --OUTPUT_ROOT synthetic/clipUViT
    python sample_diffusion_clipUViT.py --FINDINGS "cardiomegaly, edema, not pneumothorax" --IMAGES_PER_LABEL 8
    python sample_diffusion_clipUViT.py --CHECKPOINT runs/impressions/best --TEXT "Large left pleural effusion."
    accelerate launch --num_processes 4 sample_diffusion_clipUViT.py --config my.toml

Reads:  CHECKPOINT, and what it was trained with: its CXR tree (label vectors, reference images), frozen encoders, cache
Writes: OUTPUT_ROOT, a CXR tree with manifest.json, plan.csv, synthetic.csv, latents/; a second run adds what is missing
        OUTPUT_ROOT/{metadata.csv,README.md}, which make the tree a data set for Hugging Face's datasets
        OUTPUT_ROOT/first.png, the first 16 images of the run beside real ones with the same findings
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from sampling.tree import sample_tree
from utils.errors import run

# what to load and where to write
CHECKPOINT = "runs/clipUViT/best"  # a checkpoint folder of train_diffusion_clipUViT.py, or the authors' .ckpt
OUTPUT_ROOT = "synthetic/clipUViT"  # the synthetic CXR tree (a folder to write; new, or made with the same settings)
DATA_ROOT = ""  # the CXR tree of label vectors and references; empty: the one trained on
REPORTS_ROOT = ""  # where its reports are, for a model trained on impressions; empty: where they were in training
CACHE_DIR = ""  # features of the frozen encoders (a folder to write or empty; empty: the one of the training)
BASE_MODEL = ""  # folder or hub id of the VAE and the text encoder; empty: the one of the training
TEXT_ENCODER = ""  # folder or hub id of the text encoder where it is another one; empty: the one of the training
REFERENCE_ENCODER = ""  # open_clip image tower; empty: the one of the training
DECODER = ""  # folder or hub id of an AutoencoderTiny, quicker than the VAE (empty or e.g. madebyollin/taesd)
# what to make images of: TEXT, else FINDINGS, else LABELS_CSV, else SPLIT
TEXT = ""  # free text, e.g. "Large left pleural effusion.", for a model that was trained on impressions
FINDINGS = ""  # one label vector in words, e.g. "cardiomegaly, edema, not pneumothorax"; beside TEXT: that of TEXT
LABELS_CSV = ""  # a CSV with PhysioNet's 14 columns, with the authors' `label`, or with a free text a row in `prompt`
SPLIT = "test"  # whose label vectors, or impressions, of DATA_ROOT (train, validate, test or empty)
MAX_LABELS = 0  # label vectors at most, drawn at random (0 or more; 0: all)
IMAGES_PER_LABEL = 1  # images a label vector, each with its own seed and reference; see select_pairs.py (1 to 1000000)
# how to sample
CONDITION = "both"  # what prompts an image (both, text or reference)
TEXT_GUIDANCE = 7.5  # of the text (0 to 100; 1: none; equal guidances: ordinary classifier-free guidance)
REFERENCE_GUIDANCE = 7.5  # of the reference image (0 to 100; 1: none)
GUIDANCE_INTERVAL = (0.0, 1000.0)  # noise levels, sigma, with guidance (both 0 or more, 1000 at most; 1000: any)
SCHEDULER = "DPMSolverMultistep"  # a diffusers scheduler for images, such as DDIM (paper: PNDM)
STEPS = 25  # denoising steps (1 to 1000; paper: 50)
BATCH_SIZE = 16  # images at a time, a process; changes no picture (1 to 65536)
SEED = 1234  # of noise and references (0 or more)
# running
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def main():
    sample_tree("UViT", override_constants(globals()))


if __name__ == "__main__":
    run(main)
