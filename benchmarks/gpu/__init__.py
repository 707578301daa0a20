"""A session on a GPU, `make gpu`: everything that can only be known there. See `README.md` in the folder above."""
