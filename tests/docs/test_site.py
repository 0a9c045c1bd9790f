"""The documentation site builds: no broken link, no missing anchor, no page outside the menu."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_local.cache import TREE

# Addresses that a page may load something from: none outside the site.
FOREIGN = re.compile(r"""<(?:script|img|link)[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"' >]+""")


def build(
    site: Path, configuration: Path = TREE / "mkdocs.yml"
) -> subprocess.CompletedProcess[str]:
    # NB: with --quiet, warnings are not counted and the build always succeeds.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(configuration), "--site-dir", str(site)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=env, cwd=TREE, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built(site: Path):
    pages = {path.relative_to(TREE / "docs").with_suffix("") for path in TREE.glob("docs/**/*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.glob("**/*.html")}
    assert pages == built - {Path("404")}


def test_no_page_loads_anything_from_another_server(site: Path):
    for page in site.glob("**/*.html"):
        found = [tag for tag in FOREIGN.findall(page.read_text()) if "canonical" not in tag]
        assert found == [], page.relative_to(site)


BROKEN = {
    "a missing page": ("[x](nowhere.md)", "nowhere.md"),
    "a missing anchor": ("[x](index.md#nowhere)", "nowhere"),
    "a missing anchor on the page itself": ("[x](#nowhere)", "nowhere"),
    "a missing file of the repository": ("[x](../nowhere.py)", "nowhere.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, named: str):
    """Proves that the settings of mkdocs.yml detect it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    settings = {
        "INHERIT": str(TREE / "mkdocs.yml"),
        "docs_dir": str(tmp_path / "docs"),
        "hooks": [str(TREE / "hack" / "docs_hooks.py")],
        "nav": [{"Home": "index.md"}],
        "not_in_nav": "",
        "extra_css": [],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert named in done.stdout + done.stderr
