"""Reports a second that BART writes of latents.

naive   always as many tokens as BART can write (512 of bart-base), each from the whole text before it, without a cache, in
        float32, the likeliest token each time
ours    ReportAutoencoder.generate, greedy: cached, and ends at the end token

Of an untrained BART no text ends where a report would. So ours is made to write just as many tokens as a report has, no
fewer and no more; that real reports are so long is an assumption, which the table says.
"""

import torch
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.bench_clock import plain_float32, result, speeds, take_turns


@torch.no_grad()
@plain_float32()
def write_naively(autoencoder, latents, tokens):
    """Latents (B, D) => so many token numbers a report, (B, tokens), whether or not it has ended."""
    bart, states = autoencoder.bart, BaseModelOutput(last_hidden_state=latents[:, None])  # (B, 1, D)
    written = torch.full((len(latents), 1), bart.config.decoder_start_token_id, device=latents.device)
    for _ in range(tokens):
        logits = bart(encoder_outputs=states, decoder_input_ids=written, use_cache=False).logits  # (B, L, V)
        written = torch.cat([written, logits[:, -1:].argmax(dim=-1)], dim=1)
    return written[:, 1:]


def fix_length(autoencoder, tokens):
    """From now on generate(max_tokens=tokens) writes just so many."""
    autoencoder.bart.generation_config.min_new_tokens = tokens


def measure(parts, batch_sizes, report_tokens, naive_tokens, turns, enough):
    """report_tokens: of ours; naive_tokens: of naive, as far as BART has places; yields results, one a batch size."""
    autoencoder = parts.autoencoder().eval()
    naive_tokens = min(naive_tokens, autoencoder.max_tokens - 1)
    fix_length(autoencoder, report_tokens)
    for size in batch_sizes:
        latents = torch.randn(size, autoencoder.width, device=parts.device)
        write_naively(autoencoder, latents, 8)  # the warm-up of the long loop
        autoencoder.generate(latents, max_tokens=report_tokens)
        variants = {
            "naive": lambda latents=latents: write_naively(autoencoder, latents, naive_tokens),
            "ours": lambda latents=latents: autoencoder.generate(latents, max_tokens=report_tokens),
        }
        seconds = take_turns(variants, turns, parts.device, warm_up=0, enough=enough)
        speed = {name: speeds(size, values) for name, values in seconds.items()}
        note = f"{naive_tokens} tokens each, and the {report_tokens} at which ours is made to end"
        yield result("reports", f"batches of {size}", "reports/s", speed["ours"], speed["naive"], True, note)
