"""JUnit XML that parses back, whatever the names hold."""

from xml.etree import ElementTree as ET

import pytest

from clipkit.errors import ConfigError
from clipkit.eval.junit import Case, junit_xml, write_junit


def test_cases_and_counts_come_back():
    cases = [
        Case("digits.zero_shot", "acc1 min 0.9", None, "0.95"),
        Case("digits.zero_shot", "acc5 min 0.9", "too low: 0.5 < 0.9"),
    ]
    root = ET.fromstring(junit_xml("gate", cases))
    suite = root.find("testsuite")
    for node in (root, suite):
        assert {k: node.get(k) for k in ("tests", "failures", "errors")} == {
            "tests": "2",
            "failures": "1",
            "errors": "0",
        }
    good, bad = suite.findall("testcase")
    assert (good.get("classname"), good.get("name")) == ("digits.zero_shot", "acc1 min 0.9")
    assert good.find("failure") is None
    assert good.findtext("system-out") == "0.95"
    assert bad.find("failure").get("message") == bad.findtext("failure") == "too low: 0.5 < 0.9"


def test_characters_that_xml_forbids_or_means_otherwise():
    name = 'a<b>&"\x00\x1b\ud800 \u00e9\U0001f600'
    root = ET.fromstring(junit_xml(name, [Case(name, name, name, name)]))
    expected = 'a<b>&"??? \u00e9\U0001f600'
    assert root.find(".//testcase").get("name") == root.findtext(".//failure") == expected


def test_written_whole_into_a_new_folder(tmp_path):
    path = tmp_path / "reports" / "gate.xml"
    write_junit(path, "gate", [Case("a", "b", None)])
    assert ET.parse(path).getroot().get("tests") == "1"
    assert [p.name for p in path.parent.iterdir()] == ["gate.xml"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_junit(path / "below.xml", "gate", [])
