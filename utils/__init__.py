"""What training and sampling must agree on, and the one training loop. Imports no script."""
