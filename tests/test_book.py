"""The book: what is changed in the lessons' copies, the site that is built, and the site in a browser.

The site is built once for all tests; the browser reads it from its folder, as a reader without network does.
"""

import functools
import http.server
import os
import re
import threading
import types
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

import build_book  # noqa: E402
from build_book import ROOT, BookError, broken_links, read_lessons, remote_loads, rewrite_links  # noqa: E402

LESSONS = {"00": "00_start_here", "03": "03_ablations"}
WORKED = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))
NARROW, WIDE = 390, 1280
# The rule that a control's spoken name holds its text is an experiment of axe's, off if not asked for.
HINDRANCES = """() => axe.run({
    preload: false, resultTypes: ["violations"], rules: {"label-content-name-mismatch": {enabled: true}}}).then(
    found => found.violations.filter(rule => ["serious", "critical"].includes(rule.impact)).map(
        rule => [rule.id, rule.nodes.length, rule.nodes[0].html, rule.nodes[0].failureSummary]))"""
# The boxes around the text: one that holds more than it shows would scroll sideways, or hide the rest.
WIDER_THAN_SHOWN = """() => [...document.querySelectorAll("html, body, .page, .main, .content")]
    .filter(box => box.scrollWidth > box.clientWidth + 1).map(box => innerWidth + " px: " + box.className)"""
PAINTED = """() => [...document.querySelectorAll("[id^=circuits-vis] canvas")].map(
    canvas => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"""


def rewritten(text: str, source: str = "solutions/00_start_here.ipynb") -> str:
    return rewrite_links(text, source, LESSONS)


# ------------------------------------------------------------------------------------------- the lessons' copies

@pytest.mark.parametrize("source, text, expected", [
    ("README.md", "[a](notebooks/03_ablations.ipynb)", "[a](03_ablations.ipynb)"),
    ("docs/workshop.md", "[a](../solutions/03_ablations.ipynb)", "[a](03_ablations.ipynb)"),
    ("docs/workshop.md", "[a](../README.md#tests)", "[a](readme.md#tests)"),
    ("docs/workshop.md", "![a b](images/facts.png)", "![a b](images/facts.png)"),
    ("README.md", "| ![a](docs/images/facts.png) | x |", "| ![a](images/facts.png) | x |"),
    ("README.md", "[![a](docs/images/facts.png)](LICENSE) b", "![a](images/facts.png) b"),
    ("README.md", "[`a`](notebooks/03_ablations.ipynb) [`b`](LICENSE)", "[`a`](03_ablations.ipynb) `b`"),
    ("README.md", "see [the table](benchmarks/RESULTS.md).", "see the table."),
    ("README.md", "[a](https://example.org/x) [b](#tests)", "[a](https://example.org/x) [b](#tests)"),
    ("README.md", "`[a](nowhere.md)`\n```\n[a](nowhere.md)\n```\n", "`[a](nowhere.md)`\n```\n[a](nowhere.md)\n```\n"),
])
def test_links_of_the_repository_become_links_of_the_book(source, text, expected):
    assert rewritten(text, source) == expected


def test_a_badge_becomes_text_so_that_no_page_loads_it():
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/open)"
    assert rewritten(badge) == "[Open in Colab](https://example.org/open)"


@pytest.mark.parametrize("text", ["[a](nowhere.md)", "![a](docs/images/nowhere.png)", "![a](LICENSE)"])
def test_a_link_to_a_missing_file_stops_the_build_and_is_named(text):
    with pytest.raises(BookError, match=f"README.md.*{re.escape(text[text.index('(') + 1:-1])}"):
        rewritten(text, "README.md")


def test_the_name_of_another_lesson_becomes_a_link_to_it():
    assert rewritten("In lesson 03, we") == "In [lesson 03](03_ablations.ipynb), we"
    assert rewritten("Next: **03 · Ablations**.") == "Next: **[03 · Ablations](03_ablations.ipynb)**."
    for same in ("lesson 00 is this one", "lesson 42", "`lesson 03`", "## After lesson 03", "[lesson 03](#x)"):
        assert rewritten(same) == same


