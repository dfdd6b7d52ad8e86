"""Label vectors => requests => images in a synthetic CXR tree.

A *request* is one image to make: its label vector, prompt, seed, reference and its place in the tree. The whole list is
a function of the constants, so that several processes, or a second run, agree on it and make only what is missing.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from utils.diffusion import encoder_fingerprints, prompts_of, sample_latents, sampling_scheduler
from utils.errors import InputError, writing
from utils.findings import FINDINGS, check_labels, from_physionet, parse_findings
from utils.latents import decode_latents
from utils.mimic_cxr import image_file, say, write_tree
from utils.prompts import NULL_PROMPT
from utils.references import NONE, References
from utils.seeds import keyed_generator, keyed_seed

NOBODY = -1  # the subject_id of a label vector that is no patient's
CONDITIONS = ("both", "text", "reference")  # what prompts an image
FIRST_SUBJECT, FIRST_STUDY = 10_000_000, 50_000_000  # synthetic ids count up from here
JPEG_QUALITY = 95
PROVENANCE = ("dicom_id", "subject_id", "source", "prompt", "seed", "reference_dicom_id", "checkpoint")
SETTINGS = (  # columns of synthetic.csv that one tree has only one value of
    "condition", "text_guidance", "reference_guidance", "steps", "scheduler", "checkpoint_sha256"
)  # fmt: skip


def label_vectors(findings, labels_csv, table, split, limit, seed):
    """What to make images of: a DataFrame with the 14 findings, `source` (a text), `subject_id`, `view`.

    findings: plain text such as "cardiomegaly, not edema"; else labels_csv: a CSV with PhysioNet's 14 columns, or with
    the authors' `label` column; else the rows of one split of the table. limit: so many of them, drawn at random
    (a larger limit keeps them); 0: all.
    """
    if findings:
        vectors = pd.DataFrame([parse_findings(findings)], columns=FINDINGS).assign(source="findings")
    elif labels_csv:
        vectors = _read_labels(Path(labels_csv))
    else:
        vectors = table[table.split == split] if table is not None else None
        if vectors is None or vectors.empty:
            found = {} if table is None else table.split.value_counts().to_dict()
            raise InputError(f"no rows in the split {split!r} to take label vectors from; there are {found}; set SPLIT")
        vectors = vectors[[*FINDINGS, "subject_id", "view"]].assign(source=vectors.dicom_id)
    vectors = vectors.reset_index(drop=True)
    for column, default in (("subject_id", NOBODY), ("view", "PA")):
        vectors[column] = vectors.get(column, default)
    if limit:
        vectors = vectors.iloc[np.random.default_rng(keyed_seed(seed, "limit")).permutation(len(vectors))[:limit]]
    return vectors


def _read_labels(path):
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read LABELS_CSV {path}: {error}") from error
    if "label" in frame:
        try:
            vectors = pd.DataFrame([check_labels(json.loads(label)) for label in frame.label], columns=FINDINGS)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: a `label` is no list of 14 codes: {error}") from error
    elif set(FINDINGS) <= set(frame):
        vectors = from_physionet(frame, path)
    else:
        missing = sorted(set(FINDINGS) - set(frame))
        raise InputError(f"{path} has neither a column `label` nor PhysioNet's 14 columns: {missing} are missing")
    return vectors.assign(source=[f"{path.name} {row}" for row in range(len(vectors))])


class ReferencePool:
    """The training rows of a table whose image can be read: who may be a reference, and each one's embedding.

    prompting: "own", a row drawn as utils.references has it; "authors", the first row with the same labels.
    """

    def __init__(self, table, reference_encoder, cache_dir, batch_size, threads, accelerator, prompting="own"):
        self.prompting = prompting
        table = table[table.split == "train"]
        if table.empty:
            raise InputError("there are no training rows to take references from; set CONDITION to text")
        self.cache, keys, readable = reference_encoder.cache(table, cache_dir, accelerator, batch_size, threads)
        self.table = table[readable]
        self.references = References(self.table)
        self._key_of = dict(zip(table.dicom_id, keys))

    def draw(self, requests):
        """A reference's dicom_id for each request, "" for none; prints how they were found."""
        if self.prompting == "authors":
            rows = self.references.first_for(requests)
            say(
                f"references of the {len(requests)} images: {(rows != NONE).sum()} the first training row with the "
                f"same labels, {(rows == NONE).sum()} none"
            )
        else:
            generators = [keyed_generator(seed, "reference") for seed in requests.seed]
            rows = self.references.draw_for(requests, generators)
            say(f"references of the {len(requests)} images: {self.references.count_kinds(requests)}")
        return np.where(rows == NONE, "", self.table.dicom_id.to_numpy()[rows])

    def embeddings(self, dicom_ids, width):
        """Embeddings of references, (n, width) float32; zeros for the dicom_id ""."""
        nothing = np.zeros(width, dtype=np.float32)
        return torch.from_numpy(np.stack([self.cache[self._key_of[name]] if name else nothing for name in dicom_ids]))


