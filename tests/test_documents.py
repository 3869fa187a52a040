"""Documents are true: the command line takes their commands, the schema their settings, and their Python runs."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import calotype
from calotype.cli.commands.training import read_space
from calotype.cli.options import app
from calotype.settings import read_overrides, read_recipe
from calotype.tables import merge

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
GENERATED = ("command-line.md", "recipe.md", "python.md")
SHELLS = ("", "sh", "bash", "powershell")
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
LONGEST_README = 120
CALL = re.compile(r"\s*(\.venv[/\\](bin|Scripts)[/\\]|docker run .* )?calotype(-cuda)?\s")


def name(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    """Language and text of every fenced block."""
    return re.findall(r"^```([\w{}-]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands_in(text):
    """Lines that call calotype, as words; `...` stands for what is left out."""
    for line in text.splitlines():
        if CALL.match(line) and "..." not in line:
            words = shlex.split(line.replace("\\", "/"), comments=True)
            yield words[next(at for at, word in enumerate(words) if re.search(r"calotype(-cuda)?$", word)) + 1 :]


def all_commands():
    for page in PAGES:
        for text in (text for language, text in blocks(page) if language in SHELLS):
            yield from ((name(page), words) for words in commands_in(text))
        for text in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for words in commands_in(text):
                if len(words) > 1 and not words[-1].startswith("--"):  # else a command or an option is mentioned
                    yield name(page), words
    for recipe in (ROOT / "recipes").glob("*.toml"):
        for line in recipe.read_text(encoding="utf-8").splitlines():
            if "calotype" in line and line.startswith("# command"):
                yield name(recipe), next(iter(commands_in(line.removeprefix("# command").strip())))


COMMANDS = [*all_commands()]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_the_command_line_takes_every_command(page, words):
    if words[:1] == ["COMMAND"] or words[-1] in ("--help", "--install-completion"):
        return
    options = app(words, standalone_mode=False)
    assert not isinstance(options, int)
    if overrides := getattr(options, "overrides", None):
        recipe = getattr(options, "recipe", None)
        below = merge(read_recipe(ROOT / recipe) if recipe else {}, read_space(options.space))
        read_overrides(overrides, below)


def test_there_are_commands_in_the_documents():
    known = {"train", "sample", "evaluate", "selftest", "push", "export", "enlarge", "interpolate"}
    assert len(COMMANDS) > 80 and {words[0] for _, words in COMMANDS} > known


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]
    toctree = "".join(text for language, text in blocks(page) if language == "{toctree}")
    listed = [line for line in toctree.splitlines() if line and not line.startswith(":")]
    assert not [entry for entry in listed if not (page.parent / f"{entry}.md").exists()]


def test_every_page_is_listed_on_the_site():
    listed = set()
    for page in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "index.md"):
        for language, text in blocks(page):
            entries = [line for line in text.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries if language == "{toctree}"}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - listed == {ROOT / "docs" / "index.md"}


@pytest.mark.parametrize("page", GENERATED)
def test_the_reference_is_what_the_code_says(page):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == generate.PAGES[page](), "run: python docs/reference/generate.py"


def test_the_reference_says_which_options_are_required():
    """As `--help` does."""
    written = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    required = re.findall(r"^\| `--(\w+) .* \[required\] \|$", written, re.M)
    assert required == ["out", "to", "out", "out"]  # of interpolate, export, compare and data shards


def test_extras_are_quoted_for_every_shell():
    """For cmd.exe a single quote is part of the name."""
    files = [*PAGES, *(ROOT / "src").rglob("*.py")]
    assert not [name(file) for file in files if "'calotype[" in file.read_text(encoding="utf-8")]


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README*.md")), ids=name)
def test_the_python_of_the_readme_runs(readme, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "model", tmp_path / "runs" / "my-pictures-64-1" / "model")
    (source,) = [text for language, text in blocks(readme) if language == "python"]
    names = {}
    exec(compile(source.replace("NAME", "a"), name(readme), "exec"), names)
    assert len(names["pictures"]) == 4 and names["versions"][0].size == names["pictures"][0].size


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_the_documents_is_python(page):
    for language, text in blocks(page):
        if language == "python":
            compile(text, name(page), "exec")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_runs_from_top_to_bottom(notebook):
    """With a fifth of its training steps."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names, sources = {}, ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    short = [source.replace("STEPS = 1500", "STEPS = 300") for source in sources]
    assert short != sources and not any(cell.get("outputs") for cell in cells)
    for source in short:
        exec(compile(source, notebook.name, "exec"), names)
    assert names["by_network"] < names["by_gaussian"]


# -- Figures and versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README*.md")), ids=name)
def test_the_readme_is_short(readme):
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def figures_of(text):
    """Numbers in each row of the tables."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[number.replace(",", ".") for number in re.findall(r"\d+(?:[.,]\d+)?", row)] for row in rows]


def test_both_readmes_have_the_same_figures_and_commands():
    """Those of a table, whose decimal point is a comma in Vietnamese, and of every block but its comments."""
    english, vietnamese = ((ROOT / file).read_text(encoding="utf-8") for file in ("README.md", "README.vi.md"))
    assert figures_of(english) == figures_of(vietnamese)
    ours, theirs = (
        [*commands_in("\n".join(text for _, text in blocks(ROOT / file)))] for file in ("README.md", "README.vi.md")
    )
    assert ours == theirs and len(ours) > 10


def test_one_version_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', project, re.M)[1]
    assert calotype.__version__ == version
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()[2] == f"## {version}"
    licence = re.search(r'^license = "(.+)"', project, re.M)[1]
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert {f"version: {version}", f"license: {licence}"} <= {*cited}
    assert f"calotype-{version}-py3" in (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")


def test_the_dockerfile_copies_what_there_is():
    """And has the torch of constraints.txt; a build needs a network and Docker."""
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()]
    copied = [word for words in lines if words and words[0] == "COPY" for word in words[1:-1]]
    assert copied and all((ROOT / each).exists() for each in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert all(f"!{each}" in ignored for each in copied)
    arguments = dict(words[1].split("=", 1) for words in lines if words and words[0] == "ARG")
    assert f"torch=={arguments['TORCH']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in extras for extra in arguments["EXTRAS"].split(","))
