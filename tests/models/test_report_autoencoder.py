import json
import runpy

import pandas as pd
import pytest
import torch
from small_data import REPORTS
from tiny_models import make_autoencoder
from torch.nn import functional
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, BartTokenizer, PreTrainedTokenizerFast

import train_bart
from assets.demo_bart import widen_decoder
from models.report_autoencoder import ReportAutoencoder, blur, tokenise
from training.reports import ReportExamples
from utils.errors import InputError
from utils.findings import FINDINGS


def without_dropout(autoencoder):
    for module in autoencoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    return autoencoder


def make_batch(autoencoder, reports):
    tokens, _ = tokenise(reports, autoencoder.tokenizer, autoencoder.max_tokens)
    batch, others = (
        autoencoder.tokenizer.pad({"input_ids": ids}, return_tensors="pt") for ids in (tokens, tokens[::-1])
    )
    others = {"other_ids": others["input_ids"], "other_mask": others["attention_mask"]}
    return {**batch, **others, "noise": torch.ones(len(reports), autoencoder.width)}


# ---- the latent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "bos", "eos"])
def test_pooling_is_what_its_name_says(tokenizer, pooling):
    autoencoder = make_autoencoder(tokenizer, pooling)
    batch = make_batch(autoencoder, REPORTS)
    latents = autoencoder.encode(batch["input_ids"], batch["attention_mask"])
    for row, report in enumerate(REPORTS):
        ids = torch.tensor([tokenizer(report).input_ids])
        assert ids[0, 0] == 0 and ids[0, -1] == 2
        states = autoencoder.bart.model.encoder(ids).last_hidden_state[0]
        wanted = {"mean": states.mean(dim=0), "bos": states[0], "eos": states[-1]}[pooling]
        torch.testing.assert_close(latents[row], wanted, atol=1e-5, rtol=1e-4)


def test_the_loss_of_each_report_is_that_of_the_report_alone(tokenizer):
    autoencoder = without_dropout(make_autoencoder(tokenizer)).eval()
    together = autoencoder.losses(REPORTS)
    alone = [train_bart.compute_loss(autoencoder, make_batch(autoencoder, [report]), 0.0) for report in REPORTS]
    torch.testing.assert_close(together, torch.stack(alone).detach())  # whatever the padding


def test_a_token_of_pooled_sentences_attends_to_its_own_alone(tokenizer):
    autoencoder = make_autoencoder(tokenizer, "sentences")
    states = []

    def see(module, arguments, output):
        states.append(output.last_hidden_state)

    autoencoder.bart.model.encoder.register_forward_hook(see)
    reports = [f"The heart is of 2.5 cm. {end}" for end in ("No effusion.", "No acute process.")]
    apart, together = autoencoder.encode_reports(reports), []
    first = len(tokenizer("The heart is of 2.5 cm.").input_ids) - 1  # tokens, <s> included
    torch.testing.assert_close(states[0][0, :first], states[0][1, :first])  # whatever follows
    for report in reports:
        together.append(autoencoder.encode_reports([report])[0])
    torch.testing.assert_close(torch.stack(together), apart)  # whatever the padding
    whole = make_autoencoder(tokenizer, "mean")
    whole.bart.load_state_dict(autoencoder.bart.state_dict())
    assert not torch.allclose(whole.encode_reports(reports), apart, atol=1e-3)
    one = ["No acute process"]
    torch.testing.assert_close(whole.encode_reports(one), autoencoder.encode_reports(one))


def test_unknown_pooling(autoencoder, tokenizer):
    with pytest.raises(InputError, match="'max' is none of mean, bos, eos"):
        ReportAutoencoder(autoencoder.bart, tokenizer, "max")


def test_decoder_sees_one_latent(autoencoder):
    seen = {}
    attention = autoencoder.bart.model.decoder.layers[0].encoder_attn
    handle = attention.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    batch = make_batch(autoencoder, REPORTS)
    autoencoder(batch["input_ids"], batch["attention_mask"])
    handle.remove()
    assert seen["key_value_states"].shape == (len(REPORTS), 1, 16)


def test_mates_do_not_matter(autoencoder):
    together = make_batch(autoencoder, REPORTS)
    latents = autoencoder.encode(together["input_ids"], together["attention_mask"])
    logits, _ = autoencoder(together["input_ids"], together["attention_mask"])
    written = autoencoder.generate(latents, max_tokens=20)
    for row, report in enumerate(REPORTS):
        alone = make_batch(autoencoder, [report])
        length = alone["input_ids"].shape[1]
        latent = autoencoder.encode(alone["input_ids"], alone["attention_mask"])
        torch.testing.assert_close(latent[0], latents[row], atol=1e-5, rtol=1e-4)
        own, _ = autoencoder(alone["input_ids"], alone["attention_mask"])
        torch.testing.assert_close(own[0], logits[row, :length], atol=1e-4, rtol=1e-3)
        assert autoencoder.generate(latent, max_tokens=20) == written[row : row + 1]


