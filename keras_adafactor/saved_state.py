"""State on disk fits the optimizer exactly, or is an error."""

MAX_DIFFERENCES_SHOWN = 8


def check_fits(optimizer, saved, expected):
    """Checks, before anything is loaded, that a file fits an optimizer.

    Args:
        optimizer: The optimizer.
        saved: Dict from key to array, what is in the file.
        expected: Dict from key to variable, what the optimizer has.

    Raises:
        ValueError: If a key or a shape differs. Names both sides.
    """
    saved = {key: tuple(value.shape) for key, value in saved.items()}
    shapes = {key: tuple(v.shape) for key, v in expected.items()}
    differing = [
        key
        for key in dict.fromkeys([*shapes, *saved])
        if saved.get(key) != shapes.get(key)
    ]
    if not differing:
        return
    lines = [
        f"  {key}: in the file {saved.get(key, 'absent')}, in the optimizer "
        f"{shapes.get(key, 'absent')}"
        + (f" ({expected[key].path})" if key in expected else "")
        for key in differing[:MAX_DIFFERENCES_SHOWN]
    ]
    if len(differing) > len(lines):
        lines.append(f"  and {len(differing) - len(lines)} more")
    raise ValueError(
        f"The state in the file does not fit optimizer '{optimizer.name}' "
        f"({type(optimizer).__name__}): {len(saved)} variables in the file, "
        f"{len(shapes)} in the optimizer. To load the weights of the model "
        "alone, pass `skip_mismatch=True`.\n" + "\n".join(lines)
    )
