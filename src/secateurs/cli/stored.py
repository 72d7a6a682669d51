"""How a saved folder's weights are stored, where its file is sparse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def stored(folder: str) -> dict[str, Any] | None:
    """How each tensor is coded, and the bytes of it; None if the file is not sparse.

    Raises:
        FileError: the file is missing or damaged.
    """
    from ..files.coded.tensors import NAME, Coded, read
    from ..files.coded.values import KINDS
    from ..files.store import WEIGHTS, load_tensors

    path = Path(folder) / WEIGHTS
    held, _ = load_tensors(path)
    if NAME not in held:
        return None
    rows = []
    for name, tensor in sorted(read(held, str(path)).items()):
        size = math.prod(tensor.shape)
        row = {"tensor": name, "shape": list(tensor.shape), "bytes": size * tensor.dtype.itemsize}
        row |= {"kept": size, "places": "all", "values": "exact", "file_bytes": row["bytes"]}
        if isinstance(tensor, Coded):
            row |= {"kept": tensor.stored, "places": str(tensor.form)}
            row |= {"values": KINDS[tensor.kind], "file_bytes": len(tensor.record())}
        rows.append(row)
    return {
        "bytes": sum(row["bytes"] for row in rows),
        "file_bytes": path.stat().st_size,
        "tensors": rows,
    }


def table(what: dict[str, Any]) -> str:
    """The same as text."""
    from ..tables import render

    rows = [
        (
            row["tensor"],
            f"{row['kept']:,} of {math.prod(row['shape']):,}",
            row["places"],
            row["values"],
            f"{row['file_bytes']:,}",
            f"{row['bytes'] / max(row['file_bytes'], 1):.1f}×",
        )
        for row in what["tensors"]
    ]
    ratio = what["bytes"] / what["file_bytes"]
    title = (
        f"weights in a sparse file: {what['file_bytes']:,} bytes, header included, "
        f"for {what['bytes']:,} ({ratio:.1f}× smaller)"
    )
    columns = ("tensor", "kept", "places as", "values", "bytes", "smaller")
    return render(title, columns, rows)
