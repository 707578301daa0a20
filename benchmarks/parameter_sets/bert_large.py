"""BERT-large (Devlin et al. 2018) with both pretraining heads: 336,226,108 elements in 398 tensors."""

from __future__ import annotations


def bert_large(
    vocabulary: int = 30522, hidden: int = 1024, layers: int = 24, inner: int = 4096, positions: int = 512
) -> list[tuple[int, ...]]:
    """Shapes in the order of the layers; the decoder is the word embedding, so it adds its bias only."""
    norm: list[tuple[int, ...]] = [(hidden,), (hidden,)]

    def linear(out: int, into: int) -> list[tuple[int, ...]]:
        return [(out, into), (out,)]

    embeddings = [(vocabulary, hidden), (positions, hidden), (2, hidden), *norm]
    attention = 4 * linear(hidden, hidden) + norm
    layer = attention + linear(inner, hidden) + linear(hidden, inner) + norm
    pooler = linear(hidden, hidden)
    masked_words = [(vocabulary,), *linear(hidden, hidden), *norm]
    return embeddings + layers * layer + pooler + masked_words + linear(2, hidden)
