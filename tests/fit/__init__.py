"""`model.fit` with every feature that Keras gives an optimizer.

Expected values are the float64 oracle's, or those of another run that must
come to the same.
"""