def test_padding_is_out_of_the_loss(autoencoder):
    together = make_batch(autoencoder, REPORTS)
    loss = train_bart.compute_loss(autoencoder, together, latent_noise=0.0)
    total, tokens = 0.0, 0
    for report in REPORTS:
        alone = make_batch(autoencoder, [report])
        logits, _ = autoencoder(alone["input_ids"], alone["attention_mask"])
        total += functional.cross_entropy(logits[0], alone["input_ids"][0], reduction="sum")
        tokens += alone["input_ids"].shape[1]
    torch.testing.assert_close(loss, total / tokens, atol=1e-4, rtol=1e-4)


def test_first_token_is_predicted_from_the_start_alone(autoencoder):
    batch = make_batch(autoencoder, REPORTS[:1])
    logits, _ = autoencoder(batch["input_ids"], batch["attention_mask"])
    changed = batch["input_ids"].clone()
    changed[0, 5] = 7
    autoencoder.encode = lambda *_: torch.ones(1, 16)  # the latent held still, a later token changes no earlier logit
    try:
        before, _ = autoencoder(batch["input_ids"], batch["attention_mask"])
        after, _ = autoencoder(changed, batch["attention_mask"])
    finally:
        del autoencoder.encode
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])
    assert logits.shape == (1, batch["input_ids"].shape[1], len(autoencoder.tokenizer))


def test_noise_only_in_training_and_in_units_of_the_latents(autoencoder):
    batch = make_batch(autoencoder, REPORTS)
    others = batch["other_ids"], batch["other_mask"]
    arguments = (batch["input_ids"], batch["attention_mask"], 0.5 * batch["noise"], others)
    quiet, _ = autoencoder(*arguments[:2])
    torch.testing.assert_close(autoencoder(*arguments)[0], quiet)
    noisy = without_dropout(make_autoencoder(autoencoder.tokenizer)).train()
    assert not torch.allclose(noisy(*arguments)[0], quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy, "encode", lambda *_: torch.ones(4, 16))  # no spread: nothing to be uncertain about
        torch.testing.assert_close(noisy(*arguments)[0], noisy(*arguments[:2])[0])


# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", ["greedy", "beam", "nucleus"])
def test_cache_changes_no_text(autoencoder, decoding):
    latents = 3 * torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    options = {"decoding": decoding, "max_tokens": 24, "seeds": range(6)}
    cached = autoencoder.generate(latents, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder.bart.generation_config, "use_cache", False)
        assert cached == autoencoder.generate(latents, **options)
    assert len(set(cached)) > 1


def test_nucleus_draws_hang_on_the_images_own_seed(autoencoder):
    latents = 3 * torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    seeds = [11, 12, 13, 14, 15]
    together = autoencoder.generate(latents, "nucleus", max_tokens=16, seeds=seeds)
    for row in range(5):
        assert autoencoder.generate(latents[row : row + 1], "nucleus", max_tokens=16, seeds=seeds[row : row + 1]) == [
            together[row]
        ]
    assert autoencoder.generate(latents, "nucleus", max_tokens=16, seeds=[*seeds[:4], 99])[:4] == together[:4]
    other = autoencoder.generate(latents, "nucleus", max_tokens=16, seeds=[1, 2, 3, 4, 5])
    assert other != together


def test_nucleus_follows_the_distribution():
    from models.report_autoencoder import _SeededNucleus

    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    chosen = _SeededNucleus(range(4000), top_p=0.9, temperature=1.0)(None, scores).argmax(dim=1)
    shares = torch.bincount(chosen, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.03, rtol=0)


def test_a_tiny_top_p_is_greedy(autoencoder):
    latents = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    nucleus = autoencoder.generate(latents, "nucleus", top_p=1e-6, max_tokens=12, seeds=range(3))
    assert nucleus == autoencoder.generate(latents, max_tokens=12)


def test_a_report_ends_at_its_end_token(autoencoder):
    calls = []
    handle = autoencoder.bart.model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        bias = autoencoder.bart.final_logits_bias.clone()
        autoencoder.bart.final_logits_bias[0, 2] = 1e4  # </s> is always the likeliest
        assert autoencoder.generate(torch.zeros(2, 16)) == ["", ""]
        autoencoder.bart.final_logits_bias.copy_(bias)
    handle.remove()
    assert len(calls) == 1


