// The model version of the page's images, and retries while no version is ready.

import { parseSeed } from "./seeds.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 16_000;
const LONGEST_RETRY_AFTER_S = 86_400; // above 2^31 - 1 ms, 25 days, setTimeout fires at once

const notice = document.querySelector("#notice");
const followers = [];
const { generate } = document.body.dataset; // the path of one image
const missing = new Set(); // images that failed to load
let version = document.body.dataset.version;
let waiting = false;

/** Return `href` with other parameters, without empty ones, and with the current version if one is known. */
export function pinned(href, parameters = {}) {
  const url = new URL(href, location.origin);
  for (const [name, value] of Object.entries(parameters)) {
    if (value === "") url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  if (version) url.searchParams.set("version", version);
  return url.pathname + url.search;
}

/** Return the seed of `name`, or throw an Error whose message says why there is none. */
export async function seedOfName(name) {
  // Without a version: the seed is the same in all versions, and the page's version may be gone.
  const response = await fetch(`${generate}?${new URLSearchParams({ name, size: 16 })}`).catch(() => null);
  const seed = parseSeed(response?.headers.get("Ringo-Seed") ?? null);
  if (seed !== null) return seed;
  const problem = await response?.json().catch(() => null); // a proxy's error page is not JSON
  throw new Error(problem?.detail ?? "The gateway does not answer; try again later.");
}

/** Call `follow` now if a version is known, and whenever it changes. */
export function followVersion(follow) {
  followers.push(follow);
  if (version) follow();
}

/** Load `image` again until it succeeds, with growing pauses. */
export function retry(image) {
  missing.add(image);
  image.toggleAttribute("data-missing", true);
  image.addEventListener("load", () => image.removeAttribute("data-missing"), { once: true });
  wait();
}

/** Retry all images of the page that fail to load. */
export function retryFailedImages() {
  const retryImage = (image) => image instanceof HTMLImageElement && retry(image);
  document.addEventListener("error", (event) => retryImage(event.target), true);
  for (const image of document.images) if (image.complete && image.src && !image.naturalWidth) retryImage(image);
  if (!version) wait();
}

async function wait() {
  if (waiting) return;
  waiting = true;
  let pause = FIRST_PAUSE_MS;
  while (!version || missing.size) {
    const { newest, retryAfterMs } = await newestVersion();
    notice.hidden = newest !== null;
    if (newest !== null) {
      const failed = [...missing];
      missing.clear();
      if (newest !== version) {
        version = newest;
        for (const follow of followers) follow();
      }
      for (const image of failed) image.src = pinned(image.src);
    }
    // Up to half as long again, so that not all clients retry at once.
    await new Promise((resume) => setTimeout(resume, Math.max(pause, retryAfterMs) * (1 + Math.random() / 2)));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
  waiting = false;
}

/** Return the newest version, or null. A request without a seed is never answered from a cache. */
async function newestVersion() {
  try {
    const response = await fetch(generate, { method: "HEAD" });
    const retryAfterS = Number(response.headers.get("Retry-After")) || 0; // a date is NaN
    return {
      newest: response.ok ? response.headers.get("Ringo-Model-Version") : null,
      retryAfterMs: 1000 * Math.min(retryAfterS, LONGEST_RETRY_AFTER_S),
    };
  } catch {
    return { newest: null, retryAfterMs: 0 }; // the gateway does not answer
  }
}
