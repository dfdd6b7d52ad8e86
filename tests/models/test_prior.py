import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from running import flags, launch, read_reports, run_script
from small_data import REPORTS, make_tree
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from tiny_models import PRIOR as SMALL
from tiny_models import make_autoencoder
from torch.nn import functional

import train_prior_model
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from models.weights import load_autoencoder
from training.examples import PriorExamples, PriorFeatures
from training.reports import reported_rows
from utils.checkpoints import check_encoders
from utils.errors import InputError
from utils.mimic_cxr import image_file, read_table

REPOSITORY = Path(__file__).resolve().parent.parent.parent


# ---- the network ---------------------------------------------------------------------------------------------------


def test_standardisation_round_trip(tmp_path):
    torch.manual_seed(0)
    prior = Prior(**SMALL).eval()
    latents = 5 + 3 * torch.randn(100, 16) * torch.arange(16)  # the first dimension is constant
    prior.set_statistics(latents.mean(dim=0), latents.std(dim=0))
    standard = prior.standardise(latents)
    torch.testing.assert_close(standard[:, 1:].mean(dim=0), torch.zeros(15), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard[:, 1:].std(dim=0), torch.ones(15))
    torch.testing.assert_close(standard * prior.report_std + prior.report_mean, latents, atol=1e-4, rtol=1e-4)

    images = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(
        prior.standardise(prior.sample(images))[:, 1:], prior(images)[0][:, 1:], atol=1e-4, rtol=1e-3
    )
    prior.save_pretrained(tmp_path)
    loaded = Prior.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.sample(images), prior.sample(images))
    assert (tmp_path / "config.json").exists() and list(tmp_path.glob("*.safetensors"))


def test_the_linear_head_reaches_beyond_one_and_the_tanh_head_does_not():
    images = 10 * torch.randn(4, 4, 8, 8)
    for pooler, beyond in (("linear", True), ("tanh", False)):
        prior = Prior(**SMALL, pooler=pooler).eval()
        torch.nn.init.constant_(prior.head.bias, 3.0)
        assert bool((prior(images)[0].abs() > 1).any()) == beyond


def test_pretrained_weights_are_loaded_and_resampled(tmp_path, capsys):
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    with torch.no_grad():
        source.pos_embed.copy_(torch.randn_like(source.pos_embed))
    save_for_hf(source, tmp_path / "vit", safe_serialization=True)
    prior = Prior(latent_side=8, embed_dim=192, depth=12, num_heads=3, report_dim=16)
    prior.load_pretrained(f"local-dir:{tmp_path / 'vit'}")
    assert "150 tensors" in capsys.readouterr().out
    torch.testing.assert_close(prior.vit.blocks[5].attn.qkv.weight, source.blocks[5].attn.qkv.weight)
    torch.testing.assert_close(prior.vit.pos_embed[:, 0], source.pos_embed[:, 0])  # of the class token
    assert prior.vit.pos_embed.shape == (1, 17, 192) and prior.vit.patch_embed.proj.weight.shape == (192, 4, 2, 2)
    with pytest.raises(InputError, match="another architecture .*; set EMBED_DIM"):
        Prior(**SMALL).load_pretrained(f"local-dir:{tmp_path / 'vit'}")


