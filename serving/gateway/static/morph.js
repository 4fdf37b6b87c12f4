// Images between two seeds: a strip, fetched once, and a slider that shows a position on it.

import { followVersion, pinned, retry } from "./model.js";
import { readSeed } from "./seeds.js";

/**
 * Return the morph in `section`. Its `choose(name, seed)` sets "start" or "end" and scrolls to it.
 *
 * It begins with the seeds `start` and `end`, or those in its fields if null. It calls `changed(ends)` when one changes.
 */
export function buildMorph(section, { start, end, changed }) {
  const canvas = section.querySelector("canvas");
  const slider = section.querySelector("[type=range]");
  const fields = { start: section.querySelector("#start"), end: section.querySelector("#end") };
  const animation = section.querySelector("a");
  const frames = Number(new URL(canvas.dataset.strip, location.origin).searchParams.get("frames"));
  const context = canvas.getContext("2d");
  let ends = { start: start ?? BigInt(fields.start.value), end: end ?? BigInt(fields.end.value) };
  let strip = null; // one image with all frames side by side, once loaded
  let newest = null; // the strip requested last

  function draw() {
    const percent = Math.round(100 * slider.value);
    slider.setAttribute("aria-valuetext", `${percent} % of the way from seed ${ends.start} to seed ${ends.end}`);
    if (!strip) return;
    const place = slider.value * (frames - 1);
    const frame = Math.floor(place);
    drawFrame(frame, 1);
    if (place > frame) drawFrame(frame + 1, place - frame); // blend in the next frame
  }

  function drawFrame(frame, opacity) {
    const width = strip.naturalWidth / frames;
    context.globalAlpha = opacity;
    context.drawImage(strip, frame * width, 0, width, strip.naturalHeight, 0, 0, canvas.width, canvas.height);
  }

  function load() {
    for (const [name, field] of Object.entries(fields)) field.value = ends[name];
    canvas.setAttribute("aria-label", `Morph from seed ${ends.start} to seed ${ends.end}`);
    canvas.setAttribute("aria-busy", "true");
    animation.setAttribute("href", pinned(animation.href, ends));
    const loading = new Image();
    newest = loading;
    loading.addEventListener("error", () => loading === newest && retry(loading));
    loading.addEventListener("load", () => {
      if (loading !== newest) return; // the seeds or the version have changed meanwhile
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
