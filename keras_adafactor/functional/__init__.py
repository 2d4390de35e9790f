"""Pure functions with a name in the field.

Nothing here knows an optimizer or a variable: tensors go in, tensors come out.
"""
