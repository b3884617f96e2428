"""Every piece of our code in README and docs runs as it stands there; links, pages and public names are complete."""

import contextlib
import doctest
import inspect
import io
import re
from pathlib import Path

import pytest

import sparse_etrace as se

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# The last column of a table with this head is our side of it: each piece of code in it runs.
OURS = "sparse_etrace"
SAME = doctest.OutputChecker().check_output


def _name(path):
    return path.relative_to(ROOT).as_posix()


def pieces(text):
    """Our code on a page, in order: `(line, source, what it prints or None)`.

    That are the blocks marked `python`, each with the block marked `text` after it, if there is one, as what it
    prints; and the code in the last column of tables with our name at the head. Blocks with another mark do not run.
    """
    found, block, mark, begin, is_ours, last_end = [], None, "", 0, None, -2
    for number, line in enumerate(text.splitlines()):
        if block is not None:
            if line != "```":
                block.append(line)
                continue
            source = "".join(f"{part}\n" for part in block)
            if mark == "python":
                found.append((begin + 1, source, None))
                last_end = number
            elif mark == "text" and found and begin - last_end == 2:
                found[-1] = (*found[-1][:2], source)
            block = None
        elif line.startswith("```"):
            block, mark, begin, is_ours = [], line[3:], number, None
        elif not line.startswith("|"):
            is_ours = None
        else:
            last = line.strip("|").split("|")[-1]
            is_ours = last.strip() == OURS if is_ours is None else is_ours
            found += [(number, f"{code}\n", None) for code in re.findall(r"`([^`]+)`", last) if is_ours]
    return found


def run(path, text):
    names = {"__name__": "page"}
    for line, source, expected in pieces(text):
        code = compile("\n" * line + source, str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if expected is not None and not SAME(expected, printed.getvalue(), doctest.ELLIPSIS):
            raise AssertionError(f"{path}:{line}: expected\n{expected}\ngot\n{printed.getvalue()}")
    return names


# The pages for those who come from elsewhere run row by row in test_coming_from.
@pytest.mark.parametrize(
    "path", [p for p in PAGES if pieces(p.read_text()) and not p.name.startswith("from-")], ids=_name
)
def test_page(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(_name(path), path.read_text())


def test_programs_of_connectomes_are_short():
    """From each kind of file to a trained network: imports, the network, and what is below the made file."""
    before = (DOCS / "connectomes.md").read_text().partition("## Choose by label")[0]
    _, network, *kinds = (source for _, source, _ in pieces(before))
    assert len(kinds) == 8
    for source in kinds:
        reads = source.rpartition("\n\n")[2]
        signs = "signed(" in reads and "signed =" not in reads
        assert 2 + 2 + network.count("\n") + 2 + signs + reads.count("\n") < 40, reads


@pytest.mark.parametrize(
    "text, message",
    [
        ("```python\n1 / 0\n```\n", "division"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "got\n1"),
        ("| theirs | sparse_etrace |\n|---|---|\n| `x` | `1 / 0` |\n", "division"),
        (
            "```python\nx = 1\n```\n\n| them | sparse_etrace |\n|---|---|\n| `0 / 0` | the rest: `x + y` |\n",
            "'y' is not",
        ),
    ],
)
def test_a_broken_page_is_seen(text, message):
    with pytest.raises(Exception, match=message):
        run("page.md", text)


def test_what_does_not_run():
    assert not pieces("```py\n1 / 0\n```\n\n```bash\nrm x\n```\n\n| us | them |\n|---|---|\n| `1` | `2` |\n")


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    linked = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert not [target for target in linked if not (path.parent / target).exists()]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def _public(module):
    names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0].isupper() or n in ("graph", "spiking")]
    for name in names:
        yield f"{module.__name__}.{name}"
        if inspect.ismodule(value := getattr(module, name)):
            yield from _public(value)


def test_every_public_name_is_in_the_reference_once():
    found = re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.M)
    public = list(_public(se))
    assert "sparse_etrace.cells.LIF" in public
    assert sorted(found) == sorted(public)


def test_make_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {t for path in PAGES for t in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert {"demo", "test", "docs"} <= set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert named <= targets
