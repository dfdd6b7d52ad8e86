"""The page: what its functions return, which fields it has, what it refuses, and its use in a real browser."""

import io
import shutil
import socket
import sys

import gradio as gr
import numpy as np
import pytest
import tiny_models
from PIL import Image
from running import flags, pipeline_of, run_script, says

from app import answer, build_page, findings_prompt, findings_read, make_pair, report_film
from models.prior import Prior
from sampling.pipeline import CXRIRGenPipeline
from utils.errors import InputError
from utils.mimic_cxr import read_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_A_CONTAINER = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
WAIT = 20_000  # milliseconds
FLAGS = ("Edema", "Edema, side: left", "Edema, degree: small", "Fracture")
READ = {
    "Edema": 0.7, "Edema, side: left": 0.6, "Edema, side: right": 0.1, "Edema, zone: lower, upper": 0.55,
    "Pleural Effusion, side: left": 0.45, "Pleural Effusion": 0.4, "Pleural Other": 0.9,
}  # fmt: skip


@pytest.fixture
def pipe(config, runs, checkpoints, tmp_path):
    wild = '[sample_prior_model]\nDECODING = "nucleus"\nTEMPERATURE = 3.0\nMAX_TOKENS = 12\n'
    (tmp_path / "wild.toml").write_text(config.read_text() + wild)
    pipe = pipeline_of(runs / "clipUViT" / "best", tmp_path / "wild.toml", checkpoints[0])
    prior = Prior(**tiny_models.PRIOR, flags=FLAGS)  # the same one with an untrained readout
    prior.load_state_dict({**prior.state_dict(), **pipe.prior.state_dict()})
    pipe.register_modules(prior=prior.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def film(tree):
    return read_table(tree).image_path.iloc[0]


def of_page(pipe, seed=1, **settings):
    """{label: component} of a page whose pipeline has these settings, and {name: function} of its buttons."""
    pipe.register_to_config(image_settings={**pipe.config.image_settings, **settings})
    page = build_page(pipe, seed)
    components = {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}
    return components, {function.api_name: function.fn for function in page.fns.values()}


# ---- without a browser


def test_a_pair_is_the_pipelines_for_the_same_request(pipe, film):
    prompt, usual = findings_prompt(["Edema"], ["Pneumothorax"], ["Fracture"]), (None, None, None)
    wanted = pipe("edema, not pneumothorax, uncertain fracture", seed=1)
    line, image, shown, report = make_pair(pipe, prompt, 1, *usual, None)
    assert image == wanted.images[0] and report == wanted.reports[0] != "" and shown is None
    assert wanted.prompts[0] in line and "seed 1" in line
    for values in ((2, *usual, None), (1, 9.0, 2.0, None, None), (1, 2.0, 9.0, None, None), (1, 2.0, 2.0, 2, None)):
        assert make_pair(pipe, prompt, *values)[1] != image
    _, other, shown, _ = make_pair(pipe, prompt, 1, 1.0, 99.0, None, film)
    assert other == pipe(prompt, seed=1, reference=film, guidance_scale=1.0, reference_guidance_scale=99.0).images[0]
    assert other != make_pair(pipe, prompt, 1, 1.0, 99.0, None, None)[1] and shown.shape == (32, 32)
    line, image, *_ = make_pair(pipe, prompt, None, *usual, None)
    drawn = int(line.partition("(seed ")[2].rstrip(")"))
    assert image == pipe(prompt, seed=drawn).images[0] != make_pair(pipe, prompt, None, *usual, None)[1]


def test_a_films_report_stands_beside_what_is_read_in_it(pipe, film):
    name, shown, report, rows = report_film(pipe, film)
    assert name in film and shown.shape == (32, 32) and report == pipe.report(film) != ""
    assert {row[0] for row in rows} == {"Edema", "Fracture"} and rows[0][1] >= rows[1][1]
    with pytest.raises(InputError, match="no film"):
        report_film(pipe, None)


def test_findings_are_ranked_with_their_likely_details():
    edema = ["Edema", "0.70", "side: left (0.60); zone: lower, upper (0.55)"]
    assert findings_read(READ) == [["Pleural Other", "0.90", ""], edema, ["Pleural Effusion", "0.40", ""]]
    assert findings_read({}) == []


def test_failures_are_one_line_that_names_no_folder(tmp_path, capsys):
    upload = tmp_path / "<b>.png"

    def fail(error, path):
        raise error

    assert answer(lambda path: ("a < b", 1, 2, 3), None) == ("a &lt; b", 1, 2, 3)
    line, *results = answer(fail, InputError(f"unreadable image {upload}"), str(upload))
    assert "unreadable image &lt;b&gt;.png" in line and str(tmp_path) not in line and results == [None] * 3
    line, *results = answer(fail, MemoryError("too\nmuch"), None)
    says(line, "MemoryError: too much", "terminal")
    assert results == [None] * 3 and "Traceback" in capsys.readouterr().err


def test_the_fields_are_those_that_the_pipeline_takes(pipe):
    components, functions = of_page(pipe, seed=7)
    assert {"Present", "Absent", "Uncertain"} <= components.keys() and "Text" not in components
    values = {label: components[label].value for label in ("Seed (empty: any)", "Guidance", "Steps")}
    assert values == {"Seed (empty: any)": 7, "Guidance": 2.0, "Steps": 3}
    line, image, shown, _ = functions["pair"](["Edema"], ["Fracture"], [], 1, 2.0, 2.0, 3, None)
    assert image == pipe("edema, not fracture", seed=1).images[0] and not shown.visible and "edema" in line
    assert "named twice" in functions["pair"](["Edema"], ["Edema"], [], 1, 2.0, 2.0, 3, None)[0]
    assert "empty" in functions["pair"]([], [], [], 1, 2.0, 2.0, 3, None)[0]

    components, functions = of_page(pipe, trained_on="impression")
    assert "Text" in components and "Present" not in components
    assert "Small effusion." in functions["pair"]("Small effusion.", 1, 2.0, 2.0, 3, None)[0]
    assert "empty" in functions["pair"](" ", 1, 2.0, 2.0, 3, None)[0]

    components, functions = of_page(pipe, student="{}")
    hidden = [components[label] for label in ("Guidance", "Reference guidance", "Steps")]
    assert not any(number.visible or number.value for number in hidden)
    assert functions["pair"]("Edema.", 1, None, None, None, None)[1]


def test_without_a_prior_the_page_says_so(pipe, film):
    pipe.register_modules(prior=None)
    _, functions = of_page(pipe)
    assert "no prior" in functions["pair"](["Edema"], [], [], 1, 2.0, 2.0, 3, None)[3]
    assert "no prior" in functions["report"](film)[0]


def test_what_cannot_be_served_ends_in_a_sentence(pipe, tmp_path, monkeypatch):
    says(run_script("app", *flags(PIPELINE=tmp_path)), str(tmp_path), "make demo", "pipeline.py")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # which the script sets
    pipe.save_pretrained(tmp_path / "cxr-irgen")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        says(run_script("app", *flags(PIPELINE=tmp_path / "cxr-irgen", PORT=port)), str(port), "PORT 0")
    monkeypatch.setitem(sys.modules, "gradio", None)
    says(run_script("app", *flags(PIPELINE=tmp_path / "cxr-irgen", PORT=0)), "pip install", "[app]")


# ---- in a browser


def in_chromium(url, visit):
    """Opens the page and calls `visit` with it; asserts that nothing is asked for elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=IN_A_CONTAINER)
        page, elsewhere = browser.new_page(), []
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(url)
        visit(page)
        browser.close()
    assert not [asked for asked in elsewhere if not asked.startswith((url, "data:", "blob:"))]


def use(page, pipe, film, broken):
    """Makes pairs, is refused, makes another one; then the second tab."""
    panel = page.locator("[role=tabpanel]:visible")

    def press(button, line, clicks=1):
        """Clicks, and waits until nothing is being computed and the line under the button has these words."""
        for _ in range(clicks):
            page.get_by_role("button", name=button).click()
        page.wait_for_timeout(200)  # until the last click counts
        page.wait_for_function("() => !document.querySelector('[data-testid=status-tracker]:not(.hide)')")
        panel.get_by_text(line).last.wait_for()

    def pick(place, finding):
        """Chooses a finding in the first field, of the present ones, or in the second one."""
        for key in (*finding, "Enter", "Tab"):
            panel.locator("input").nth(place).press(key)

    def made(seed):
        """Image and report are those that the pipeline makes for this seed."""
        wanted = pipe("edema, not pneumothorax", seed=seed)
        file = io.BytesIO(page.request.get(panel.locator("img").get_attribute("src")).body())
        assert (np.asarray(Image.open(file)) == np.asarray(wanted.images[0])).all()
        assert panel.locator("textarea").input_value().split() == wanted.reports[0].split() != []

    pick(0, "Edema")
    pick(1, "Pneumothorax")
    press("Make a pair", "without pneumothorax (seed 1234)")
    made(1234)
    page.get_by_label("Guidance", exact=True).fill("500")
    press("Make a pair", "guidance_scale 500")
    assert not panel.locator("img").count() and not panel.locator("textarea").input_value()
    page.get_by_label("Guidance", exact=True).fill("2")
    for seed, clicks in ((5, 20), (6, 1)):
        page.get_by_label("Seed (empty: any)").fill(str(seed))
        press("Make a pair", f"without pneumothorax (seed {seed})", clicks)
        made(seed)

    page.get_by_role("tab", name="Report of a film").click()
    press("Write its report", "there is no film")
    for file, line in ((broken, "unreadable image broken.png"), (film, "Fracture")):
        panel.locator("input[type=file]").first.set_input_files(file)
        panel.locator("a[href*='file=']").wait_for()
        press("Write its report", line)
        panel.get_by_label("Clear").or_(panel.get_by_label("Remove this file")).first.click()
    assert panel.locator("textarea").first.input_value().split() == pipe.report(film).split() != []
    assert page.get_by_text("Not for diagnosis").is_visible() and "Traceback" not in page.content()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_works_in_a_browser(pipe, film, tmp_path, monkeypatch):
    pytest.importorskip("playwright")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # which the script sets
    pipe.save_pretrained(tmp_path / "cxr-irgen")
    same = CXRIRGenPipeline.from_pretrained(tmp_path / "cxr-irgen")
    (tmp_path / "broken.png").write_bytes(b"no image")
    visited = []

    def visit(page):
        in_chromium(page.local_url, lambda opened: use(opened, same, film, tmp_path / "broken.png"))
        page.close()
        visited.append(page)

    monkeypatch.setattr(gr.Blocks, "block_thread", visit)
    assert run_script("app", *flags(PIPELINE=tmp_path / "cxr-irgen", PORT=0, DEVICE="cpu")) == 0 and visited
