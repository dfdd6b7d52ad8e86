"""Findings => images with their reports, by one object; run as a script, it writes that object's folder.

    python pipeline.py --SYNTHETIC synthetic/clipUViT --EVALUATION evaluation/clipUViT --OUTPUT cxr-irgen

    from pipeline import CXRIRGenPipeline
    pipe = CXRIRGenPipeline.from_pretrained("cxr-irgen")
    pairs = pipe("cardiomegaly, edema, not pneumothorax", num_images=4, seed=1)
    pairs.images, pairs.reports, pairs.labels; pipe.report("film.dcm")

Reads:  SYNTHETIC (its constants: checkpoints, guidance, decoding ...), these checkpoints with what they were trained
        with, EVALUATION (its figures)
Writes: OUTPUT, a folder that diffusers loads without this project, with its code and a model card
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from sampling.pipeline import CXRIRGenPipeline
from sampling.pipeline_runs import constants_of_tree, data_card, load_parts
from utils.errors import run, say
from utils.folders import PIPELINE, making

SYNTHETIC = "synthetic/clipUViT"  # a synthetic tree: the pipeline makes images and reports as it was made
EVALUATION = ""  # a folder of evaluate_pairs.py, whose figures the model card shows; empty: none
OUTPUT = "cxr-irgen"  # the pipeline (a folder to write)
WITH_REFERENCES = True  # whether embeddings and labels of training images go with it, to draw references from


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
