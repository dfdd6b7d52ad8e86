"""The images of a synthetic tree: which are missing, how they are made, and the CSVs that list them."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm

from models.diffusion import PromptedDenoiser, sampling_scheduler
from models.distillation import student_settings
from models.graphs import replay
from models.weights import is_foreign, load_vision
from sampling import plan as planning
from sampling.data_set import save_data_set
from sampling.images import ImageSampler, batches_to_draw
from sampling.reference_pool import ReferencePool
from utils.cache import save_array
from utils.checkpoints import check_encoders, encoder_fingerprints, weights_fingerprint
from utils.constants import save_constants
from utils.devices import make_accelerator
from utils.errors import InputError, Stopped, reason, replacing, say, stoppable, writing
from utils.folders import SYNTHETIC_TREE, all_processes_agree, making
from utils.latents import decode_in, load_decoder, load_vae
from utils.mimic_cxr import PICTURE_FILE, write_tree
from utils.pixels import read_grey
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder
from utils.references import NONE, References
from utils.seeds import keyed_generator

JPEG_QUALITY = 95
PICTURE_IMAGES, PICTURE_COLUMNS = 16, 4  # of each half of first.png: images at most, and images in a row


def sample_tree(backbone: str, constants: dict):
    """Makes the images that an image sampler's constants name and that the tree OUTPUT_ROOT does not have yet.

    backbone: the class name of the denoiser, "UViT" or "UNet2DConditionModel"; constants: those of the script, read
    here by name. The frozen models are those of the denoiser's training.
    """
    accelerator = make_accelerator(constants["DEVICE"], constants["PRECISION"])
    output_root, seed = constants["OUTPUT_ROOT"], constants["SEED"]
    models = load_models(backbone, constants, accelerator.device)
    denoiser, text_encoder, trained = models.denoiser, models.text_encoder, models.training["constants"]
    settings = sampling_settings(models, constants, accelerator.mixed_precision)
    sampling_scheduler(settings["scheduler"], denoiser.schedule)  # fails for one that cannot sample
    table, by_split = None, not (constants["TEXT"] or constants["FINDINGS"] or constants["LABELS_CSV"])
    if constants["CONDITION"] != "text" or by_split:
        table = planning.real_rows(trained, constants["DATA_ROOT"], constants["REPORTS_ROOT"], with_prompts=by_split)
    vectors = planning.label_vectors(
        table, seed, trained["PROMPT"], text=constants["TEXT"], findings=constants["FINDINGS"],
        labels_csv=constants["LABELS_CSV"], split=constants["SPLIT"], limit=constants["MAX_LABELS"],
    )  # fmt: skip
    text_encoder.print_lengths(vectors["prompt"])
    pool = models.reference_pool(table, constants, accelerator) if constants["CONDITION"] != "text" else None
    decoder = load_decoder(constants["DECODER"], models.vae)
    if decoder is not models.vae:
        settings["decoder"] = weights_fingerprint(decoder)
    decode_in(decoder, accelerator.mixed_precision)  # from here on weights may be cast
    replay(denoiser, accelerator)
    sampler = ImageSampler(denoiser, decoder, text_encoder, settings, pool, accelerator.autocast)
    sampler.try_once(vectors["prompt"].iloc[0])

    with making(SYNTHETIC_TREE, output_root, settings, main_process=accelerator.is_main_process):
        if accelerator.is_main_process:
            save_constants(output_root, constants)
        copies, checkpoint = constants["IMAGES_PER_LABEL"], constants["CHECKPOINT"]
        requests = planning.make_requests(vectors, copies, seed, settings["checkpoint_sha256"])
        requests, plan = planning.plan_requests(requests, pool, settings, checkpoint, output_root)
        make_missing(SyntheticTree(Path(output_root), plan), requests, sampler, constants["BATCH_SIZE"], accelerator)
        if accelerator.is_main_process:
            save_first_picture(requests, table, output_root, trained["IMAGE_SIZE"], seed)


@dataclass(frozen=True)
class VisionModels:
    """A trained denoiser, its training.json, and the frozen models of its training with their fingerprints."""

    denoiser: PromptedDenoiser
    training: dict
    vae: AutoencoderKL
    text_encoder: TextEncoder
    reference_encoder: ReferenceEncoder
    encoders: dict[str, str]

    def reference_pool(self, table: pd.DataFrame, constants: dict, accelerator: Accelerator) -> ReferencePool:
        """The training rows of a table; constants: those of the image sampler."""
        cache_dir = constants["CACHE_DIR"] or self.training["constants"]["CACHE_DIR"]
        encoder, fusion, size = self.reference_encoder, self.denoiser.fusion, constants["BATCH_SIZE"]
        return ReferencePool(table, encoder, fusion, cache_dir, size, accelerator)


def load_models(backbone: str, constants: dict, device: torch.device | str) -> VisionModels:
    """The models that an image sampler's constants name; backbone: as in `sample_tree`, "" for either. InputError for
    others, and for an authors' file without a backbone."""
    if not backbone and is_foreign(constants["CHECKPOINT"], "CHECKPOINT"):
        raise InputError(f"{constants['CHECKPOINT']} is an authors' file: convert it by python -m models.weights")
    places = (constants[name] for name in ("BASE_MODEL", "REFERENCE_ENCODER", "TEXT_ENCODER"))
    denoiser, training = load_vision(constants["CHECKPOINT"], backbone, *places)
    trained, denoiser = training["constants"], denoiser.to(device).eval()
    vae, pooled = load_vae(trained["BASE_MODEL"], device), isinstance(denoiser.fusion, PooledFusion)
    text_encoder = TextEncoder(trained["BASE_MODEL"], pooled=pooled, device=device, name=trained["TEXT_ENCODER"])
    reference_encoder = ReferenceEncoder(trained["REFERENCE_ENCODER"], device)
    encoders = encoder_fingerprints(vae, text_encoder, reference_encoder)
    check_encoders(training, **encoders)
    return VisionModels(denoiser, training, vae, text_encoder, reference_encoder, encoders)


