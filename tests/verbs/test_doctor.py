"""`doctor`: what it looks at, and when it says that something must be mended."""

import json
from importlib.metadata import PackageNotFoundError

import surgeon
from surgeon.verbs import doctor


def test_a_working_installation_needs_no_mending():
    found = surgeon.doctor()
    assert found.exit_code == 0, found.explain()
    report = json.loads(json.dumps(found.to_dict()))
    assert report["versions"]["surgeon"]["value"] == surgeon.__version__
    assert {"versions", "import name", "devices", "disk"} <= report.keys()
    assert "cpu" in report["devices"]
    assert "free" in report["disk"]["here"]["value"]


def test_every_dependency_is_looked_at():
    versions = surgeon.doctor().to_dict()["versions"]
    assert set(doctor.NEEDED) <= versions.keys()


def test_another_owner_of_the_import_name_is_named_with_the_cure():
    finding = doctor._owner(["model-surgeon", "other-surgeon"])
    assert "other-surgeon" in finding.problem
    assert "pip uninstall --yes other-surgeon model-surgeon" in finding.problem
    diagnosis = doctor.Diagnosis((finding,))
    assert diagnosis.exit_code == 2
    assert finding.problem in diagnosis.explain()


def test_no_other_owner_is_no_problem():
    assert doctor._owner(["model-surgeon", "model-surgeon"]).problem == ""
    assert doctor._owner(()).problem == ""


def test_a_missing_dependency_is_a_problem_and_a_missing_extra_is_not(monkeypatch):
    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "distribution", nowhere)
    found = {finding.name: finding for finding in doctor._versions()}
    assert found["torch"].problem == "pip install torch"
    assert found["gguf"].problem == ""
