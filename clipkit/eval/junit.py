"""JUnit XML, which every CI system shows: one test case a check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from clipkit.checkpoint.files import write_text
from clipkit.errors import ConfigError

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


@dataclass(frozen=True)
class Case:
    """One test case.

    Attributes:
        group: What it belongs to ("digits.zero_shot").
        name: Of the case.
        failure: Why it failed; None where it passed.
        output: What it measured.
    """

    group: str
    name: str
    failure: str | None
    output: str = ""


def junit_xml(suite: str, cases: Sequence[Case]) -> str:
    """The XML document of one suite."""
    failures = sum(case.failure is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", counts)
    node = ET.SubElement(root, "testsuite", {"name": _legal(suite), **counts})
    for case in cases:
        names = {"classname": _legal(case.group), "name": _legal(case.name)}
        child = ET.SubElement(node, "testcase", names)
        if case.failure is not None:
            text = _legal(case.failure)
            ET.SubElement(child, "failure", {"message": text}).text = text
        if case.output:
            ET.SubElement(child, "system-out").text = _legal(case.output)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def write_junit(path: Path, suite: str, cases: Sequence[Case]) -> None:
    """Write the document in one move.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, junit_xml(suite, cases))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)
