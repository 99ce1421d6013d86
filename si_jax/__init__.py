"""Out-of-distribution detection in JAX: Splitting & Integrating, GAIA and their peers."""
