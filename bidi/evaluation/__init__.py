"""Scores of hypotheses: error rates, BLEU, chrF, accuracy from each end, significance."""
