"""One training run, from settings to checkpoints."""
