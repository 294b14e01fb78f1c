"""What the documents promise of each other."""

import re

from retrace.version import VERSION
from retrace_tests.checkout import name_of, tracked

TEST_COMMAND = 'pip install -e ".[test]" && pytest'
DEMO_COMMAND = 'pip install -e ".[standalone]" && python -m retrace demo'


def text_of(root, name):
    return (root / name).read_text(encoding="utf-8")


def test_readme_names_the_two_commands_and_ci_runs_the_second(root):
    readme = text_of(root, "README.md")
    assert TEST_COMMAND in readme and DEMO_COMMAND in readme
    assert 'pip install --quiet -e ".[test]" && pytest "$@"' in text_of(root, ".ci/run")


def test_readme_is_short_and_has_one_picture(root):
    readme = text_of(root, "README.md")
    assert len(readme.split()) <= 900
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", readme) == ["docs/images/teaser.png"]


def test_readme_leads_to_every_template(root):
    templates = {path.stem for path in (root / "workflows").glob("*.json")}
    assert set(re.findall(r"\(workflows/(\w+)\.json\)", text_of(root, "README.md"))) == templates


def test_changelog_has_this_version(root):
    assert f"## {VERSION}" in text_of(root, "CHANGELOG.md")


def test_every_decision_is_in_the_index(root):
    index = text_of(root, "docs/README.md")
    decisions = sorted((root / "docs" / "decisions").glob("*.md"))
    assert [d.name[:4] for d in decisions] == [f"{i + 1:04}" for i in range(len(decisions))]
    for decision in decisions:
        title = decision.read_text(encoding="utf-8").splitlines()[0].removeprefix(f"# {decision.name[:4]} ")
        assert f"[{decision.name[:4]}](decisions/{decision.name}) | {title} |" in index


def test_links_between_documents_lead_somewhere():
    for path in tracked():
        if path.suffix == ".md":
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
                assert (path.parent / link).exists(), f"{name_of(path)} links to {link}"


def test_paths_that_the_handbook_names_exist(root):
    """Paths in code marks, below the root."""
    for path in (root / "docs").rglob("*.md"):
        for name in re.findall(r"`(\w+/[\w./]*)`", path.read_text(encoding="utf-8")):
            if (root / name.partition("/")[0]).is_dir() and "NAME" not in name:
                assert (root / name).exists(), f"{name_of(path)} names {name}"
