"""The page at /: an endless wall of images."""

from dataclasses import replace

from flask import render_template

from serving.rendering.query import MAX_SEED, Animation, Morph, Picture, Query, canonical_url

# Seeds in one part of the wall: whole rows for every number of columns in gallery.css.
WALL_PART = 60


def render_gallery(model_name: str, version: int | None) -> str:
    """Return the page with the first images of `version`, or with none if it is None.

    The scripts build all URLs from those in the page. Needs Flask's request context.
    """

    def pinned(query: Query) -> str:
        return canonical_url(replace(query, version=version))

    return render_template(
        "gallery.html",
        model=model_name,
        version=version,
        max_seed=MAX_SEED,
        part=WALL_PART,
        image_url=lambda seed, **options: pinned(Picture(seed, **options)),
        strip_url=lambda start, end, **options: pinned(Morph(start, end, **options)),
        animation_url=lambda start, end, **options: pinned(Animation(start, end, **options)),
    )