def sampling_settings(models: VisionModels, constants: dict, precision: str) -> dict:
    """What a tree's manifest states. The order counts: a tree's first number depends on it."""
    low, high = constants["GUIDANCE_INTERVAL"]
    if low > high:
        raise InputError(f"GUIDANCE_INTERVAL {low}, {high} is empty: the first noise level has to be the lower one")
    return {
        "condition": constants["CONDITION"], "text_guidance": constants["TEXT_GUIDANCE"],
        "reference_guidance": constants["REFERENCE_GUIDANCE"], "guidance_low": low, "guidance_high": high,
        "steps": constants["STEPS"], "scheduler": constants["SCHEDULER"],
        "checkpoint_sha256": weights_fingerprint(models.denoiser),
        "image_size": models.training["constants"]["IMAGE_SIZE"], "precision": precision,
        **models.encoders, **student_settings(models.training),
    }  # fmt: skip


class SyntheticTree:
    """The image files of a plan, and the CSVs that list them."""

    def __init__(self, root: Path, plan: pd.DataFrame):
        self.root, self.plan = root, plan

    def exist(self, rows: pd.DataFrame) -> np.ndarray:
        """Which rows have an image file, (n,) bool; a damaged one is named, and counts as missing."""
        return np.array([size is not None for size in self._sizes(rows)], dtype=bool)

    def _sizes(self, rows):
        """(width, height) in pixels of the image file of each row; None for one that is missing."""
        sizes = []
        for path in rows.image_path:
            try:
                with Image.open(path) as image:
                    sizes.append(image.size)
            except (OSError, ValueError, SyntaxError) as error:
                sizes.append(None)
                if not isinstance(error, FileNotFoundError):
                    say(f"damaged: {path} ({reason(error)})")
        return sizes

    def save(self, row, image: np.ndarray, latents: np.ndarray | None = None):
        """Writes the latents (C, h, w), if any, and the image (S, S) of a row of the plan; the image last, whole."""
        with writing("synthetic images", self.root):
            if latents is not None:
                save_array(self.root / "latents" / f"{row.dicom_id}.npy", latents)
            with replacing(row.image_path) as temporary:
                Image.fromarray(image).save(temporary, format="JPEG", quality=JPEG_QUALITY)

    def list_images(self) -> int:
        """Adds all images of the plan that exist to the CSVs, and returns how many there are."""
        listed = self.plan.assign(size=self._sizes(self.plan)).dropna(subset="size")
        if len(listed):
            write_tree(self.root, listed, provenance=listed[[*planning.SYNTHETIC_COLUMNS]])
            save_data_set(self.root)
        return len(listed)


