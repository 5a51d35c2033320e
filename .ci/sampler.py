"""The sampler that the documentation embeds: the page of `dsno web` with the shipped digits, in the site that is built.

A hook of MkDocs (`hooks` in mkdocs.yml). Where the page's runtime cannot be fetched the site is built without it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dsno import load_student, load_teacher, shipped
from dsno.web.site import write_site

FOLDER = "sampler"

log = logging.getLogger("mkdocs.hooks.sampler")


def on_post_build(config: Any) -> None:
    """Write the page into the site."""
    student, teacher = load_student(shipped() / "student"), load_teacher(shipped() / "teacher")
    try:
        write_site(Path(config.site_dir) / FOLDER, student, teacher, "Digits", overwrite=True)
    except ConnectionError as error:
        log.info("the documentation has no sampler in it: %s", error)
