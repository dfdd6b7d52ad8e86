"""The U-ViT denoiser. A leaf: imports nothing of this project."""