def plan_requests(vectors, images_per_label, pool, condition, seed, settings, output_root):
    """The list of images to make, a DataFrame: a row of the synthetic tree and of its synthetic.csv each.

    pool: ReferencePool (None where condition is "text"). settings: the values of the other columns of synthetic.csv; a
    tree made with others is refused, so that one tree is one experiment.
    """
    if condition not in CONDITIONS:
        raise InputError(f"CONDITION {condition!r} is none of {CONDITIONS}")
    made = _already_made(output_root, {"condition": condition, **settings})
    copies = np.tile(np.arange(images_per_label), len(vectors))
    requests = vectors.loc[vectors.index.repeat(images_per_label)].reset_index(drop=True)
    requests["prompt"] = prompts_of(requests)
    keys = list(zip(requests.source, requests.prompt, copies))
    requests["seed"] = [keyed_seed(seed, *map(str, key)) % 2**31 for key in keys]
    requests["dicom_id"] = [_dicom_id(*key, seed, settings["checkpoint_sha256"]) for key in keys]
    requests["condition"] = condition
    requests["reference_dicom_id"] = "" if condition == "text" else pool.draw(requests)

    # each image is a patient of its own; those made before keep their numbers, new ones go on counting
    numbers = (made.subject_id - FIRST_SUBJECT).to_dict()
    following = max(numbers.values(), default=-1) + 1
    for dicom_id in requests.dicom_id:
        if dicom_id not in numbers:
            numbers[dicom_id] = following
            following += 1
    number = requests.dicom_id.map(numbers)
    requests["subject_id"], requests["study_id"] = FIRST_SUBJECT + number, FIRST_STUDY + number
    requests["split"], requests["report"] = "train", ""
    requests["image_path"] = [
        str(image_file(output_root, *ids)) for ids in zip(requests.subject_id, requests.study_id, requests.dicom_id)
    ]
    return requests.assign(**settings)


def _already_made(output_root, settings):
    """The rows of the tree's synthetic.csv with their subject_id, by dicom_id; InputError if made otherwise."""
    path = Path(output_root) / "synthetic.csv"
    if not path.exists():
        return pd.DataFrame({"subject_id": pd.Series(dtype=int)})
    made = pd.read_csv(path, keep_default_na=False, index_col="dicom_id")
    for name in SETTINGS:
        found = made[name].unique()
        if len(found) > 1 or str(found[0]) != str(settings[name]):
            raise InputError(
                f"{output_root} holds images made with {name} = {found[0]}, this run has {settings[name]}; "
                "set OUTPUT_ROOT to another folder"
            )
    return made


def _dicom_id(*key):
    """An id in MIMIC-CXR's form: five groups of eight hexadecimal digits."""
    digits = "".join(f"{keyed_seed('dicom_id', part, *map(str, key)) % 16**8:08x}" for part in range(5))
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def check_encoders(training, vae, text_encoder, reference_encoder):
    """InputError unless the frozen encoders are those that a checkpoint was trained with."""
    if "source" in training:  # an authors' file
        if reference_encoder.width != text_encoder.width:
            raise InputError(
                f"{training['source']} was trained with references as wide as its texts, {text_encoder.width}, and "
                f"this REFERENCE_ENCODER makes {reference_encoder.width}: set it to the one it was trained with"
            )
        say(f"{training['source']} does not say what it was trained with: the encoders are taken unchecked")
        return
    for name, fingerprint in encoder_fingerprints(vae, text_encoder, reference_encoder).items():
        if training["encoders"][name] != fingerprint:
            raise InputError(
                f"the checkpoint was trained with another {name} (SHA-256 {training['encoders'][name][:12]}…, here "
                f"{fingerprint[:12]}…): restore the BASE_MODEL and REFERENCE_ENCODER that it was trained with"
            )


