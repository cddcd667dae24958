"""Of the sites in survey.py, and of those in libraries, how many are swapped, or left for a reason in the report."""

import warnings

import pytest
import survey
import survey_sources

pytestmark = pytest.mark.slow


def test_most_sites_are_swapped_or_left_with_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [survey.look(p) for p in survey.PROGRAMS]
    assert not [(f.program.name, f.difference) for f in found if f.difference]
    sites = sum(len(f.program.ops) for f in found)
    missed = [f.program.name for f in found if f.missed]
    assert sum(f.missed for f in found) <= 0.05 * sites, missed
    assert sum(f.swapped for f in found) >= 0.8 * sites


@pytest.mark.parametrize("source", dict.fromkeys(s.source for s in survey_sources.SITES))
def test_sites_of_libraries(source):
    """Those of a library that is installed: equal, and swapped or left with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sites = [s for s in survey_sources.SITES if s.source == source]
        results = [survey_sources.examine(s) for s in sites]
    found = [f for f in results if not isinstance(f, str)]
    if not found:
        pytest.skip(f"not installed: {results[0]}")
    assert not [(f.program.name, f.difference) for f in found if f.difference]
    missed = [f.program.name for f in found if f.missed]
    assert len(missed) <= survey_sources.MISSED.get(source, 0), missed
