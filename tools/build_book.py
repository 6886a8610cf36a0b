"""Build the book: every worked lesson, from its stored outputs, as a static site that needs no network.

    python tools/build_book.py                  writes build/book (`make book`)
    python tools/build_book.py --out FOLDER

Nothing is executed. The lessons are copied beside docs/book/ into a temporary folder and changed there: exercises
and the setup are folded, attention widgets draw with one script that the site has, links between files of the
repository become links between pages. Sphinx builds that folder, warnings are errors; then LinkChecker follows
every link and every image of the result, and no page may load anything from the network.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {"sphinx": "sphinx", "myst_nb": "myst-nb", "furo": "furo", "linkcheck": "linkchecker", "nbformat": "nbformat"}
PAGES = {"README.md": "readme.md", "docs/workshop.md": "workshop.md"}  # besides the lessons; the second may be missing
FOLDED = {  # why a cell is folded: what its button says
    "exercise": {"code_prompt_show": "Show the worked version", "code_prompt_hide": "Hide the worked version"},
    "setup": {"code_prompt_show": "Show the setup", "code_prompt_hide": "Hide the setup"},
}
EXERCISE = re.compile(r"""^@exercise\(\s*["']""", re.MULTILINE)
NOT_PROSE = re.compile(r"^```.*?^```|`[^`\n]+`|^#[^\n]*|\$\$.+?\$\$|\$[^$\n]+\$", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"!\[([^\[\]]*)\]\(([^()\s]+)\)")
LINK = re.compile(r"(?<![!\\])\[((?:[^\[\]]|!\[[^\[\]]*\]\([^()]*\))*)\]\(([^()\s]+)\)")
LESSON_NAME = re.compile(r"(?<![\[\w])([Ll]esson (\d\d)(?![\w\]])|(?<=\*\*)(\d\d) · [^*\[\]]+(?=\*\*))")
WIDGET = re.compile(r"""window\.CircuitsVis \|\| await import\("[^"]*"\)""")
WIDGET_SCRIPT = "_static/circuitsvis.js"
NOT_TERM = re.compile(rf"{NOT_PROSE.pattern}|{LINK.pattern}|<[^<>]+>|\w+://\S+", NOT_PROSE.flags)
MENDED = {  # what Sphinx, MyST-NB and the theme leave out for a reader who does not see the page
    'role="heading">': 'role="heading" aria-level="2">',
    '<summary aria-label="Toggle hidden content">': "<summary>",  # it has a text, and that is what is read
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
}
ARTICLE = re.compile(r"""<article role="main".*?</article>""", re.DOTALL)
SCRIPT = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL)
NO_LINK = re.compile(r"</?(?!/?(?:a|html|head|body|script|style)\b)(?![^<>]*\s(?:id|name|href|src)=)[a-z][^<>]*>")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")
LINKCHECKER_SETTINGS = "[AnchorCheck]\n[output]\nlog=csv\nstatus=0\n[csv]\nseparator=,\n"


class BookError(Exception):
    """The book could not be built; the message says why."""


class Lesson(NamedTuple):
    """A row of the README's table of lessons."""

    number: str
    page: str  # 01_repeated_tokens
    title: str
    about: str
    details: str  # the other columns: "5 exercises · …"


# --------------------------------------------------------------------------------------------- text and links

def page_of(path: str) -> str | None:
    """The book's page or image for a file of the repository; None if it has none."""
    folder, name = posixpath.split(path)
    if folder in ("notebooks", "solutions", "lessons") and re.match(r"\d\d_", name):
        return posixpath.splitext(name)[0] + ".ipynb"
    return f"images/{name}" if folder == "docs/images" else PAGES.get(path)