def test_the_list_of_lessons_is_read_from_the_readme_whatever_its_columns():
    rows = ["| | lesson | you will | time |", "|---|---|---|---|",
            "| 00 | [Start here](notebooks/00_start_here.ipynb) | load a model | 4 s |"]
    other = ["| file | what |", "|---|---|", "| [x](notebooks/00_start_here.ipynb) | y | z |"]     # not the same width
    (lesson, ) = read_lessons("\n".join(["# Title", "", *rows, "", *other]))
    assert lesson == ("00", "00_start_here", "Start here", "load a model", "time: 4 s")
    swapped = [re.sub(r"(you will|load a model) \| (time|4 s)", r"\2 | \1", row) for row in rows]
    assert read_lessons("\n".join(swapped)) == [lesson]
    renamed = [row.replace("you will", "what you do") for row in rows]
    assert read_lessons("\n".join(renamed)) == [lesson]


def test_widgets_draw_with_the_script_of_the_site_and_know_no_address():
    viz = pytest.importorskip("course_utils.viz")
    widget = viz.attention_patterns(["a", "b"], [[[1, 0], [0.5, 0.5]]])
    output = nbformat.v4.new_output("display_data", {"text/html": widget.html})
    cells = [nbformat.v4.new_code_cell("", outputs=[output.copy()]) for _ in range(2)]
    cells[1].outputs[0]["data"] = dict(output["data"])
    build_book.prepare_notebook(nbformat.v4.new_notebook(cells=cells), "solutions/00_start_here.ipynb", LESSONS)
    pages = [cell.outputs[0]["data"]["text/html"] for cell in cells]
    assert [page.count('<script src="_static/circuitsvis.js">') for page in pages] == [1, 0]
    assert all("window.CircuitsVis;" in page and "http" not in page for page in pages)
    assert build_book.widget_script().startswith("if(!window.CircuitsVis){")


def test_the_first_use_of_each_term_becomes_a_link_to_the_glossary():
    entries = "head\n    A part.\n\nL0\n    A count.\n\nold head\n    Too.\n"
    terms = build_book.read_terms(f"# G\n\n```{{glossary}}\n{entries}```\n")
    assert terms == ["old head", "head", "L0"]
    text = "# A head\n`head`, [a head](x.md), header, L0s: Old heads, heads and an old head; a head, L0."
    linked = build_book.link_terms(text, terms)
    assert linked == ("# A head\n`head`, [a head](x.md), header, {term}`L0s <L0>`: {term}`Old heads <old head>`, "
                      "{term}`heads <head>` and an old head; a head, L0.")
    assert terms == [] and build_book.link_terms("A head.", terms) == "A head."


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(build_book.NEEDED, "no_such_module", "no-such-package")
    assert build_book.main([]) == 1
    error = capsys.readouterr().err
    assert "no-such-package" in error and "pip install -e .[book]" in error


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years")
    (tmp_path / "site").mkdir()
    with pytest.raises(BookError, match="not a book"):
        build_book.replace_folder(tmp_path / "site", kept.parent)
    assert kept.read_text() == "years"


def test_what_a_page_or_a_style_sheet_would_load_is_found_and_links_are_not(tmp_path):
    (tmp_path / "a.html").write_text('<script src="https://x/1.js"></script><img src="//x/2.png"><a href="https://x/3">'
                                     '</a><link href="http://x/4.css"><img src="here.png"><iframe src="https://x/5">')
    style = "@import 'https://x/6.css'; a {background: url(\"//x/7.png\")} b {src: url(x.woff)}"
    (tmp_path / "b.css").write_text(style)
    assert re.findall(r"x/(\d)", " ".join(remote_loads(tmp_path))) == ["1", "2", "4", "5", "6", "7"]


# ------------------------------------------------------------------------------------------------------ the site

def needs_tools() -> None:
    if missing := build_book.missing_packages():
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"the book needs {', '.join(missing)}: pip install -e .[book]")


@pytest.fixture(scope="module")
def book(once_for_all) -> Path:
    """The whole book, built once."""
    def build(folder: Path) -> None:
        assert build_book.main(["--out", str(folder)]) == 0

    needs_tools()
    return once_for_all("book", build)


