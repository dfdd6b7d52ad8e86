import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from running import flags, read_reports, run_script
from small_data import make_tree
from tiny_models import PRIOR as SMALL

import train_prior_model
from evaluation.selection import best_reports, candidate_seed, write_best
from models.flow import ReportFlow
from models.prior import Prior
from models.weights import start_from
from training.examples import PriorExamples
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table, write_tree
from utils.seeds import keyed_seed

FLOW = {**SMALL, "kind": "flow", "flow_width": 32, "flow_depth": 2}


def correlated(count, seed=0):
    """Numbers (count, 3) whose directions vary very differently, and their covariance."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    scale = torch.tensor([2.0, 0.5, 0.01])
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * scale @ turn.T
    return points, turn @ (scale**2).diag() @ turn.T


def make_flow(covariance=None, dropout=0.0, token_dim=4, seed=0):
    torch.manual_seed(seed)
    flow = ReportFlow(token_dim, 3, 32, 2, dropout).eval()
    flow.set_covariance(torch.eye(3) if covariance is None else covariance)
    return flow


# ---- the network ---------------------------------------------------------------------------------------------------


def test_an_untrained_flow_draws_from_the_gaussian_of_the_reports():
    _, covariance = correlated(1)
    flow = make_flow(covariance)
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(2))
    drawn = flow.draw(torch.randn(4000, 4), noise, steps=100)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.25, rtol=0)
    thinnest = torch.linalg.eigvalsh(drawn.T.cov())[0]
    assert 0 < thinnest < 0.05**2, "off the plane that the reports lie in"


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9])
def test_an_untrained_velocity_is_the_least_squares_one_for_gaussian_reports(time):
    reports, covariance = correlated(40_000)
    noise = torch.randn(reports.shape, generator=torch.Generator().manual_seed(3))
    noisy, target = (1 - time) * noise + time * reports, reports - noise
    best = torch.linalg.lstsq(noisy, target).solution
    velocity = make_flow(covariance)(
        torch.zeros(len(noisy), 4), noisy[:, None], torch.full((len(noisy), 1), time), torch.zeros(len(noisy))
    )[:, 0]
    torch.testing.assert_close(velocity, noisy @ best, atol=0.12, rtol=0.05)


def trained_on_two_kinds_of_images(steps=500):
    """Images of two kinds: of the one kind reports lie at -1 or 1 along the first axis, of the other always at 2."""
    flow = make_flow(torch.diag(torch.tensor([2.0, 0.01, 0.01]))).train()
    optimizer = torch.optim.AdamW(flow.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(4)

    def model(tokens, *flowing):
        return flow(tokens, *flowing), None

    for _ in range(steps):
        kind = torch.rand(128, generator=generator) < 0.5
        side = torch.where(torch.rand(128, generator=generator) < 0.5, 1.0, -1.0)
        reports = torch.zeros(128, 3)
        reports[:, 0] = torch.where(kind, side, 2.0)
        tokens = torch.where(kind[:, None], torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0]))
        batch = {
            "latents": tokens, "report_latents": reports, "noise": torch.randn(128, 4, 3, generator=generator),
            "times": torch.rand(128, 4, generator=generator), "dropped": torch.rand(128, generator=generator) < 0.1,
        }  # fmt: skip
        optimizer.zero_grad()
        train_prior_model.compute_flow_loss(model, batch).backward()
        optimizer.step()
    return flow.eval()


def test_it_learns_to_draw_what_an_image_allows():
    flow = trained_on_two_kinds_of_images()
    noise = torch.randn(400, 3, generator=torch.Generator().manual_seed(5))
    two = flow.draw(torch.tensor([[1.0, 0, 0, 0]]).expand(400, -1), noise, steps=50)[:, 0]
    one = flow.draw(torch.tensor([[0, 1.0, 0, 0]]).expand(400, -1), noise, steps=50)[:, 0]
    assert 0.3 < (two > 0).float().mean() < 0.7, "both sides are allowed"
    assert (two.abs() - 1).abs().mean() < 0.3, "and nothing between them, where their mean is"
    assert (one - 2).abs().mean() < 0.3

    def without(tokens):
        times, dropped = torch.full((1, 1), 0.5), torch.ones(1, dtype=torch.bool)
        return flow(tokens, torch.ones(1, 1, 3), times, dropped)

    torch.testing.assert_close(without(torch.zeros(1, 4)), without(torch.ones(1, 4)))  # no image is no image


def test_guidance_goes_away_from_the_reports_of_no_image():
    flow = trained_on_two_kinds_of_images(200)
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(6))
    token = torch.tensor([[0, 1.0, 0, 0]]).expand(200, -1)
    place = [flow.draw(token, noise, 25, guidance)[:, 0].mean() for guidance in (0.0, 1.0, 3.0)]
    assert place[0] + 0.3 < place[1] < place[2], "0: no image at all"


def test_a_draw_follows_from_its_seed_alone():
    torch.manual_seed(0)
    prior = Prior(**FLOW).eval()
    prior.set_statistics(torch.zeros(16), torch.ones(16), torch.eye(16))
    latents = torch.randn(3, 4, 8, 8)
    together = prior.sample(latents, [5, 6, 7], guidance=2.0)
    torch.testing.assert_close(prior.sample(latents[1:2], [6], guidance=2.0), together[1:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(prior.sample(latents[1:2], [7]), together[1:2])
    still = [prior.sample(latents[:1], [seed], temperature=0.0) for seed in (1, 2)]
    torch.testing.assert_close(*still)
    with pytest.raises(InputError, match="IMAGE_GUIDANCE nan"):
        prior.sample(latents, [5, 6, 7], guidance=float("nan"))


def test_a_checkpoint_draws_the_same(tmp_path):
    prior = Prior(**FLOW, flow_dropout=0.3).eval()
    _, basis = torch.linalg.eigh(torch.randn(16, 16).cov())
    prior.set_statistics(torch.randn(16), torch.rand(16) + 0.5, basis @ torch.rand(16).diag() @ basis.T)
    prior.save_pretrained(tmp_path / "flow")
    latents = torch.randn(2, 4, 8, 8)
    loaded = Prior.from_pretrained(tmp_path / "flow").eval()
    torch.testing.assert_close(loaded.sample(latents, [1, 2]), prior.sample(latents, [1, 2]))

    other = Prior(**FLOW, flow_dropout=0.3).eval()
    other.set_statistics(torch.zeros(16), torch.ones(16), torch.eye(16))
    start_from(other, str(tmp_path / "flow"))
    torch.testing.assert_close(other.sample(latents, [1, 2]), prior.sample(latents, [1, 2]))
    reading = Prior(**FLOW, flags=["Edema"]).eval()
    start_from(reading, str(tmp_path / "flow"))  # one without a readout
    torch.testing.assert_close(reading.sample(latents, [1, 2]), prior.sample(latents, [1, 2]))
    with pytest.raises(InputError, match="KIND is regression and its flow"):
        start_from(Prior(**SMALL), str(tmp_path / "flow"))


# ---- examples and scripts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SMALL, FLOW])
def test_a_readout_learns_what_is_said_of_the_images(kind, tmp_path):
    torch.manual_seed(0)
    prior = Prior(**kind, flags=["Edema", "Edema, degree: small"])
    latents, flags = torch.randn(16, 4, 8, 8), torch.zeros(16, 2)
    flags[:8, 0] = 1
    latents[:8] += 1
    batch = {"latents": latents, "flags": flags, "report_latents": torch.randn(16, 16)}
    batch |= {"noise": torch.randn(16, 2, 16), "times": torch.rand(16, 2), "dropped": torch.zeros(16)}
    compute = train_prior_model.compute_flow_loss
    if kind is SMALL:
        compute = partial(train_prior_model.compute_loss, cosine_weight=0.01)
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        compute(prior, batch, details_weight=1.0).backward()
        optimizer.step()
    read = prior.eval().read_flags(latents)
    assert (read[:8, 0] > 0.9).all() and (read[8:, 0] < 0.1).all() and (read[:, 1] < 0.1).all()
    assert Prior(**kind).read_flags(latents) is None
    prior.save_pretrained(tmp_path / "prior")
    kept, other = Prior(**kind, flags=["Edema", "Edema, degree: small"]), Prior(**kind, flags=["Edema", "Fracture"])
    start_from(kept, str(tmp_path / "prior"))
    start_from(other, str(tmp_path / "prior"))
    assert torch.equal(kept.readout.weight, prior.readout.weight), "the same flags"
    assert not torch.equal(other.readout.weight, prior.readout.weight), "other flags are learned anew"


def test_examples_hold_the_flags_of_their_row(features):
    features, _, _ = features
    flags = np.arange(len(features.table) * 3).reshape(-1, 3) % 2 == 0
    examples = PriorExamples(features, "train", Prior(**SMALL), flags)
    assert examples[2, 0]["flags"].tolist() == flags[examples.rows[2]].tolist()
    assert "flags" not in PriorExamples(features, "train", Prior(**SMALL))[0, 0]


def test_a_frozen_transformer_runs_once(features, monkeypatch):
    monkeypatch.setattr("training.examples.ENCODE_BATCH_SIZE", 5)
    features, _, _ = features
    prior = Prior(**FLOW).eval()
    prior.set_statistics(*features.statistics())
    examples = PriorExamples(features, "train", prior)
    drawn = examples[4, 1]
    examples.freeze(prior)
    frozen, again = examples[4, 1], examples[4, 2]
    assert "latents" not in frozen and torch.equal(frozen["tokens"], again["tokens"])
    mean = torch.from_numpy(features.moments[4].astype(np.float32)).chunk(2)[0] * features.scaling_factor
    torch.testing.assert_close(frozen["tokens"], prior.vit(mean[None])[0])
    assert not torch.equal(mean, drawn["latents"]), "a draw of the posterior has noise"
    assert torch.equal(frozen["report_latents"], drawn["report_latents"])
    flowing = [frozen[name][None] for name in ("noise", "times", "dropped")]
    by_token, by_latents = (prior(images[None], *flowing)[0] for images in (frozen["tokens"], mean))
    torch.testing.assert_close(by_token, by_latents)


def test_examples_hold_noise_and_times_by_their_seed(features, monkeypatch):
    monkeypatch.setattr("training.examples.DROP_IMAGE", 0.5)
    features, _, _ = features
    prior = Prior(**FLOW)
    prior.set_statistics(*features.statistics())
    examples = PriorExamples(features, "train", prior)
    first, again, other = examples[3, 1], examples[3, 1], examples[3, 2]
    assert first["noise"].shape == (4, 16) and first["times"].shape == (4,)
    assert torch.equal(first["noise"], again["noise"]) and torch.equal(first["times"], again["times"])
    assert not torch.equal(first["noise"], other["noise"]) and not torch.equal(first["times"], other["times"])
    dropped = [examples[0, seed]["dropped"].item() for seed in range(200)]
    assert 70 < sum(dropped) < 130
    assert "noise" not in PriorExamples(features, "train", Prior(**SMALL))[0, 0]


def test_the_covariance_of_the_statistics_is_that_of_the_latents(features):
    features, _, _ = features
    latents = features.report_latents.stack(range(12)).astype(np.float64)
    mean, std, covariance = features.statistics()
    np.testing.assert_allclose(covariance, np.cov(latents.T, bias=True), atol=1e-6)
    prior = Prior(**FLOW)
    prior.set_statistics(mean, std, covariance)
    standard = prior.standardise(torch.from_numpy(latents).float()).double()
    rebuilt = prior.head.directions @ prior.head.variances.diag() @ prior.head.directions.T
    torch.testing.assert_close(rebuilt.double(), standard.T.cov(correction=0), atol=1e-3, rtol=1e-3)


@pytest.fixture
def train_flow(checkpoints, base_model, tmp_path):
    """A function: constants => runs train_prior_model.py with a flow."""
    make_tree(tmp_path / "real", studies=6)
    make_tree(tmp_path / "real", studies=3, split="validate")

    def train(**constants):
        fixed = {
            "DATA_ROOT": tmp_path / "real", "CACHE_DIR": tmp_path / "cache", "BASE_MODEL": base_model, "IMAGE_SIZE": 32,
            "BART_CHECKPOINT": checkpoints[1], "PRETRAINED": "", "EMBED_DIM": 16, "DEPTH": 1, "NUM_HEADS": 2,
            "BATCH_SIZE": 4, "MAX_STEPS": 4, "CHECKPOINT_EVERY": 2, "WARMUP_STEPS": 0, "RUN_DIR": tmp_path / "run",
            "DEVICE": "cpu", "NUM_WORKERS": 0, "PRIOR": "flow", "EVALUATION_IMAGES": 2, "VIEWS": "",
            "HOLD_OUT": "",
        }  # fmt: skip
        return run_script("train_prior_model", *flags(**{**fixed, **constants}))

    return train


def test_a_flow_is_trained_and_writes_reports(train_flow, checkpoints, tmp_path, capsys, monkeypatch):
    assert train_flow(FREEZE_TRANSFORMER="true", DETAILS_WEIGHT=0.5) == 0
    assert "explained variance" in capsys.readouterr().out
    root = tmp_path / "synthetic"
    table = make_tree(root, studies=5, reports=(), provenance=True)
    fixed = {"CHECKPOINT": tmp_path / "run/best", "DEVICE": "cpu", "MAX_TOKENS": 20, "OUTPUT_ROOT": root}
    fixed |= {"DECODING": "greedy", "FLOW_TEMPERATURE": 0.9, "HOLD_OUT": ""}
    assert run_script("sample_prior_model", *flags(**fixed, CANDIDATES=2, BATCH_SIZE=2)) == 0
    reports = read_reports(root)
    assert sorted(reports) == sorted(table["dicom_id"])
    (root / "reports.csv").unlink()
    assert run_script("sample_prior_model", *flags(**fixed, CANDIDATES=2, BATCH_SIZE=5)) == 0
    assert read_reports(root) == reports, "the size of a batch changes no report"
    assert "CANDIDATES" in str(run_script("sample_prior_model", *flags(**fixed, CANDIDATES=3)))

    # the request has no part in the choice
    other = tmp_path / "other requests"
    made = make_tree(other, studies=5, reports=(), provenance=True)
    requested = np.random.default_rng(0).integers(-2, 2, (len(made), len(FINDINGS)))
    write_tree(other, made.assign(**dict(zip(FINDINGS, requested.T))))
    assert run_script("sample_prior_model", *flags(**fixed | {"OUTPUT_ROOT": other}, CANDIDATES=2, BATCH_SIZE=5)) == 0
    assert read_reports(other) == reports
    assert (other / "reports.csv").read_bytes() == (root / "reports.csv").read_bytes()

    # beside each report one that was chosen in the same way among random training reports
    floor = pd.read_csv(root / "reports.csv")["floor"]
    trained = set(read_table(tmp_path / "real", splits=("train",))["report"])
    assert set(floor) <= trained and floor.nunique() > 1
    shutil.rmtree(tmp_path / "real")
    shutil.rmtree(other)
    make_tree(other, studies=5, reports=(), provenance=True)
    capsys.readouterr()
    assert run_script("sample_prior_model", *flags(**fixed | {"OUTPUT_ROOT": other}, CANDIDATES=2, BATCH_SIZE=5)) == 0
    assert "floor" in capsys.readouterr().out, "their tree is not there"
    assert list(pd.read_csv(other / "reports.csv")) == ["dicom_id", "study_id", "report"]
    assert read_reports(other) == reports


def test_candidates_of_a_regression_are_refused(sample, tmp_path):
    make_tree(tmp_path / "synthetic", studies=2, reports=(), provenance=True)
    with pytest.raises(InputError, match="2 CANDIDATES would be the same report"):
        sample(OUTPUT_ROOT=tmp_path / "synthetic", CANDIDATES=2)


# ---- the report that is kept ---------------------------------------------------------------------------------------

EFFUSION, EDEMA, BOTH, NOTHING = (
    "FINDINGS: There is a pleural effusion. No pulmonary edema.", "FINDINGS: There is pulmonary edema.",
    "FINDINGS: There is pulmonary edema and a pleural effusion.", "FINDINGS: Lungs are well inflated.",
)  # fmt: skip


def wanted(**values):
    return np.array([[values.get(name.replace(" ", "_"), 0) for name in FINDINGS]], dtype=float)


def test_the_report_that_says_what_was_read_is_kept():
    drawn = [[EDEMA], [NOTHING], [BOTH], [EFFUSION]]
    assert best_reports(drawn, wanted(Pleural_Effusion=1)) == [EFFUSION]
    assert best_reports(drawn, wanted(Pleural_Effusion=1, Edema=1)) == [BOTH]
    assert best_reports([[BOTH], [EFFUSION]], wanted(Pleural_Effusion=1, Edema=np.nan)) == [BOTH], "the first of two"
    assert best_reports([[EDEMA]]) == [EDEMA]


def test_the_report_that_says_what_a_readout_is_surest_of_is_kept():
    sure = torch.zeros(1, len(FINDINGS))
    sure[0, FINDINGS.index("Pleural Effusion")], sure[0, FINDINGS.index("Edema")] = 0.9, 0.6
    assert best_reports([[EDEMA], [EFFUSION]], sure) == [EFFUSION]
    assert best_reports([[EDEMA], [EFFUSION], [BOTH]], sure) == [BOTH]


def test_without_a_request_the_report_is_kept_that_says_what_most_say():
    assert best_reports([[EDEMA], [EFFUSION], [BOTH], [EFFUSION]]) == [EFFUSION]
    assert best_reports([[NOTHING, EDEMA], [EFFUSION, EDEMA], [EFFUSION, BOTH]]) == [EFFUSION, EDEMA]


def test_a_report_that_contradicts_itself_is_kept_last():
    itself = "FINDINGS: Moderate pleural effusion. There is no pleural effusion."
    assert best_reports([[itself], [EFFUSION]], wanted(Pleural_Effusion=1)) == [EFFUSION]
    assert best_reports([[itself], [EFFUSION], [itself]]) == [EFFUSION]
    assert best_reports([[itself], [itself]]) == [itself]
    stuttering = EFFUSION + " Heart size is normal." * 3
    assert best_reports([[stuttering], [EFFUSION]], wanted(Pleural_Effusion=1)) == [EFFUSION]


def test_each_candidate_is_drawn_with_a_seed_of_its_own():
    says = {candidate_seed(keyed_seed(7, "a"), number): text for number, text in enumerate((EDEMA, NOTHING, EFFUSION))}

    def draw(latents, seeds):
        return [says[seed] for seed in seeds]

    latents = torch.zeros(1, 1)
    assert write_best(latents, ["a"], draw, 3, 7, wanted(Pleural_Effusion=0.8)) == [EFFUSION]
    assert write_best(latents, ["a"], draw, 1, 7, wanted(Pleural_Effusion=0.8)) == [EDEMA]
    assert write_best(latents, ["a"], draw, 3, 7, None) == best_reports([[text] for text in says.values()])
