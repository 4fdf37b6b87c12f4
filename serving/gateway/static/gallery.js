// The page at /: wall, large view and morph, and the address that leads back to what is seen.

import { pinned, watchPictures } from "./model.js";
import { buildMorph } from "./morph.js";
import { parseSeed, randomSeed, readSeed } from "./seeds.js";
import { buildViewer } from "./viewer.js";
import { buildWall } from "./wall.js";

const part = document.querySelector("#part");
let opener = null; // the picture on the wall that the large view came from

const wall = buildWall(document.querySelector("#wall"), part, open);
const viewer = buildViewer(document.querySelector("#viewer"), {
  step(seed) {
    history.replaceState(history.state, "", located({ seed }));
    viewer.open(seed);
  },
  closed(seed, end) {
    if (end) {
      history.replaceState(null, "", located({ seed: null }));
      morph.choose(end, seed);
      return;
    }
    if (history.state?.opened) history.back();
    else history.replaceState(null, "", located({ seed: null }));
    if (opener) wall.tileOf(seed)?.focus();
  },
  small: (seed) => pinned(part.content.querySelector("img").src, { seed }),
});
const morph = buildMorph(document.querySelector(".morph"), {
  start: parseSeed(named("start")),
  end: parseSeed(named("end")),
  changed: (ends) => history.replaceState(history.state, "", located(ends)),
});

/** Show `seed` large, as a step of its own in the browser's history. */
function open(seed, tile = null) {
  opener = tile;
  history.pushState({ opened: true }, "", located({ seed }));
  viewer.open(seed);
}

/** Return what the address says of `parameter`, null for nothing. */
function named(parameter) {
  return new URL(location.href).searchParams.get(parameter);
}

/** Return the page's own address with other parameters; null takes one out. */
function located(parameters) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null) url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  return url;
}

/** Show the seed that the address names. */
function follow() {
  const seed = parseSeed(named("seed"));
  if (seed === null) viewer.close();
  else if (seed !== viewer.seed) viewer.open(seed);
}

document.querySelector("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const seed = readSeed(event.target.elements.seed);
  if (seed !== null) open(seed);
});
document.querySelector("#random").addEventListener("click", () => open(randomSeed()));

// Not by the address: a step back in the browser's history would go to the wall again, wherever the focus is.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector("#wall").focus();
});

watchPictures();
addEventListener("popstate", follow);
follow();
