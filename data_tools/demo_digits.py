"""Handwritten digits with captions, from scikit-learn's `load_digits` (1,797 scans, 8x8 pixels).

The scans come from the UCI data set "Optical Recognition of Handwritten Digits"; scikit-learn
ships them, so no network is needed.
"""

import io
import random

import numpy as np
from PIL import Image

NUM_TEST = 360
CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# One list for training captions and zero-shot prompts; `{c}` is CLIP_benchmark's placeholder.
TEMPLATES = (
    "a handwritten {c}",
    "the digit {c}",
    "a handwritten digit {c}",
    "the number {c} written by hand",
    "a scan of the digit {c}",
)


def load_digit_samples(seed: int) -> tuple[list[dict[str, bytes]], list[dict[str, bytes]]]:
    """Return the train and the test samples as members of a tar (suffix -> bytes).

    The split is fixed (stratified, `random_state=0`) and does not depend on `seed`, so that
    accuracies of different seeds are about the same 360 test images.

    Args:
        seed: Draws the caption template of each training sample.

    Returns:
        Train samples with `png`, `txt` and `cls`; test samples with `png` and `cls`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_rows, test_rows = train_test_split(
        np.arange(len(digits.target)),
        test_size=NUM_TEST,
        stratify=digits.target,
        random_state=0,
    )
    rng = random.Random(f"digits captions {seed}")
    train = []
    for row in train_rows:
        label = int(digits.target[row])
        caption = rng.choice(TEMPLATES).format(c=CLASSNAMES[label])
        train.append({**_image_and_label(digits.images[row], label), "txt": caption.encode()})
    test = [_image_and_label(digits.images[row], int(digits.target[row])) for row in test_rows]
    return train, test


def _image_and_label(pixels: np.ndarray, label: int) -> dict[str, bytes]:
    """Upscale one (8, 8) scan with values 0 to 16 to a 32x32 RGB PNG, next to its label."""
    grey = np.clip(np.round(pixels * (255 / 16)), 0, 255).astype(np.uint8)
    image = Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"png": buffer.getvalue(), "cls": str(label).encode()}
