"""The documentation says what is so: its code runs, nothing is left out.

The blocks of a page run in order, in one namespace, in a directory of their
own. What a page does not show, `<!-- setup ... -->`, runs where it stands.
"""

import inspect
import pathlib
import re
import warnings

import keras
import pytest

import keras_adafactor
from keras_adafactor.arguments import OptimizerKeywords

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
REPOSITORY = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/translation/README.md",
    ROOT / "tpu_scripts/README.md",
]
BLOCK = re.compile(
    r"^```python\n(.*?)^```$|^<!-- setup\n(.*?)^-->$", re.DOTALL | re.MULTILINE
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """Pairs of line number and code."""
    text = path.read_text()
    return [
        (text.count("\n", 0, match.start()) + 2, match[1] or match[2])
        for match in BLOCK.finditer(text)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", [*filter(blocks, PAGES)], ids=name_of)
def test_every_block_of_code_runs(path, folder, capsys):
    if "log_dir" in path.read_text():
        pytest.importorskip("tensorflow", reason="TensorBoard's files need it")
    namespace = {"__name__": "__docs__"}
    with warnings.catch_warnings():
        for line, code in blocks(path):
            # Tracebacks show the line of the page.
            source = "\n" * (line - 1) + code
            exec(compile(source, name_of(path), "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_has_a_language_or_is_shell(path):
    languages = re.findall(r"^```(\w+)$", path.read_text(), re.MULTILINE)
    assert set(languages) <= {"python", "text"}


def test_report_of_quick_start_is_what_is_printed(folder, capsys):
    path = DOCS / "quickstart.md"
    (shown,) = re.findall(r"```text\n(.*?)```", path.read_text(), re.DOTALL)
    namespace = {"__name__": "__docs__"}
    keras.backend.clear_session()
    for _, code in blocks(path)[:2]:
        exec(code, namespace)
    assert shown in capsys.readouterr().out


def anchors(path):
    """What can be linked to in a page: its headings, as GitHub has them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("path", REPOSITORY, ids=name_of)
def test_every_link_inside_of_the_repository_leads_somewhere(path):
    for link in LINK.findall(FENCED.sub("", path.read_text())):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        found = path if not target else (path.parent / target).resolve()
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found), link


def test_readme_is_short_and_begins_with_what_it_is():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    first_screen = "\n".join(lines[:40])
    assert "| Adam |" in first_screen
    assert "![" in first_screen
    assert "pip install" in first_screen


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    navigation = text[text.index("\nnav:") : text.index("\nexclude_docs:")]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    written = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert written <= set(listed)
    assert len(listed) == len(set(listed))


def reference():
    """Everything that the reference has an entry for."""
    pages = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: keras_adafactor\.(\S+)$", pages, re.MULTILINE)


@pytest.mark.parametrize("name", keras_adafactor.__all__)
def test_every_public_name_is_in_the_reference(name):
    assert name in [entry.rpartition(".")[2] for entry in reference()]


PUBLIC = [getattr(keras_adafactor, name) for name in keras_adafactor.__all__]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_every_argument_is_documented(thing):
    doc = inspect.getdoc(thing)
    if thing is OptimizerKeywords:
        pytest.skip("`UpdateRuleOptimizer` documents them")
    for name in inspect.signature(thing).parameters:
        if name not in ("args", "kwargs"):
            assert re.search(rf"^\s*(\w+, )*{name}(, \w+)*:", doc, re.M), name


def signatures(thing):
    """Pairs of name and function, of what a user calls."""
    if not inspect.isclass(thing):
        return [(thing.__name__, thing)]
    members = {
        name: member.fget if isinstance(member, property) else member
        for name, member in vars(thing).items()
    }
    return [
        (name, getattr(member, "__func__", member))
        for name, member in members.items()
        if inspect.isroutine(getattr(member, "__func__", member))
        and (name == "__init__" or not name.startswith("_"))
    ]


# Methods that Keras calls, and rules whose types the base class has.
INHERITED = {
    *dir(keras.optimizers.Optimizer),
    *dir(keras.callbacks.Callback),
    *vars(keras_adafactor.UpdateRule),
}


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_every_public_argument_has_a_type(thing):
    for name, function in signatures(thing):
        base = thing is keras_adafactor.UpdateRule or name == "__init__"
        if name in INHERITED and not base:
            continue
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, name
        for parameter in list(signature.parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not parameter.empty, name
