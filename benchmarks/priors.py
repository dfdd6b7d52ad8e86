"""Which prior writes the better reports, and how should it be sampled? A regression beside a flow, on real images.

    python -m benchmarks.priors --CHECKPOINTS demo/runs/prior/best,demo/runs/regression/best --SPLIT validate

Every row writes a report for each image of SPLIT; choose on "validate".

Reads:  CHECKPOINTS (of train_prior_model.py), the real tree, VAE and BART that they were trained with
Writes: OUTPUT/priors.md
Prints: clinical F1 (micro, macro) of the reports against the images' labels, read by TF-IDF trained on the real reports;
        ROUGE-L; shares of stuttering (a phrase three times in a row) and of distinct reports; spread of the latents in units
        of the real ones' (1), their Frechet distance to them; explained variance of the latents, of a flow that of the mean
        of MEAN_DRAWS draws
"""

from functools import partial
from pathlib import Path

import pandas as pd
import torch

from evaluation.judges import TextJudge
from evaluation.metrics import clinical_f1, frechet_distance, positives, rouge_l, stutters
from evaluation.report import markdown
from evaluation.selection import best_reports, candidate_seed
from models.weights import load_autoencoder, load_prior
from training.examples import PriorExamples, PriorFeatures, reported_rows
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import run, say, writing
from utils.latents import load_vae
from utils.mimic_cxr import read_table
from utils.seeds import draw_rows

CHECKPOINTS = ("demo/runs/prior/best",)  # checkpoint folders of train_prior_model.py, one or more
GAINS = (1.0, 1.5, 2.0, 2.5, 3.0)  # LATENT_GAIN of each row of a regression (each 0 to 100)
VARIANTS = (  # IMAGE_GUIDANCE, FLOW_TEMPERATURE and CANDIDATES of each row of a flow
    "1 1 1", "2 1 1", "3 1 1", "2 0.5 1", "3 0.5 1", "2 1 4", "3 1 4", "2 0.5 4"
)  # fmt: skip
SPLIT = "validate"  # whose images (train, validate or test)
IMAGES = 0  # rows at most, drawn at random (0 or more; 0: all)
OUTPUT = "demo/priors"  # folder of the table (a folder to write)
DECODING = "beam"  # of the reports (greedy, beam or nucleus)
BEAMS = 4  # of beam search (1 to 64)
MAX_TOKENS = 200  # a report at most (1 or more)
MEAN_DRAWS = 16  # of a flow, for the explained variance (1 or more)
BATCH_SIZE = 64  # images at a time (1 to 65536)
CACHE_DIR = "demo/cache"  # of moments and report latents (a folder to write)
SEED = 1234  # of draws (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 0  # threads that decode images (0 to 256)


class Images:
    """The images of one split, as a prior reads them: latents (N, C, h, w), reports, their latents, labels."""

    def __init__(self, prior, features, split, count, seed):
        examples = PriorExamples(features, split, prior)
        if count:
            examples.rows = examples.rows[draw_rows(len(examples), count, seed, "images")]
        rows = [examples[row, row] for row in range(len(examples))]
        self.latents = torch.stack([row["latents"] for row in rows])
        self.truth = torch.stack([row["report_latents"] for row in rows])  # (N, D), standardised
        table = features.table.iloc[examples.rows]
        self.reports, self.labels = table["report"].tolist(), positives(table)


def in_batches(make, latents, seeds, batch_size):
    """make(latents, seeds) => report latents of so many images at a time, together (N, D)."""
    starts = range(0, len(latents), batch_size)
    return torch.cat([make(latents[at : at + batch_size], seeds[at : at + batch_size]) for at in starts])


def table_of(prior, images, write, text_judge, gains, variants, mean_draws, batch_size, name):
    """One row a variant; write: standardised latents (N, D) => N reports."""
    flows, numbered = prior.config.kind == "flow", range(len(images.reports))

    def sample(make, candidate=0):
        seeds = [candidate_seed(number, candidate) for number in numbered]
        return prior.standardise(in_batches(make, images.latents, seeds, batch_size)).cpu()

    findings = prior.read_findings(images.latents)
    means = sample(partial(prior.mean, draws=mean_draws))
    unexplained = (means - images.truth).square().sum() / (images.truth - images.truth.mean(dim=0)).square().sum()
    rows = []
    for variant in variants if flows else gains:
        gain, guidance, temperature, candidates = variant, 1.0, 1.0, 1
        if flows:
            gain, guidance, temperature, candidates = 1.0, *map(float, variant.split())
        make = partial(prior.sample, gain=gain, guidance=guidance, temperature=temperature)
        drawn = [sample(make, number) for number in range(int(candidates))]
        reports = best_reports([write(latents) for latents in drawn], findings)
        f1 = clinical_f1(images.labels, text_judge(reports))["f1"]
        rows.append({
            "prior": name, "variant": variant, "F1 micro": f1["micro"], "F1 macro": f1["macro"],
            "ROUGE-L": rouge_l(images.reports, reports), "stuttering": sum(map(stutters, reports)) / len(reports),
            "distinct": len(set(reports)) / len(reports), "spread": drawn[0].var(dim=0).mean().sqrt().item(),
            "Frechet": frechet_distance(images.truth.numpy(), drawn[0].numpy()),
            "explained variance": 1 - unexplained.item(),
        })  # fmt: skip
        say(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in rows[-1].values()))
    return rows


def main():
    override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    rows = []
    for checkpoint in CHECKPOINTS:
        prior, training = load_prior(checkpoint)
        prior, trained = prior.to(accelerator.device).eval(), training["constants"]
        table = read_table(
            trained["DATA_ROOT"], trained["REPORTS_ROOT"], views=trained["VIEWS"], hold_out=trained["HOLD_OUT"]
        )
        vae = load_vae(trained["BASE_MODEL"], accelerator.device)
        autoencoder = load_autoencoder(trained["BART_CHECKPOINT"], "mean", "")
        autoencoder = autoencoder.to(accelerator.device).eval()
        size = trained["IMAGE_SIZE"]
        features = PriorFeatures(reported_rows(table), vae, autoencoder, size, CACHE_DIR, NUM_WORKERS, accelerator)
        studies = features.table[features.table["split"] == "train"].drop_duplicates("study_id")
        text_judge = TextJudge(studies["report"].tolist(), positives(studies))

        def write(latents, prior=prior, autoencoder=autoencoder):
            latents = latents.to(prior.device) * prior.report_std + prior.report_mean
            return [
                text
                for batch in latents.split(BATCH_SIZE)
                for text in autoencoder.generate(batch, DECODING, BEAMS, max_tokens=MAX_TOKENS)
            ]

        images = Images(prior, features, SPLIT, IMAGES, SEED)
        own = best_reports([write(images.truth)])
        f1 = clinical_f1(images.labels, text_judge(own))["f1"]
        say(f"from the reports' own latents: F1 {f1['micro']:.3f} / {f1['macro']:.3f}")
        name = f"{prior.config.kind} ({checkpoint})"
        rows += table_of(prior, images, write, text_judge, GAINS, VARIANTS, MEAN_DRAWS, BATCH_SIZE, name)
    text = markdown(pd.DataFrame(rows))
    with writing("the table", OUTPUT):
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)
        (Path(OUTPUT) / "priors.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
