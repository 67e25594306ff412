"""Gates: which rules hold, what they match, and that nothing misspelt passes."""

import re

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.eval import gate
from clipkit.eval.compare import compare, read_model
from clipkit.eval.gate import run_gates
from tests.fixtures_results import records, store


def gates(tmp_path, text):
    path = tmp_path / "gates.yaml"
    path.write_text("gates:\n" + "".join(f"  - {line}\n" for line in text.strip().splitlines()))
    return path


def verdicts(report):
    return [(c.dataset, c.metric, c.rule, c.passed) for c in report.checks]


@pytest.fixture
def new(tmp_path):
    """90 of 100 right: Wilson's interval is 0.826 .. 0.945; ece 0.05 in 0.02 .. 0.08."""
    more = {"metrics": {"ece": 0.05, "batches": 7.0}, "intervals": {"ece": (0.02, 0.08)}}
    store(tmp_path / "new", "m", records([1] * 90 + [0] * 10), **more)
    return tmp_path / "new"


def drop(tmp_path, lost, gained=0, n=1000, **rest):
    """Baseline and result of n samples where `lost` turned wrong and `gained` right."""
    right = [1] * (n // 2) + [0] * (n // 2)
    after = list(right)
    after[:lost] = [0] * lost
    after[n - gained :] = [1] * gained
    store(tmp_path / "old", "old", records(right), **rest)
    store(tmp_path / "new", "new", records(after), **rest)
    return tmp_path / "new", tmp_path / "old"


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        ("min: 0.9", True),
        ("min: 0.901", False),
        ("max: 0.9", True),
        ("max: 0.899", False),
        ("min: 0.82, use: interval", True),
        ("min: 0.83, use: interval", False),
        ("max: 0.95, use: interval", True),
        ("max: 0.94, use: interval", False),
        ("min: 0, max: 1", True),
    ],
)
def test_floors_and_ceilings(tmp_path, new, rule, passed):
    report = run_gates(gates(tmp_path, f"{{dataset: digits, metric: acc1, {rule}}}"), new)
    assert report.passed is passed
    assert {c.metric for c in report.checks} == {"acc1"}


def test_every_rule_of_a_gate_is_a_check_of_its_own(tmp_path, new):
    report = run_gates(gates(tmp_path, "{metric: acc1, min: 0.5, max: 0.6}"), new)
    assert verdicts(report) == [
        ("digits", "acc1", "min 0.5", True),
        ("digits", "acc1", "max 0.6", False),
    ]
    assert report.checks[0].reason == "0.9000 [0.8256, 0.9448]"


def test_a_metric_without_interval_cannot_clear_one(tmp_path, new):
    report = run_gates(gates(tmp_path, "{metric: batches, min: 1, use: interval}"), new)
    assert not report.passed
    assert "no interval" in report.checks[0].reason


def test_globs(tmp_path, new):
    store(new, "m", records([1, 1]), dataset="digits[v2]")
    store(new, "m", records([1, 1]), dataset="flowers", kind="probe")
    lines = [
        '{dataset: "dig*", metric: "acc?", min: 0.95}',
        "{kind: probe, metric: acc1, min: 1}",
        '{dataset: "digits[v2]", metric: acc1, min: 1}',
    ]
    assert verdicts(run_gates(gates(tmp_path, "\n".join(lines)), new)) == [
        ("digits", "acc1", "min 0.95", False),
        ("digits[v2]", "acc1", "min 0.95", True),
        ("flowers", "acc1", "min 1", True),
        ("digits[v2]", "acc1", "min 1", True),
    ]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            "dataset: digit, metric: acc1",
            "no result matches dataset 'digit'; did you mean 'digits'?",
        ),
        ("kind: zeroshot, metric: acc1", "kind 'zeroshot'; did you mean 'zero_shot'?"),
        ("metric: acc11", "metric 'acc11'; did you mean 'acc1'?"),
        ('metric: "recall@*"', "metric 'recall@*'; choose from: acc1, batches, ece, n, nan_rate"),
    ],
)
def test_a_gate_that_matches_nothing_is_red(tmp_path, new, names, reason):
    report = run_gates(gates(tmp_path, f"{{{names}, min: 0}}"), new)
    assert [c.passed for c in report.checks] == [False]
    assert report.checks[0].reason.endswith(reason)


# drops


@pytest.mark.parametrize(
    ("lost", "gained", "limit", "plain", "strict"),
    [
        (0, 0, 0.01, True, True),
        (0, 30, 0.0, True, True),
        (40, 0, 0.01, False, False),  # large and real
        (40, 0, 0.05, True, False),  # real, allowed; the interval reaches past 0.05
        (40, 0, 0.06, True, True),
        (60, 45, 0.01, True, False),  # larger than allowed, not shown to be real
        (60, 45, 0.05, True, True),
        (2, 0, 0.001, True, False),
    ],
)
def test_a_drop_is_red_if_it_is_larger_and_real(tmp_path, lost, gained, limit, plain, strict):
    new, old = drop(tmp_path, lost, gained)
    rule = f"metric: acc1, max_drop: {limit}"
    assert run_gates(gates(tmp_path, f"{{{rule}}}"), new, old).passed is plain
    assert run_gates(gates(tmp_path, f"{{{rule}, strict: true}}"), new, old).passed is strict


