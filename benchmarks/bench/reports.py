"""Reports a second that BART writes from latents.

naive   always as many tokens as BART can write (512 for bart-base), each computed from the whole text before it,
        without a cache, in float32; the likeliest token each time
ours    ReportAutoencoder.generate, greedy: with a cache, and ending at the end token

An untrained BART never writes the end token where a report would end. So ours is made to write exactly as many tokens
as a report is assumed to have; the note of each row states that number.
"""

from collections.abc import Iterator

import torch
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.bench.clock import Clock, plain_float32, speed_row
from benchmarks.bench.networks import Networks
from models.report_autoencoder import ReportAutoencoder


@torch.no_grad()
@plain_float32()
def write_naively(autoencoder: ReportAutoencoder, latents: torch.Tensor, tokens: int) -> torch.Tensor:
    """Latents (B, D) => the numbers of exactly so many tokens, (B, tokens)."""
    bart, states = autoencoder.bart, BaseModelOutput(last_hidden_state=latents[:, None])  # (B, 1, D)
    written = torch.full((len(latents), 1), bart.config.decoder_start_token_id, device=latents.device)
    for _ in range(tokens):
        logits = bart(encoder_outputs=states, decoder_input_ids=written, use_cache=False).logits  # (B, L, V)
        written = torch.cat([written, logits[:, -1:].argmax(dim=-1)], dim=1)
    return written[:, 1:]


def measure(
    networks: Networks, clock: Clock, batch_sizes: tuple[int, ...], report_tokens: int, naive_tokens: int
) -> Iterator[list]:
    """Yields a row for each batch size. report_tokens: length of ours; naive_tokens: of naive, cut at BART's."""
    autoencoder = networks.autoencoder().eval()
    naive_tokens = min(naive_tokens, autoencoder.max_tokens - 1)
    autoencoder.bart.generation_config.min_new_tokens = report_tokens
    for size in batch_sizes:
        latents = torch.randn(size, autoencoder.width, device=networks.device)
        write_naively(autoencoder, latents, 8)  # a short warm-up for the long loop
        autoencoder.generate(latents, max_tokens=report_tokens)
        variants = {
            "naive": lambda latents=latents: write_naively(autoencoder, latents, naive_tokens),
            "ours": lambda latents=latents: autoencoder.generate(latents, max_tokens=report_tokens),
        }
        seconds = clock.seconds(variants, warm_up=0)
        note = f"naive writes {naive_tokens} tokens, ours is made to end after {report_tokens}"
        yield speed_row(f"batches of {size}", "reports/s", size / seconds["naive"], size / seconds["ours"], note)
