"""How the site is built: `make docs`. Every warning fails the build."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import secateurs

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is first imported
sys.path.insert(0, str(Path(__file__).parent))
import names

project = "Secateurs"
author = "the Secateurs authors"
project_copyright = author
release = version = secateurs.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["**.md"]
highlight_language = "none"  # of a block that names none
myst_heading_anchors = 3

# docstrings
default_role = "py:obj"  # `trace` is a link where it names something, and code where it does not
autodoc_default_options = {"members": True, "special-members": "__getitem__, __len__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
napoleon_use_ivar = True
add_module_names = False

# looks: fonts and scripts are the theme's own files; nothing is asked of another server
html_theme = "furo"
html_title = "Secateurs"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

log = logging.getLogger(__name__)


def missing_names(_: Sphinx, env: BuildEnvironment) -> None:
    """A public name without a place on the pages is a warning, and so fails the build."""
    shown = {name for name, *_ in env.get_domain("py").get_objects()}
    for name in sorted(names.public() - shown):
        log.warning("%s is public, but no page of docs/reference shows it", name)


def setup(app: Sphinx) -> None:
    app.connect("env-check-consistency", missing_names)
