"""What every script shares: reading MIMIC-CXR, the fused prompt, features, constants."""
