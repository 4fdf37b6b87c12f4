// The way from one seed to another: a strip of stills, fetched once, and a slider that moves along it.

import { followVersion, pinned, retry } from "./model.js";
import { readSeed } from "./seeds.js";

/**
 * Return the morph in `section`, whose `choose(name, seed)` gives it another "start" or "end" and leads there.
 *
 * It comes with the seeds `start` and `end`, its own where they are null, and calls `changed(ends)` when one is chosen.
 */
export function buildMorph(section, { start, end, changed }) {
  const canvas = section.querySelector("canvas");
  const slider = section.querySelector("[type=range]");
  const fields = { start: section.querySelector("#start"), end: section.querySelector("#end") };
  const animation = section.querySelector("a");
  const frames = Number(new URL(canvas.dataset.strip, location.origin).searchParams.get("frames"));
  const context = canvas.getContext("2d");
  let ends = { start: start ?? BigInt(fields.start.value), end: end ?? BigInt(fields.end.value) };
  let strip = null; // the picture of all stills, once it is there

  function draw() {
    const percent = Math.round(100 * slider.value);
    slider.setAttribute("aria-valuetext", `${percent} % of the way from seed ${ends.start} to seed ${ends.end}`);
    if (!strip) return;
    const place = slider.value * (frames - 1);
    const still = Math.floor(place);
    drawStill(still, 1);
    if (place > still) drawStill(still + 1, place - still); // the next one shines through
  }

  function drawStill(still, opacity) {
    const width = strip.naturalWidth / frames;
    context.globalAlpha = opacity;
    context.drawImage(strip, still * width, 0, width, strip.naturalHeight, 0, 0, canvas.width, canvas.height);
  }

  function load() {
    for (const [name, field] of Object.entries(fields)) field.value = ends[name];
    canvas.setAttribute("aria-label", `Morph from seed ${ends.start} to seed ${ends.end}`);
    canvas.setAttribute("aria-busy", "true");
    animation.setAttribute("href", pinned(animation.href, ends));
    const loading = new Image();
    const asked = ends;
    loading.addEventListener("error", () => asked === ends && retry(loading));
    loading.addEventListener("load", () => {
      if (asked !== ends) return; // others were chosen meanwhile
      strip = loading;
      canvas.height = Math.round((canvas.width * strip.naturalHeight * frames) / strip.naturalWidth);
      context.imageSmoothingQuality = "high";
      canvas.setAttribute("aria-busy", "false");
      draw();
    });
    loading.src = pinned(canvas.dataset.strip, ends);
    draw();
  }

  function set(chosen) {
    ends = { ...ends, ...chosen };
    load();
    changed(ends);
  }

  section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  for (const [name, field] of Object.entries(fields)) {
    field.addEventListener("change", () => {
      const seed = readSeed(field);
      if (seed !== null) set({ [name]: seed });
    });
  }
  slider.addEventListener("input", draw);
  followVersion(load);

  return {
    choose(name, seed) {
      set({ [name]: seed });
      slider.focus({ preventScroll: true });
      section.scrollIntoView({ block: "center" });
    },
  };
}
