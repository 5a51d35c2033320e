"""MathJax in the documentation that is built, so that its formulas are set where there is no network.

A hook of MkDocs (`hooks` in mkdocs.yml): the files lie in the package `django-static-mathjax` of the extra `docs`,
whole and with their licence, and need no Django. Only what pages load is copied: one script, which has its fonts
inside, and the extensions of TeX that it loads by itself.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

FOLDER = "javascripts/mathjax"
NEEDED = ("es5/tex-svg.js", "es5/input/tex/extensions/*.js", "LICENSE")
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
NOT_LOADED = re.compile(r"""<link\b[^>]*\brel=["']?(?:canonical|alternate|prev|next)\b[^>]*>""")


def on_files(files: Files, config: Any) -> Files:
    """Add MathJax to what is copied to the site.

    Raises:
        PluginError: without the package.
    """
    found = find_spec("mathjax")
    if found is None or found.origin is None:
        raise PluginError("the formulas need django-static-mathjax: pip install -e '.[docs]'")
    here = Path(found.origin).parent / "static" / "mathjax"
    for path in (path for pattern in NEEDED for path in sorted(here.glob(pattern))):
        target = f"{FOLDER}/{path.relative_to(here).as_posix().removeprefix('es5/')}"
        files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that loads something from elsewhere.

    Raises:
        PluginError: if it does; names it.
    """
    if loads := LOADED.findall(NOT_LOADED.sub("", output)):
        raise PluginError(f"{page.file.src_uri} loads {', '.join(sorted({*loads}))}: put it into the site")
    return output
