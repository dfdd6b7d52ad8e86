"""Findings => images with their reports, by one object; run as a script, it writes that object's folder.

    python pipeline.py --SYNTHETIC synthetic/clipUViT --EVALUATION evaluation/clipUViT --OUTPUT cxr-irgen

    from pipeline import CXRIRGenPipeline
    pipe = CXRIRGenPipeline.from_pretrained("cxr-irgen")
    pairs = pipe("cardiomegaly, edema, not pneumothorax", num_images=4, seed=1)
    pairs.images, pairs.reports, pairs.labels; pipe.report("film.dcm")

Reads:  SYNTHETIC (its constants: checkpoints, guidance, decoding ...), these checkpoints and their encoders, EVALUATION
Writes: OUTPUT, a folder that diffusers loads without this project, with its code and a model card
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from pathlib import Path

from models.weights import load_autoencoder, load_prior
from sampling.pipeline import CXRIRGenPipeline
from sampling.plan import real_rows
from sampling.reports import sampling_arguments
from sampling.tree import load_models, sampling_settings
from utils.checkpoints import check_encoders, read_training
from utils.devices import make_accelerator
from utils.errors import as_input_error, reason, run, say
from utils.folders import DRAWN_TREE, PIPELINE, making, read_manifest

SYNTHETIC = "synthetic/clipUViT"  # a synthetic tree: the pipeline makes images and reports as it was made
EVALUATION = ""  # a folder of evaluate_pairs.py, whose figures the model card shows; empty: none
OUTPUT = "cxr-irgen"  # the pipeline (a folder to write)
WITH_REFERENCES = True  # whether embeddings and labels of training images go with it, to draw references from


def constants_of_tree(tree: str) -> tuple[dict, dict | None]:
    """The constants by which a synthetic tree's images, and its reports if it has some, were made."""
    images, reports = Path(tree, "constants.json"), Path(tree, "reports.json")
    failed, way_out = f"{tree} is no synthetic tree with its constants", "set SYNTHETIC to what an image sampler wrote"
    with as_input_error(lambda error: f"{failed} ({reason(error)}): {way_out}"):
        image_constants = json.loads(images.read_text(encoding="utf-8"))
        report_constants = json.loads(reports.read_text(encoding="utf-8"))["constants"] if reports.exists() else None
    return image_constants, report_constants


def data_card(image_constants: dict, report_constants: dict | None, evaluation: str) -> str:
    """A model card's text on data and evaluation (a folder of evaluate_pairs.py, or ""); InputError without figures."""
    trained = [read_training(image_constants["CHECKPOINT"])["constants"]]
    if report_constants:
        trained.append(read_training(report_constants["CHECKPOINT"])["constants"])
        bart = report_constants["BART_CHECKPOINT"] or trained[1]["BART_CHECKPOINT"]
        trained += [read_training(bart)["constants"]] if Path(bart, "training.json").exists() else []
    roots = {image_constants["DATA_ROOT"], *(constants.get("DATA_ROOT", "") for constants in trained)} - {""}
    drawn = all(DRAWN_TREE in read_manifest(root, "DATA_ROOT") for root in roots)
    what = "chests that a program drew: nobody's films" if drawn else f"films and reports of {', '.join(sorted(roots))}"
    lines = [f"Trained on {what}."]
    if not evaluation:
        return "\n".join([*lines, "", "It has not been evaluated."])
    path = Path(evaluation, "evaluation.json")
    way_out = "set EVALUATION to a folder of evaluate_pairs.py, or to ''"
    with as_input_error(lambda error: f"{path} has no figures ({reason(error)}): {way_out}"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        synthetic = facts["synthetic"]
        lines += ["", f"Evaluation of {synthetic['N']} images of {synthetic['tree']}, {facts['selected']}.", ""]
        lines += ["| measure | value | floor | ceiling |", "| --- | --- | --- | --- |"]
        lines += ["| {measure} | {value} | {floor} | {ceiling} |".format(**row) for row in facts["headline"]]
    return "\n".join(lines)


def load_parts(image_constants: dict, report_constants: dict | None) -> dict:
    """Those of a pipeline on the CPU; the constants of an image sampler, and those of sample_prior_model.py or None.

    Encodes every training image that is a reference and is not in the cache yet. InputError as in these scripts.
    """
    models, accelerator = load_models("", image_constants, "cpu"), make_accelerator("cpu", "no")
    denoiser, trained, texts = models.denoiser, models.training["constants"], models.text_encoder
    settings = sampling_settings(models, image_constants, "no")
    settings |= {"trained_on": trained["PROMPT"], "batch_size": image_constants["BATCH_SIZE"]}
    references = None
    if settings["condition"] != "text":
        table = real_rows(trained, image_constants["DATA_ROOT"], image_constants["REPORTS_ROOT"], with_prompts=False)
        references = models.reference_pool(table, image_constants, accelerator).to_embeddings()
    parts = {
        "vae": models.vae, "text_encoder": texts.model, "tokenizer": texts.tokenizer, "scheduler": denoiser.schedule,
        "denoiser": denoiser.denoiser, "fusion": denoiser.fusion, "references": references,
        "reference_encoder": models.reference_encoder.component(), "image_settings": settings,
    }  # fmt: skip
    if report_constants is None:
        return parts
    if report_constants["CANDIDATES"] > 1:
        say(f"the pipeline draws one report an image, and not the best of {report_constants['CANDIDATES']} CANDIDATES")
    prior, training = load_prior(report_constants["CHECKPOINT"])
    bart = report_constants["BART_CHECKPOINT"] or training["constants"]["BART_CHECKPOINT"]
    autoencoder = load_autoencoder(bart, report_constants["POOLING"], report_constants["TOKENIZER"])
    check_encoders(training, bart=autoencoder.fingerprint(), pooling=autoencoder.pooling, vae=settings["vae"])
    parts |= {"prior": prior, "bart": autoencoder.bart, "bart_tokenizer": autoencoder.tokenizer}
    return {**parts, "report_settings": sampling_arguments(report_constants)}


def main():
    override_constants(globals())
    constants = constants_of_tree(SYNTHETIC)
    card = data_card(*constants, EVALUATION)
    with making(PIPELINE, OUTPUT, {"class": CXRIRGenPipeline.__name__}, constant="OUTPUT"):
        pipeline = CXRIRGenPipeline(**load_parts(*constants))
        pipeline.save_pretrained(OUTPUT, references=WITH_REFERENCES, card=card)
    example = "cardiomegaly" if pipeline.config.image_settings["trained_on"] == "findings" else "Cardiomegaly."
    say(f"""{OUTPUT} is written; in Python:
    from pipeline import CXRIRGenPipeline
    pipe = CXRIRGenPipeline.from_pretrained({OUTPUT!r})
    pairs = pipe({example!r}, num_images=4, seed=1)""")


if __name__ == "__main__":
    run(main)
