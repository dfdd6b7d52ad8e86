"""A pipeline out of what the trainers wrote, with the constants that the samplers' scripts have."""

import json
from pathlib import Path

from models.distillation import student_settings
from models.weights import load_autoencoder, load_prior, load_vision
from sampling.pipeline import CXRIRGenPipeline
from sampling.plan import real_rows
from sampling.reference_pool import ReferencePool
from utils.checkpoints import check_encoders, encoder_fingerprints, read_training, weights_fingerprint
from utils.constants import REPOSITORY, resolve
from utils.devices import make_accelerator
from utils.errors import InputError, reason
from utils.folders import DRAWN_TREE, read_manifest
from utils.latents import load_vae
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder

IMAGE_SAMPLERS = {"UViT": "sample_diffusion_clipUViT.py", "UNet2DConditionModel": "sample_diffusion_clipSD.py"}
REPORT_SAMPLER = "sample_prior_model.py"


def pipeline_of_runs(checkpoint: str, prior_checkpoint: str, config: str) -> CXRIRGenPipeline:
    """A pipeline of two checkpoints, as `CXRIRGenPipeline.from_runs` describes it."""
    from_file = ["--config", config] if config else []
    try:
        backbone = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))["_class_name"]
        sampler = IMAGE_SAMPLERS[backbone]
    except (OSError, ValueError, KeyError, TypeError) as error:
        way_out = "name a trainer's RUN_DIR/best; an authors' file is converted by `python -m models.weights`"
        raise InputError(f"no denoiser's checkpoint in {checkpoint!r} ({reason(error)}): {way_out}") from error
    images, _ = resolve(REPOSITORY / sampler, [*from_file, "--CHECKPOINT", checkpoint])
    reports, _ = resolve(REPOSITORY / REPORT_SAMPLER, [*from_file, "--CHECKPOINT", prior_checkpoint])
    return make_pipeline(images, reports if prior_checkpoint else None)


def pipeline_of_tree(tree: str) -> CXRIRGenPipeline:
    """The pipeline that makes the images of a synthetic tree, and its reports if it has some, with its constants."""
    images, reports = Path(tree, "constants.json"), Path(tree, "reports.json")
    try:
        image_constants = json.loads(images.read_text(encoding="utf-8"))
        report_constants = json.loads(reports.read_text(encoding="utf-8"))["constants"] if reports.exists() else None
        return make_pipeline(image_constants, report_constants)
    except (OSError, ValueError, KeyError, TypeError) as error:
        way_out = "set SYNTHETIC to what an image sampler wrote"
        raise InputError(f"{tree} is no synthetic tree with its constants ({reason(error)}): {way_out}") from error


def data_card(tree: str, evaluation: str) -> str:
    """What a model card says of data and evaluation, in Markdown.

    tree: a synthetic tree; evaluation: a folder of evaluate_pairs.py, or "". InputError where it has no figures.
    """
    trained_on = json.loads(Path(tree, "constants.json").read_text(encoding="utf-8"))["CHECKPOINT"]
    data_root = read_training(trained_on)["constants"]["DATA_ROOT"]
    drawn = DRAWN_TREE in read_manifest(data_root, "DATA_ROOT")
    what = "chests that a program drew: nobody's films" if drawn else f"the images and reports of {data_root}"
    lines = [f"Trained on {what}."]
    if not evaluation:
        return "\n".join([*lines, "", "It has not been evaluated."])
    path = Path(evaluation, "evaluation.json")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        headline, selected, synthetic = facts["headline"], facts["selected"], facts["synthetic"]
        lines += ["", f"Evaluation of {synthetic['N']} images of {synthetic['tree']}, {selected}.", ""]
        lines += ["| measure | value | floor | ceiling |", "| --- | --- | --- | --- |"]
        lines += ["| {measure} | {value} | {floor} | {ceiling} |".format(**row) for row in headline]
    except (OSError, ValueError, KeyError, TypeError) as error:
        way_out = "set EVALUATION to a folder of evaluate_pairs.py, or to ''"
        raise InputError(f"{path} has no figures ({reason(error)}): {way_out}") from error
    return "\n".join(lines)


