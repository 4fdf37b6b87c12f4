// The page at /: wall, large view and morph. The page's URL restores the view.

import { pinned, retryFailedImages, seedOfName } from "./model.js";
import { buildMorph } from "./morph.js";
import { parseSeed, randomSeed, readSeed, refuse } from "./seeds.js";
import { buildViewer } from "./viewer.js";
import { buildWall } from "./wall.js";

const part = document.querySelector("#part");
let opener = null; // the wall's image that opened the large view
let namesEntered = 0; // only the answer to the last one is shown

const wall = buildWall(document.querySelector("#wall"), part, open);
const viewer = buildViewer(document.querySelector("#viewer"), {
  step(seed) {
    history.replaceState(history.state, "", pageUrl({ seed }));
    viewer.open(seed);
  },
  closed(seed, end) {
    if (end) {
      history.replaceState(null, "", pageUrl({ seed: null }));
      morph.choose(end, seed);
      return;
    }
    if (history.state?.opened) history.back();
    else history.replaceState(null, "", pageUrl({ seed: null }));
    if (opener) wall.tileOf(seed)?.focus();
  },
  small: (seed) => pinned(part.content.querySelector("img").src, { seed }),
});
const morph = buildMorph(document.querySelector(".morph"), {
  start: parseSeed(parameter("start")),
  end: parseSeed(parameter("end")),
  changed: (ends) => history.replaceState(history.state, "", pageUrl(ends)),
});

/** Show `seed` large, with an entry of its own in the browser's history. */
function open(seed, tile = null) {
  opener = tile;
  history.pushState({ opened: true }, "", pageUrl({ seed }));
  viewer.open(seed);
}

/** Return the parameter `name` of the page's URL, or null. */
function parameter(name) {
  return new URL(location.href).searchParams.get(name);
}

/** Return the page's URL with other parameters; null removes one. */
function pageUrl(parameters) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null) url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  return url;
}

/** Show the seed in the page's URL. */
function showSeedOfUrl() {
  const seed = parseSeed(parameter("seed"));
  if (seed === null) viewer.close();
  else if (seed !== viewer.seed) viewer.open(seed);
}

document.querySelector("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const seed = readSeed(event.target.elements.seed);
  if (seed !== null) open(seed);
});
document.querySelector("#ask-name").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = event.target.elements.name;
  field.setCustomValidity(""); // the same name may be tried again
  if (!field.reportValidity()) return;
  const number = ++namesEntered;
  const isStale = () => number !== namesEntered || viewer.seed !== null;
  try {
    const seed = await seedOfName(field.value);
    if (!isStale()) open(seed);
  } catch (error) {
    if (!isStale()) refuse(field, error.message);
  }
});
document.querySelector("#random").addEventListener("click", () => open(randomSeed()));

// Not by a fragment in the URL: each step back in the browser's history would move the focus to the wall.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector("#wall").focus();
});

retryFailedImages();
addEventListener("popstate", showSeedOfUrl);
showSeedOfUrl();
