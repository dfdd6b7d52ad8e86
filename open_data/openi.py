"""Indiana University's chest X-rays and their reports (Open-i) as downloaded => a table for open_data.tree.

    ROOT/NLMCXR_png/*.png, ROOT/ecgen-radiology/*.xml      the National Library of Medicine's form: two .tgz, unpacked
    ROOT/images/*.dcm.png, ROOT/indiana_reports.csv, ROOT/indiana_projections.csv      Kaggle's form

The XMLs may lie in ROOT/NLMCXR_reports and the images in ROOT itself. The files decide which form it is; if XMLs and
indiana_projections.csv are both there, the views are taken from the latter.

Each report counts as a patient with one study; reports, labels, views: docs/open-data.md. Indication and comparison
stand in the report's file and in provenance.csv, there with the MeSH terms and `view_from`, which says how a view is
known: by projections, by the order of a report's two images, or by the caption of a lone one.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd

from evaluation.labeler import label_reports
from open_data.tree import drop_rows, place_of, png_places
from utils.csv_files import check_rows, check_unique, read_csv
from utils.errors import InputError, reason, say
from utils.findings import FINDINGS
from utils.report_text import join_sections, report_text

PUBLISHED_REPORTS, PUBLISHED_IMAGES = 3955, 7470
REPORTS_CSV, PROJECTIONS_CSV = "indiana_reports.csv", "indiana_projections.csv"
_XML_FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports")
_IMAGE_FOLDERS = ("NLMCXR_png", "images", "images/images_normalized", ".")
_SECTIONS = ("comparison", "indication", "findings", "impression")
_OF_A_REPORT = (
    "patient", "patient_id", *_SECTIONS, "caption", "mesh_major", "mesh_automatic", "problems", "report_source"
)  # fmt: skip
_NAME = re.compile(r"(?:CXR)?(?P<uid>\d+)_(?:(?P=uid)_)?(?P<number>IM-[\d-]+)(?:\.dcm)?")  # CXR1_1_IM-0001-3001

_AP, _PA = re.compile(r"\b(?:AP|portable)\b", re.IGNORECASE), re.compile(r"\bPA\b", re.IGNORECASE)
_FRONTAL = re.compile(r"\b(?:PA|AP|portable|frontal|single view|1 view)\b", re.IGNORECASE)
_SIDE_OR_TWO = re.compile(
    r"\blat(?:eral)?\b|\b(?:2|two)\b(?: \(2\))?[ -]*(?:v\b|views?\b|images?\b|radiographs?\b|X{3,})", re.IGNORECASE
)
_FIRST_FRONTAL = "-1001"  # how the first image's number ends where the order of two is to be trusted


def read(root: str | Path) -> pd.DataFrame:
    """The table of the folder as downloaded, see open_data.tree; InputError for another folder."""
    wanted = (*(f"{folder}/*.xml" for folder in _XML_FOLDERS), REPORTS_CSV)
    root = place_of(root, wanted, "Indiana University's chest X-rays")
    xmls = next(filter(None, (sorted(root.glob(f"{folder}/*.xml")) for folder in _XML_FOLDERS)), [])
    projections = _read_projections(root / PROJECTIONS_CSV)
    if xmls:
        reports, images = _read_xmls(xmls, root)
    else:
        path, columns = root / REPORTS_CSV, {"MeSH": "mesh_major", "Problems": "problems", "image": "caption"}
        reports = read_csv(path, texts=("uid", *columns, *_SECTIONS), key=["uid"])
        reports = reports.assign(patient=_numbers(reports["uid"], path), mesh_automatic="", report_source=path.name)
        reports, images = reports.rename(columns=columns | {"uid": "patient_id"})[list(_OF_A_REPORT)], projections
        if projections is None:
            raise InputError(f"there is no {root / PROJECTIONS_CSV}, which says whose image is whose: fetch it as well")
    say(f"{root}: {len(reports)} reports, of {PUBLISHED_REPORTS} that were published")
    table = _with_images(reports, images, root)
    table = _with_views(table, projections)
    pairs = zip(table["findings"], table["impression"])
    table["report"] = [report_text(join_sections(*pair)) for pair in pairs]  # as it will be read in the tree
    if empty := table["patient"][table["report"] == ""].nunique():
        say(f"reports: {empty} have neither findings nor impression; their images have none")
    places, texts = pd.factorize(table["report"])
    labels = pd.DataFrame(label_reports(texts)[places], columns=list(FINDINGS), index=table.index)
    table = table.drop(columns=["findings", "impression"]).assign(study=table["patient"], split="")
    return pd.concat([table, labels], axis=1)


def _read_xmls(paths, root):
    """=> (reports, images): a row a report that can be read, and a row an image that one names."""
    reports, images, broken = [], [], []
    for path in paths:
        try:
            tree = ET.parse(path).getroot()
            report = _read_report(tree, path)
            names = [image.get("id") for image in tree.iterfind("parentImage")]
            reports.append(report)
            images += [(name, report["patient"]) for name in names if name]
        except (ET.ParseError, OSError, ValueError) as error:
            broken.append(f"{path.name} ({reason(error)})")
    if broken:
        say(f"reports: dropped {len(broken)} of {len(paths)} whose XML cannot be read, e.g. {broken[0]}")
    if not reports:
        none = f"none of the {len(paths)} XMLs in {paths[0].parent} is a report"
        raise InputError(f"{none}: fetch NLMCXR_reports.tgz again")
    reports = pd.DataFrame(reports, columns=list(_OF_A_REPORT))
    check_unique(reports, ["patient_id"], paths[0].parent)
    return reports, pd.DataFrame(images, columns=["name", "patient"])


def _read_report(tree, path):
    """A parsed XML => a row of _OF_A_REPORT; ValueError for an XML of something else."""
    uid = tree.find("uId")
    found = re.fullmatch(r"CXR(\d+)", uid.get("id", "") if uid is not None else "")
    if not found:
        raise ValueError("it has no uId such as CXR1")
    parts = tree.iter("AbstractText")
    texts = {part.get("Label", "").lower(): " ".join("".join(part.itertext()).split()) for part in parts}
    row = {name: texts.get(name, "") for name in _SECTIONS}
    row |= {"patient": int(found[1]), "patient_id": found[0], "problems": "", "report_source": path.name}
    row["caption"] = " ".join((tree.findtext("parentImage/caption") or "").split())  # the same at all of its images
    for kind in ("major", "automatic"):
        row[f"mesh_{kind}"] = ";".join(term.text.strip() for term in tree.iterfind(f"MeSH/{kind}") if term.text)
    return row


def _read_projections(path):
    """=> name, patient and projection (Frontal or Lateral) of each image; None where there is no such file."""
    if not path.is_file():
        return None
    frame = read_csv(path, texts=("uid", "filename", "projection"))
    wrong = ~frame["projection"].isin(["Frontal", "Lateral"])
    frame = drop_rows(frame, wrong, str(path), "rows that say neither Frontal nor Lateral", "projection")
    frame = frame.assign(patient=_numbers(frame["uid"], path))
    return frame.rename(columns={"filename": "name"})[["name", "patient", "projection"]]


def _numbers(column, path):
    """Numbers of reports as integers; InputError for anything else."""
    check_rows(column, column.str.fullmatch(r"\d{1,5}"), path, "uid {!r} is no number of a report")
    return column.astype(int)


def _image_key(name):
    """ "CXR1_1_IM-0001-3001.png" and "1_IM-0001-3001.dcm.png" => "CXR1_IM-0001-3001"; "" for other names."""
    found = _NAME.fullmatch(name.removesuffix(".png"))
    return f"CXR{found['uid']}_{found['number']}" if found else ""


def _with_images(reports, images, root):
    """A row for each image that a report names, with its file."""
    places = png_places(root, _IMAGE_FOLDERS)
    files = {}
    for name, file in places.items():
        files.setdefault(_image_key(name), file)
    files.pop("", None)
    images = images.assign(dicom_id=images["name"].map(_image_key))
    wrong = (images["dicom_id"] == "") | images.duplicated("dicom_id")
    images = drop_rows(images, wrong, "images", "whose name is not an image's or stands twice", "name")
    table = images[["dicom_id", "patient"]].merge(reports, on="patient")
    if len(table) < len(images):
        say(f"images: dropped {len(images) - len(table)} of {len(images)} whose report is not there")
    bare = (~reports["patient"].isin(table["patient"])).sum()
    say(f"images: the reports name {len(table)}, of {PUBLISHED_IMAGES} that were published; {bare} reports have none")
    if unnamed := sorted(set(files) - set(table["dicom_id"])):
        say(f"images: {len(unnamed)} PNGs are left out, since no report names them, e.g. {files[unnamed[0]]}")
    absent = f"{Path(places[min(places)]).parent if places else _IMAGE_FOLDERS[0]}/"
    table["file"] = table["dicom_id"].map(files).fillna(absent + table["dicom_id"] + ".png")
    return table.sort_values(["patient", "dicom_id"], ignore_index=True)


def _with_views(table, projections):
    """The table with view and view_from. Prints how many views are known in which way."""
    caption, of_patient = table["caption"], table.groupby("patient")
    side_or_two, count = caption.str.contains(_SIDE_OR_TWO), of_patient["patient"].transform("size")
    ordered = side_or_two & (count == 2) & of_patient["dicom_id"].transform("first").str.endswith(_FIRST_FRONTAL)
    captioned = caption.str.contains(_FRONTAL) & ~side_or_two & (count == 1)
    by_order = of_patient.cumcount().map({0: "frontal", 1: "lateral"})
    ways = [("order", ordered, by_order), ("caption", captioned, "frontal")]
    if projections is not None:
        named = projections.assign(key=projections["name"].map(_image_key)).drop_duplicates("key").set_index("key")
        projection = table["dicom_id"].map(named["projection"].str.lower())
        ways.append(("projections", projection.notna(), projection))
    kind = source = pd.Series("", index=table.index)  # "frontal" or "lateral", and how this is known
    for name, known, values in ways:
        kind, source = kind.mask(known, values), source.mask(known, name)

    says_pa = caption.str.contains(_PA)
    frontal = (caption.str.contains(_AP) & ~says_pa).map({True: "AP", False: "PA"})
    view = frontal.where(kind == "frontal", kind.map({"lateral": "LATERAL"}).fillna(""))
    assumed = (view == "PA") & ~says_pa
    counts = ", ".join(f"{number} by {name}" for name, number in source[source != ""].value_counts().items())
    known = f"{(view == '').sum()} of {len(table)} are not known, {counts or 'none known'}"
    say(f"views: {known}; {assumed.sum()} frontal ones count as PA, since their caption says neither PA nor AP")
    return table.assign(view=view, view_from=source + assumed.map({True: "; PA assumed", False: ""}))
