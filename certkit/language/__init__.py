"""Language models in embedding space: what is proved of every position of a text, and what a checkpoint's numbers fit in."""
