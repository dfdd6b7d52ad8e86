"""The demo's pretrained parts and the scripts that make them."""