def rewrite_links(text: str, source: str, lessons: dict[str, str], root: Path = ROOT) -> str:
    """The Markdown text of a file of the repository, with its links and images as the book needs them.

    A link to a file that is not in the book becomes plain text, an image on the network (a badge) its description, and
    the words "lesson 03" or "**03 · Ablations**" a link to that lesson.

    Args:
        source: the path of the file that the text is from, relative to the repository.
        lessons: the page of each lesson's number.

    Raises:
        BookError: for a link to a file that does not exist.
    """
    def target(link: str) -> str | None:
        if re.match(r"[a-z]+:|#", link):
            return link
        path, mark, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (root / path).exists():
            raise BookError(f"{source}: links to {link}, which does not exist")
        page = page_of(path)
        return page and page + mark + anchor

    def image(found: re.Match) -> str:
        if found[2].startswith("http"):
            return found[1]
        if not (to := target(found[2])):
            raise BookError(f"{source}: the picture {found[2]} is not in docs/images")
        return f"![{found[1]}]({to})"

    def link(found: re.Match) -> str:
        to = target(found[2])
        return f"[{found[1]}]({to})" if to else found[1]

    def lesson(found: re.Match) -> str:
        page = lessons.get(found[2] or found[3])
        return f"[{found[1]}]({page}.ipynb)" if page and f"/{page}." not in source else found[1]

    return outside_code(text, lambda part: LESSON_NAME.sub(lesson, LINK.sub(link, IMAGE.sub(image, part))))


def read_terms(glossary: str) -> list[str]:
    """The entries of the glossary, the longest first."""
    block = re.search(r"```\{glossary\}\n(.*?)```", glossary, re.DOTALL)
    return sorted(re.findall(r"^\S.*", block[1] if block else "", re.MULTILINE), key=len, reverse=True)


def link_terms(text: str, terms: list[str]) -> str:
    """`text` with a link at its first use of each term; a term that got one is taken off the list."""
    def link(found: re.Match) -> str:
        term = next((each for each in terms if found[0].casefold() in (each.casefold(), each.casefold() + "s")), None)
        if term:
            terms.remove(term)
        return f"{{term}}`{found[0]} <{term}>`" if term else found[0]

    words = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, terms))})s?(?![\w-])", re.IGNORECASE)
    return outside(NOT_TERM, text, lambda part: words.sub(link, part)) if terms else text


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """`text`, changed everywhere but in code, in formulas and in headings."""
    return outside(NOT_PROSE, text, change)


def outside(pattern: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """`text`, changed everywhere but where `pattern` matches."""
    kept = []

    def keep(found: re.Match) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    changed = change(pattern.sub(keep, text))
    return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], changed)


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def read_lessons(readme: str) -> list[Lesson]:
    """The README's table of lessons: a number, a link to the notebook, what one does in it, and other columns."""
    lessons, header = [], []
    for line, above in zip(readme.splitlines()[1:], readme.splitlines(), strict=False):
        cells = cells_of(line)
        if re.fullmatch(r"[|\s:-]+", line) and "|" in above:
            header = cells_of(above)
        found = re.search(r"\[(.+?)\]\(notebooks/((\d\d)_\w+)\.ipynb\)", line)
        if line.startswith("|") and found and len(header) == len(cells):
            named = {name: cell for name, cell in zip(header, cells, strict=True)
                     if found[0] not in cell and cell not in ("", found[3])}
            longest = max(named, key=lambda name: len(named[name]), default="")
            about = named.pop("you will" if "you will" in named else longest, "")
            details = " · ".join(f"{name}: {cell}" for name, cell in named.items())
            lessons.append(Lesson(found[3], found[2], found[1], about, details))
    return lessons


# ---------------------------------------------------------------------------------------------------- staging

