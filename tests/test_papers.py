"""Papers as BibTeX has them."""

from dsno.papers import REFERENCES, Citation, entry


def test_an_entry_is_what_bibtex_wants() -> None:
    paper = Citation("Doe, Jane and Roe, Richard", "A {Title}", 2024, "2401.00001", "A Journal", journal=True)
    assert paper.bibtex("doe2024title") == (
        "@article{doe2024title,\n"
        "  author        = {Doe, Jane and Roe, Richard},\n"
        "  title         = {{A {Title}}},\n"
        "  journal       = {A Journal},\n"
        "  year          = {2024},\n"
        "  eprint        = {2401.00001},\n"
        "  archiveprefix = {arXiv},\n"
        "}"
    )
    assert paper.short == "Doe & Roe, 2024, arXiv 2401.00001"
    assert Citation("Doe, Jane", "X", 2024).short == "Doe, 2024"
    assert Citation("Doe, A. and Roe, B. and Poe, C.", "X", 2024).short == "Doe et al., 2024"
    assert "eprint" not in Citation("Doe, Jane", "X", 2024).bibtex("x")


def test_fields_without_a_value_are_left_out() -> None:
    assert entry("misc", "a", {"author": "Doe", "year": ""}) == "@misc{a,\n  author        = {Doe},\n}"


def test_a_key_is_the_first_author_the_year_and_a_word_of_the_title() -> None:
    for key, citation in REFERENCES.items():
        assert str(citation.year) in key, key
