"""Requests => images in a synthetic CXR tree, and the previews of a training."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from models.diffusion import Guidance, Prompts, sample_latents, sampling_scheduler
from models.graphs import replay
from sampling.plan import CONDITIONS, NOBODY, PROVENANCE, SELECTED, SETTINGS, plan_digest, save_plan
from utils.cache import save_array
from utils.errors import InputError, Stopped, reason, replacing, say, stoppable, writing
from utils.findings import prompts_of
from utils.folders import seen_alike
from utils.latents import decode_in, decode_latents, read_grey
from utils.mimic_cxr import PICTURE_FILE, write_tree
from utils.references import NONE, References
from utils.seeds import keyed_generator

JPEG_QUALITY = 95
TRIAL_STEPS = 3  # of the batch that is tried before a run
BYTES_OF_ROWS = 2000  # of an image, in all tables of a tree


def check_settings(settings, schedule):
    """InputError for settings that no image can be made with; to be asked before a tree is begun with them."""
    if settings["condition"] not in CONDITIONS:
        raise InputError(f"CONDITION {settings['condition']!r} is none of {', '.join(CONDITIONS)}")
    if settings.get("start") == "reference" and settings["condition"] == "text":
        raise InputError(
            "START 'reference' needs a reference, and CONDITION 'text' has none: set one of them otherwise"
        )
    for name in ("text_guidance", "reference_guidance"):
        if not math.isfinite(settings[name]):
            raise InputError(f"{name.upper()} is {settings[name]}; it has to be a finite number, such as 7.5")
    low, high = settings["guidance_low"], settings["guidance_high"]
    if not 0 <= low <= high:
        raise InputError(f"GUIDANCE_LOW {low} and GUIDANCE_HIGH {high} hold no noise level: the first is the lower one")
    longest = schedule.config.num_train_timesteps
    if not 1 <= settings["steps"] <= longest:
        raise InputError(f"STEPS is {settings['steps']}; it has to be 1 to {longest}, the steps of the noise schedule")
    sampling_scheduler(settings["scheduler"], schedule)


def start_setting(start, training):
    """What START adds to the settings: nothing for "noise", so that a tree from before there was another start goes on.

    training: the checkpoint's training.json; a student begins with noise, as it was taught.
    """
    return {} if start == "noise" or "student" in training else {"start": start}


def make_images(
    requests, plan, settings, model, vae, text_encoder, pool, shape, batch_size, keep_latents, selection, output_root,
    accelerator,
):  # fmt: skip
    """Makes the requested images that are missing and brings the tree's CSVs up to date => the requests that these list.

    requests, plan: from `plan_requests`; model, vae: in the accelerator's precision from now on; pool: ReferencePool or None;
    shape: (C, h, w) of the latents; selection: Selection, its selector trained.
    Each process makes its share of the batches; an image appears under its name only when it is whole, after its latents.
    Images of the plan that an earlier run made and was killed before it listed them are listed too. SIGTERM ends it after
    the batch, with all images listed (Stopped).
    """
    _make_ready(model, vae, text_encoder, shape, accelerator)
    missing = set(requests.dicom_id[_look_at(requests, selection).isna()])
    say(f"{len(requests)} images asked for, {len(requests) - len(missing)} there already")
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if accelerator.is_main_process:
        save_plan(output_root, plan)
    accelerator.wait_for_everyone()
    _check_shared(lambda: plan_digest(output_root, plan), output_root, accelerator)
    if accelerator.is_main_process:
        _list_images(output_root, plan, selection)  # finds out before the hours, too, whether the CSVs can be added to
    batches = _batches(plan, missing, batch_size, model, text_encoder)
    if pool and batches:
        references = pd.concat(batches).reference_dicom_id
        pool.prepare(references)
        if settings.get("start") == "reference":
            pool.prepare_latents(references, vae, settings["image_size"])
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    progress = tqdm(
        total=sum(batch.dicom_id.isin(missing).sum() for batch in mine),
        desc="images",
        disable=not accelerator.is_main_process,
    )
    with stoppable() as stopped:
        try:
            for batch in mine:
                if stopped():
                    break
                best = _draw_best(batch, settings, model, vae, text_encoder, pool, shape, selection, accelerator)
                made = batch[batch.dicom_id.isin(missing)]
                with writing("synthetic images", output_root):
                    _save_batch(made, best, keep_latents, output_root)
                progress.update(len(made))
            accelerator.wait_for_everyone()
            paths = requests.image_path[requests.dicom_id.isin(missing)]
            _check_shared(lambda: tuple(map(os.path.exists, paths)), output_root, accelerator)
        finally:
            progress.close()
            if accelerator.is_main_process:
                _say_listed(output_root, *_list_images(output_root, plan, selection))
        listed = requests
        if selection.keep != "all":  # one process looks: all have to plan the same requests in place of dropped ones
            found = _look_at(requests if accelerator.is_main_process else requests[:0], selection).dropna()
            kept = [requests.dicom_id[place] for place, told in found.items() if selection.is_listed(told)]
            listed = requests[requests.dicom_id.isin(gather_object(kept))]
        if any(gather_object([stopped()])):  # of all processes, so that they end together
            raise Stopped(f"stopped; the images made so far are in {output_root}: the same command goes on from there")
    return listed


def _make_ready(model, vae, text_encoder, shape, accelerator):
    """InputError unless these belong together; from now on both networks answer as quickly as the accelerator lets them."""
    model.check_fits(text_encoder.width, shape)
    decode_in(vae, accelerator.mixed_precision)
    replay(model, accelerator)


def _check_shared(look, output_root, accelerator):
    """InputError unless all processes see the same in OUTPUT_ROOT; look: as `seen_alike` has it."""
    if not seen_alike(look, accelerator):
        raise InputError(
            f"the processes of this launch do not see the same plan and images in {output_root}: put OUTPUT_ROOT onto "
            "storage that all machines share, and run the same command again"
        )


def try_batch(vectors, settings, model, vae, text_encoder, shape, size, accelerator):
    """Makes one batch in as few steps as a sampler can do, without references, and keeps none of it.

    vectors: what to make images of; the batch, of `size` images, is of the one with the longest prompt.
    """
    _make_ready(model, vae, text_encoder, shape, accelerator)
    prompt = max(prompts_of(vectors), key=len)
    batch = pd.DataFrame({"prompt": [prompt] * size, "reference_dicom_id": "", "seed": range(size)})
    nothing = SimpleNamespace(
        embeddings=lambda names: torch.zeros(len(names), model.fusion.config.reference_dim),
        latents=lambda names, shape: torch.zeros(len(names), *shape),
    )
    few = {**settings, "steps": min(settings["steps"], TRIAL_STEPS)}
    images = decode_latents(vae, draw_batch(batch, few, model, text_encoder, nothing, shape, accelerator))
    say(f"a batch of {size} images can be made: {images.shape[-1]} pixels, in {few['steps']} steps")


def bytes_an_image(image_size, shape, keep_latents):
    """What an image adds to a tree at most: a JPEG, its latents in float16 and its rows in the tables."""
    return image_size**2 + BYTES_OF_ROWS + (2 * math.prod(shape) if keep_latents else 0)


@dataclass(frozen=True)
class _Best:
    """The best candidate of a request so far."""

    score: float
    image: np.ndarray  # (S, S) uint8
    latents: np.ndarray  # (C, h, w) float16
    comment: str  # of its file, or None


def _draw_best(batch, settings, model, vae, text_encoder, pool, shape, selection, accelerator):
    """The best candidate of each request of a batch, {dicom_id: _Best}: the first that agrees, else the highest score.

    Further candidates are drawn of those requests only of which none agrees yet.
    """
    best, waiting = {}, batch
    for number in range(selection.candidates):
        drawn = selection.candidate(waiting, number)
        latents = draw_batch(drawn, settings, model, text_encoder, pool, shape, accelerator)
        images = decode_latents(vae, latents)
        kept = latents.cpu().numpy().astype(np.float16)
        scores, agrees = selection.judge_images(images, drawn)
        for place, name in enumerate(drawn.dicom_id):
            if name not in best or agrees[place] or scores[place] > best[name].score:
                comment = selection.comment(number, scores[place], agrees[place])
                best[name] = _Best(scores[place], images[place].copy(), kept[place].copy(), comment)
        waiting = waiting[~agrees]
        if waiting.empty:
            break
    return best


def _save_batch(batch, best, keep_latents, output_root):
    for row in batch.itertuples():
        if keep_latents:
            save_array(Path(output_root) / "latents" / f"{row.dicom_id}.npy", best[row.dicom_id].latents)
        _save_image(Path(row.image_path), best[row.dicom_id])  # last: an image that is there is whole


def _list_images(output_root, plan, selection):
    """Brings the CSVs of a tree up to date with the images of its plan that are there => how many, and how many of them
    are listed."""
    found = _look_at(plan, selection).dropna()
    made = selection.tell(plan.loc[found.index], found.tolist())
    listed = made[[selection.is_listed(told) for told in found]]
    if len(listed):
        write_tree(output_root, listed, provenance=listed[[*PROVENANCE, *SELECTED, *SETTINGS]])
    return len(made), len(listed)


def _say_listed(output_root, made, listed):
    dropped = f"; {made - listed} more do not agree with their request and are not listed" if made > listed else ""
    say(f"{output_root}: {listed} images{dropped}")


def _look_at(rows, selection):
    """What the comment of each row's image says (`Selection.read_comment`), a Series; None where there is no image.

    An image that is there and cannot be opened, or does not say which candidate it is, is named, and counts as missing.
    """
    return pd.Series([_told_by(path, selection) for path in rows.image_path], index=rows.index, dtype=object)


def _told_by(path, selection):
    try:
        with Image.open(path) as image:
            return selection.read_comment(image.info)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError) as error:
        say(f"damaged: {path} ({reason(error)})")
        return None


def _batches(plan, missing, batch_size, model, text_encoder):
    """The batches of a plan that hold a missing image; for an authors' denoiser, each with prompts of one length.

    A batch is so many neighbours of the plan, those that are there already included: what else is in a batch changes the
    rounding of an image, and so one that a kill left out is byte for byte the one of an uninterrupted run.
    """
    lengths = np.zeros(len(plan), dtype=int)
    if model.fusion.config.prompting == "authors" and len(plan):
        lengths = np.array(text_encoder.lengths(plan.prompt))
    numbers = plan.groupby(lengths).cumcount().to_numpy() // batch_size
    groups = (group for _, group in plan.groupby([lengths, numbers], sort=False))
    return [group for group in groups if group.dicom_id.isin(missing).any()]


def draw_batch(batch, settings, model, text_encoder, pool, shape, accelerator):
    """The latents (B, C, h, w) of a batch of requests."""
    prompting = model.fusion.config.prompting
    text_guidance, reference_guidance = settings["text_guidance"], settings["reference_guidance"]
    length = text_encoder.lengths(batch.prompt[:1])[0] if prompting == "authors" else 0
    null_text, null_reference = text_encoder.null_prompt(prompting, length)
    text = text_encoder.encode(batch.prompt.tolist(), length)
    if settings["condition"] == "text":
        reference = torch.zeros(len(batch), model.fusion.config.reference_dim)
        reference_guidance = text_guidance
    else:
        reference = pool.embeddings(batch.reference_dicom_id)
    if settings["condition"] == "reference":
        text, text_guidance = null_text.expand_as(text), reference_guidance
    prompts = Prompts(text, reference, null_text, null_reference)
    guidance = Guidance(text_guidance, reference_guidance, settings["guidance_low"], settings["guidance_high"])
    scheduler = sampling_scheduler(settings["scheduler"], model.schedule)
    with accelerator.autocast():
        return sample_latents(model, scheduler, prompts, guidance, batch.seed.tolist(), shape, settings["steps"])


def _save_image(path, best):
    options = {"comment": best.comment} if best.comment else {}
    with replacing(path) as temporary:
        Image.fromarray(best.image).save(temporary, format="JPEG", quality=JPEG_QUALITY, **options)


COUNT, ACROSS = 16, 4  # images of each kind, and how many of them stand in a row


def picture_first(requests, table, output_root, image_size, seed):
    """Writes PICTURE_FILE: the images of the first COUNT requests at the left, and as many real images at the right.

    requests: from `plan_requests`; table: real rows; for each request one is drawn that has the same labels, or else the
    nearest ones (None: no real images). Without a request there is no picture. An image that cannot be read stays black.
    """
    if requests.empty:
        return
    first = requests.iloc[:COUNT]
    blocks = [first.image_path.tolist()]
    if table is not None:
        generators = [keyed_generator(seed, "beside", dicom_id) for dicom_id in first.dicom_id]
        rows = References(table).draw_for(first.assign(subject_id=NOBODY), generators)
        blocks.append(["" if row == NONE else table.image_path.iloc[row] for row in rows])
    gap = np.full((-(-len(first) // ACROSS) * image_size, image_size // 8), 255, dtype=np.uint8)
    parts = [part for paths in blocks for part in (gap, _block(paths, image_size))][1:]
    with writing(PICTURE_FILE, output_root), replacing(Path(output_root) / PICTURE_FILE) as temporary:
        Image.fromarray(np.concatenate(parts, axis=1)).save(temporary, format="PNG")


def _block(paths, image_size):
    """Images in rows of ACROSS, (rows S, ACROSS S) uint8."""
    block = np.zeros((-(-len(paths) // ACROSS) * image_size, ACROSS * image_size), dtype=np.uint8)
    for place, path in enumerate(paths):
        y, x = (image_size * number for number in divmod(place, ACROSS))
        block[y : y + image_size, x : x + image_size] = _grey(path, image_size)
    return block


def _grey(path, image_size):
    try:
        return read_grey(path, image_size)
    except ValueError:  # missing or damaged, and named by whoever needed it
        return np.zeros((image_size, image_size), dtype=np.uint8)
