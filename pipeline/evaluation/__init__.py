"""Figures and pictures of a checkpoint."""
