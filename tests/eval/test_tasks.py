"""A folder's dataset_type.txt chooses its task."""

from clipkit.eval.retrieval import RetrievalEval
from clipkit.eval.tasks import task_for_folder
from clipkit.eval.zero_shot import ZeroShotEval


def test_by_type(tmp_path):
    root = tmp_path / "colors"
    root.mkdir()
    assert isinstance(task_for_folder(str(root)), ZeroShotEval)
    (root / "dataset_type.txt").write_text("retrieval\n")
    assert isinstance(task_for_folder(str(root)), RetrievalEval)
    (root / "dataset_type.txt").write_text("classification\n")
    assert isinstance(task_for_folder(str(root)), ZeroShotEval)


def test_name_tells_the_split(tmp_path):
    root = tmp_path / "colors"
    assert task_for_folder(str(root)).name == "colors"
    other = task_for_folder(str(root), "unseen")
    assert other.name == "colors/unseen" and other.split == "unseen" and other.data == str(root)
