// Which version of the model is on the wall, and patience while there is none.

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 16_000;

const notice = document.querySelector("#notice");
const followers = [];
const missing = new Set(); // pictures that didn't come
let version = document.body.dataset.version;
let waiting = false;

/** Return the address that stands in the page as `href` with other parameters, pinned to the present version if there is one. */
export function pinned(href, parameters = {}) {
  const url = new URL(href, location.origin);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  if (version) url.searchParams.set("version", version);
  return url.pathname + url.search;
}

/** Call `follow` when there is a version: now if there is, and whenever another takes its place. */
export function followVersion(follow) {
  followers.push(follow);
  if (version) follow();
}

/** Ask for `image` again until it comes, with longer and longer pauses. */
export function retry(image) {
  missing.add(image);
  image.toggleAttribute("data-missing", true);
  image.addEventListener("load", () => image.removeAttribute("data-missing"), { once: true });
  wait();
}

/** Let any picture of the page that doesn't come be asked for again. */
export function watchPictures() {
  const see = (image) => image instanceof HTMLImageElement && retry(image);
  document.addEventListener("error", (event) => see(event.target), true);
  for (const image of document.images) if (image.complete && image.src && !image.naturalWidth) see(image);
  if (!version) wait();
}

async function wait() {
  if (waiting) return;
  waiting = true;
  let pause = FIRST_PAUSE_MS;
  while (!version || missing.size) {
    const { present, retryAfterMs } = await presentVersion();
    notice.hidden = present !== null;
    if (present !== null) {
      const again = [...missing];
      missing.clear();
      if (present !== version) {
        version = present;
        for (const follow of followers) follow();
      }
      for (const image of again) image.src = pinned(image.src);
    }
    // Up to a half more, so that not all who wait come back at once.
    await new Promise((resume) => setTimeout(resume, Math.max(pause, retryAfterMs) * (1 + Math.random() / 2)));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
  waiting = false;
}

/** Return the version that paints now, null for none: a picture of a seed that nobody has named can't be a kept one. */
async function presentVersion() {
  try {
    const response = await fetch("/generate", { method: "HEAD" });
    const retryAfterMs = 1000 * Number(response.headers.get("Retry-After") ?? 0);
    return { present: response.ok ? response.headers.get("Ringo-Model-Version") : null, retryAfterMs };
  } catch {
    return { present: null, retryAfterMs: 0 }; // not even the gateway answers
  }
}
