"""How Sphinx makes the site: ``make docs``."""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Pages show what happens to wrong arguments: those calls are made while the site is, and what the kernels warn of then
# is no news. Read by torch when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import opreg

project = "opreg"
author = "the authors of opreg"
release = version = opreg.__version__

extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "opdocs"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = [
    "generated/tasks.md",
    "generated/targets.md",
    "generated/huber_loss-*.md",
    "generated/training-*.md",
]
html_math_renderer = "mathml"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# the fields of a declaration are in groups, each with a title of its own
groups = re.findall(r"^(?:    )?(\w[^\n]*):\n +\w+: ", opreg.Op.__doc__, re.MULTILINE)
napoleon_custom_sections = ["Formula", "Source", "Call", *((title, "params_style") for title in groups)]

html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = [("gallery.js", {"defer": "defer"})]
html_title = f"opreg {release}"
html_show_sourcelink = False
html_copy_source = False

# What PyTorch's own theme is made of. That one asks for Sphinx 7.2 and sends a reader's browser to other hosts, for
# fonts, for its search and to count visitors.
html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navigation_depth": 2,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_prev_next": False,
    "show_version_warning_banner": False,
}
html_sidebars = {name: [] for name in ("generated/gallery", "generated/ops/*", "changelog", "reference")}
html_context = {"default_mode": "auto"}