def test_pretrained_weights_in_a_folder_of_timms(tmp_path):
    """A half-precision ViT that was pretrained on latents is taken as it is."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    source = VisionTransformer(**sizes, num_classes=0)
    source.pretrained_cfg = {
        "architecture": "vit_base_patch16_224", "input_size": (4, 8, 8), "first_conv": "patch_embed.proj",
        "classifier": "head", "num_classes": 0, "mean": (0.0,) * 4, "std": (1.0,) * 4,
    }  # fmt: skip
    save_for_hf(source.half(), tmp_path / "vit", model_args=sizes, safe_serialization=True)
    prior = Prior(**SMALL)
    prior.load_pretrained(f"local-dir:{tmp_path / 'vit'}")
    assert prior.vit.pos_embed.dtype == torch.float32
    for name, tensor in source.state_dict().items():
        assert torch.equal(prior.vit.state_dict()[name], tensor.float()), name


def test_pretrained_weights_that_cannot_be_had(tmp_path):
    for name in ("vit_tiny_patch16_224", f"local-dir:{tmp_path}"):
        with pytest.raises(InputError, match=f"PRETRAINED '{name}'.*; set it to local-dir:FOLDER"):
            Prior(latent_side=8, embed_dim=192, num_heads=3).load_pretrained(name)


def test_gain_scales_the_deviation_from_the_mean_report():
    torch.manual_seed(0)
    prior = Prior(**SMALL).eval()
    prior.set_statistics(torch.arange(16.0), 1 + torch.arange(16.0))
    images = torch.randn(3, 4, 8, 8)
    deviation = prior.sample(images) - torch.arange(16.0)
    torch.testing.assert_close(prior.sample(images, gain=2.5), torch.arange(16.0) + 2.5 * deviation)


@pytest.mark.parametrize("wrong", [{"patch_size": 3}, {"num_heads": 3}])
def test_wrong_sizes(wrong):
    with pytest.raises(InputError):
        Prior(**{**SMALL, **wrong})


def as_predicted(latents):
    """A prior that returns its input."""
    return latents, None


def test_loss_is_the_papers():
    predicted, truth = torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    batch = {"latents": predicted, "report_latents": truth}
    loss = train_prior_model.compute_loss(as_predicted, batch, cosine_weight=0.01)
    assert loss.item() == pytest.approx(1.0 + 0.01 * (1.0 + 0.0) / 2)


# ---- both ends from the cache --------------------------------------------------------------------------------------


def test_features(features, capsys):
    features, table, (_, autoencoder, *_) = features
    assert len(table) == 14 and len(features.table) == 12
    for row in (0, 5, 11):
        latent = features.report_latents[row]
        wanted = autoencoder.encode_reports([features.table["report"][row]])[0]
        np.testing.assert_allclose(latent, wanted, atol=1e-5)
    distinct = features.report_latents.stack(range(12))
    mean, std, _ = features.statistics()
    np.testing.assert_allclose(mean, distinct.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(std, distinct.std(axis=0), atol=1e-4)


def test_examples_draw_the_posterior_by_their_seed(features):
    features, _, _ = features
    prior = Prior(**SMALL)
    prior.set_statistics(*features.statistics())
    examples = PriorExamples(features, "train", prior)
    first, again, other = examples[3, 1], examples[3, 1], examples[3, 2]
    assert first["latents"].shape == (4, 8, 8) and torch.equal(first["latents"], again["latents"])
    assert not torch.equal(first["latents"], other["latents"])
    everything = torch.stack([examples[row, 0]["report_latents"] for row in range(len(examples))])
    torch.testing.assert_close(everything.mean(dim=0), torch.zeros(16), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="no rows in the split 'validate'"):
        PriorExamples(features, "validate", prior)


def test_cached_report_latents_of_another_bart_are_refused(features, tokenizer):
    _, table, (vae, autoencoder, *rest) = features
    with torch.no_grad():
        autoencoder.bart.model.encoder.layers[0].fc1.bias += 1
    with pytest.raises(InputError, match="report_latents was made with encoder"):
        PriorFeatures(reported_rows(table), vae, autoencoder, *rest)


def test_a_tree_without_reports(features):
    _, table, _ = features
    with pytest.raises(InputError, match="none of the images has a report"):
        reported_rows(table.assign(report=""))


def test_another_bart_is_refused():
    training = {"encoders": {"vae": "a" * 64, "bart": "b" * 64, "pooling": "mean"}}
    check_encoders(training, vae="a" * 64, bart="b" * 64, pooling="mean")
    with pytest.raises(
        InputError, match=r"another bart [(]fingerprint bbbbbbbbbbbb, this one has cccccccccccc[)]: set BART_CHECKPOINT"
    ):
        check_encoders(training, bart="c" * 64)
    with pytest.raises(InputError, match="another pooling"):
        check_encoders(training, pooling="eos")


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_a_synthetic_tree_gets_its_reports(sample, tmp_path, capsys):
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=7, reports=(), provenance=True)
    sample(OUTPUT_ROOT=root, BATCH_SIZE=3, DECODING="nucleus")
    reports = read_reports(root)
    assert sorted(reports) == sorted(table["dicom_id"]) and len(set(reports.values())) > 1
    found = read_table(root)
    assert sum(found["report"] != "") == sum(text != "" for text in reports.values())

    once = (root / "reports.csv").read_bytes()
    sample(OUTPUT_ROOT=root, BATCH_SIZE=5, DECODING="nucleus")
    assert "7 images, 7 with a report already" in capsys.readouterr().out
    assert (root / "reports.csv").read_bytes() == once
    rest = pd.read_csv(root / "reports.csv").iloc[:4]  # as a killed run leaves it
    rest.to_csv(root / "reports.csv", index=False)
    sample(OUTPUT_ROOT=root, BATCH_SIZE=5, DECODING="nucleus")
    assert (root / "reports.csv").read_bytes() == once
    with pytest.raises(InputError, match=r"begun with LATENT_GAIN = 1\.0, this run has 2\.0"):
        sample(OUTPUT_ROOT=root, DECODING="nucleus", LATENT_GAIN=2.0)
    with pytest.raises(InputError, match="begun with DECODING = 'nucleus', this run has 'greedy'"):
        sample(OUTPUT_ROOT=root, DECODING="greedy")


def test_kept_latents_are_used(sample, tmp_path):
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=4, reports=(), provenance=True)
    (root / "latents").mkdir()
    for row, dicom_id in enumerate(table["dicom_id"]):
        np.save(
            root / "latents" / f"{dicom_id}.npy", np.random.default_rng(row // 2).normal(size=(4, 8, 8)).astype("f2")
        )
        Path(table["image_path"][row]).write_bytes(b"not read")
    sample(OUTPUT_ROOT=root, DECODING="greedy", BASE_MODEL="/nowhere")
    reports = list(read_reports(root).values())
    assert reports[0] == reports[1] and reports[2] == reports[3]  # the same latents, the same report
    np.save(root / "latents" / f"{table['dicom_id'][0]}.npy", np.zeros((4, 16, 16), "f2"))
    (root / "reports.csv").unlink()
    with pytest.raises(InputError, match="trained for another image size"):
        sample(OUTPUT_ROOT=root, DECODING="greedy")


@pytest.mark.parametrize("content", [b"", b"not an array", "NaN", "infinity", "half", "a folder", "of texts"])
def test_damaged_latents_are_named_and_made_again_from_the_image(sample, tmp_path, capsys, content):
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=2, reports=(), provenance=True)
    sample(DATA_ROOT=root, OUTPUT_ROOT=tmp_path / "from images", DECODING="nucleus")
    wanted = read_reports(tmp_path / "from images")
    assert all(wanted.values())
    (root / "latents").mkdir()
    latents = np.random.default_rng(0).normal(size=(4, 8, 8)).astype("f2")
    for dicom_id in table["dicom_id"]:
        np.save(root / "latents" / f"{dicom_id}.npy", latents)
    path = root / "latents" / f"{table['dicom_id'][1]}.npy"
    if content == "a folder":
        path.unlink()
        path.mkdir()
    elif content in ("NaN", "infinity"):
        latents[0, 3, 3] = float(content)
        np.save(path, latents)
    elif content == "of texts":
        np.save(path, np.full((4, 8, 8), "a"))
    else:
        path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    sample(OUTPUT_ROOT=root, DECODING="nucleus")
    assert f"damaged: {path}" in capsys.readouterr().out
    assert read_reports(root)[table["dicom_id"][1]] == wanted[table["dicom_id"][1]]


def test_latent_gain_reaches_the_reports(sample, checkpoints, tmp_path):
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=3, reports=(), provenance=True)
    (root / "latents").mkdir()
    latents = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype("f2")
    for dicom_id, values in zip(table["dicom_id"], latents):
        np.save(root / "latents" / f"{dicom_id}.npy", values)
    prior, autoencoder = Prior.from_pretrained(checkpoints[0]).eval(), load_autoencoder(checkpoints[1], "", "").eval()
    for gain in (1.0, 0.05):
        output = tmp_path / str(gain)
        sample(DATA_ROOT=root, OUTPUT_ROOT=output, DECODING="greedy", LATENT_GAIN=gain)
        predicted = prior.sample(torch.from_numpy(latents).float(), gain=gain)
        wanted = dict(zip(table["dicom_id"], autoencoder.generate(predicted, max_tokens=20)))
        assert read_reports(output) == wanted
    assert read_reports(tmp_path / "1.0") != read_reports(tmp_path / "0.05")


def test_what_is_no_number_is_no_report(sample, checkpoints, tmp_path):
    root = tmp_path / "synthetic"
    make_tree(root, studies=2, reports=(), provenance=True)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for gain in ("1e999", "nan"):
        with pytest.raises(InputError, match="LATENT_GAIN"):
            sample(OUTPUT_ROOT=root, LATENT_GAIN=gain)
    with pytest.raises(InputError, match="--DECODING: 'best' is none of"):
        sample(OUTPUT_ROOT=root, DECODING="best")
    prior = Prior.from_pretrained(checkpoints[0])
    with torch.no_grad():
        prior.head.bias[0] = torch.nan
    prior.save_pretrained(checkpoints[0])
    with pytest.raises(InputError, match="NaN"):
        sample(OUTPUT_ROOT=root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_report_is_never_written_outside_of_its_tree(sample, tmp_path):
    root, victim = tmp_path / "a" / "synthetic", tmp_path / "victim" / "secret"
    make_tree(root, studies=2, reports=(), provenance=True)
    victim.mkdir(parents=True)
    (victim / "x.jpg").write_bytes(next(root.rglob("*.jpg")).read_bytes())
    victim.with_suffix(".txt").write_text("precious")
    for kind in ("metadata", "split"):
        path = root / f"mimic-cxr-2.0.0-{kind}.csv.gz"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame["dicom_id"] = frame["dicom_id"].replace("0001-0", "../../../../../../victim/secret/x")
        frame.to_csv(path, index=False)
    assert image_file(root, 10_000_001, 50_000_001, "../../../../../../victim/secret/x").exists()
    with pytest.raises(InputError, match="cannot name an image's file"):
        sample(OUTPUT_ROOT=root)
    assert victim.with_suffix(".txt").read_text() == "precious"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError, "SIGTERM"])
def test_what_was_written_is_kept_when_a_run_is_interrupted(sample, tmp_path, monkeypatch, capsys, stop):
    root = tmp_path / "synthetic"
    make_tree(root, studies=5, reports=(), provenance=True)
    generate, calls = ReportAutoencoder.generate, []

    def interrupted(self, latents, **arguments):
        calls.append(len(latents))
        if len(calls) == 4 and stop != "SIGTERM":  # the first is the trial before anything is written
            raise stop("now")
        if len(calls) == 3 and stop == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(self, latents, **arguments)

    monkeypatch.setattr(ReportAutoencoder, "generate", interrupted)
    if stop == "SIGTERM":
        sample(OUTPUT_ROOT=root, BATCH_SIZE=2, DECODING="nucleus")
        assert f"stopped; its reports are in {root}: the same command goes on" in capsys.readouterr().out
    else:
        with pytest.raises(InputError, match="130" if stop is KeyboardInterrupt else "now"):
            sample(OUTPUT_ROOT=root, BATCH_SIZE=2, DECODING="nucleus")
    reports = read_reports(root)
    assert len(reports) == 4 and len(list(root.rglob("s*.txt"))) == sum(map(bool, reports.values())) > 0
    monkeypatch.undo()
    for folder in ("synthetic", "whole"):
        if folder == "whole":
            make_tree(tmp_path / folder, studies=5, reports=(), provenance=True)
        sample(OUTPUT_ROOT=tmp_path / folder, BATCH_SIZE=2, DECODING="nucleus")
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file() and path.name != "reports.json":  # which has the folder's name
            assert path.read_bytes() == (root / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a CSV"),
        (b"dicom_id,report\n", "no column 'study_id'"),
        (b"\xff\xfe\n", "cannot be read as a CSV|no column"),
        (b"dicom_id,study_id,report\n0000-0,50000000,A.\n0000-0,50000000,B.\n", "e.g. for dicom_id 0000-0"),
        (b"dicom_id,study_id,report\n0000-0,half,A.\n", "study_id 'half' is not a whole number"),
        (b"dicom_id,study_id,report\n../x,50000000,A.\n", "dicom_id '../x' cannot name"),
        (None, "cannot be read as a CSV"),
    ],
)
def test_a_damaged_reports_csv_is_named_and_kept(sample, tmp_path, content, message):
    root = tmp_path / "synthetic"
    make_tree(root, studies=2, reports=(), provenance=True)
    path = root / "reports.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=f"reports.csv.*({message})"):
        sample(OUTPUT_ROOT=root, DECODING="greedy")
    assert path.is_dir() if content is None else path.read_bytes() == content
    assert not list(root.rglob("s*.txt"))


def test_a_reports_csv_without_rows_is_gone_on_with(sample, tmp_path):
    root = tmp_path / "synthetic"
    make_tree(root, studies=2, reports=(), provenance=True)
    (root / "reports.csv").write_text("dicom_id,study_id,report\n")
    sample(OUTPUT_ROOT=root, DECODING="greedy")
    assert len(read_reports(root)) == 2


def test_reports_of_two_trees_are_not_mixed(sample, tmp_path):
    for name in ("one", "other"):
        make_tree(tmp_path / name, studies=2, reports=(), provenance=True)
    sample(DATA_ROOT=tmp_path / "one", OUTPUT_ROOT=tmp_path / "written", DECODING="greedy")
    with pytest.raises(InputError, match="begun with images = .*one.*other"):
        sample(DATA_ROOT=tmp_path / "other", OUTPUT_ROOT=tmp_path / "written", DECODING="greedy")
    with pytest.raises(InputError, match="holds a synthetic tree, and no written reports"):
        sample(DATA_ROOT=tmp_path / "other", OUTPUT_ROOT=tmp_path / "one", DECODING="greedy")
    sample(DATA_ROOT=f"{tmp_path}/one/../one/", OUTPUT_ROOT=tmp_path / "one", DECODING="greedy")
    assert read_reports(tmp_path / "one") == read_reports(tmp_path / "written")


def test_the_trainings_hold_out_is_compared(sample, checkpoints, tmp_path, capsys):
    root = tmp_path / "synthetic"
    make_tree(root, studies=2, reports=(), provenance=True)
    path = checkpoints[0] / "training.json"
    training = json.loads(path.read_text())
    training["constants"]["HOLD_OUT"] = ["p18"]
    path.write_text(json.dumps(training))
    with pytest.raises(InputError, match=r"HOLD_OUT is \('p19',\), and CHECKPOINT .*prior was trained with \('p18',\)"):
        sample(OUTPUT_ROOT=root)
    (checkpoints[1] / "training.json").write_text(json.dumps({"constants": {"HOLD_OUT": []}}))
    with pytest.raises(InputError, match=r"BART_CHECKPOINT .*bart was trained with \(\) held out"):
        sample(OUTPUT_ROOT=root, HOLD_OUT="p18")
    (checkpoints[1] / "training.json").write_text(json.dumps({"source": "bart.ckpt", "constants": {"HOLD_OUT": []}}))
    sample(OUTPUT_ROOT=root, HOLD_OUT="p18", DECODING="greedy")
    assert "does not say which patient groups" in capsys.readouterr().out


def test_the_prior_leaves_out_whom_its_bart_left_out(checkpoints, tmp_path):
    (checkpoints[1] / "training.json").write_text(json.dumps({"constants": {"HOLD_OUT": ["p18"]}}))
    constants = {"BART_CHECKPOINT": checkpoints[1], "DATA_ROOT": tmp_path / "nothing", "DEVICE": "cpu"}
    message = run_script("train_prior_model", *flags(**constants))
    assert "HOLD_OUT is ('p19',), and BART_CHECKPOINT" in message and "was trained with ('p18',) held out" in message
    assert "nothing is not a folder" in run_script("train_prior_model", *flags(**constants, HOLD_OUT="p18"))


def test_reports_are_reconstructed_beside_those_that_are_written(sample, autoencoder, tmp_path, capsys):
    table = make_tree(tmp_path / "real", studies=5, reports=[*REPORTS, ""], split="test")
    constants = {"DATA_ROOT": tmp_path / "real", "OUTPUT_ROOT": tmp_path / "written", "DECODING": "greedy"}
    sample(**constants, RECONSTRUCT=True, BATCH_SIZE=2)
    rows = pd.read_csv(tmp_path / "written" / "reports.csv", keep_default_na=False).set_index("dicom_id")
    for row in table.itertuples():
        latents = autoencoder.encode_reports([row.report])
        wanted = autoencoder.generate(latents, max_tokens=20)[0] if row.report else ""
        assert rows.at[row.dicom_id, "reconstruction"] == wanted
    assert rows["reconstruction"].nunique() == 5
    with pytest.raises(InputError, match="RECONSTRUCT"):
        sample(**constants)
    sample(**constants | {"OUTPUT_ROOT": tmp_path / "alone"})
    assert read_reports(tmp_path / "alone") == rows["report"].to_dict(), "it changes no report"
    make_tree(tmp_path / "mute", studies=2, reports=())
    sample(**constants | {"DATA_ROOT": tmp_path / "mute", "OUTPUT_ROOT": tmp_path / "none"}, RECONSTRUCT=True)
    assert "has no reports" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "none" / "reports.csv")) == ["dicom_id", "study_id", "report"]
    make_tree(tmp_path / "own", studies=2, provenance=True)
    with pytest.raises(InputError, match="set RECONSTRUCT to False"):
        sample(OUTPUT_ROOT=tmp_path / "own", RECONSTRUCT=True)


def test_two_processes_write_what_one_writes(sample, checkpoints, tmp_path):
    for name in ("one", "two"):
        make_tree(tmp_path / name, studies=5, reports=(), provenance=True)
    sample(OUTPUT_ROOT=tmp_path / "one", BATCH_SIZE=2, DECODING="nucleus")
    constants = {"CHECKPOINT": checkpoints[0], "DEVICE": "cpu", "MAX_TOKENS": 20, "NUM_WORKERS": 1, "BATCH_SIZE": 2}
    constants |= {"OUTPUT_ROOT": tmp_path / "two", "DECODING": "nucleus"}
    config = tmp_path / "empty.toml"
    config.write_text("")
    launch("sample_prior_model", config, *flags(**constants))
    assert read_reports(tmp_path / "two") == read_reports(tmp_path / "one")


def test_a_real_tree_keeps_its_reports(sample, tmp_path):
    root, output = tmp_path / "real", tmp_path / "written"
    table = make_tree(root, studies=3, images_a_study=2, split="test")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="no manifest.json.*nothing is written into it"):
        sample(OUTPUT_ROOT=root)
    sample(DATA_ROOT=root, OUTPUT_ROOT=output, SPLIT="test", DECODING="greedy")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    reports = read_reports(output)
    assert len(reports) == 6
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("s*.txt"))
    firsts = [reports[dicom_id] for dicom_id in table.drop_duplicates("study_id")["dicom_id"]]
    assert len(written) == sum(text != "" for text in firsts)
    assert all(name.startswith("files/p10/p100000") for name in written)


def test_an_unreadable_image_is_named_and_left_out(sample, tmp_path, capsys):
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=3, reports=(), provenance=True)
    Path(table["image_path"][1]).write_bytes(b"no picture")
    sample(OUTPUT_ROOT=root, DECODING="greedy")
    assert sorted(read_reports(root)) == [table["dicom_id"][0], table["dicom_id"][2]]
    assert "left out" in capsys.readouterr().out


def test_sampling_with_another_bart_or_without_images_is_refused(sample, checkpoints, tokenizer, tmp_path):
    root = tmp_path / "synthetic"
    make_tree(root, studies=2, reports=(), provenance=True)
    other = make_autoencoder(tokenizer)
    with torch.no_grad():
        other.bart.model.decoder.layers[0].fc1.bias += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another bart"):
        sample(OUTPUT_ROOT=root, BART_CHECKPOINT=tmp_path / "other")
    with pytest.raises(InputError, match="nothing is not a synthetic tree"):
        sample(OUTPUT_ROOT=tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    for path in root.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match="none of the 2 images is on disk"):
        sample(OUTPUT_ROOT=root)


def test_cosine_of_the_loss_agrees_with_torch():
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    batch = {"latents": first, "report_latents": second}
    loss = train_prior_model.compute_loss(as_predicted, batch, cosine_weight=1.0)
    wanted = functional.mse_loss(first, second) + (1 - functional.cosine_similarity(first, second)).mean()
    torch.testing.assert_close(loss, wanted)