def prepare_notebook(notebook, source: str, lessons: dict[str, str], root: Path = ROOT, terms: Iterable[str] = ()
                     ) -> None:
    """Fold the exercises and the setup, let the widgets draw with the site's script, make the links: in place."""
    unlinked = list(terms)
    script = f'<script src="{WIDGET_SCRIPT}"></script>'  # before the page's first widget
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link_terms(rewrite_links(cell.source, source, lessons, root), unlinked)
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.setdefault("tags", [])
        why = "exercise" if EXERCISE.search(cell.source) else "setup" if "setup" in tags else None
        if why:
            tags.append("hide-input")
            cell.metadata["mystnb"] = dict(FOLDED[why])
        alts = [alt for output in cell.outputs if (alt := output.get("metadata", {}).get("image/png", {}).get("alt"))]
        if alts:
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": " ".join(alts)}
        for data in (output["data"] for output in cell.outputs if "text/html" in output.get("data", {})):
            drawn, widgets = WIDGET.subn("window.CircuitsVis", data["text/html"])
            if widgets:
                data["text/html"] = f'{script}<div class="book-widget">{drawn}</div>'
                script = ""


def widget_script() -> str:
    """The CircuitsVis bundle as the text of a JavaScript file."""
    from course_utils.viz import bundle_script

    return bundle_script().removeprefix("<script>").removesuffix("</script>")


def lesson_list(lessons: list[Lesson]) -> str:
    """The lessons as Markdown: a link and a line each."""
    lines = (f"- **[{each.number} · {each.title}]({each.page}.ipynb)**: {each.about}" +
             (f" *({each.details})*" if each.details else "") for each in lessons)
    return "\n".join(lines) + "\n"


def contents(lessons: list[Lesson], others: list[str]) -> str:
    """The two tables of contents, which make the side bar and the order of the pages."""
    def tree(caption: str, pages: list[str]) -> str:
        return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])

    return tree("Lessons", [each.page for each in lessons]) + "\n" + tree("The course", others)


def checked_lessons(root: Path) -> list[Lesson]:
    """The lessons of the README's table; they must be the notebooks in solutions/."""
    lessons = read_lessons((root / "README.md").read_text(encoding="utf-8"))
    listed = [each.page for each in lessons]
    worked = [path.stem for path in sorted((root / "solutions").glob("[0-9][0-9]_*.ipynb"))]
    if not worked or listed != worked:
        raise BookError(f"the README's table lists {listed}, but solutions/ has {worked}; run `make notebooks`")
    return lessons


def stage(root: Path, folder: Path) -> list[Lesson]:
    """Write what Sphinx is to build into `folder`, and say which lessons it has."""
    import nbformat

    from course_utils.runs import LessonError, read_notebook

    lessons = checked_lessons(root)
    pages = {each.number: each.page for each in lessons}
    shutil.copytree(root / "docs" / "book", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "docs" / "images", folder / "images")
    terms = read_terms((folder / "glossary.md").read_text(encoding="utf-8"))
    for page in pages.values():
        try:
            notebook = read_notebook(root / "solutions" / f"{page}.ipynb")
        except LessonError as error:
            raise BookError(str(error)) from error
        prepare_notebook(notebook, f"solutions/{page}.ipynb", pages, root, terms)
        nbformat.write(notebook, folder / f"{page}.ipynb")
    present = {page: source for source, page in PAGES.items() if (root / source).exists()}
    texts = {page: rewrite_links((root / source).read_text(encoding="utf-8"), source, pages, root)
             for page, source in present.items()}
    texts["readme.md"] = re.sub(r"\A# .*", "# The README", texts["readme.md"])
    texts["generated_lessons.md"] = lesson_list(lessons)
    texts["generated_contents.md"] = contents(lessons, [*sorted(present, reverse=True), "glossary.md"])
    texts[WIDGET_SCRIPT] = widget_script()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return lessons


# ----------------------------------------------------------------------------------------------------- checks

