"""Files of tensors and plain values with a digest, because torch does not notice most damage. `torch.load` can read them, too."""

import hashlib
import io
from pathlib import Path
from typing import Any

from lingact.files.atomic import write_atomically

_DIGEST = hashlib.sha256().digest_size


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all: what `torch.save` writes, followed by its sha256.

    Raises:
        OSError: naming the file. What was there before is still there.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    # Not `getbuffer`: its view would live on in the traceback of a full disk, and a buffer with a view cannot be closed.
    buffer.write(hashlib.sha256(buffer.getvalue()).digest())
    write_atomically(path, buffer.getvalue())


def load_tensors(path: Path, device: Any = "cpu") -> dict[str, Any] | None:
    """Tensors and plain values, never code; None if the file is truncated or damaged."""
    import torch

    content = memoryview(path.read_bytes())
    saved, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(saved).digest() != digest:
        return None
    return torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
