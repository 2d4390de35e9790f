"""Cloud TPU jobs, and what can be known before one is rented."""
