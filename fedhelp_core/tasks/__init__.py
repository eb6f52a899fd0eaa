"""The task registry. Melanoma classification is the one task of this version; see docs/algorithm.md for the others."""
