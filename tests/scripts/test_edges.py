"""What the ranges allow runs: values at their edges, in the scripts themselves."""

import numpy as np
import pandas as pd
from running import pictures, read_reports, sample, says, train
from small_data import make_tree


def test_the_smallest_training(config, tmp_path):
    smallest = {"EMBED_DIM": 2, "DEPTH": 1, "NUM_HEADS": 1, "BATCH_SIZE": 1}
    optimisation = {
        "MAX_STEPS": 1,
        "WARMUP_STEPS": 0,
        "EMA_DECAY": 0,
    }
    others = {"SEED": 0, "PROMPT_DROPOUT": "0,0,1", "LR_SCHEDULE": "linear", "INITIAL_WEIGHTS": ""}
    assert train(config, tmp_path, **smallest, **optimisation, **others) == 0
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics.step.tolist() == [1] and np.isfinite(metrics.validation_loss).all()


def test_the_largest_numbers_of_a_training(config, tmp_path):
    largest = {
        "EPOCHS": 1_000_000,
        "CHECKPOINT_EVERY": 2**63 - 1,
        "WARMUP_STEPS": 2**63 - 1,
    }
    for drops in ("1,0,0.05", "0.1,0.2"):
        says(train(config, tmp_path, PROMPT_DROPOUT=drops), "PROMPT_DROPOUT", "sum up to 1")
    others = {"SEED": 2**63 - 1, "MAX_STEPS": 1, "TIMESTEPS": "logit-normal", "LEARNING_RATE": 1}
    assert train(config, tmp_path, **largest, **others) == 0


def test_the_edges_of_sampling(config, runs, tmp_path):
    asked = {"FINDINGS": "edema", "STEPS": 2, "SCHEDULER": "DDIM", "BATCH_SIZE": 65536, "SEED": 2**63 - 1}
    for guidance in (0, 100):
        root = tmp_path / str(guidance)
        constants = {"TEXT_GUIDANCE": guidance, "REFERENCE_GUIDANCE": 100 - guidance, "MAX_LABELS": 2**63 - 1}
        assert sample("clipUViT", config, runs, root, **asked, **constants) == 0
        assert len(pictures(root)) == 1


def test_the_edges_of_writing_reports(write_reports, tmp_path):
    for name, constants in {
        "smallest": {"DECODING": "nucleus", "TOP_P": 1e-9, "TEMPERATURE": 1e-9, "MAX_TOKENS": 1, "LATENT_GAIN": 0},
        "largest": {"DECODING": "nucleus", "TOP_P": 1, "TEMPERATURE": 100, "MAX_TOKENS": 2**63 - 1, "LATENT_GAIN": 100},
        "beams": {"DECODING": "beam", "BEAMS": 64, "MAX_TOKENS": 2, "SEED": 0},
        "beam": {"DECODING": "beam", "BEAMS": 1, "MAX_TOKENS": 2, "BATCH_SIZE": 65536},
    }.items():
        make_tree(tmp_path / name, studies=2, reports=(), provenance=True)
        write_reports(OUTPUT_ROOT=tmp_path / name, **constants)
        assert len(read_reports(tmp_path / name)) == 2


def test_the_edges_of_an_evaluation(evaluate, real, tmp_path):
    judge = {"JUDGE_STEPS": 1, "JUDGE_LEARNING_RATE": 1, "CACHE_DIR": tmp_path / "cache"}
    assert evaluate(SYNTHETIC=real, BATCH_SIZE=65536, SEED=0, **judge)["image_quality"][0]["FID"] is not None
