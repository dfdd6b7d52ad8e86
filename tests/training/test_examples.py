"""Training examples: what the frozen encoders say of a row, and what is random in it."""

import numpy as np
import pytest
import torch

from training.examples import DiffusionExamples, DiffusionFeatures
from utils.errors import InputError
from utils.findings import FINDINGS, prompts_of, to_prompt
from utils.latents import load_vae
from utils.prompts import ReferenceEncoder, TextEncoder


@pytest.fixture
def features(base_model, reference_encoder_name, make_table, tmp_path, accelerator):
    """Eight images of four patients: six to train on, and two to validate, in rows 0 and 5."""
    labels = np.zeros((8, 14))
    labels[:, 3] = [1, 1, 1, 0, 0, 0, 1, 0]
    table = make_table(labels, [4, 1, 1, 1, 2, 4, 2, 3])
    table.loc[[0, 5], "split"] = "validate"
    table.loc[7, "Fracture"] = 1
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    return DiffusionFeatures(table, *encoders, 32, tmp_path / "cache", 0, accelerator)


def test_an_example_is_what_the_encoders_say_of_its_row(features):
    examples = DiffusionExamples(features, "validate", 1000)
    assert len(examples) == 2
    example = examples[0, 5]
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "latents": (4, 8, 8), "noise": (4, 8, 8), "timesteps": (), "text": (16,), "reference": (16,)
    }  # fmt: skip
    assert all(
        value.dtype == (torch.int64 if name == "timesteps" else torch.float32) for name, value in example.items()
    )
    np.testing.assert_array_equal(example["text"], features.texts[examples.rows[0]])
    mean = features.moments[0][:4].astype(np.float32) * features.scaling_factor
    draws = torch.stack([examples[0, seed]["latents"] for seed in range(300)])
    assert (draws.mean(0) - torch.from_numpy(mean)).abs().max() < 0.1  # of the posterior, drawn afresh with each seed
    assert draws.std(0).min() > 0.05

    references, drawn = features.embeddings.stack(range(8)), set()
    for seed in range(20):
        reference = examples[0, seed]["reference"].numpy()
        drawn |= set(np.flatnonzero((references == reference).all(axis=1)).tolist())
    assert drawn == {1, 2, 6}  # the training rows with the same labels


def test_an_example_follows_from_its_seed_alone(features):
    examples = DiffusionExamples(features, "train", 1000, (0.2, 0.2, 0.2))
    one = examples[3, 11]
    torch.manual_seed(7)
    examples[0, 12]
    again = DiffusionExamples(features, "train", 1000, (0.2, 0.2, 0.2))[3, 11]
    other = examples[3, 12]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["noise"], other["noise"]) and not torch.equal(one["latents"], other["latents"])
    timesteps = torch.stack([examples[0, seed]["timesteps"] for seed in range(500)])
    assert timesteps.min() < 20 and timesteps.max() > 980 and timesteps.max() < 1000


def test_logit_normal_timesteps_lie_where_their_mean_says(features, monkeypatch):
    def shares(mean, count=2000):
        monkeypatch.setattr("training.examples.TIMESTEP_MEAN", mean)
        examples = DiffusionExamples(features, "train", 1000, timesteps="logit-normal")
        found = torch.stack([examples[0, seed]["timesteps"] for seed in range(count)])
        assert found.dtype == torch.int64 and found.min() >= 0 and found.max() < 1000
        return (found + 0.5) / 1000

    for mean in (0.0, -0.7):
        logits = shares(mean).logit()
        assert abs(logits.mean() - mean) < 4 * 2000**-0.5 and abs(logits.std() - 1) < 0.08
    assert (shares(-10.0, 50) < 0.01).all() and (shares(10.0, 50) > 0.99).all()


def test_prompts_are_dropped_as_often_as_asked(features):
    examples = DiffusionExamples(features, "train", 1000, (0.2, 0.3, 0.1))
    null, count = torch.tensor(features.null_text), 2000
    found = {"text": 0, "reference": 0, "both": 0, "none": 0}
    for seed in range(count):
        example = examples[seed % 6, seed]
        no_text, no_reference = torch.equal(example["text"], null), not example["reference"].any()
        found[
            "both" if no_text and no_reference else "text" if no_text else "reference" if no_reference else "none"
        ] += 1
    for name, probability in {"text": 0.2, "reference": 0.3, "both": 0.1, "none": 0.4}.items():
        sigma = (probability * (1 - probability) / count) ** 0.5
        assert abs(found[name] / count - probability) < 4 * sigma, (name, found)


def test_empty_splits_are_refused(features):
    with pytest.raises(InputError, match="no rows in the split 'test' of the table after the filters; there are"):
        DiffusionExamples(features, "test", 1000)


def test_unreadable_images_are_dropped_from_all_features(
    base_model, reference_encoder_name, make_table, tmp_path, accelerator, capsys
):
    table = make_table(np.zeros((3, 14)), [1, 2, 3])
    with open(table.image_path[1], "wb") as file:
        file.write(b"no picture")
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    features = DiffusionFeatures(table, *encoders, 32, tmp_path / "cache", 0, accelerator)
    assert features.table.dicom_id.tolist() == ["image-0", "image-2"]
    assert [key.split()[0] for key in features.moments.keys] == [key.split()[0] for key in features.embeddings.keys]
    assert "1 of 3 rows dropped" in capsys.readouterr().out
    with pytest.raises(InputError, match="not one image of the table can be read"):
        DiffusionFeatures(table.iloc[[1]], *encoders, 32, tmp_path / "cache", 0, accelerator)


def test_prompts_of_a_table(features):
    expected = [to_prompt(row) for row in features.table[list(FINDINGS)].to_numpy()]
    assert prompts_of(features.table) == expected
