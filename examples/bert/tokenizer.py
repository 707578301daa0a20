"""A WordPiece vocabulary that comes out the same in every process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""They have the ids 0 to 4, so an id below their number is special."""
PAD_ID, CLS_ID, SEP_ID, MASK_ID = (SPECIAL_TOKENS.index(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))

_LONGEST_TRAINING_TEXT = 100_000_000  # characters: a vocabulary gains nothing from more, and training stays in memory


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """Train an uncased WordPiece tokenizer (Devlin et al. 2018, arXiv 1810.04805).

    The same texts and size give the same vocabulary. The library's trainer alone does not: it numbers ``##c``, a
    character inside a word, in the order of a randomly seeded hash table, and breaks ties by these numbers. So every
    character is numbered beforehand.

    Args:
        texts: Gives the training documents, anew at every call. The first 100 M characters are used.
        vocab_size: Tokens in the vocabulary; a short text may give fewer.
    """
    characters = _alphabet(_words(texts()), vocab_size)
    # Words with another character become [UNK] whole; the trainer must not see them, or it numbers that character itself.
    usable = (" ".join(word for word in words if characters.issuperset(word)) for words in _words(texts()))
    numbered = [piece for c in sorted(characters) for piece in (c, f"##{c}")]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *numbered], show_progress=False
    )
    trained = _tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.train_from_iterator(usable, trainer)
    tokenizer = _tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))  # characters are no longer special
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _tokenizer(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _words(texts: Iterable[str]) -> Iterator[list[str]]:
    """Each text's words, up to the longest training text."""
    # Their own objects: a tokenizer in training holds a lock on its parts.
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    left = _LONGEST_TRAINING_TEXT
    for text in texts:
        if left <= 0:
            return
        normal = normalizer.normalize_str(text[:left])
        left -= len(text)
        yield [word for word, _ in pre_tokenizer.pre_tokenize_str(normal)]


def _alphabet(texts: Iterable[list[str]], vocab_size: int) -> set[str]:
    """The commonest characters, as many as leave half of the vocabulary to longer pieces."""
    counts = Counter(c for words in texts for word in words for c in word)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return set(ranked[: max(1, (vocab_size - len(SPECIAL_TOKENS)) // 4)])
