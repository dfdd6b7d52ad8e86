"""The pipeline: the scripts' images and reports for the same seed, also from its folder alone; films; bad input."""

import io
import json
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from running import BACKBONES, ROOT, pipeline_of, run_script, sample
from tiny_models import save_bert

from pipeline import CXRIRGenPipeline, constants_of_tree, load_parts
from sampling.tree import JPEG_QUALITY
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table

WILD = ("--DECODING", "nucleus", "--TEMPERATURE", "3.0", "--MAX_TOKENS", "12")  # an untrained BART writes little
ASKED = "cardiomegaly, edema, not pneumothorax"


@pytest.fixture
def of_scripts(config, runs, checkpoints, tmp_path):
    """A function: backbone => the tree of three pairs that the scripts make with SEED 1."""

    def make(backbone):
        made = tmp_path / backbone
        options = {"SEED": 1, "IMAGES_PER_LABEL": 3, "FINDINGS": ASKED, "BATCH_SIZE": 2}
        assert sample(backbone, config, runs, made, **options) == 0
        options = ["--CHECKPOINT", checkpoints[0], "--OUTPUT_ROOT", made, "--DATA_ROOT", "", "--SEED", 1, *WILD]
        assert run_script("sample_prior_model", "--config", config, *map(str, options)) == 0
        return made

    return make


def as_jpeg(image):
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_images_and_reports_are_those_of_the_scripts_also_from_the_saved_folder(backbone, of_scripts, tmp_path):
    made = of_scripts(backbone)
    CXRIRGenPipeline(**load_parts(*constants_of_tree(str(made)))).save_pretrained(tmp_path / "cxr-irgen")
    pairs = CXRIRGenPipeline.from_pretrained(tmp_path / "cxr-irgen")(ASKED, num_images=3, seed=1)
    plan, table = pd.read_csv(made / "plan.csv"), read_table(made).set_index("dicom_id")
    written = pd.read_csv(made / "reports.csv", keep_default_na=False).set_index("dicom_id").report
    assert pairs.seeds == plan.seed.tolist() and pairs.prompts == plan.prompt.tolist()
    assert pairs.reports == written[plan.dicom_id].tolist() and len({*pairs.reports}) > 1
    assert (pairs.labels.to_numpy() == table.loc[plan.dicom_id, list(FINDINGS)].to_numpy()).all()
    for dicom_id, image in zip(plan.dicom_id, pairs.images):
        with open(table.image_path[dicom_id], "rb") as file:
            assert as_jpeg(image) == file.read()


ALONE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in f"{finder} {type(finder)}"]
assert importlib.util.find_spec("sampling") is None
sys.modules |= dict.fromkeys(("gradio", "datasets", "wandb", "pydicom"))  # cannot be imported
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pairs = pipe(sys.argv[2], num_images=3, seed=1)
for number, image in enumerate(pairs.images):
    image.save(f"{number}.jpg", quality=int(sys.argv[3]))
