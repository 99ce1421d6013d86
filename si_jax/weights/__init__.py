"""Weights of a network: checkpoints with their cards, and imports from other frameworks."""
