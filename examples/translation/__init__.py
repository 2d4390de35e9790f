"""English-German translation with a Transformer, trained by Adafactor."""
