"""The U-ViT denoiser and the checkpoints of other people that load into it."""