def make_pipeline(image_constants: dict, report_constants: dict | None) -> CXRIRGenPipeline:
    """A pipeline on the CPU; the constants of an image sampler, and those of sample_prior_model.py or None.

    Encodes every training image that is a reference and is not in the cache yet. InputError as in these scripts.
    """
    places = (image_constants[name] for name in ("BASE_MODEL", "REFERENCE_ENCODER", "TEXT_ENCODER"))
    denoiser, training = load_vision(image_constants["CHECKPOINT"], "", *places)
    trained, fusion = training["constants"], denoiser.fusion
    vae = load_vae(trained["BASE_MODEL"])
    texts = TextEncoder(trained["BASE_MODEL"], isinstance(fusion, PooledFusion), name=trained["TEXT_ENCODER"])
    reference_encoder = ReferenceEncoder(trained["REFERENCE_ENCODER"])
    check_encoders(training, **encoder_fingerprints(vae, texts, reference_encoder))
    low, high = image_constants["GUIDANCE_INTERVAL"]
    image_settings = {
        "image_size": trained["IMAGE_SIZE"], "trained_on": trained["PROMPT"],
        "checkpoint_sha256": weights_fingerprint(denoiser), "text_guidance": image_constants["TEXT_GUIDANCE"],
        "reference_guidance": image_constants["REFERENCE_GUIDANCE"], "guidance_low": low, "guidance_high": high,
        "steps": image_constants["STEPS"], "scheduler": image_constants["SCHEDULER"],
        "batch_size": image_constants["BATCH_SIZE"], **student_settings(training), "student": "student" in training,
    }  # fmt: skip
    references = None
    if image_constants["CONDITION"] != "text":
        cache, size = image_constants["CACHE_DIR"] or trained["CACHE_DIR"], image_constants["BATCH_SIZE"]
        table = real_rows(trained, image_constants["DATA_ROOT"], image_constants["REPORTS_ROOT"], with_prompts=False)
        accelerator = make_accelerator("cpu", "no")
        references = ReferencePool(table, reference_encoder, fusion, cache, size, accelerator).to_embeddings()
    return CXRIRGenPipeline(
        vae=vae, text_encoder=texts.model, tokenizer=texts.tokenizer, scheduler=denoiser.schedule,
        denoiser=denoiser.denoiser, fusion=fusion, reference_encoder=reference_encoder.component(),
        references=references, image_settings=image_settings, **_report_parts(report_constants, vae),
    )  # fmt: skip


def _report_parts(constants, vae) -> dict:
    """The components that write reports, and their settings."""
    if constants is None:
        return {}
    prior, training = load_prior(constants["CHECKPOINT"])
    bart = constants["BART_CHECKPOINT"] or training["constants"]["BART_CHECKPOINT"]
    autoencoder = load_autoencoder(bart, constants["POOLING"], constants["TOKENIZER"])
    digest = autoencoder.fingerprint()
    check_encoders(training, bart=digest, pooling=autoencoder.pooling, vae=weights_fingerprint(vae))
    settings = {
        "prior": {
            "gain": constants["LATENT_GAIN"], "guidance": constants["IMAGE_GUIDANCE"],
            "temperature": constants["FLOW_TEMPERATURE"],
        },
        "decoding": {
            "decoding": constants["DECODING"], "beams": constants["BEAMS"], "top_p": constants["TOP_P"],
            "temperature": constants["TEMPERATURE"], "max_tokens": constants["MAX_TOKENS"],
        },
    }  # fmt: skip
    parts = {"prior": prior, "bart": autoencoder.bart, "bart_tokenizer": autoencoder.tokenizer}
    return {**parts, "report_settings": settings}