class _Loads(HTMLParser):
    """Collects the addresses that a page loads by itself (links that a reader may click do not count)."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == LOADED.get(tag)]


def remote_loads(site: Path) -> list[str]:
    """`page: address` for everything that a page or a style sheet would load from the network."""
    found = []
    for page in sorted(site.rglob("*.html")):
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(site)}: {at}" for at in parser.found if re.match(r"(https?:)?//", at)]
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        found += [f"{sheet.relative_to(site)}: {at}" for at in IN_CSS.findall(text)]
    return found


def broken_links(site: Path) -> list[str]:
    """`page: link: what is wrong`, from LinkChecker, for every link, image and anchor inside the site.

    LinkChecker reads a copy: one that everybody may read, for it gives up the rights of an administrator who runs it,
    and without the tags that are neither a link nor the place of one, which are most, for it parses a page again at
    each anchor. It names a page with the anchor by which it came there, if it came by one.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, settings = Path(folder, "site"), Path(folder, "settings")
        shutil.copytree(site, copy)
        settings.write_text(LINKCHECKER_SETTINGS, encoding="utf-8")
        pages = sorted(copy.rglob("*.html"))
        for page in pages:
            page.write_text(NO_LINK.sub("", page.read_text(encoding="utf-8")), encoding="utf-8")
        for path in (Path(folder), settings, copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [sys.executable, "-m", "linkcheck", "-f", str(settings), *(page.as_uri() for page in pages)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
        rows = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
        found = [f"{row['parentname'].removeprefix(copy.as_uri() + '/').partition('#')[0]}: {row['urlname']}: "
                 f"{row['warningstring'] or row['result']}" for row in csv.DictReader(rows)]
    if done.returncode and not found or not rows:
        raise BookError(f"LinkChecker did not run:\n{done.stdout}\n{done.stderr}")
    return found


# -------------------------------------------------------------------------------------------------- the build

def missing_packages() -> list[str]:
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def run_sphinx(source: Path, site: Path, notes: Path) -> None:
    """Build `source` into `site`; Sphinx keeps its own notes elsewhere."""
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(notes)]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(site)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BookError(f"Sphinx found something to mend:\n{done.stdout}\n{done.stderr}".replace(f"{source}/", ""))


def mend(site: Path) -> None:
    """Put what a screen reader needs into every page, and each page's text into a script, for the search to quote.

    A browser reads no other page of a site that was opened from a folder, but it runs a script from there.
    """
    texts = {}
    for page in sorted(site.glob("*.html")):
        text = page.read_text(encoding="utf-8")
        for left_out, mended in MENDED.items():
            text = text.replace(left_out, mended)
        page.write_text(text, encoding="utf-8")
        if article := ARTICLE.search(text):
            texts[page.name] = NO_LINK.sub("", SCRIPT.sub("", article[0]))
    texts_script = f"window.BOOK_TEXTS = {json.dumps(texts, ensure_ascii=False)};\n"
    (site / "_static" / "texts.js").write_text(texts_script, encoding="utf-8")


def replace_folder(new: Path, old: Path) -> None:
    """Put the new site in the old one's place; a folder that holds anything else stays."""
    if old.exists() and any(old.iterdir()) and not (old / "searchindex.js").exists():
        raise BookError(f"{old} holds something that is not a book; name another folder with --out")
    shutil.rmtree(old, ignore_errors=True)
    old.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(new, old)


def build(root: Path, out: Path) -> list[Lesson]:
    """Build the book of the repository at `root` into `out`, and check it. `out` is changed only when all is well."""
    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder, "source"), Path(folder, "site")
        lessons = stage(root, source)
        run_sphinx(source, site, Path(folder, "notes"))
        (site / ".buildinfo").unlink(missing_ok=True)
        mend(site)
        problems = [f"loads from the network: {each}" for each in remote_loads(site)]
        problems += [f"broken link: {each}" for each in broken_links(site)]
        if problems:
            raise BookError("\n".join(problems))
        replace_folder(site, out)
    return lessons


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    args = parser.parse_args(argv)
    if missing := missing_packages():
        print(f"error: the book needs {', '.join(missing)}; run: pip install -e .[book]", file=sys.stderr)
        return 1
    start = time.perf_counter()
    try:
        lessons = build(args.root, args.out)
    except BookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"The book: {args.out / 'index.html'}\n{len(lessons)} lessons, {size / 1e6:.1f} MB, no broken link, "
          f"nothing loaded from the network; {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
