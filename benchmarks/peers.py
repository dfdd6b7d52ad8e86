"""How quick is this code beside well-known peers? The two take turns, in one process and in one precision.

    python -m benchmarks.peers
    python -m benchmarks.peers --DEVICE cuda --SIZES paper --SECTIONS images,training

images    the paper's recipe, PNDM with 50 steps, by our sampler, beside recipes of fewer steps: other images; and
          diffusers' pipeline with the same U-Net, scheduler, steps, guidance and noise: equal latents
training  a step as in diffusers' text-to-image example, which runs the frozen encoders; ours has what they make from a
          cache, and averages the weights besides: equal losses
reports   transformers' generate, greedy: equal texts
scores    torch-fidelity's FID and KID, prdc's precision, recall, density and coverage: equal values
labels    negspacy's NegEx (Chapman et al. 2001), the rules that NegBio began with, on sentences whose words it knows:
          equal codes. Ours also knows synonyms and doubt, which costs time here, too

A section whose peer is missing is left out. Figures are medians of one machine; ratios travel better. Pixels, prompts
and noise are random numbers: no quality is measured.

Reads benchmarks/peers.toml (the paper's sizes); writes benchmarks/results/bench-DEVICE-SIZES.json. A result that is not
the peer's is an AssertionError.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch.testing import assert_close
from torch.utils.benchmark import timer  # waits for the GPU before it reads the clock
from transformers.modeling_outputs import BaseModelOutput

import train_diffusion_clipSD
import train_diffusion_clipUViT
from benchmarks.networks import Networks
from benchmarks.record import write_record
from evaluation import metrics
from evaluation.labeler import codes_of_sentence, label_reports
from models import diffusion
from models.graphs import replay
from training.loop import Average
from utils.constants import override_constants
from utils.errors import run, say
from utils.findings import ABSENT, FINDINGS, PRESENT
from utils.latents import decode_in, decode_latents, encode_moments, mean_latents
from utils.report_cleaning import clean_report

SECTIONS = ("images", "training", "reports", "scores", "labels")  # (each images, training, reports, scores or labels)
SIZES = "demo"  # of the networks (demo or paper; demo: minutes of 2 cores; paper: for a GPU)
DEVICE = "cpu"  # where it runs (cpu or cuda)

_COLUMNS = ("what", "peer", "unit", "the peer's", "ours", "ratio", "note")
_EQUAL = {"rtol": 1e-3, "atol": 1e-4}  # numbers that differ by no more
_TURNS, _ENOUGH = 5, 20.0  # turns at most; seconds, after which no further turn begins
_SCRIPTS = {"U-ViT": train_diffusion_clipUViT, "U-Net": train_diffusion_clipSD}
_PNDM, _DPM, _STUDENT = ("PNDM", 50, 7.5), ("DPMSolverMultistep", 25, 7.5), ("DDIM", 4, 1.0)  # with steps and guidance
_IMAGES, _STEPS, _REPORTS = 8, 4, (1, 64)  # images sampled at a time; steps of training in a turn; reports at a time
_TOKENS = 128  # of a report at most: about 90 words


def compare(what: str, peer: str, unit: str, count: int, theirs: Callable, ours: Callable, note: str) -> tuple:
    """A row in order of _COLUMNS: how many units each makes a second, by the median of calls that take turns.

    theirs, ours: functions without arguments; count: units that a call makes.
    """
    theirs(), ours()  # a warm-up
    seconds, end = ([], []), timer() + _ENOUGH
    while not seconds[0] or (len(seconds[0]) < _TURNS and timer() < end):
        for variant, durations in zip((theirs, ours), seconds):
            start = timer()
            variant()
            durations.append(timer() - start)
    rates = [count / np.median(durations) for durations in seconds]
    row = what, peer, unit, *rates, rates[1] / rates[0], note
    say(" | ".join(map(str, row)))
    return row


def images(networks: Networks, backbone: str) -> Iterator[tuple]:
    """From prompt tokens and noise to pixels; yields what `compare` takes, as do all sections."""
    model, null = networks.vision(backbone).eval().requires_grad_(False), networks.texts[backbone].encode([""])[0]
    fast, vae, unet, their_vae = map(copy.deepcopy, (model, networks.vae, model.denoiser, networks.vae))
    replay(fast, networks.accelerator)  # from CUDA graphs
    decode_in(vae, networks.accelerator.mixed_precision)
    text = torch.randn(_IMAGES, *null.shape, device=null.device)
    reference = torch.randn(_IMAGES, model.fusion.config.reference_dim, device=null.device)
    prompts, seeds, note = diffusion.Prompts(text, reference, null), range(_IMAGES), f"batches of {_IMAGES}"

    def sample(network, name, steps, scale):
        scheduler, guidance = diffusion.sampling_scheduler(name, model.schedule), diffusion.Guidance(scale, scale)
        return diffusion.sample_latents(network, scheduler, prompts, guidance, seeds, networks.shape, steps)

    def draw(network, recipe):
        with networks.accelerator.autocast():
            latents = sample(network, *recipe)
        return decode_latents(vae, latents)

    def row(what, peer, theirs, recipe):
        return f"{backbone}, {what}", peer, "images/s", _IMAGES, theirs, partial(draw, fast, recipe), note

    paper = partial(draw, model, _PNDM)
    yield row("25 steps", "PNDM, 50 steps", paper, _DPM)
    yield row("a student's 4 steps", "PNDM, 50 steps", paper, _STUDENT)
    if backbone == "U-ViT":
        return
    solver = diffusion.sampling_scheduler(_DPM[0], model.schedule)
    pipeline = StableDiffusionPipeline(their_vae, None, None, unet, solver, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    tokens, null_tokens = model.fusion(text, reference), model.fusion(null.expand_as(text), torch.zeros_like(reference))

    def diffuse(output):
        return pipeline(
            prompt_embeds=tokens, negative_prompt_embeds=null_tokens, guidance_scale=_DPM[2], output_type=output,
            num_inference_steps=_DPM[1], generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip

    assert_close(diffuse("latent"), sample(model, *_DPM), rtol=0, atol=1e-2)  # rounding errors grow with each step
    if networks.accelerator.mixed_precision == "bf16":
        pipeline.to(torch.bfloat16)
    yield row("25 steps", "diffusers", partial(diffuse, "np"), _DPM)


def training(networks: Networks, backbone: str) -> Iterator[tuple]:
    """Optimiser steps, without reading files."""
    size, vae, texts = networks.batch_size, networks.vae, [f"prompt {n}" for n in range(networks.batch_size)]
    with networks.device:
        pixels = torch.randn(size, 3, networks.image_size, networks.image_size)
        references = torch.randn(size, 3, *networks.tower.tower.image_size)
        drawn = {"noise": torch.randn(size, *networks.shape), "timesteps": torch.randint(1000, (size,))}
    model, script = networks.vision(backbone).train().requires_grad_(), _SCRIPTS[backbone]
    loss_of, weights = partial(script.compute_loss, model, schedule=model.schedule), list(model.parameters())

    def encode():
        latents = mean_latents(encode_moments(vae, pixels), vae.config.scaling_factor)
        text, reference = networks.texts[backbone].encode(texts), networks.tower(references)
        return {**drawn, "latents": latents, "text": text, "reference": reference}

    def train(make_batch, optimizer, finish):
        for _ in range(_STEPS):
            with networks.accelerator.autocast():
                loss = loss_of(make_batch())
            networks.accelerator.backward(loss)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            finish(weights)

    cached, average = encode(), Average(weights, decay=0.9999)
    assert_close(loss_of(encode()), loss_of(cached), **_EQUAL)
    theirs = partial(train, encode, torch.optim.AdamW(weights, 5e-5), len)
    ours = partial(train, lambda: cached, torch.optim.AdamW(weights, 5e-5, fused=True), average.step)
    yield f"{backbone}, training", "diffusers", "examples/s", size * _STEPS, theirs, ours, f"batches of {size}"


def reports(networks: Networks, size: int) -> Iterator[tuple]:
    """Reports from latents."""
    autoencoder = networks.autoencoder()
    latents = torch.randn(size, autoencoder.width, device=networks.device)

    def generate():
        states = BaseModelOutput(last_hidden_state=latents[:, None])  # (B, 1, D)
        tokens = autoencoder.bart.generate(encoder_outputs=states, max_new_tokens=_TOKENS)
        return [clean_report(text) for text in autoencoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    ours = partial(autoencoder.generate, latents, max_tokens=_TOKENS)
    assert generate() == ours()
    yield "reports", "transformers", "reports/s", size, generate, ours, f"batches of {size}"


def scores(_: Networks, width: int) -> Iterator[tuple]:
    """Metrics of two sets of features; each is a single subset of KID's, so that none is drawn at random."""
    from prdc import compute_prdc
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    size, rng = metrics.KID_SUBSET_SIZE, np.random.default_rng(0)
    scales = 30 / np.arange(1, width + 1)  # most of the variance lies in few dimensions
    pair = [(rng.normal(size=(size, width)) * scales * spread).astype(np.float32) for spread in (1.0, 1.1)]
    tensors, subsets = list(map(torch.from_numpy, pair)), {"kid_subsets": metrics.KID_SUBSETS, "kid_subset_size": size}

    def fid():
        return fid_statistics_to_metric(*map(fid_features_to_statistics, tensors), False)["frechet_inception_distance"]

    def kid():
        return kid_features_to_metric(*tensors, **subsets, verbose=False)["kernel_inception_distance_mean"]

    def prdc():
        with redirect_stdout(None):  # it prints the sizes
            return compute_prdc(*pair, nearest_k=5)

    for what, peer, theirs, ours in (
        ("FID", "torch-fidelity", fid, metrics.frechet_distance),
        ("KID", "torch-fidelity", kid, lambda *sets: metrics.kernel_distance(*sets, seed=0)[0]),
        ("precision, recall, density, coverage", "prdc", prdc, metrics.neighbourhood_metrics),
    ):
        assert_close(theirs(), ours(*pair), **_EQUAL)
        yield what, peer, "pairs/s", 1, theirs, partial(ours, *pair), f"two sets of {size} features of width {width}"


