"""Show that full fine-tuning changed every decoder layer: compare two model folders.

python compare.py BASE TUNED      exits with 1 if a layer did not change
"""

import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def main(base: str, tuned: str) -> int:
    """Print the smallest and largest relative change over the layers."""
    logging.disable_progress_bar()
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    changes = []
    for old, new in zip(before.model.layers, after.model.layers, strict=True):
        pairs = list(zip(old.parameters(), new.parameters(), strict=True))
        moved = sum((n - o).square().sum() for o, n in pairs).sqrt()
        changes.append((moved / sum(o.square().sum() for o, _ in pairs).sqrt()).item())
    print(
        f"{sum(change > 0 for change in changes)} of {len(changes)} decoder layers changed, "
        f"relative change {min(changes):.1e} to {max(changes):.1e}"
    )
    return 0 if min(changes) > 0 else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
