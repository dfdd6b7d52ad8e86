"""The folder of a pipeline stands alone: its own code, and a model card.

`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs the folder's pipeline.py, which imports the
modules in cxr_irgen/: this project's, under flat names (models/flow.py is cxr_irgen/models_flow.py). diffusers copies
the modules that pipeline.py itself imports, so it imports all of them.
"""

import ast
import json
import re
import shutil
from pathlib import Path

from utils.errors import write_whole, writing

ENTRY, PACKAGE = "pipeline", "cxr_irgen"  # the module that diffusers runs; the folder of those that it imports
LOADED_AS = f"diffusers_modules.local.{PACKAGE}"  # the package as diffusers imports it
_ROOT = Path(__file__).resolve().parent.parent
_STANDS_ALONE = Path(__file__).resolve().parent.name == PACKAGE  # this is a module of such a folder
_FILE = re.compile(r"Path\(__file__\)\.with_name\(\"([\w.]+)\"\)\.read_text\(encoding=\"utf-8\"\)")
_IMPORT = re.compile(r"^( *)from (sampling|evaluation|models|utils|uvit)\.(\w+) import", re.MULTILINE)
DEFAULT_CARD = "What it was trained on is not stated here, nor has it been evaluated."
_CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")


def complete_folder(folder: Path, pipeline, card: str) -> None:
    """Adds to a saved pipeline its code, where its classes are, and a model card with this text on its data."""
    with writing("the pipeline", folder):
        sources = _sources("sampling_pipeline" if _STANDS_ALONE else "sampling.pipeline", {})
        shutil.rmtree(folder / PACKAGE, ignore_errors=True)
        (folder / PACKAGE).mkdir()
        for name, text in sources.items():
            (folder / PACKAGE / f"{name}.py").write_text(text, encoding="utf-8")
        entry = ['"""CXR-IRGen: the modules that its pipeline consists of."""', ""]
        entry += [f"from .{PACKAGE}.{name} import __name__ as _{name}" for name in sources]
        entry.append(f"from .{PACKAGE}.sampling_pipeline import CXRIRGenPipeline as CXRIRGenPipeline")
        (folder / f"{ENTRY}.py").write_text("\n".join(entry) + "\n", encoding="utf-8")
        path = folder / pipeline.config_name
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = [ENTRY, type(pipeline).__name__]
        for name, part in pipeline.components.items():
            module = flat_name(type(part).__module__)
            if part is None:  # an earlier one may have been saved
                shutil.rmtree(folder / name, ignore_errors=True)
            elif module in sources:
                index[name][0] = f"{LOADED_AS}.{module}"
        write_whole(path, json.dumps(index, indent=2) + "\n")
    settings, has_references = pipeline.config.image_settings, pipeline.references is not None
    findings = settings["trained_on"] == "findings"
    text = _CARD.format(
        name=folder.name, size=settings["image_size"], package=PACKAGE, card=card,
        example="cardiomegaly, edema, not pneumothorax" if findings else "Large left pleural effusion.",
        references=f"Embeddings and labels of training images are {'' if has_references else 'not '}in this folder.",
        trained_on="prompts of 14 findings" if findings else "impressions of reports",
        constants=json.dumps({**settings, **(pipeline.config.report_settings or {})}, indent=2),
    )  # fmt: skip
    write_whole(folder / "README.md", text, "the pipeline")


def flat_name(module: str) -> str:
    """A module's name in the package: "models.flow" and "diffusers_modules.local.cxr_irgen.models_flow" alike."""
    return module.removeprefix(f"{LOADED_AS}.").replace(".", "_")


def _sources(module: str, found: dict[str, str]) -> dict[str, str]:
    """{flat name: text} of a module and all modules of this project that it imports when it is imported itself."""
    path = Path(__file__).with_name(module) if _STANDS_ALONE else _ROOT / module.replace(".", "/")
    text = path.with_suffix(".py").read_text(encoding="utf-8")

    def literal(file):  # a file's text as Python code, a line each: diffusers copies modules and no other files
        lines = path.with_name(file[1]).read_text(encoding="utf-8").splitlines(keepends=True)
        return "\n".join(["(", *(f"    {line!r}" for line in lines), ")"])

    text = _FILE.sub(literal, text)
    found[flat_name(module)] = _IMPORT.sub(r"\1from .\2_\3 import", text)
    for node in ast.parse(text).body:
        own = isinstance(node, ast.ImportFrom) and (node.level or _IMPORT.match(f"from {node.module} import"))
        if own and flat_name(node.module) not in found:
            _sources(node.module, found)
    return found
