"""The page: what it links, how trees are paired, that nothing in it runs or leaves its folder, and that it filters."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import gallery
from utils import findings
from utils.errors import InputError
from utils.mimic_cxr import read_table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "Small effusion <script>window.ran = true</script><img src=x onerror='window.ran = true'> & \"no\" oedema."


def draw_tree(root, images, synthetic=True, first=0, size=(16, 16)):
    """A CXR tree of `images`: dicts with present (findings), and optionally report, seed, reference, dicom_id."""
    metadata, labels, splits, made = [], [], [], []
    for number, image in enumerate(images, start=first):
        subject_id, study_id = 10_000_000 + number, 50_000_000 + number
        dicom_id = image.get("dicom_id", f"image-{number}")
        folder = root / "files" / "p10" / f"p{subject_id}"
        (folder / f"s{study_id}").mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 40 + number % 200).save(folder / f"s{study_id}" / f"{dicom_id}.jpg")
        (folder / f"s{study_id}.txt").write_text(f"FINDINGS: {image.get('report', 'Clear lungs.')}\n")
        codes = [int(name in image["present"]) for name in findings.FINDINGS]
        metadata.append((dicom_id, subject_id, study_id, "PA"))
        splits.append((dicom_id, study_id, subject_id, "test"))
        labels.append((subject_id, study_id, *(1.0 if code else "" for code in codes)))
        made.append(
            {
                "dicom_id": dicom_id,
                "prompt": image.get("prompt", findings.to_prompt(codes)),
                "seed": image.get("seed", number),
                "reference_dicom_id": image.get("reference", ""),
                "text_guidance": 3.0,
                "reference_guidance": 3.0,
                "guidance_low": 0.5,
                "guidance_high": 1000.0,
                "steps": 20,
                "scheduler": "PNDM",
                "checkpoint": f"runs/{root.name}",
            }
        )
    for name, rows, columns in (
        ("metadata", metadata, ["dicom_id", "subject_id", "study_id", "ViewPosition"]),
        ("split", splits, ["dicom_id", "study_id", "subject_id", "split"]),
        ("chexpert", labels, ["subject_id", "study_id", *findings.FINDINGS]),
    ):
        pd.DataFrame(rows, columns=columns).to_csv(root / f"mimic-cxr-2.0.0-{name}.csv", index=False)
    if synthetic:
        pd.DataFrame(made).to_csv(root / "synthetic.csv", index=False)
    return root


def content(page):
    """The page's data; its addresses are checked on the way: relative, inside the page's folder, and there."""
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    shown = [picture for card in data["cards"] for picture in card["pictures"] if picture]
    for image in [*shown, *data["references"].values()]:
        path = Path(os.path.normpath(page.parent / unquote(image["src"])))
        assert not re.match(r"[a-z]+:|/", image["src"]) and page.parent in path.parents and path.is_file()
        with Image.open(path) as opened:
            assert opened.size == (image["width"], image["height"])
    assert not re.search(r"https?://|file://", text) and str(page.parent) not in text
    return data


def test_the_page_links_each_image_and_copies_a_shared_reference_once(tmp_path):
    real = draw_tree(tmp_path / "real", [{"present": ["Edema"], "dicom_id": "shared"}], synthetic=False)
    made = draw_tree(tmp_path / "out" / "made", [{"present": ["Edema"], "reference": "shared"}] * 3 + [{"present": []}])

    page = gallery.write_page(tmp_path / "out" / "index.html", {"made": made}, read_table(real))

    data = content(page)
    assert [card["reference"] for card in data["cards"]] == ["shared", "shared", "shared", ""]
    assert [card["pictures"][0]["src"].split("/")[0] for card in data["cards"]] == ["made"] * 4
    assert len(list((tmp_path / "out" / "index_files").iterdir())) == 1
    assert data["references"]["shared"]["prompt"] == "A chest X ray image with edema"
    assert data["cards"][0]["pictures"][0]["report"].endswith("Clear lungs.")
    assert data["trees"][0]["made"] == {
        "checkpoint": "runs/made",
        "scheduler": "PNDM",
        "steps": "20",
        "text_guidance": "3.0",
        "condition": "",
        "reference_guidance": "3.0",
        "guidance_low": "0.5",
        "guidance_high": "1000.0",
    }


def test_trees_stand_side_by_side_by_prompt_reference_and_seed(tmp_path):
    def image(seed, **more):
        return {"present": ["Edema"], "reference": "shared", "seed": seed} | more

    first = draw_tree(tmp_path / "first", [image(1), image(2), image(3)])
    others = [image(3), image(1), image(2, reference="other"), image(2, present=[])]
    second = draw_tree(tmp_path / "second", others, first=50)

    data = content(gallery.write_page(tmp_path / "index.html", {"first": first, "second": second}))

    pairs = [tuple(picture and picture["id"] for picture in card["pictures"]) for card in data["cards"]]
    alone = [(None, "image-52"), (None, "image-53")]
    assert pairs == [("image-0", "image-51"), ("image-1", None), ("image-2", "image-50"), *alone]
    assert not data["showReferences"]


def test_a_real_tree_elsewhere_is_shown_with_its_labels_prompt_and_small_copies(tmp_path):
    images = [{"present": ["Edema"], "dicom_id": "a"}, {"present": ["Fracture"], "dicom_id": "b"}]
    real = draw_tree(tmp_path / "real", images, synthetic=False, size=(600, 900))

    data = content(gallery.write_page(tmp_path / "page dir" / "index.html", {"real": real}))

    assert [card["prompt"].split("with ")[1] for card in data["cards"]] == ["edema", "fracture"]
    assert {picture["height"] for card in data["cards"] for picture in card["pictures"]} == {512}


def test_an_odd_folder_name_is_a_valid_address(tmp_path):
    made = draw_tree(tmp_path / "100% #1? made", [{"present": []}])
    content(gallery.write_page(tmp_path / "index.html", {"made": made}))


def test_texts_cannot_end_the_data_or_become_html(tmp_path):
    made = draw_tree(tmp_path / "made", [{"present": [], "report": HOSTILE, "prompt": "</script><b>bold</b>"}])

    page = gallery.write_page(tmp_path / "index.html", {"<i>made</i>": made}, title="<u>title</u>")

    data = content(page)
    assert HOSTILE in data["cards"][0]["pictures"][0]["report"] and data["trees"][0]["title"] == "<i>made</i>"
    assert not re.search(r"<(b|i|u|img)\b", page.read_text())
    assert page.read_text().count("<script") == 2


def test_agreement_is_told_where_a_finding_is_seen_by_anyone(tmp_path):
    made = draw_tree(tmp_path / "made", [{"present": ["Edema"]}])
    rows = [("image-0", "Edema", True, False, np.nan), ("image-0", "Fracture", False, False, False)]
    agreement = pd.DataFrame(rows, columns=["dicom_id", "finding", "asked", "image", "report"])

    data = content(gallery.write_page(tmp_path / "index.html", {"made": made}, agreement=agreement))

    edema = findings.finding_index("edema")
    assert data["cards"][0]["pictures"][0]["marks"] == [[edema, True, False, None]]


def test_an_unreadable_image_is_named_and_left_out(tmp_path, capsys):
    made = draw_tree(tmp_path / "made", [{"present": []}, {"present": []}])
    next(made.rglob("image-1.jpg")).write_bytes(b"no picture")

    data = content(gallery.write_page(tmp_path / "index.html", {"made": made}))

    assert len(data["cards"]) == 1 and data["trees"][0]["images"] == 1
    assert re.search(r"left out 1 .*image-1\.jpg", capsys.readouterr().out)


def test_cards_can_be_limited(tmp_path):
    made = draw_tree(tmp_path / "made", [{"present": []}] * 5)
    assert len(content(gallery.write_page(tmp_path / "index.html", {"made": made}, max_images=2))["cards"]) == 2


def test_main_writes_the_page_above_the_first_tree(tmp_path, monkeypatch, capsys):
    made = draw_tree(tmp_path / "made", [{"present": []}])
    for name in ("TREES", "DATA_ROOT", "PAGE", "MAX_IMAGES"):
        monkeypatch.setattr(gallery, name, getattr(gallery, name))
    monkeypatch.setattr("sys.argv", ["gallery.py", "--TREES", f"({str(made)!r},)"])

    gallery.main()

    assert content(tmp_path / "index.html")["trees"][0]["title"] == "made"
    assert str(tmp_path / "index.html") in capsys.readouterr().out


def test_no_tree_and_a_synthetic_csv_without_a_column_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="name at least one"):
        gallery.write_page(tmp_path / "index.html", {})
    made = draw_tree(tmp_path / "made", [{"present": []}])
    pd.read_csv(made / "synthetic.csv").drop(columns="seed").to_csv(made / "synthetic.csv", index=False)
    with pytest.raises(InputError, match=r"synthetic\.csv has no column 'seed'"):
        gallery.write_page(tmp_path / "index.html", {"made": made})


# The driver stands in a copy of the page: listeners for errors before its script, these steps after it.
LISTENERS = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message || `not loaded: ${event.target.src}`), true);
const consoleError = console.error;
console.error = (...texts) => { errors.push(texts.join(" ")); consoleError(...texts); };
</script>"""
DRIVER = """<script>
addEventListener("load", async () => {
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const count = () => document.getElementById("count").textContent;
  const cards = () => document.querySelectorAll("#grid article").length;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const press = (name) => all("#findings button").find((one) => one.textContent.startsWith(name)).click();
  const type = (text) => {
    document.getElementById("text").value = text;
    document.getElementById("text").dispatchEvent(new Event("input"));
  };
  await pause(500);
  const inSight = all("#grid img").filter((one) => one.getBoundingClientRect().top < innerHeight);
  const result = { errors, images: inSight.length, loaded: inSight.filter((one) => one.naturalWidth > 0).length };
  const steps = result.steps = {};
  const step = (name) => { steps[name] = [count(), cards()]; };
  step("all");
  press("Edema"); step("edema");
  press("Fracture"); step("edema and fracture");
  document.getElementById("clear").click(); step("cleared");
  type("small  EFFUSION"); step("text");
  type("nowhere"); step("nowhere");
  result.empty = !document.getElementById("empty").hidden;
  type("");
  scrollTo(0, document.body.scrollHeight);
  await pause(500);
  result.afterScrolling = cards();
  document.querySelector("#grid figure button").click();
  result.enlarged = [document.getElementById("viewer").open, document.getElementById("place").textContent];
  result.ran = window.ran || false;
  const told = btoa(JSON.stringify(result));
  document.body.append(Object.assign(document.createElement("pre"), { id: "result", textContent: told }));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser_the_first_screen_loads_and_the_filter_works(tmp_path):
    real = draw_tree(tmp_path / "real", [{"present": ["Edema"], "dicom_id": "shared"}], synthetic=False)
    images = [
        {
            "present": ["Edema"] * (number % 2 == 0) + ["Fracture"] * (number % 3 == 0),
            "reference": "shared" if number % 4 else "",
            "report": HOSTILE if number < 5 else "Clear lungs.",
        }
        for number in range(120)
    ]
    trees = {name: draw_tree(tmp_path / "out" / name, images) for name in ("first", "second")}
    page = gallery.write_page(tmp_path / "out" / "index.html", trees, read_table(real))
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text().replace("<head>", "<head>" + LISTENERS).replace("</body>", DRIVER + "</body>"))

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--window-size=1280,900", "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"]
    run = subprocess.run(
        [BROWSER, *flags, "--enable-logging=stderr", "--dump-dom", driven.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )

    encoded = re.search(r'<pre id="result">([^<]+)</pre>', run.stdout)
    assert encoded, run.stderr[-2000:]
    result = json.loads(base64.b64decode(encoded[1]))
    assert result["errors"] == [] and "CONSOLE" not in run.stderr and not result["ran"]
    assert result["images"] >= 5 and result["loaded"] == result["images"]
    assert result["steps"]["edema"] == ["60 of 120 shown", 48]
    assert result["steps"]["edema and fracture"] == ["20 of 120 shown", 20]
    assert result["steps"]["cleared"] == result["steps"]["all"] and result["steps"]["all"][0] == "120 of 120 shown"
    assert result["steps"]["text"] == ["5 of 120 shown", 5]
    assert result["steps"]["nowhere"] == ["0 of 120 shown", 0] and result["empty"]
    assert result["afterScrolling"] > 48 and result["enlarged"] == [True, "1 of 120"]