def test_a_short_training_learns_to_reconstruct(tokenizer):
    autoencoder = make_autoencoder(tokenizer).train()
    for layer in autoencoder.modules():
        if hasattr(layer, "dropout"):
            layer.dropout = 0.0
    batch = make_batch(autoencoder, REPORTS[2:])
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=5e-3)
    for _ in range(150):
        loss = train_bart.compute_loss(autoencoder, batch, latent_noise=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    autoencoder.eval()
    assert autoencoder.generate(autoencoder.encode_reports(REPORTS[2:])) == REPORTS[2:]


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_save_and_load(tokenizer, tmp_path):
    autoencoder = make_autoencoder(tokenizer, "eos")
    autoencoder.save_pretrained(tmp_path)
    loaded = ReportAutoencoder.from_pretrained(tmp_path).eval()
    assert loaded.pooling == "eos" and loaded.fingerprint() == autoencoder.fingerprint()
    latents = autoencoder.encode_reports(REPORTS)
    torch.testing.assert_close(loaded.encode_reports(REPORTS), latents)
    assert loaded.generate(latents, max_tokens=15) == autoencoder.generate(latents, max_tokens=15)
    plain, info = BartForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert plain.config.pooling == "eos" and not any(info[name] for name in ("missing_keys", "unexpected_keys"))
    assert plain.generation_config.no_repeat_ngram_size in (None, 0)


def test_a_decoder_learns_alone_and_can_be_widened_before(tokenizer):
    autoencoder = without_dropout(make_autoencoder(tokenizer)).train()
    autoencoder.add_readout(["Edema", "Fracture"], [0.5, 0.1])
    batch = {**make_batch(autoencoder, REPORTS), "flags": torch.eye(4, 2)}
    places = batch["input_ids"], batch["attention_mask"]
    latents, (logits, _) = autoencoder.encode(*places), autoencoder(*places)
    width = autoencoder.bart.config.decoder_ffn_dim
    widen_decoder(autoencoder.bart, 3 * width)
    torch.testing.assert_close(autoencoder(*places)[0], logits)
    autoencoder.freeze_encoder()
    before = train_bart.compute_loss(autoencoder, batch, latent_noise=0.0)
    trained = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        train_bart.compute_loss(autoencoder, batch, latent_noise=0.0, details_weight=1.0).backward()
        optimizer.step()
    assert train_bart.compute_loss(autoencoder, batch, latent_noise=0.0) < before - 0.1
    assert autoencoder.bart.model.decoder.layers[0].fc1.weight.grad[width:].any()
    assert torch.equal(autoencoder.encode(*places), latents)


def test_a_readout_of_flags_is_learned_and_kept(tokenizer, tmp_path):
    autoencoder = without_dropout(make_autoencoder(tokenizer)).train()
    autoencoder.add_readout(["Edema", "Fracture"], [0.5, 0.1])
    batch = {**make_batch(autoencoder, REPORTS), "flags": torch.eye(4, 2)}
    start = autoencoder(batch["input_ids"], batch["attention_mask"])[1]
    torch.testing.assert_close(start.sigmoid(), torch.tensor([[0.5, 0.1]] * 4))  # it begins with the flags' rates
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        train_bart.compute_loss(autoencoder, batch, latent_noise=0.0, details_weight=1.0).backward()
        optimizer.step()
    read = autoencoder(batch["input_ids"], batch["attention_mask"])[1].sigmoid()
    torch.testing.assert_close(read, batch["flags"], atol=0.2, rtol=0)

    autoencoder.save_pretrained(tmp_path)
    loaded = ReportAutoencoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(batch["input_ids"], batch["attention_mask"])[1].sigmoid(), read)
    loaded.add_readout(["Edema", "Fracture"], [0.5, 0.1])  # the same flags: nothing to begin anew
    torch.testing.assert_close(loaded(batch["input_ids"], batch["attention_mask"])[1].sigmoid(), read)
    loaded.add_readout(["Edema"], [0.5])
    assert loaded(batch["input_ids"], batch["attention_mask"])[1].shape == (4, 1)


