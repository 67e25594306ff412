"""Small stored results, without a model."""

from clipkit.eval.base import EvalResult
from clipkit.eval.results import result_path, write_result


def records(right, **extra):
    """One record a sample with acc1; `extra` holds a list a field."""
    return [
        {"id": f"s{i}", "values": {"acc1": float(r)}, **{k: v[i] for k, v in extra.items()}}
        for i, r in enumerate(right)
    ]


def store(out, model, own, *, dataset="digits", kind="zero_shot", facts=None, **rest):
    """Write a result and return the model's folder."""
    result = EvalResult.from_records(kind, dataset, own, **rest)
    more = {"kind": kind, "model_name": model, "key": "k", **(facts or {})}
    return write_result(result_path(out, model, dataset, kind), result, more).path.parent
