"""Distils the vision module: a student that draws an image in a few network calls, guidance included. Both backbones.

    python distill_diffusion.py --CHECKPOINT runs/clipUViT/best --RUN_DIR runs/clipUViT-student
    python sample_diffusion_clipUViT.py --CHECKPOINT runs/clipUViT-student/best --OUTPUT_ROOT synthetic/student

The student starts from its teacher's weights. It is a checkpoint like any other: the samplers of its backbone load it,
and use its number of steps and no guidance, whatever their constants say; the guidance is in its weights.

Reads:  CHECKPOINT (the teacher), and what it was trained with: its CXR tree, frozen encoders, cache
Writes: RUN_DIR/{last,best} (checkpoints), RUN_DIR/{metrics.csv,loss.png,previews,constants.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from dataclasses import asdict
from functools import partial

from models.diffusion import Guidance
from models.distillation import STUDENT_SCHEDULER, Teacher, begin_student, distillation_loss
from sampling.tree import load_models
from training.denoiser import train_denoiser
from utils.checkpoints import weights_fingerprint
from utils.devices import make_accelerator
from utils.errors import InputError, run
from utils.findings import with_prompts
from utils.mimic_cxr import read_table
from utils.prompts import NULL_PROMPT

# the teacher
CHECKPOINT = "runs/clipUViT/best"  # a checkpoint folder of either backbone
TEXT_GUIDANCE = 7.5  # of the text (0 to 100; 1: none; equal guidances: ordinary classifier-free guidance)
REFERENCE_GUIDANCE = 7.5  # of the reference image (0 to 100; 1: none)
GUIDANCE_INTERVAL = (0.0, 1000.0)  # noise levels, sigma, with guidance (both 0 or more, 1000 at most; 1000: any)
TEACHER_STEPS = 6  # steps of DPM-Solver++ for one of the student's (1 to 250)
# the student
STUDENT_STEPS = 4  # network calls an image (1 to 250)
# data
DATA_ROOT = ""  # a CXR tree, or the authors' CSV; empty: the one the teacher was trained on
REPORTS_ROOT = ""  # where its reports are, for a teacher trained on impressions; empty: where they were for the teacher
CACHE_DIR = ""  # features of the frozen encoders (a folder to write or empty; empty: the one of the teacher)
BASE_MODEL = ""  # folder or hub id of its VAE and text encoder; empty: the one of the teacher
TEXT_ENCODER = ""  # folder or hub id of the text encoder where it was another one; empty: the one of the teacher
REFERENCE_ENCODER = ""  # open_clip image tower; empty: the one of the teacher
PROMPT_DROPOUT = (0.05, 0.05, 0.0)  # probabilities of no text, no reference, neither (each 0 to 1)
# optimisation
BATCH_SIZE = 32  # images an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more passes need less memory (1 to 65536)
EPOCHS = 2  # passes over the training rows (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
LR_SCHEDULE = "cosine"  # of the learning rate (constant_with_warmup, linear or cosine)
WARMUP_STEPS = 100  # optimiser steps of linear warm-up (0 or more)
EMA_DECAY = 0.999  # of the averaged weights, which are the ones sampled (0 or more, below 1)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it)
SEED = 1234  # of data order, noise, references and dropout (0 or more)
# running
RUN_DIR = "runs/student"  # checkpoints, metrics and pictures; a run in it is resumed (a folder to write)
CHECKPOINT_EVERY = 1000  # optimiser steps between checkpoints, each with validation and preview (1 or more)
LOG_WITH = ""  # a tracker (empty, aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio or wandb)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images, and processes that load batches (0 to 256)

_OF_THE_TEACHER = (
    "DATA_ROOT", "REPORTS_ROOT", "CACHE_DIR", "BASE_MODEL", "TEXT_ENCODER", "REFERENCE_ENCODER", "PROMPT", "VIEWS",
    "HOLD_OUT", "IMAGE_SIZE",
)  # fmt: skip


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION, LOG_WITH, RUN_DIR)

    models = load_models("", constants, accelerator.device)
    model, training, text_encoder = models.denoiser, models.training, models.text_encoder
    if "student" in training:
        raise InputError(f"CHECKPOINT {CHECKPOINT} is a student itself: set it to that student's teacher")
    # kept in the student's training.json, where the samplers read them
    constants |= {name: constants.get(name) or training["constants"][name] for name in _OF_THE_TEACHER}
    table = read_table(
        constants["DATA_ROOT"], constants["REPORTS_ROOT"], constants["VIEWS"], ("train", "validate"),
        constants["HOLD_OUT"], with_reports=constants["PROMPT"] == "impression",
    )  # fmt: skip
    table = with_prompts(table, constants["PROMPT"])
    encoders = models.vae, text_encoder, models.reference_encoder

    guidance = Guidance(TEXT_GUIDANCE, REFERENCE_GUIDANCE, *GUIDANCE_INTERVAL)
    teacher = Teacher(model, text_encoder.encode([NULL_PROMPT])[0], guidance, STUDENT_STEPS, TEACHER_STEPS)
    facts = {"teacher": weights_fingerprint(model), "steps": STUDENT_STEPS, "teacher_steps": TEACHER_STEPS}
    facts |= {f"guidance_{name}": value for name, value in asdict(guidance).items()}
    # the "timesteps" of an example are the student's steps
    train_denoiser(
        begin_student(CHECKPOINT), partial(distillation_loss, teacher=teacher), table, encoders, constants, accelerator,
        STUDENT_STEPS, {"student": facts},
        steps=STUDENT_STEPS, guidance=1.0, scheduler=STUDENT_SCHEDULER,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
