"""MkDocs' hook: which files are the documentation site's pages. Called by mkdocs (mkdocs.yml), so by `make docs`.

Pages keep their place in the repository, README.md and charts' READMEs included: every relative link means the same on GitHub and on the
site. Files that a page links to come along. One page a package is made for the API, from docstrings. A page that would fetch anything from
elsewhere when it is read is a warning, which `--strict` makes an error.
"""

from __future__ import annotations

import logging
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_FETCHED = re.compile(r"""<(?:script|img|link(?![^>]*canonical)|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
_log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Decisions and API in the navigation, whichever there are."""
    assert config.nav is not None
    decisions = [page for page in _tracked() if page.startswith("docs/decisions/0")]
    config.nav += [{"Decisions": ["docs/decisions/README.md", *decisions]}, {"API": [{package: _page_of(package)} for package in _packages()]}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The theme's own files, the repository's pages, what these link to, and the API's pages."""
    for found in list(files):
        if found.src_dir == config.docs_dir:
            files.remove(found)
    for name in sorted({*_pages(), *_linked()}):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for package, folder in _packages().items():
        files.append(File.generated(config, _page_of(package), content=_reference(package, folder)))
    return files


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> None:
    """Warn of what a reader without a network would miss."""
    for tag in _FETCHED.findall(output):
        _log.warning("%s fetches from elsewhere when it is read: %s", page.file.src_uri, tag)


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def _pages() -> list[str]:
    return [name for name in _tracked() if name.endswith(".md") and not name.startswith(".github/")]


def _linked() -> Iterator[str]:
    """Files that pages link to: figures, CSV, examples."""
    for page in _pages():
        for target in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            found = (ROOT / page).parent / target
            if "://" not in target and found.is_file() and found.suffix != ".md":
                yield found.resolve().relative_to(ROOT).as_posix()


def _packages() -> dict[str, Path]:
    """Import name -> folder, as pyproject.toml lists them."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    return {name: ROOT.joinpath(setuptools["package-dir"][name.split(".")[0]], *name.split(".")[1:]) for name in setuptools["packages"]}


def _page_of(package: str) -> str:
    return f"api/{package}.md"


def _reference(package: str, folder: Path) -> str:
    """The page of `package`: its docstring, then its modules'."""
    modules = [f"{package}.{module.stem}" for module in sorted(folder.glob("*.py")) if module.stem != "__init__"]
    own = f"::: {package}\n    options: {{members: [], show_root_heading: false}}\n"
    return "\n".join([f"# {package}\n", own, *(f"::: {module}\n" for module in modules)])