def make_missing(
    tree: SyntheticTree, requests: pd.DataFrame, sampler: ImageSampler, batch_size: int, accelerator: Accelerator,
    plan: pd.DataFrame | None = None,
):  # fmt: skip
    """Makes the requested images that a tree does not have yet. Whatever ends this, all images that exist are listed.

    plan: the rows of the tree's plan that batches are cut from, None: all. Each process of a launch makes its share of
    the batches. SIGTERM ends it after the batch (Stopped).
    """
    missing = set(requests.dicom_id[~tree.exist(requests)])
    say(f"{len(requests)} images requested, {len(requests) - len(missing)} of them exist")
    accelerator.wait_for_everyone()  # all processes have looked before the first one writes
    if accelerator.is_main_process:
        planning.save_plan(tree.root, tree.plan)
    accelerator.wait_for_everyone()
    _check_shared(lambda: planning.plan_digest(tree.root, tree.plan), tree.root, accelerator)
    if accelerator.is_main_process:
        tree.list_images()  # fails here, before hours of sampling, where the CSVs cannot be added to
    batches = batches_to_draw(tree.plan if plan is None else plan, missing, batch_size, sampler)
    if sampler.pool and batches:
        sampler.pool.prepare(pd.concat(batches).reference_dicom_id)
    share = batches[accelerator.process_index :: accelerator.num_processes]
    count = sum(int(batch.dicom_id.isin(missing).sum()) for batch in share)
    with stoppable() as stopped:
        try:
            with tqdm(total=count, desc="images", disable=not accelerator.is_main_process) as progress:
                for batch in takewhile(lambda _: not stopped(), share):
                    images, latents = sampler.make(batch)
                    half = [None] * len(batch) if latents is None else latents.cpu().numpy().astype(np.float16)
                    for place, row in enumerate(batch.itertuples()):
                        if row.dicom_id in missing:
                            tree.save(row, images[place], half[place])
                            progress.update()
            accelerator.wait_for_everyone()
            paths = requests.image_path[requests.dicom_id.isin(missing)]
            _check_shared(lambda: tuple(map(os.path.exists, paths)), tree.root, accelerator)
        finally:
            if accelerator.is_main_process:
                say(f"{tree.root}: {tree.list_images()} images")
        if any(gather_object([stopped()])):  # in any process, so that all end together
            raise Stopped(f"stopped; the images made so far are in {tree.root}: the same command goes on from there")


def _check_shared(look: Callable[[], object], root: Path, accelerator: Accelerator):
    """InputError unless `look` returns the same in all processes of a launch."""
    if not all_processes_agree(look, accelerator):
        way_out = "put OUTPUT_ROOT onto storage that all machines share, and run the same command again"
        raise InputError(f"the processes of this launch find different plans or images in {root}: {way_out}")


def save_first_picture(requests: pd.DataFrame, table: pd.DataFrame | None, root: str, image_size: int, seed: int):
    """Writes first.png: the images of the first requests at the left, real images with the same labels at the right.

    table: real rows, or None; without the same labels one with the nearest is drawn. Unreadable images stay black.
    """
    first = requests.iloc[:PICTURE_IMAGES]
    blocks = [_block([*first.image_path], image_size)]
    if table is not None:
        generators = [keyed_generator(seed, "beside", dicom_id) for dicom_id in first.dicom_id]
        rows = References(table).draw_for(first.assign(subject_id=planning.NO_PATIENT), generators)
        gap = np.full((len(blocks[0]), image_size // 8), 255, dtype=np.uint8)
        paths = ["" if row == NONE else table.image_path.iloc[row] for row in rows]
        blocks += [gap, _block(paths, image_size)]
    with writing(PICTURE_FILE, root), replacing(Path(root) / PICTURE_FILE) as temporary:
        Image.fromarray(np.concatenate(blocks, axis=1)).save(temporary, format="PNG")


def _block(paths: list[str], image_size: int) -> np.ndarray:
    """Images in rows of PICTURE_COLUMNS, (height, width) uint8."""
    images = np.zeros((-(-len(paths) // PICTURE_COLUMNS), PICTURE_COLUMNS, image_size, image_size), dtype=np.uint8)
    for place, path in enumerate(paths):
        with suppress(ValueError):  # missing or damaged: it was named when it was needed
            images[divmod(place, PICTURE_COLUMNS)] = read_grey(path, image_size)
    return np.concatenate(np.concatenate(images, axis=1), axis=1)