def make_images(requests, model, vae, text_encoder, pool, shape, batch_size, keep_latents, output_root, accelerator):
    """Makes the images that are missing and brings the tree's CSVs up to date.

    requests: from `plan_requests`; pool: ReferencePool or None; shape: (C, h, w) of the latents.
    Each process makes its share; an image appears under its name only when it is whole, after its latents.
    """
    missing = requests[[not Path(path).exists() for path in requests.image_path]]
    accelerator.print(f"{len(requests)} images asked for, {len(requests) - len(missing)} there already")
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    mine = missing.iloc[accelerator.process_index :: accelerator.num_processes]
    progress = tqdm(total=len(mine), desc="images", disable=not accelerator.is_main_process)
    try:
        for batch in _batches(mine, batch_size, model, text_encoder):
            latents = _draw(batch, model, text_encoder, pool, shape, accelerator)
            with writing("synthetic images", output_root):
                for row, image, latent in zip(batch.itertuples(), decode_latents(vae, latents), latents):
                    if keep_latents:
                        _save_latent(Path(output_root) / "latents" / f"{row.dicom_id}.npy", latent)
                    _save_image(Path(row.image_path), image)  # last: an image that is there is whole
            progress.update(len(batch))
        accelerator.wait_for_everyone()
    finally:
        progress.close()
        if accelerator.is_main_process:
            made = requests[[Path(path).exists() for path in requests.image_path]]
            if len(made):
                write_tree(output_root, made, provenance=made[[*PROVENANCE, *SETTINGS]])
    accelerator.wait_for_everyone()
    accelerator.print(f"{output_root}: {len(made) if accelerator.is_main_process else ''} images")


def _batches(requests, batch_size, model, text_encoder):
    """Requests, so many at a time; for an authors' denoiser, each time with prompts of one length."""
    lengths = np.zeros(len(requests))
    if model.fusion.config.prompting == "authors" and len(requests):
        lengths = np.array(text_encoder.lengths(requests.prompt))
    for _, group in requests.groupby(lengths, sort=False):
        for start in range(0, len(group), batch_size):
            yield group.iloc[start : start + batch_size]


def _draw(batch, model, text_encoder, pool, shape, accelerator):
    """The latents (B, C, h, w) of a batch of requests."""
    settings, prompting = batch.iloc[0], model.fusion.config.prompting
    text_guidance, reference_guidance = float(settings.text_guidance), float(settings.reference_guidance)
    length = text_encoder.lengths(batch.prompt[:1])[0] if prompting == "authors" else 0
    null_text, null_reference = text_encoder.null_prompt(prompting, length)
    text = text_encoder.encode(batch.prompt.tolist(), length)
    width = model.fusion.config.reference_dim
    if settings.condition == "text":
        reference, reference_guidance = torch.zeros(len(batch), width), text_guidance
    else:
        reference = pool.embeddings(batch.reference_dicom_id, width)
    if settings.condition == "reference":
        text, text_guidance = null_text.expand_as(text), reference_guidance
    scheduler = sampling_scheduler(settings.scheduler, model.schedule)
    with accelerator.autocast():
        return sample_latents(
            model, scheduler, text, reference, null_text, batch.seed.tolist(), shape, int(settings.steps),
            text_guidance, reference_guidance, null_reference,
        )  # fmt: skip


def _save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(image).save(temporary, format="JPEG", quality=JPEG_QUALITY)
    temporary.replace(path)


def _save_latent(path, latent):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, latent.cpu().numpy().astype(np.float16))


class Preview:
    """A picture of what the model makes in training: real validation images above, images for their prompts below.

    Prompts, references and noise are the same at every step, so that the pictures can be compared.
    """

    def __init__(self, validation, vae, schedule, steps, guidance, seed, count=8):
        self.vae, self.schedule, self.steps, self.guidance = vae, schedule, steps, guidance
        count = min(count, len(validation))
        self.seeds = [keyed_seed(seed, "preview", row) for row in range(count)]
        examples = [validation[row, image_seed] for row, image_seed in enumerate(self.seeds)]
        self.real = torch.stack([example["latents"] for example in examples])
        self.text = torch.stack([example["text"] for example in examples])
        self.reference = torch.stack([example["reference"] for example in examples])
        self.null_text = torch.from_numpy(np.array(validation.features.texts[NULL_PROMPT]))

    def __call__(self, model, path):
        scheduler = sampling_scheduler("DPMSolverMultistep", self.schedule)
        made = sample_latents(
            model, scheduler, self.text, self.reference, self.null_text, self.seeds, self.real.shape[1:], self.steps,
            self.guidance, self.guidance,
        )  # fmt: skip
        rows = [np.concatenate(list(decode_latents(self.vae, latents)), axis=1) for latents in (self.real, made)]
        Image.fromarray(np.concatenate(rows)).save(path.with_suffix(".png"))
