from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from serving.rendering.query import (
    MAX_SEED,
    RESOURCES,
    Animation,
    Grid,
    Morph,
    Picture,
    Query,
    canonical_url,
    read_query,
)


def read(url: str) -> Query:
    parts = urlsplit(url)
    (resource,) = (resource for resource in RESOURCES if resource.path == parts.path)
    return read_query(resource, MultiDict(parse_qsl(parts.query, keep_blank_values=True)))


seeds = st.integers(0, MAX_SEED)
shared = {"size": st.none() | st.just(16), "version": st.none() | seeds}
still = shared | {"format": st.sampled_from([None, "png", "webp", "jpeg"])}
queries = st.one_of(
    st.builds(Picture, seed=st.none() | seeds, **still),
    st.builds(Grid, seeds=st.lists(seeds, min_size=1, max_size=64).map(tuple), columns=st.integers(1, 64), **still),
    st.builds(Morph, start=seeds, end=seeds, frames=st.integers(2, 64), **still),
    st.builds(Animation, start=seeds, end=seeds, frames=st.integers(2, 64), format=st.just("gif"), **shared),
)


@given(queries)
def test_canonical_url_of_a_query_is_read_as_that_query(query):
    assert read(canonical_url(query)) == query


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("/generate?version=3&seed=42&size=64", "/generate?seed=42&size=64&version=3"),
        ("/grid?seeds=1,2,3,9", "/grid?seeds=1-3,9"),
        ("/grid?seeds=7,42,100,101,102,5,5&columns=2", "/grid?seeds=7,42,100-102,5,5&columns=2"),
        ("/grid?seeds=0-15&columns=4", "/grid"),
        ("/morph?start=1&end=2&frames=8", "/morph?start=1&end=2"),
        ("/animation?start=1&end=1&frames=16", "/animation?start=1&end=1"),
    ],
)
def test_canonical_url_is_the_same_for_all_spellings(url, canonical):
    assert canonical_url(read(url)) == canonical
