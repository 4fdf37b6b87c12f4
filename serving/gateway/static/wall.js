// The endless wall: parts of whole rows of seeds. Only those near the screen exist.

import { MAX_SEED } from "./seeds.js";
import { followVersion, pinned } from "./model.js";

const SCREENS_KEPT = 1.5; // above and below the visible one
const SCREENS_AHEAD = "100%"; // distance to the last part at which more are added

/** Fill `wall` around the visible part, and call `open(seed, tile)` when an image is chosen. */
export function buildWall(wall, template, open) {
  const [above, below] = wall.querySelectorAll(".gap");
  const size = Number(template.dataset.tiles);
  const count = Number((MAX_SEED + 1n) / BigInt(size));
  const parts = new Map(); // number of the part -> its list
  let reached = 0; // the last part that ever existed: the page does not shrink when the user scrolls up

  const first = wall.querySelector("ul");
  if (first) parts.set(0, first);

  function buildPart(number) {
    const part = template.content.firstElementChild.cloneNode(true);
    const tile = part.firstElementChild;
    const start = BigInt(number) * BigInt(size);
    part.setAttribute("aria-label", `Seeds ${start} to ${start + BigInt(size - 1)}`);
    part.replaceChildren(
      ...Array.from({ length: size }, (_, place) => labelled(tile.cloneNode(true), start + BigInt(place))),
    );
    return part;
  }

  function render() {
    if (!parts.size) {
      parts.set(0, buildPart(0)); // all parts have its height
      above.after(parts.get(0));
    }
    const height = parts.values().next().value.offsetHeight;
    const { top } = wall.getBoundingClientRect();
    const partAt = (y) => Math.min(count, Math.max(0, Math.floor((y - top) / height)));
    const from = partAt(-SCREENS_KEPT * innerHeight);
    const to = partAt((1 + SCREENS_KEPT) * innerHeight);
    for (const [number, part] of parts) {
      if (number < from || number > to) {
        part.remove();
        parts.delete(number);
      }
    }
    let before = above;
    for (let number = from; number <= to; number++) {
      if (!parts.has(number)) {
        const part = buildPart(number);
        before.after(part);
        parts.set(number, part);
      }
      before = parts.get(number);
    }
    reached = Math.max(reached, to);
    above.style.setProperty("--parts", from);
    below.style.setProperty("--parts", reached - to);
  }

  const nearing = new IntersectionObserver(
    (gaps) => {
      if (!gaps.some((gap) => gap.isIntersecting)) return;
      render();
      for (const gap of [above, below]) {
        nearing.unobserve(gap); // observing again reports a gap that is still near
        nearing.observe(gap);
      }
    },
    { rootMargin: `${SCREENS_AHEAD} 0px` },
  );

  followVersion(() => {
    for (const part of parts.values()) for (const tile of part.children) labelled(tile);
    nearing.observe(above);
    nearing.observe(below);
  });

  wall.addEventListener("click", (event) => {
    const tile = event.target.closest("a");
    if (!tile || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    open(seedOf(tile), tile);
  });

  wall.addEventListener("keydown", (event) => {
    const columns = BigInt(getComputedStyle(wall).getPropertyValue("--columns"));
    const step = { ArrowLeft: -1n, ArrowRight: 1n, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const tile = event.target.closest("a");
    if (!step || !tile || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    tileOf(seedOf(tile) + step)?.focus();
  });

  /** Return the link of `seed`, undefined if it is not near the screen. */
  function tileOf(seed) {
    return parts.get(Number(seed / BigInt(size)))?.children[Number(seed % BigInt(size))]?.firstElementChild;
  }

  return { tileOf };
}

function seedOf(tile) {
  return BigInt(new URL(tile.href).searchParams.get("seed"));
}

/** Give `tile` another seed, or its own seed in the current version; return it. */
function labelled(tile, seed = seedOf(tile.firstElementChild)) {
  const link = tile.firstElementChild;
  const image = link.querySelector("img");
  link.setAttribute("href", pinned(link.href, { seed }));
  image.setAttribute("src", pinned(image.src, { seed }));
  image.alt = image.alt.replace(/\d+$/, seed);
  link.querySelector(".label").textContent = seed;
  return tile;
}
