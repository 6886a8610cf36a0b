"""Sphinx settings of the book. tools/build_book.py copies this folder beside the lessons and builds it there."""

from docutils import nodes

from course_utils.runs import mathml

project = "Faithful Circuits"
author = "Faithful Circuits contributors"
copyright = author
html_title = project

extensions = ["myst_nb"]
exclude_patterns = ["generated_*.md"]     # included by pages, no pages themselves
nb_execution_mode = "off"                 # the stored outputs are the book
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3                  # so that [text](page.md#heading) works as it does in a repository

html_math_renderer = "mathml"
html_theme = "furo"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
highlight_language = "none"               # for commands; the cells of a notebook are Python
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"


def setup(app):
    """Formulas are drawn by the browser itself."""
    def renderers(block):
        def draw(translator, node):
            translator.body.append(mathml(node.astext(), block=block))
            raise nodes.SkipNode
        return draw, None

    app.add_html_math_renderer("mathml", renderers(block=False), renderers(block=True))