def test_the_reason_shows_what_was_found(tmp_path):
    new, old = drop(tmp_path, 40)
    (check,) = run_gates(gates(tmp_path, "{metric: acc1, max_drop: 0.01}"), new, old).checks
    assert check.rule == "max_drop 0.01"
    assert re.fullmatch(
        r"0\.5000 -> 0\.4600, drop 0\.0400 \[0\.02.., 0\.05..\], 1000 pairs", check.reason
    )
    (check,) = run_gates(gates(tmp_path, "{metric: acc1, max_drop: 0.01}"), old, new).checks
    assert re.search(r", gain 0\.0400 \[0\.02.., 0\.05..\],", check.reason)
    (check,) = run_gates(gates(tmp_path, "{metric: acc1, max_drop: 0}"), new, new).checks
    assert ", drop 0.0000 [" in check.reason


def test_few_samples_that_agree_do_not_show_that_nothing_dropped(tmp_path):
    new, old = drop(tmp_path, 0, n=20)
    strict = gates(tmp_path, "{metric: acc1, max_drop: 0.01, strict: true}")
    assert not run_gates(strict, new, old).passed


@pytest.mark.parametrize("after", [[0.5], [0.5, 0.5], [0.5, 0.49, 0.48]])
def test_a_drop_that_the_comparison_does_not_show_is_not_real(tmp_path, after):
    for folder, values in (("old", [0.9] * len(after)), ("new", after)):
        own = [{"id": str(i), "values": {"ndcg": v}} for i, v in enumerate(values)]
        store(tmp_path / folder, folder, own)
    places = tmp_path / "new", tmp_path / "old"
    assert compare(*places[::-1]).rows[0].verdict == "-"
    rule = "metric: ndcg, max_drop: 0.01"
    assert run_gates(gates(tmp_path, f"{{{rule}}}"), *places).passed
    assert not run_gates(gates(tmp_path, f"{{{rule}, strict: true}}"), *places).passed


@pytest.mark.parametrize(
    "rule", ["min: 0", "max: 1", "max_drop: 0.5", "max_drop: 0.5, strict: true"]
)
def test_what_is_undefined_is_red(tmp_path, new, rule, monkeypatch):
    (broken,) = read_model(new)
    broken.data["metrics"].update(acc1=float("nan"), ece=float("nan"), batches=float("nan"))
    monkeypatch.setattr(gate, "read_model", lambda place: [broken])
    for metric in ("acc1", "ece", "batches"):
        path = gates(tmp_path, f"{{metric: {metric}, {rule}}}")
        assert not run_gates(path, new, new).passed


def test_a_drop_of_an_error_is_a_rise(tmp_path):
    def write(folder, ties):
        own = [
            {"id": str(i), "values": {"tie_rate": float(i < ties), "odd": float(i < ties)}}
            for i in range(300)
        ]
        store(tmp_path / folder, folder, own)
        return tmp_path / folder

    few, many = write("few", 0), write("many", 60)
    rule = gates(tmp_path, "{metric: tie_rate, max_drop: 0.01}")
    assert run_gates(rule, few, many).passed
    assert not run_gates(rule, many, few).passed
    odd = gates(tmp_path, "{metric: odd, max_drop: 0.01, lower_is_better: true}")
    assert not run_gates(odd, many, few).passed
    assert run_gates(gates(tmp_path, "{metric: odd, max_drop: 0.01}"), many, few).passed


@pytest.mark.parametrize(
    ("value", "bounds", "plain", "strict"),
    [
        (0.10, (0.08, 0.12), True, False),
        (0.14, (0.12, 0.16), True, False),  # intervals overlap
        (0.30, (0.28, 0.32), False, False),
        (0.02, (0.01, 0.03), True, True),
    ],
)
def test_a_metric_without_pairs_drops_when_the_intervals_are_apart(
    tmp_path, value, bounds, plain, strict
):
    for folder, number, interval in (("old", 0.1, (0.07, 0.13)), ("new", value, bounds)):
        more = {"metrics": {"ece": number}, "intervals": {"ece": interval}}
        store(tmp_path / folder, folder, records([1, 0]), **more)
    rule = "metric: ece, max_drop: 0.01"
    places = tmp_path / "new", tmp_path / "old"
    report = run_gates(gates(tmp_path, f"{{{rule}}}"), *places)
    assert report.passed is plain
    assert report.checks[0].reason.endswith("no pairs, from the two intervals")
    assert run_gates(gates(tmp_path, f"{{{rule}, strict: true}}"), *places).passed is strict


