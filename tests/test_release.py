"""What is said of a release in several places is the same in all of them."""

import configparser
import pathlib
import re

import keras_adafactor

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def text(name):
    return (ROOT / name).read_text()


def test_changelog_and_citation_have_the_version():
    sections = re.findall(
        r"^## (\S+)(?: - (\S+))?$", text("CHANGELOG.md"), re.M
    )
    (unreleased, _), (version, date), *_ = sections
    assert unreleased == "Unreleased"
    assert version == keras_adafactor.__version__
    citation = text("CITATION.cff")
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation


def test_actions_are_pinned_by_hash():
    uses = [
        u for w in WORKFLOWS for u in re.findall(r"uses: (.*)", w.read_text())
    ]
    assert uses
    hashes = {}
    for use in uses:
        found = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # v[\d.]+", use)
        assert found, use
        hashes.setdefault(found[1], set()).add(found[2])
    assert all(len(found) == 1 for found in hashes.values())


def test_oldest_versions_of_the_workflow_are_those_required():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    workflow = text(".github/workflows/ci.yml")
    for section, option in (
        ("options", "install_requires"),
        ("options.extras_require", "tensorflow"),
    ):
        for line in setup[section][option].split():
            if found := re.match(r"(\w+)>=(\d+\.\d+)", line):
                assert f"{found[1]}=={found[2]}.0" in workflow


def test_the_documented_commands_are_those_of_ci():
    readme, run = text("README.md"), text(".ci/run")
    command = "python -m pytest -n auto --dist loadfile"
    assert f"\n{command}\n" in readme
    assert command in run
    assert command in text(".github/workflows/ci.yml")
