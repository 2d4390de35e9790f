"""What `mkdocs.yml` runs: pages of the repository that are not in `docs/`.

A file is written once, where readers of the repository look for it. Its links
are those that work there; here they are turned into links of the site. A link
to a file that is not in the site stays as it is, and a strict build fails.
"""

import os
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
# Page of the site -> file of the repository.
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "translation_example.md": "examples/translation/README.md",
    "tpu_scripts.md": "tpu_scripts/README.md",
}
PICTURES = "benchmarks/results"

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)


def on_files(files, config):
    """Adds the pages, and the pictures they show."""
    pictures = {
        f"{PICTURES}/{path.name}": f"{PICTURES}/{path.name}"
        for path in (ROOT / PICTURES).glob("*.png")
    }
    for uri, source in (PAGES | pictures).items():
        path = os.fspath(ROOT / source)
        files.append(File.generated(config, uri, abs_src_path=path))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links of the repository into links of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(source_of(uri))
    sites = {source_of(file.src_uri): file.src_uri for file in files}

    def link(match):
        start, target, anchor, end = match.groups()
        source = posixpath.normpath(posixpath.join(folder, target))
        if source in sites:
            here = posixpath.dirname(uri) or "."
            target = posixpath.relpath(sites[source], here)
        return f"{start}{target}{anchor or ''}{end}"

    return _LINK.sub(link, _COMMENT.sub("", markdown))


def source_of(uri):
    """The file of the repository that a page of the site is made of."""
    if uri in PAGES:
        return PAGES[uri]
    if uri.startswith(PICTURES):
        return uri
    return f"docs/{uri}"