def labels(_: Networks, size: int) -> Iterator[tuple]:
    """Which findings reports call present and absent, by rules; ours without the sentences that it has kept."""
    import_module("negspacy.negation")  # makes "negex" known
    import spacy

    rng = np.random.default_rng(0)
    forms = "There is {} {}.", "{} {} is seen.", "There is no {} {}.", "No {} {} is seen."
    degrees, names = ("small", "mild", "large", "focal"), [name for name in FINDINGS if " " not in name]
    sentences = [[rng.choice(forms).format(rng.choice(degrees), name) for name in names] for _ in range(size)]
    texts, language = list(map(" ".join, sentences)), spacy.blank("en")
    language.add_pipe("sentencizer")
    patterns = [{"label": "finding", "pattern": name, "id": name} for name in names]
    language.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"}).add_patterns(patterns)
    language.add_pipe("negex")

    def negex():
        return [[ABSENT if entity._.negex else PRESENT for entity in text.ents] for text in language.pipe(texts)]

    def rules():
        codes_of_sentence.cache_clear()
        return label_reports(texts)[:, [FINDINGS.index(name) for name in names]].tolist()

    assert negex() == rules()
    yield "labels", "negspacy", "reports/s", size, negex, rules, f"{len(names)} sentences each, of the rules of both"


def main():
    constants = override_constants(globals())
    networks, rows = Networks(DEVICE, SIZES == "paper"), []
    sections = {  # each with the values of its argument
        "images": (images, _SCRIPTS), "training": (training, _SCRIPTS), "reports": (reports, _REPORTS),
        "scores": (scores, [512]), "labels": (labels, [500]),
    }  # fmt: skip
    for name in SECTIONS:
        measure, settings = sections[name]
        try:
            rows += [compare(*case) for setting in settings for case in measure(networks, setting)]
        except ModuleNotFoundError as error:
            say(f"{name} is left out: {error}; pip install {error.name}")
    table, title = pd.DataFrame(rows, columns=_COLUMNS), f"Beside well-known peers, the {SIZES}'s sizes"
    notes = f"Precision: {networks.accelerator.mixed_precision.replace('no', 'float32')}; reports float32."
    write_record(f"bench-{DEVICE}-{SIZES}", title, table, constants, notes, DEVICE)


if __name__ == "__main__":
    run(main)