def page_text(book: Path, name: str) -> str:
    return (book / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_book_has_every_lesson_in_order_with_its_exercises_folded(book):
    index = page_text(book, "index")
    names = [path.stem for path in WORKED]
    assert re.findall(r'<strong><a class="reference internal" href="(\d\d_\w+)\.html">', index) == names
    for path in WORKED:
        cells = nbformat.read(path, as_version=4).cells
        exercises = sum(cell.cell_type == "code" and cell.source.startswith("@exercise(") for cell in cells)
        page = page_text(book, path.stem)
        assert exercises and page.count(">Show the worked version<") == exercises
        assert page.count(">Show the setup<") == 1
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        title = re.search(r"^# (.*)", text, re.MULTILINE)[1]
        assert title.startswith(f"{path.stem[:2]} · ")
        assert f"<title>{title} - Faithful Circuits</title>" in page
    middle = page_text(book, names[1])
    assert f'href="{names[0]}.html"' in middle and f'class="next-page" href="{names[2]}.html"' in middle


@pytest.mark.slow
def test_every_formula_is_set_and_every_picture_has_its_words(book):
    """A displayed formula needs empty lines around it: without them MyST sets it in the line, between dollar signs.

    Without an alternative text a screen reader reads the name of the picture's file.
    """
    pages = {path.stem: page_text(book, path.stem) for path in WORKED}
    unset = {name: re.findall(r"[^>]*\$<math.{0,200}|</math>\$", page) for name, page in pages.items()}
    assert {name: formulas for name, formulas in unset.items() if formulas} == {}
    words = {alt for page in pages.values() for alt in re.findall(r'<img alt="([^"]*)"', page)}
    assert len(words) > 30 and [each for each in words if not each or each.startswith("_images")] == []


@pytest.mark.slow
def test_the_link_checker_finds_what_is_broken_and_nothing_else(tmp_path):
    """That the book itself has no broken link is seen in each build: it stops at one."""
    linked = ["b.html", "b.html#here", "#top", "gone.html", "b.html#gone"]
    pictures = ["_images/there.png", "_images/gone.png"]
    body = "".join([*(f'<a href="{each}">a</a>' for each in linked), *(f'<img src="{each}">' for each in pictures)])
    page = "<!DOCTYPE html><html><head><title>t</title></head><body {}</body></html>"
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "there.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.html").write_text(page.format(f'id="top">{body}'))
    (tmp_path / "b.html").write_text(page.format('><h1 id="here">b</h1><a href="a.html">a</a>'))
    found = broken_links(tmp_path)
    assert sorted(line.split(": ")[1] for line in found) == ["_images/gone.png", "b.html#gone", "gone.html"]
    assert all(line.startswith("a.html: ") for line in found)


@pytest.mark.slow
def test_a_warning_of_sphinx_stops_the_build_and_is_shown(tmp_path):
    needs_tools()
    (tmp_path / "conf.py").write_text('extensions = ["myst_parser"]')
    (tmp_path / "index.md").write_text("# Title\n\n[a](nowhere.md)\n")
    with pytest.raises(BookError, match="nowhere.md"):
        build_book.run_sphinx(tmp_path, tmp_path / "site", tmp_path / "notes")


# -------------------------------------------------------------------------------------------------- in a browser

@pytest.fixture
def reader(browser):
    """A page, and what went wrong on it: errors in the console, requests to anything but a file or this computer."""
    context = browser.new_context(viewport={"width": NARROW, "height": 844})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    local = ("file:", "data:", "blob:", "http://127.0.0.1")
    page.on("request", lambda asked: None if asked.url.startswith(local) else wrong.append(asked.url))
    yield types.SimpleNamespace(page=page, wrong=wrong)
    context.close()


def is_drawn(page, path: Path) -> bool:
    """Whether the page has widgets; if it has, they are painted now."""
    if widgets := "_static/circuitsvis.js" in path.read_text(encoding="utf-8"):
        page.wait_for_function(f"(painted => painted.length && painted.every(Boolean))(({PAINTED})())")
    return widgets


