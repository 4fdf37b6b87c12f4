"""The page at /: an endless wall of pictures, for people."""

from dataclasses import replace

from flask import render_template

from serving.rendering.query import MAX_SEED, Animation, Morph, Picture, Query, canonical_url

# Seeds that the page comes with, and by which its wall grows: whole rows at every number of columns in gallery.css.
WALL_PART = 60


def render_gallery(model_name: str, version: int | None) -> str:
    """Return the page, with the first pictures of `version` on its wall; with none where there is no version yet.

    Its scripts know no address: they put other seeds into those that stand in it. To be called in a request.
    """

    def pinned(query: Query) -> str:
        return canonical_url(replace(query, version=version))

    return render_template(
        "gallery.html",
        model=model_name,
        version=version,
        max_seed=MAX_SEED,
        part=WALL_PART,
        picture=lambda seed, **options: pinned(Picture(seed, **options)),
        strip=lambda start, end, **options: pinned(Morph(start, end, **options)),
        motion=lambda start, end, **options: pinned(Animation(start, end, **options)),
    )
