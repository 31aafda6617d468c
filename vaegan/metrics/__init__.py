"""Figures of quality in plain torch: update with batches, merge over ranks, read the value."""
