"""The training loop, the data sets it reads, and what a run leaves behind."""