def test_tokenizer_folder_opens_with_transformers_own_classes(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    text = REPORTS[1] + " é\u4e2d"
    wanted = autoencoder.tokenizer(text).input_ids
    for tokenizer_class in (AutoTokenizer, BartTokenizer, PreTrainedTokenizerFast):
        assert tokenizer_class.from_pretrained(tmp_path)(text).input_ids == wanted


def test_folders_that_are_no_checkpoint(autoencoder, tokenizer, tmp_path):
    with pytest.raises(InputError, match="no BART with its tokenizer in"):
        ReportAutoencoder.from_pretrained(tmp_path)
    autoencoder.save_pretrained(tmp_path)
    del (config := BartConfig.from_pretrained(tmp_path)).pooling
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no pooling in its config"):
        ReportAutoencoder.from_pretrained(tmp_path)
    config.encoder_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="missing keys"):
        ReportAutoencoder.from_pretrained(tmp_path, "mean")


# ---- the script ----------------------------------------------------------------------------------------------------


def test_the_script_trains_on_reports_without_images(tokenizer, tmp_path, monkeypatch):
    bart = make_autoencoder(tokenizer).bart
    bart.config.pooling = None
    bart.save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    uids = range(60)
    reports = pd.DataFrame({"uid": uids, "findings": [f"Nodule {uid}." for uid in uids], "impression": "Nodule."})
    reports.to_csv(tmp_path / "reports.csv", index=False)
    constants = {
        "DATA_ROOT": tmp_path / "reports.csv", "INITIAL_WEIGHTS": tmp_path / "bart", "RUN_DIR": tmp_path / "run",
        "POOLING": "sentences", "LATENT_NOISE": 0.5, "DETAILS_WEIGHT": 0.1, "MAX_STEPS": 4, "CHECKPOINT_EVERY": 2,
        "LEARNING_RATE": 1e-2,
        "WARMUP_STEPS": 0, "EVALUATION_REPORTS": 3, "DEVICE": "cpu",
    }  # fmt: skip
    arguments = [text for name, value in constants.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["train_bart.py", *arguments])
    runpy.run_path(train_bart.__file__, run_name="__main__")

    best = ReportAutoencoder.from_pretrained(tmp_path / "run" / "best")
    assert best.pooling == "sentences" and best.bart.config.flags[:14] == [*FINDINGS]
    assert "Lung Lesion, kind: nodule" in best.bart.config.flags and best.readout.weight.abs().max() > 0
    assert not torch.equal(best.bart.model.shared.weight, bart.model.shared.weight)
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert scores["held-out reports"] == 3 and 0 <= scores["ROUGE-L of the reconstructions"] <= 1
    assert scores["ROUGE-L of the constant report"] == pytest.approx(2 / 3)  # "Nodule 7. Nodule."
    written = (tmp_path / "run" / "reconstructions.txt").read_text().split("\n\n")
    assert len(written) == 3 and all("Nodule" in block for block in written)


def test_the_loss_takes_latent_noise_by_its_size(autoencoder):
    seen = []

    def model(input_ids, attention_mask, noise, others):
        seen.append(noise)
        return torch.zeros(*input_ids.shape, 50), None

    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    batch["noise"], batch["other_ids"], batch["other_mask"] = torch.randn(2, 16), None, None
    for size in (0.0, 0.1, 0.4):
        train_bart.compute_loss(model, batch, latent_noise=size)
    assert seen[0] is None
    torch.testing.assert_close(seen[1], 0.1 * batch["noise"])
    torch.testing.assert_close(seen[2], 0.4 * batch["noise"])
    assert ReportExamples(REPORTS, autoencoder, 2).count_terms(batch) == 6


def test_latent_noise_is_as_large_as_latents_vary():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.linspace(0.5, 3, 16)  # of each dimension
    latents, others = 5 + sizes * torch.randn((2, 50_000, 16), generator=generator)
    noise = 0.4 * torch.randn(latents.shape, generator=generator)
    added = blur(latents, noise, others) - latents
    torch.testing.assert_close(added.std(dim=0), 0.4 * sizes, rtol=0.03, atol=0)
    assert added.mean(dim=0).abs().max() < 0.03


def test_latent_noise_of_a_report_is_the_same_in_any_pass(tokenizer):
    autoencoder = without_dropout(make_autoencoder(tokenizer)).train()
    loss = []
    for reports in (range(4), range(2, 4), [3]):
        examples = ReportExamples(REPORTS, autoencoder, 4)
        batch = examples.collate([examples[row, row] for row in reports])
        others = batch["other_ids"], batch["other_mask"]
        logits, _ = autoencoder(batch["input_ids"], batch["attention_mask"], 0.5 * batch["noise"], others)
        loss.append(functional.cross_entropy(logits[-1, :5], batch["input_ids"][-1, :5]))
        assert not torch.allclose(logits, autoencoder(batch["input_ids"], batch["attention_mask"])[0], atol=1e-3)
    torch.testing.assert_close(loss[1:], loss[:1] * 2)
