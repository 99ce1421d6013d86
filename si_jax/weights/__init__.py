"""Weights of a network: on disk as a checkpoint with its card, or imported from other frameworks.

In flow files of weights and the name of an architecture; out flow a `si_jax.model.Model` and
checkpoint directories.
"""
