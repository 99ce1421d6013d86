"""Data: where images come from, how they are cropped, and which sets make up a benchmark."""
