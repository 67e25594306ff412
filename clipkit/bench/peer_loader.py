"""open_clip's own loader, timed: run by the Python of the peer's environment, never imported there.

`PEER_PYTHON clipkit/bench/peer_loader.py TASK` prints one JSON line. That environment holds
open_clip_torch 3.3 with the webdataset it asks for (<= 0.2.86) and pandas, not clipkit.
"""

import json
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """Build the loader as `open_clip_train` does, take batches, print seconds and versions."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    import open_clip
    import torch
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    torch.set_num_threads(1)
    batches = task["warm_up"] + task["batches"]
    args = SimpleNamespace(
        train_data=task["pattern"],
        train_num_samples=(batches + task["workers"]) * task["batch"],
        dataset_resampled=True,
        train_data_upsampling_factors=None,
        batch_size=task["batch"],
        workers=task["workers"],
        world_size=1,
        seed=0,
    )
    transform = image_transform(task["size"], is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    loader = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer).dataloader
    begin, seen = 0.0, 0
    for number, (images, _) in enumerate(loader, start=1):
        if number > task["warm_up"]:
            seen += len(images)
        if number == task["warm_up"]:
            begin = time.perf_counter()
        if number == batches:
            break
    seconds = time.perf_counter() - begin
    versions = {name: version(name) for name in ("open_clip_torch", "webdataset", "torch")}
    print(json.dumps({"seconds": seconds, "samples": seen, "versions": versions}), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