@pytest.mark.slow
@pytest.mark.parametrize("widths", [
    (NARROW, ), pytest.param((WIDE, WIDE + 70, NARROW + 70, NARROW), marks=pytest.mark.matrix)])
def test_pages_fit_their_window_paint_their_widgets_and_ask_for_no_network(book, reader, widths):
    too_wide, painted = [], {}
    for path in sorted(book.glob("*.html")):
        reader.page.goto(path.as_uri())
        if is_drawn(reader.page, path):
            painted[path.stem] = len(reader.page.evaluate(PAINTED))
        for width in widths:
            reader.page.set_viewport_size({"width": width, "height": 844})
            too_wide += [(path.stem, box) for box in reader.page.evaluate(WIDER_THAN_SHOWN)]
    assert too_wide == [] and reader.wrong == []
    assert {"00_start_here", "02_induction_heads"} <= painted.keys() and min(painted.values()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("place, width", [("folder", NARROW), ("server", WIDE)])
def test_a_reader_searches_a_word_sees_it_quoted_and_unfolds_an_exercise(book, reader, request, place, width):
    page = reader.page
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{book.as_uri() if place == 'folder' else request.getfixturevalue('served')}/index.html")
    if width == NARROW:
        page.locator("label.nav-overlay-icon").click()
    page.locator("input.sidebar-search").fill("specialist")
    page.keyboard.press("Enter")
    found = page.locator("#search-results li", has_text="09 · Capstone")
    found.locator("p.context").wait_for()
    assert "specialist" in found.locator("p.context").inner_text()
    found.locator("a").first.click()
    page.wait_for_url("**/09_capstone.html*")
    code = page.locator("details:has-text('Show the worked version') pre").first
    assert not code.is_visible()
    page.locator("summary:has-text('Show the worked version')").first.click()
    assert code.is_visible() and "@exercise(" in code.inner_text()
    assert reader.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("looks", [
    [("00_start_here", NARROW, "dark"), ("glossary", WIDE, "light")],
    pytest.param([("*", width, theme) for width in (NARROW, WIDE) for theme in ("dark", "light")],
                 marks=pytest.mark.matrix)])
def test_axe_finds_nothing_serious(book, reader, looks):
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("axe-playwright-python is not installed")
    found = []
    for name, width, theme in looks:
        assert (pages := sorted(book.glob(f"{name}.html")))
        reader.page.set_viewport_size({"width": width, "height": 844})
        reader.page.emulate_media(color_scheme=theme)
        for path in pages:
            reader.page.goto(path.as_uri())
            is_drawn(reader.page, path)
            reader.page.evaluate(AXE_SCRIPT)
            found += [(path.stem, width, theme, *each) for each in reader.page.evaluate(HINDRANCES)]
    assert found == [] and reader.wrong == []


@pytest.fixture(scope="module")
def served(book):
    """The book's address on a web server of its own."""
    handler = functools.partial(QuietHandler, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01, ), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.mark.slow
def test_the_keyboard_reaches_the_text_first_and_opens_the_side_bar_of_a_narrow_window(book, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((book / "06_sparse_autoencoders.html").as_uri())
    focused, bar = page.locator("*:focus"), page.locator(".sidebar-drawer")
    page.keyboard.press("Tab")
    assert focused.inner_text() == "Skip to content" and not bar.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    bar.wait_for(state="visible")
    page.keyboard.press("Escape")
    bar.wait_for(state="hidden")
    page.goto(page.url.split("#")[0])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused.evaluate("element => Boolean(element.closest('article'))")
    page.close()


@pytest.mark.slow
def test_a_printed_lesson_has_its_exercises_unfolded_and_no_menus(book, browser):
    page = browser.new_page()
    page.goto((book / "00_start_here.html").as_uri())
    page.emulate_media(media="print")
    code = page.locator("details:has-text('Show the worked version') pre").first
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert code.is_visible() and page.evaluate("() => document.getAnimations().length") == 0    # none fades in
    for hidden in ("article summary", ".sidebar-drawer", ".related-pages", ".skip-to-content", ".tag_setup"):
        assert page.locator(hidden).count() and not page.locator(hidden).first.is_visible()
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert not code.is_visible()
    page.close()
