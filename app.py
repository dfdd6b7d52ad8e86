"""A page in the browser: findings => an image with its report; a film => its report and what the prior reads in it.

    pip install -e ".[app]"
    python app.py --PIPELINE demo/cxr-irgen

Reads:  PIPELINE, a folder of pipeline.py
Writes: nothing; uploads and images lie in a temporary folder until the page ends
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import html
import os
import secrets
import socket
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sampling.pipeline import CXRIRGenPipeline
from utils.devices import make_accelerator
from utils.errors import InputError, as_input_error, reason, run, say
from utils.findings import FINDINGS
from utils.pixels import read_grey

PIPELINE = "demo/cxr-irgen"  # a folder of pipeline.py
HOST = "127.0.0.1"  # where the page is served; 0.0.0.0: to every machine that reaches this one
PORT = 7860  # of the page (0 to 65535; 0: any free one)
SEED = 1234  # that the page begins with (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)

_LARGEST_FILE = "200mb"  # of a film
_LIKELY = 0.5  # probability from which on a finding's side, zone ... is listed
_NOTICE = "> **Not for diagnosis.** Images and reports are generated; nothing here is for the care of patients."
_CSS = """.gradio-container {--font: system-ui, sans-serif; --font-mono: var(--font)} [role=alert] {color: #b91c1c}
.image-frame img {width: 100%; height: 100%; object-fit: contain}"""  # small images fill their place


def findings_prompt(present: Sequence[str], absent: Sequence[str], uncertain: Sequence[str]) -> str:
    """Picked findings as the pipeline takes them: "Edema, not Pneumothorax, uncertain Pneumonia"."""
    return ", ".join([*present, *(f"not {name}" for name in absent), *(f"uncertain {name}" for name in uncertain)])


def make_pair(
    pipeline: CXRIRGenPipeline, prompt: str, seed: int | None, guidance: float | None,
    reference_guidance: float | None, steps: int | None, reference: str | None,
) -> tuple:  # fmt: skip
    """=> (a line that says what was asked for, image, the reference that was given or None, report).

    seed: None draws one; guidances, steps: None is the pipeline's own; reference: a path. InputError as of a pipeline.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    pairs = pipeline(
        prompt, seed=seed, reference=reference, guidance_scale=guidance, reference_guidance_scale=reference_guidance,
        num_inference_steps=steps,
    )  # fmt: skip
    shown = read_grey(reference, pipeline.config.image_settings["image_size"]) if reference else None
    report = pairs.reports[0] if pipeline.prior else "(this pipeline has no prior, so it writes no reports)"
    return f"{pairs.prompts[0]} (seed {seed})", pairs.images[0], shown, report


def report_film(pipeline: CXRIRGenPipeline, film: str | None) -> tuple:
    """The path of a film => (its name, it as the models see it, its report, the rows of `findings_read`)."""
    if film is None:
        raise InputError("there is no film: choose a file")
    report, rows = pipeline.report(film), findings_read(pipeline.read(film))
    return Path(film).name, read_grey(film, pipeline.config.image_settings["image_size"]), report, rows


def findings_read(flags: dict[str, float]) -> list[list[str]]:
    """What `CXRIRGenPipeline.read` returns => [finding, probability, likely flags such as "side: left"], ranked."""
    flags = dict(sorted(flags.items(), key=lambda item: -item[1]))
    rows = []
    for name in filter(FINDINGS.__contains__, flags):
        details = {flag.removeprefix(f"{name}, "): p for flag, p in flags.items() if flag.startswith(f"{name}, ")}
        likely = [f"{detail} ({probability:.2f})" for detail, probability in details.items() if probability >= _LIKELY]
        rows.append([name, f"{flags[name]:.2f}", "; ".join(likely)])
    return rows


def answer(function: Callable, *values) -> tuple:
    """Calls a function of the page, whose last value is an upload's path or None; a failure => why, and no results."""
    try:
        line, *results = function(*values)
        return html.escape(line), *results
    except InputError as error:
        sentence = str(error).replace(f"{Path(values[-1]).parent}/", "") if values[-1] else str(error)
    except Exception as error:
        traceback.print_exc()
        sentence = f"this failed unexpectedly, see the terminal: {type(error).__name__}: {reason(error)}"
    return f'<b role="alert">Not possible: {html.escape(sentence)}</b>', None, None, None


