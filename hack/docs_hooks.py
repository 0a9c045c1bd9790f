"""Hooks of MkDocs for the documentation site (mkdocs.yml).

Pages link to files of the repository outside docs/ by relative paths, which work where the
repository is browsed. On the site they become links below `repo_url` if that is set, and plain text
otherwise. A path that does not exist is a warning, hence an error of a strict build. Decision
records are not in the menu, so they get a link to their index.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

_LOG = logging.getLogger("mkdocs.hooks.docs_hooks")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Return the Markdown of the page as it is built."""
    tree = Path(config.config_file_path).parent
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            return match.group(0)
        if not (tree / path).exists():
            _LOG.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{anchor or ''})"

    markdown = _LINK.sub(replaced, markdown)
    if page.file.src_uri.startswith("design/adr/0"):
        markdown += "\n\n[All decisions](index.md)\n"
    return markdown
