"""Names, globs and files choose tasks; what fits nothing is told."""

import pytest

from clipkit.data.eval_sets import find_sets
from clipkit.errors import ConfigError, DataError
from clipkit.eval.tasks import plan, types_read
from tests.fixtures_encoder import write_color_set


@pytest.fixture
def root(tmp_path):
    write_color_set(tmp_path / "sets" / "colors", [0, 1, 2, 3])
    write_color_set(tmp_path / "sets" / "pairs", [0, 1], ["a red", "a green"])
    return tmp_path


def planned(root, *tasks):
    jobs, _ = plan(find_sets(root / "sets"), tasks)
    return [(job.evaluator.name, job.kind) for job in jobs]


def test_default_tasks(root):
    assert planned(root) == [("colors", "zero_shot"), ("pairs", "retrieval")]
    assert types_read("zero_shot") == ("classification",)


def test_a_kind_goes_to_the_sets_it_reads(root):
    assert planned(root, "retrieval") == [("pairs", "retrieval")]


def test_a_kind_that_fits_nothing_is_told(root):
    with pytest.raises(ConfigError, match=r"--tasks retrieval: reads retrieval; --data has colors"):
        plan(find_sets(root / "sets" / "colors"), ["retrieval"])
    with pytest.raises(ConfigError, match="did you mean 'zero_shot'"):
        plan(find_sets(root / "sets"), ["zero_shoot"])


def test_globs_leave_out_what_does_not_fit_and_say_so(root):
    jobs, notes = plan(find_sets(root / "sets"), ["*"])
    kinds = {(job.evaluator.name, job.kind) for job in jobs}
    assert {("colors", "zero_shot"), ("pairs", "retrieval")} <= kinds
    assert ("pairs", "zero_shot") not in kinds and ("colors", "retrieval") not in kinds
    left_out = [note for note in notes if note.startswith("colors: linear_probe left out")]
    assert left_out and "train" in left_out[0]
    with pytest.raises(ConfigError, match="matches no kind"):
        plan(find_sets(root / "sets"), ["x*"])


def test_a_file_names_data_arguments_and_names(root):
    file = root / "tasks.yaml"
    file.write_text(
        "- {kind: zero_shot, data: colors}\n- {kind: zero_shot, data: sets/colors, name: again}\n"
    )
    assert planned(root, str(file)) == [("colors", "zero_shot"), ("again", "zero_shot")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: zero_shot", "write a list"),
        ("- {kind: zero_shot, data: colours}", "did you mean 'colors'"),
        ("- {kind: zero_shot, data: colors, splt: x}", "unknown key"),
        ("- {kind: zero_shot, data: pairs}", "reads classification"),
        ("- {kind: zero_shot}", "data"),
        ("- [", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("- {kind: zero_shot, kind: knn, data: colors}", "twice|duplicate"),
        ('- {kind: zero_shot, data: colors, name: "a\\0b"}', "cannot name a file"),
        ('- {kind: zero_shot, data: colors, name: "\\ud800"}', "cannot name a file|is no text"),
    ],
)
def test_mistakes_in_a_file_are_told(root, text, message):
    file = root / "tasks.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        plan(find_sets(root / "sets"), [str(file)])


def test_the_same_task_twice_needs_names(root):
    with pytest.raises(ConfigError, match="asked for twice on 'colors'"):
        plan(find_sets(root / "sets"), ["zero_shot", "zero_*"])


def test_a_broken_set_is_found_before_anything_runs(root):
    (root / "sets" / "colors" / "test" / "0.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="damaged"):
        plan(find_sets(root / "sets"))