def build_page(pipeline: CXRIRGenPipeline, seed: int):
    """The page as gradio.Blocks; seed: that it begins with. InputError where gradio is not installed."""
    with as_input_error(lambda _: 'the page needs gradio: pip install -e ".[app]"', ImportError):
        import gradio as gr

    def pair(*values):
        wish, rest = values[:-5], values[-5:]  # three lists of findings or one text; the numbers and the reference
        prompt = findings_prompt(*wish) if len(wish) == 3 else wish[0]
        line, image, shown, report = make_pair(pipeline, prompt, *rest)
        return line, image, gr.Image(shown, visible=shown is not None), report

    settings = pipeline.config.image_settings
    own = {} if "student" in settings else settings  # guidance and steps are built into a student
    one_at_a_time = {"concurrency_id": "pipeline", "concurrency_limit": 1}
    number = partial(gr.Number, min_width=130, visible=bool(own))
    upload = partial(gr.File, height=145)
    picture = partial(gr.Image, interactive=False, height=360, format="png", buttons=["download", "fullscreen"])
    report = partial(gr.Textbox, label="Report", lines=15, buttons=["copy"])
    with gr.Blocks(title="CXR-IRGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# CXR-IRGen: chest X-rays with reports\n{_NOTICE}")
        with gr.Tab("Make a pair"):
            with gr.Row():
                if settings["trained_on"] == "findings":
                    pick = partial(gr.Dropdown, FINDINGS, multiselect=True, value=[])
                    inputs = [pick(label=label) for label in ("Present", "Absent", "Uncertain")]
                else:
                    inputs = [gr.Textbox(label="Text", placeholder="Large left pleural effusion.", lines=2)]
            with gr.Row():
                inputs.append(gr.Number(seed, label="Seed (empty: any)", precision=0, min_width=130))
                inputs.append(number(own.get("text_guidance"), label="Guidance"))
                inputs.append(number(own.get("reference_guidance"), label="Reference guidance"))
                inputs.append(number(own.get("steps"), label="Steps", precision=0))
                inputs.append(upload(label="Reference (optional)", visible=pipeline.reference_encoder is not None))
            button, line = gr.Button("Make a pair", variant="primary"), gr.HTML()
            with gr.Row():
                outputs = [line, picture(label="Image"), picture(label="Reference", visible=False), report()]
            button.click(partial(answer, pair), inputs, outputs, api_name="pair", **one_at_a_time)
        with gr.Tab("Report of a film"):
            film = upload(label="Film: PNG, JPEG, TIFF or DICOM (.dcm)")
            button, line = gr.Button("Write its report", variant="primary"), gr.HTML()
            with gr.Row():
                outputs = [line, picture(label="Film, as the models see it"), report()]
            columns, label = ["Finding", "Probability", "Details"], "What the prior reads in it"
            outputs.append(gr.Dataframe(label=label, headers=columns, interactive=False, max_height=700))
            button.click(partial(answer, report_film, pipeline), film, outputs, api_name="report", **one_at_a_time)
    return page


def main():
    override_constants(globals())
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}  # no browser keeps a film
    if not Path(PIPELINE, CXRIRGenPipeline.config_name).is_file():
        raise InputError(f"no pipeline in {PIPELINE}: make the demo's by `make demo`, or your own by pipeline.py")
    pipeline = CXRIRGenPipeline.from_pretrained(PIPELINE).to(make_accelerator(DEVICE, "no").device)
    with tempfile.TemporaryDirectory(prefix="cxr-irgen-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(pipeline, SEED)
        failed = f"no page at HOST {HOST}, PORT {PORT}"
        with as_input_error(lambda error: f"{failed} ({reason(error)}): set others, or PORT 0", OSError):
            with socket.create_server((HOST, PORT)) as free:
                place = {"server_name": HOST, "server_port": free.getsockname()[1]}
            settings = {"share": False, "ssr_mode": False, "quiet": True, "footer_links": [], "css": _CSS}
            page.launch(**place, **settings, prevent_thread_lock=True, max_file_size=_LARGEST_FILE)
        say(f"the page is at {page.local_url}, until Ctrl-C")
        page.block_thread()


if __name__ == "__main__":
    run(main)
