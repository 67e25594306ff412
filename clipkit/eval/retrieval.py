"""Image-text retrieval, both ways, with any number of captions per image.

Equal captions are all positives.
"""

from __future__ import annotations

import torch

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.dist.group import World
from clipkit.eval.base import EvalResult, wilson
from clipkit.eval.embed import embed_images, embed_texts
from clipkit.retrieval.ranks import best_ranks, recall_at
from clipkit.towers.dual import FeatureEncoder

_KS = (1, 5, 10)


class RetrievalEval:
    """Recall@k of image-text retrieval, both ways.

    text_retrieval_recall@k: an image finds a caption of its own; image_retrieval_recall@k: the
    other way. A caption that several images share is one target and a positive of each of them.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        batch_size: Images encoded at once per rank.
    """

    def __init__(self, data: str, name: str, *, split: str = "test", batch_size: int = 64) -> None:
        self.data, self.name, self.split, self.batch_size = data, name, split, batch_size

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole retrieval set.
        """
        return open_folder(self.data, self.split, kind="retrieval")

    def run(self, model: FeatureEncoder, world: World) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder = self.check()
        captions = folder.captions()
        unique = list(dict.fromkeys(text for own in captions for text in own))
        number = {text: i for i, text in enumerate(unique)}
        image_features = embed_images(model, folder, world, self.batch_size)  # (n, D)
        text_features = embed_texts(model, unique, world)  # (m, D)
        pairs = [(i, number[text]) for i, own in enumerate(captions) for text in dict.fromkeys(own)]
        of_image, of_text = torch.tensor(pairs).T
        positives = torch.zeros(len(captions), len(unique), dtype=torch.bool)
        positives[of_image, of_text] = True
        to_text = best_ranks(image_features, text_features, positives)
        to_image = best_ranks(text_features, image_features, positives.T)
        metrics: dict[str, float] = {"n": len(captions), "captions": len(unique)}
        intervals = {}
        for side, ranks in (("text", to_text), ("image", to_image)):
            for k in _KS:
                key = f"{side}_retrieval_recall@{k}"
                metrics[key] = recall_at(ranks, k)
                intervals[key] = wilson(metrics[key], len(ranks))
        return EvalResult(
            "zeroshot_retrieval", self.name, metrics, intervals, {"data": str(folder.root)}
        )


PART = RetrievalEval
