"""The first six ids of every vocabulary."""

# Only UNK ever comes out of `Vocabulary.encode`.
PAD, UNK, BOS, EOS, L2R, R2L = range(6)
FIRST_TEXT_ID = 6