def test_fewer_samples_are_a_drop_of_n_and_a_warning(tmp_path):
    store(tmp_path / "old", "old", records([1] * 50))
    store(tmp_path / "new", "new", records([1] * 40))
    rules = gates(tmp_path, '{metric: "*", max_drop: 0.2}')
    report = run_gates(rules, tmp_path / "new", tmp_path / "old")
    assert {c.metric: c.passed for c in report.checks} == {
        "n": False,
        "nan_rate": True,
        "acc1": True,
    }
    assert report.warnings == [
        "digits/zero_shot: 40 samples paired, 10 only in A and 0 only in B are left out (acc1)"
    ]


def test_what_cannot_be_compared_is_red(tmp_path):
    new, old = drop(tmp_path, 0)
    rule = gates(tmp_path, '{dataset: "*", metric: acc1, max_drop: 0.5}')
    store(new, "new", records([1]), dataset="fresh")
    store(old, "old", records([1]), dataset="gone")
    found = {c.dataset: c for c in run_gates(rule, new, old).checks}
    assert {name: c.passed for name, c in found.items()} == {
        "digits": True,
        "fresh": False,
        "gone": False,
    }
    assert "the baseline has no such metric" in found["fresh"].reason
    assert "not in the results" in found["gone"].reason
    other = [{"id": f"o{i}", "values": {"acc1": 1.0}} for i in range(3)]
    store(tmp_path / "apart", "x", other)
    (check,) = run_gates(
        gates(tmp_path, "{dataset: digits, metric: acc1, max_drop: 0.5}"), tmp_path / "apart", old
    ).checks
    assert (check.passed, "no sample is in both" in check.reason) == (False, True)


def test_equal_models_are_rarely_red(tmp_path):
    """A gate at 0 is red only where a drop of noise looks real: about 2.5 in 100."""
    rng = np.random.default_rng(0)
    red = 0
    for i in range(40):
        a, b = rng.random((2, 300)) < 0.6
        store(tmp_path / f"{i}a", "a", records(a))
        store(tmp_path / f"{i}b", "b", records(b))
        rule = gates(tmp_path, "{metric: acc1, max_drop: 0}")
        red += not run_gates(rule, tmp_path / f"{i}a", tmp_path / f"{i}b").passed
    assert red <= 4


# the file


def test_the_baseline_of_the_file_and_of_the_command(tmp_path, monkeypatch):
    new, old = drop(tmp_path, 100)
    path = gates(tmp_path, "{metric: acc1, max_drop: 0.01}")
    with pytest.raises(ConfigError, match=r"gates\.0\.max_drop needs a baseline.*--baseline"):
        run_gates(path, new)
    text = path.read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in (old.name, old):  # from the file's folder, or absolute
        path.write_text(f"baseline: {place}\n{text}")
        assert not run_gates(path, new).passed
        assert run_gates(path, new, new).passed
    monkeypatch.chdir(tmp_path)
    assert run_gates(path, new, "new").passed  # an argument is from the working directory


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{metric: acc1, mim: 0.5}", "gates.0.mim: unknown key; did you mean 'min'?"),
        ("{dataset: x, min: 0.5}", "gates.0.metric: is missing"),
        ("{metric: acc1}", "gates.0: holds no rule; give min, max or max_drop"),
        ("{metric: acc1, min: 0.5, min: 0.6}", "key 'min' is given twice"),
        ("{metric: acc1, min: high}", "gates.0.min: Input should be a valid number"),
        ("{metric: acc1, min: true}", "gates.0.min"),
        ("{metric: acc1, min: .nan}", "gates.0.min: Input should be a finite number"),
        ("{metric: acc1, min: 0.6, max: 0.5}", "gates.0: min 0.6 is above max 0.5"),
        ("{metric: acc1, max_drop: -0.1}", "gates.0.max_drop"),
        ("{metric: acc1, min: 0.5, strict: true}", "strict and lower_is_better belong to max_drop"),
        ("{metric: acc1, max_drop: 0, use: interval}", "use: interval belongs to min or max"),
        ("{metric: acc1, min: 0, use: bounds}", "gates.0.use"),
        ("{metric: 5, min: 0.5}", "gates.0.metric"),
        ("acc1", "gates.0"),
    ],
)
def test_a_malformed_gate_is_named(tmp_path, new, line, message):
    path = gates(tmp_path, line)
    with pytest.raises(ConfigError) as error:
        run_gates(path, new)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping with a list 'gates'"),
        ("gates: []", "gates: List should have at least 1 item"),
        ("gate: []", "gate"),
        ("gates: {metric: acc1}", "gates: Input should be a valid list"),
        ("gates: [", "not valid YAML"),
        (
            "baselin: x\ngates: [{metric: a, min: 0}]",
            "baselin: unknown key; did you mean 'baseline'?",
        ),
    ],
)
def test_a_malformed_file_is_named(tmp_path, new, text, message):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        run_gates(path, new)
    assert message in str(error.value)


def test_no_results_or_several_models(tmp_path, new):
    path = gates(tmp_path, "{metric: acc1, min: 0}")
    with pytest.raises(DataError, match="holds no results"):
        run_gates(path, tmp_path / "none")
    store(new, "m2", records([1]))
    with pytest.raises(ConfigError, match="2 models; name one"):
        run_gates(path, new)
