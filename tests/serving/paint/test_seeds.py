from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from serving.paint.seeds import Seeds

numbers = st.sets(st.integers(0, 300), min_size=1)


def seeds_of(chosen):
    return Seeds.parse(",".join(map(str, chosen)))


def test_ranges_and_single_seeds_are_read_in_any_order():
    assert list(Seeds.parse("42,7,100-102,110:112")) == [7, 42, 100, 101, 102, 110, 111]


@given(numbers)
def test_places_count_the_seeds_before(chosen):
    seeds = seeds_of(chosen)
    assert [seeds.place(seed) for seed in sorted(chosen)] == list(range(len(chosen)))
    assert seeds.place(301) is None


@given(numbers, st.integers(1, 9))
def test_parts_between_places_make_the_whole(chosen, count):
    seeds = seeds_of(chosen)
    ends = [index * len(seeds) // count for index in range(count + 1)]
    parts = [list(seeds.between(first, behind)) for first, behind in pairwise(ends)]
    assert list(chain(*parts)) == sorted(chosen)
