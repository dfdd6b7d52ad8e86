"""Which prior writes the better reports, and how should it be sampled? A regression beside a flow, on real images.

    python -m benchmarks.priors --CHECKPOINTS demo/runs/prior/best,demo/runs/regression/best --SPLIT validate

In every row of the table a report is written for each image of SPLIT. Choose on "validate".

Reads:  CHECKPOINTS (of train_prior_model.py), the real tree, VAE and BART that they were trained with
Writes: benchmarks/results/RECORD.json
Prints: clinical F1 (micro, macro) of the reports against the images' labels, read by TF-IDF trained on real reports;
        ROUGE-L; the shares of stuttering reports (a phrase three times in a row) and of distinct ones; the spread of
        the latents in units of the real ones' (1) and their Frechet distance to them; the latents' explained
        variance, for a flow that of the mean of several draws
"""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
import torch

from benchmarks.record import write_record
from evaluation.judges import TextJudge
from evaluation.metrics import clinical_f1, frechet_distance, positives, rouge_l, stutters
from evaluation.report import markdown
from evaluation.selection import best_reports, candidate_seed
from models.prior import Prior
from models.weights import load_autoencoder, load_prior
from training.examples import PriorExamples, PriorFeatures, reported_rows
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import run, say
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
RECORD = "priors"  # name of the table under benchmarks/results
DECODING = "beam"  # of the reports (greedy, beam or nucleus)
BEAMS = 4  # of beam search (1 to 64)
MAX_TOKENS = 200  # a report at most (1 or more)
BATCH_SIZE = 64  # images at a time (1 to 65536)
CACHE_DIR = "demo/cache"  # of moments and report latents (a folder to write)
SEED = 1234  # of draws (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 0  # threads that decode images (0 to 256)

_MEAN_DRAWS = 16  # of a flow, for the explained variance


class Images:
    """The images of one split as a prior reads them."""

    def __init__(self, features: PriorFeatures, prior: Prior, split: str, count: int, seed: int):
        """count: images at most, drawn at random; 0: all."""
        examples = PriorExamples(features, split, prior)
        if count:
            examples.rows = examples.rows[draw_rows(len(examples), count, seed, "images")]
        rows = [examples[row, row] for row in range(len(examples))]
        self.latents = torch.stack([row["latents"] for row in rows])  # (N, C, h, w)
        self.truth = torch.stack([row["report_latents"] for row in rows])  # (N, D), standardised
        table = features.table.iloc[examples.rows]
        self.reports, self.labels = table["report"].tolist(), positives(table)


def rows_of(
    prior: Prior, images: Images, write: Callable, judge: TextJudge, settings: tuple, batch_size: int
) -> Iterator[dict]:
    """Yields a row for each setting. write: standardised latents (N, D) => N reports; settings: GAINS or VARIANTS."""

    def sample(make, candidate=0):
        """Standardised latents (N, D); make: image latents and a seed for each => report latents."""
        seeds = [candidate_seed(number, candidate) for number in range(len(images.reports))]
        batches = range(0, len(seeds), batch_size)
        made = [make(images.latents[at : at + batch_size], seeds[at : at + batch_size]) for at in batches]
        return prior.standardise(torch.cat(made)).cpu()

    findings = prior.read_findings(images.latents)
    means = sample(partial(prior.mean, draws=_MEAN_DRAWS))
    unexplained = (means - images.truth).square().sum() / (images.truth - images.truth.mean(dim=0)).square().sum()
    for setting in settings:
        gain, guidance, temperature, candidates = setting, 1.0, 1.0, 1
        if prior.config.kind == "flow":
            gain, guidance, temperature, candidates = 1.0, *map(float, setting.split())
        make = partial(prior.sample, gain=gain, guidance=guidance, temperature=temperature)
        drawn = [sample(make, number) for number in range(int(candidates))]
        reports = best_reports([write(latents) for latents in drawn], findings)
        f1 = clinical_f1(images.labels, judge(reports))["f1"]
        yield {
            "variant": setting, "F1 micro": f1["micro"], "F1 macro": f1["macro"],
            "ROUGE-L": rouge_l(images.reports, reports), "stuttering": sum(map(stutters, reports)) / len(reports),
            "distinct": len(set(reports)) / len(reports), "spread": drawn[0].var(dim=0).mean().sqrt().item(),
            "Frechet": frechet_distance(images.truth.numpy(), drawn[0].numpy()),
            "explained variance": 1 - unexplained.item(),
        }  # fmt: skip


def main():
    constants = override_constants(globals())
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
        judge = TextJudge(studies["report"].tolist(), positives(studies))

        def write(latents, prior=prior, autoencoder=autoencoder):
            latents = latents.to(prior.device) * prior.report_std + prior.report_mean
            batches = [
                autoencoder.generate(batch, DECODING, BEAMS, max_tokens=MAX_TOKENS)
                for batch in latents.split(BATCH_SIZE)
            ]
            return [report for batch in batches for report in batch]

        images = Images(features, prior, SPLIT, IMAGES, SEED)
        f1 = clinical_f1(images.labels, judge(best_reports([write(images.truth)])))["f1"]
        say(f"from the reports' own latents: F1 {f1['micro']:.3f} / {f1['macro']:.3f}")
        settings = VARIANTS if prior.config.kind == "flow" else GAINS
        for row in rows_of(prior, images, write, judge, settings, BATCH_SIZE):
            rows.append({"prior": f"{prior.config.kind} ({checkpoint})", **row})
            say(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in rows[-1].values()))
    table = pd.DataFrame(rows)
    title = f"Priors: reports for the images of the split {SPLIT}"
    write_record(RECORD, title, list(table), table.to_numpy().tolist(), constants, device=accelerator.device)
    print(markdown(table))


if __name__ == "__main__":
    run(main)