pipe.save_pretrained("again")
assert importlib.util.find_spec("sampling") is None
print(json.dumps(pairs.reports))
"""


def test_the_folder_makes_the_same_pairs_without_this_project(of_scripts, tmp_path, monkeypatch):
    made, alone = of_scripts("clipUViT"), tmp_path / "alone"
    alone.mkdir()
    CXRIRGenPipeline(**load_parts(*constants_of_tree(str(made)))).save_pretrained(tmp_path / "cxr-irgen")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", ALONE, str(tmp_path / "cxr-irgen"), ASKED, str(JPEG_QUALITY)]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = pd.read_csv(made / "plan.csv")
    written = pd.read_csv(made / "reports.csv", keep_default_na=False).set_index("dicom_id").report
    assert json.loads(done.stdout.splitlines()[-1]) == written[plan.dicom_id].tolist()
    for number, path in enumerate(read_table(made).set_index("dicom_id").image_path[plan.dicom_id]):
        with open(path, "rb") as file:
            assert (alone / f"{number}.jpg").read_bytes() == file.read()
    for name in ("pipeline.py", "cxr_irgen/sampling_pipeline.py", "model_index.json", "README.md"):
        assert (alone / "again" / name).exists()
    assert (alone / "again" / "cxr_irgen" / "uvit_model.py").read_text() == (
        tmp_path / "cxr-irgen" / "cxr_irgen" / "uvit_model.py"
    ).read_text()


def test_the_notebook_runs(of_scripts, tmp_path, monkeypatch):
    made = of_scripts("clipUViT")
    (tmp_path / "demo" / "synthetic").mkdir(parents=True)
    shutil.copytree(made, tmp_path / "demo" / "synthetic" / "clipUViT")
    CXRIRGenPipeline(**load_parts(*constants_of_tree(str(made)))).save_pretrained(tmp_path / "demo" / "cxr-irgen")
    for name, place in {"CXR_IRGEN_ROOT": ROOT, "CXR_IRGEN_DEMO": tmp_path / "demo", "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(place))
    notebook = nbformat.read(ROOT / "docs" / "pipeline.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in shown
    assert "num_rows: 3" in "".join(output.get("text", "") for output in notebook.cells[11].outputs)


@pytest.fixture
def pipe(config, runs, checkpoints, tmp_path):
    wild = '[sample_prior_model]\nDECODING = "nucleus"\nTEMPERATURE = 3.0\nMAX_TOKENS = 12\n'
    (tmp_path / "wild.toml").write_text(config.read_text() + wild)
    return pipeline_of(runs / "clipUViT" / "best", tmp_path / "wild.toml", checkpoints[0])


def test_a_films_report_is_that_of_the_script_and_does_not_depend_on_how_it_is_given(
    pipe, write_reports, checkpoints, tree, tmp_path
):
    options = {"VIEWS": "()", "HOLD_OUT": "()", "SEED": 1, "DECODING": "nucleus", "TEMPERATURE": 3.0, "MAX_TOKENS": 12}
    write_reports(DATA_ROOT=tree, OUTPUT_ROOT=tmp_path / "written", **options)
    written = pd.read_csv(tmp_path / "written" / "reports.csv", keep_default_na=False).set_index("dicom_id").report
    row = read_table(tree).iloc[0]
    assert pipe.report(row.image_path, seed=1) == written[row.dicom_id] != ""
    opened = Image.open(row.image_path)
    values = np.asarray(opened.convert("L"))
    assert pipe.report(opened, seed=1) == pipe.report(values, seed=1)
    Image.fromarray(65535 - 257 * values.astype(np.uint16)).save(tmp_path / "negative.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "negative.tif") as negative:  # white is zero
        assert pipe.report(negative, seed=1) == pipe.report(opened, seed=1)
    assert pipe.read(opened) == {}  # this prior has no readout
    for broken in (tmp_path / "none.png", np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.float32)):
        with pytest.raises(InputError, match="unreadable|blank"):
            pipe.report(broken)


def test_a_call_follows_its_arguments(pipe, tree):
    film = read_table(tree).image_path.iloc[0]
    usual = pipe(ASKED, seed=1)

    def differs(*arguments, **options):
        return (np.asarray(pipe(*arguments, **options).images[0]) != np.asarray(usual.images[0])).any()

    assert not differs(ASKED, seed=1)
    assert differs(ASKED, seed=2) and differs("fracture", seed=1) and differs(ASKED, seed=1, reference=film)
    assert differs(ASKED, seed=1, guidance_scale=9.0) and differs(ASKED, seed=1, num_inference_steps=2)
    assert not differs(ASKED, seed=1, guidance_scale=2.0)  # of text and reference: those of the configuration
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, second = (pipe("edema", generator=generator) for generator in generators)
    assert first.seeds == second.seeds != pipe("edema", generator=generators[0]).seeds
    several = pipe(["edema", ASKED, "Edema"], num_images=2, seed=np.int64(1))
    assert several.seeds[2] == usual.seeds[0] and several.seeds[:2] == several.seeds[4:]
    assert [as_jpeg(image) for image in several.images[:2]] == [as_jpeg(image) for image in several.images[4:]]
    lower = np.asarray(pipe.to(torch.bfloat16)(ASKED, seed=1).images[0], dtype=float)
    assert 0 < np.abs(lower - np.asarray(usual.images[0])).mean() < 5
    assert pipe.vae.dtype == torch.float32


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("gout", {}, "unknown finding 'gout'"),
        ("edema, not edema", {}, "named twice"),
        (" ", {}, "empty"),
        ([], {}, "empty"),
        ("edema", {"num_images": 0}, "num_images 0"),
        ("edema", {"seed": -1}, "seed -1"),
        ("edema", {"num_images": 1.5}, "num_images 1.5 is not a whole number"),
        ("edema", {"guidance_scale": -1.0}, "guidance_scale -1.0"),
        ("edema", {"num_inference_steps": 0}, "num_inference_steps 0"),
        ("edema", {"reference": "none.png"}, "none.png"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(pipe, prompt, options, message):
    with pytest.raises(InputError, match=message):
        pipe(prompt, **options)


def test_without_prior_and_references_images_are_made_and_nothing_else(config, runs, tmp_path):
    images_alone = pipeline_of(runs / "clipUViT" / "best", config)
    with_references = images_alone("edema", seed=1)
    assert with_references.reports == [""]
    images_alone.save_pretrained(tmp_path / "cxr-irgen", references=False)
    assert images_alone.references is not None and not (tmp_path / "cxr-irgen" / "references").exists()
    images_alone.save_pretrained(tmp_path / "again")  # with them, after a folder without
    assert (tmp_path / "again" / "references").exists()
    again = CXRIRGenPipeline.from_pretrained(tmp_path / "again")
    assert as_jpeg(again("edema", seed=1).images[0]) == as_jpeg(with_references.images[0])
    with pytest.raises(InputError, match="upload_folder"):
        images_alone.push_to_hub("anyone/model")
    with pytest.raises(InputError, match="upload_folder"):
        images_alone.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    assert not (tmp_path / "pushed").exists()
    loaded = CXRIRGenPipeline.from_pretrained(tmp_path / "cxr-irgen")
    assert as_jpeg(loaded("edema", seed=1).images[0]) != as_jpeg(with_references.images[0])
    with pytest.raises(InputError, match="with written reports"):
        loaded.report(with_references.images[0])


def test_a_text_encoder_without_a_pooler_keeps_its_texts(config, runs, tmp_path):
    """A library that loads it from the folder draws the weights of a pooler at random."""
    save_bert(tmp_path / "bert", 16, pooler=False)
    options = {"RUN_DIR": tmp_path / "run", "TEXT_ENCODER": tmp_path / "bert"}
    options = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert run_script("train_diffusion_clipUViT", "--config", config, *options) == 0
    pipe = pipeline_of(tmp_path / "run" / "best", config)
    pipe.save_pretrained(tmp_path / "cxr-irgen")
    again = CXRIRGenPipeline.from_pretrained(tmp_path / "cxr-irgen")
    assert as_jpeg(again("edema", seed=1).images[0]) == as_jpeg(pipe("edema", seed=1).images[0])


def test_pipeline_py_writes_a_folder_with_a_card_and_refuses_what_is_none(of_scripts, config, tmp_path):
    made, output = of_scripts("clipUViT"), tmp_path / "cxr-irgen"
    (tmp_path / "evaluation").mkdir()
    headline = [{"measure": "FID", "value": "3.21", "floor": "2.68", "ceiling": "–"}]
    facts = {"headline": headline, "selected": "not selected", "synthetic": {"N": 3, "tree": "made"}}
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(facts))

    def write(**constants):
        return run_script("pipeline", *(text for pair in constants.items() for text in (f"--{pair[0]}", str(pair[1]))))

    places = {"SYNTHETIC": made, "OUTPUT": output}
    assert write(**places, EVALUATION=tmp_path / "evaluation") == 0
    card = (output / "README.md").read_text()
    assert "| FID | 3.21 | 2.68 | – |" in card and "nobody's films" in card and "Not for diagnosis" in card
    assert write(**places, WITH_REFERENCES=False) == 0  # again, over the first one
    assert not (output / "references").exists()
    assert "SYNTHETIC" in write(SYNTHETIC=tmp_path, OUTPUT=output)
    assert "EVALUATION" in write(**places, EVALUATION=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "OUTPUT" in write(SYNTHETIC=made, OUTPUT=tmp_path / "other")
    with pytest.raises(InputError, match=r"no pipeline in .*pipeline\.py"):
        CXRIRGenPipeline.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(InputError, match="it is a DDPMPipeline"):
        CXRIRGenPipeline.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model_index.json").unlink()
    with pytest.raises(InputError, match="is not empty"):
        CXRIRGenPipeline.from_pretrained(output).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="set CHECKPOINT"):
        pipeline_of(tmp_path, config)
