"""DICOM files are read as films: each drawn here in a form of its own."""

import sys

import numpy as np
import pytest
from PIL import Image

from evaluation.gallery import _PageImages
from open_data.tree import _place_image
from utils.errors import InputError
from utils.pixels import read_grey, read_pixels

pydicom = pytest.importorskip("pydicom")


def draw_dicom(path, codes, **attributes):
    """Writes a DICOM file of 12-bit codes, (H, W); attributes replace those of a film without a window."""
    dataset = pydicom.Dataset()
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "SOPInstanceUID": "1.2.3", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": codes.shape[0], "Columns": codes.shape[1],
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
        "PixelData": codes.astype("<u2").tobytes(),
    }  # fmt: skip
    for name, value in (values | attributes).items():
        setattr(dataset, name, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(entries, first, bits):
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.asarray(entries, "<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return pydicom.Sequence([item])


BLOBS = Image.fromarray(np.random.default_rng(0).integers(20, 212, (6, 8), dtype=np.uint8))
FILM = np.asarray(BLOBS.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)  # not all of 0 to 255
CODES = FILM * 16  # of 12 bits
UNCHANGED = {"RescaleSlope": 1, "RescaleIntercept": 0}
DICOMS = {  # name => (codes, attributes), all of them FILM
    "range": (CODES, {}),
    "window": (CODES // 2 + 512, {"WindowCenter": 1536, "WindowWidth": 2048}),
    "windows": (CODES // 2, {"WindowCenter": [1024, 99], "WindowWidth": [2048, 9], **UNCHANGED}),
    "rescaled": (CODES, {"WindowCenter": 3096, "WindowWidth": 8192, "RescaleSlope": 2, "RescaleIntercept": -1000}),
    "empty window": (CODES, {"WindowCenter": None, "WindowWidth": None}),
    "negative": (4095 - CODES, {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2048, "WindowWidth": 4096}),
    "signed": ((CODES - 2048) & 4095, {"PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 2048}),
    "overlay": (CODES | 4096 * (np.arange(64) > 20), {}),
    "8 bits": (FILM[:, ::2] | FILM[:, 1::2] << 8, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Columns": 64}),
    "VOI LUT": (CODES, {"VOILUTSequence": (range(0, 4096), 0, 12), "WindowCenter": 9, "WindowWidth": 9}),
    "VOI LUT of 8 bits": (CODES, {"VOILUTSequence": (np.arange(4096) // 16, 0, 8), **UNCHANGED}),
    "VOI LUT from 1000": (CODES // 2 + 1000, {"VOILUTSequence": (np.arange(2048) * 32, 1000, 16)}),
    "modality LUT": (4095 - CODES, {"ModalityLUTSequence": (np.arange(4096)[::-1], 0, 12)}),
}  # fmt: skip


@pytest.mark.parametrize("name", DICOMS)
def test_a_dicom_film_is_the_jpeg_beside_it(tmp_path, name):
    codes, attributes = DICOMS[name]
    attributes = {key: lut(*value) if key.endswith("LUTSequence") else value for key, value in attributes.items()}
    draw_dicom(tmp_path / "film.dcm", codes, **attributes)
    Image.fromarray(FILM.astype(np.uint8)).save(tmp_path / "film.jpg", quality=98)
    for size in (16, 64):
        one, other = (read_grey(tmp_path / f"film.{kind}", size).astype(int) for kind in ("dcm", "jpg"))
        assert np.abs(one - other).max() <= 2


def test_no_film_in_a_dicom_file_is_refused_by_name(tmp_path):
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    draw_dicom(tmp_path / "colour.dcm", CODES.repeat(3, axis=1), Columns=64, **colour)
    draw_dicom(tmp_path / "frames.dcm", CODES.repeat(2, axis=0), Rows=48, NumberOfFrames=2)
    draw_dicom(tmp_path / "deep.dcm", CODES.repeat(2, axis=1), BitsAllocated=32, BitsStored=32, Columns=64)
    draw_dicom(tmp_path / "small.dcm", CODES[:3])
    draw_dicom(tmp_path / "cut.dcm", CODES, Rows=99)
    (tmp_path / "text.dcm").write_text("not a film")
    compressed = pydicom.dcmread(draw_dicom(tmp_path / "compressed.dcm", CODES))
    compressed.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    compressed.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no picture"])
    compressed.save_as(tmp_path / "compressed.dcm")
    said = {
        "colour": "frames in RGB", "frames": "it has 2 frames", "deep": "32 bits", "small": "64 x 3 pixels", "cut": "",
        "text": "DICM", "compressed": "",
    }  # fmt: skip
    for name, words in said.items():
        with pytest.raises(ValueError, match=rf"^unreadable image .*{name}\.dcm: .*{words}"):
            read_pixels(tmp_path / f"{name}.dcm", 32)


def test_writing_in_the_pixels_is_said(tmp_path):
    draw_dicom(tmp_path / "film.dcm", CODES, BurnedInAnnotation="YES")
    with pytest.warns(UserWarning, match="writing is part of its pixels"):
        read_pixels(tmp_path / "film.dcm", 32)


def test_without_pydicom_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    draw_dicom(tmp_path / "film.dcm", CODES)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"film\.dcm .*pip install .*\[dicom\]"):
        read_pixels(tmp_path / "film.dcm", 32)


def test_the_page_and_the_open_sets_read_it_too(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    shown = _PageImages(folder / "index.html").add(draw_dicom(folder / "film.dcm", CODES))  # no browser shows a .dcm
    assert shown["src"].endswith(".jpg") and (shown["width"], shown["height"]) == (64, 48)
    assert np.abs(np.asarray(Image.open(folder / shown["src"])) - FILM).mean() < 3
    assert _PageImages(folder / "index.html").add(tmp_path / "absent.dcm") is None
    said = _place_image(folder / "film.dcm", tmp_path / "tree" / "film.jpg", "link")
    assert said == ("converted from DICOM L", "")
    assert np.abs(np.asarray(Image.open(tmp_path / "tree" / "film.jpg")) - FILM).mean() < 3
