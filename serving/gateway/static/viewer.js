// The large view of one seed in a size and a format, with the file and its URL to copy.

import { followVersion, pinned } from "./model.js";
import { MAX_SEED } from "./seeds.js";

/**
 * Return the large view in `dialog`: `open(seed)`, `close()` and the `seed` it shows, null while closed.
 *
 * It calls `step(seed)` for a neighbouring seed. After it closes, it calls `closed(seed, end)`, with "start" or "end" if the
 * seed was chosen for the morph. `small(seed)` is the URL of a small image that may be cached.
 */
export function buildViewer(dialog, { step, closed, small }) {
  const part = (selector) => dialog.querySelector(selector);
  const previous = part("#previous");
  const next = part("#next");
  let seed = null;
  let pressedOutside = false;
  let wasOpen = false; // before the first click of a double click

  function show() {
    const format = part("#format").value;
    const address = pinned(part("#download").href, { seed, size: part("#size").value, format });
    const link = new URL(address, location.origin).href;
    const text = `${document.querySelector("h1").textContent}, seed ${seed}`;
    part("h2 span").textContent = seed;
    part("#download").href = address;
    part("#link").value = link;
    part("#html").value = `<img src="${escaped(link)}" alt="${escaped(text)}">`;
    part("#markdown").value = `![${text}](${link})`;
    part("#curl").value = `curl '${link}' -o ${seed}.${format}`;
    part("#copy-status").textContent = "";
    previous.disabled = seed === 0n;
    next.disabled = seed === MAX_SEED;
    // A new element, so that the previous seed's image disappears at once.
    const image = part("img");
    const fresh = image.cloneNode();
    fresh.removeAttribute("data-missing");
    fresh.src = address;
    fresh.alt = `Seed ${seed}`;
    fresh.style.backgroundImage = `url("${small(seed)}")`;
    image.replaceWith(fresh);
  }

  /** Return whether the pointer is on the backdrop, whose events have the dialog as their target. */
  function isOutside({ target, clientX, clientY }) {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    return target === dialog && (clientX < left || clientX > right || clientY < top || clientY > bottom);
  }

  /** Drop the rest of a double click that opened or closed the view: it hits another element. */
  function dropSecondClick(event) {
    if (event.detail < 2) wasOpen = dialog.open;
    else if (wasOpen !== dialog.open) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  function go(by) {
    if (seed + by >= 0n && seed + by <= MAX_SEED) step(seed + by);
  }

  for (const choice of dialog.querySelectorAll("select")) choice.addEventListener("change", show);
  previous.addEventListener("click", () => go(-1n));
  next.addEventListener("click", () => go(1n));
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") go(-1n);
    if (event.key === "ArrowRight") go(1n);
  });

  for (const button of dialog.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", async () => {
      const field = part(`#${button.dataset.copies}`);
      field.select();
      try {
        await navigator.clipboard.writeText(field.value);
        part("#copy-status").textContent = "Copied.";
      } catch {
        part("#copy-status").textContent = "Press Ctrl+C or ⌘C to copy."; // browsers give the clipboard to secure pages only
      }
    });
  }

  for (const button of dialog.querySelectorAll("[data-end]")) {
    button.addEventListener("click", () => dialog.close(button.dataset.end));
  }

  part("#close").addEventListener("click", () => dialog.close());
  addEventListener("click", dropSecondClick, true);
  dialog.addEventListener("pointerdown", (event) => {
    pressedOutside = isOutside(event);
  });
  dialog.addEventListener("click", (event) => {
    if (pressedOutside && isOutside(event)) dialog.close();
  });
  dialog.addEventListener("close", () => {
    if (!dialog.open) closed(seed, dialog.returnValue); // the event is late: the dialog may be open again
  });
  followVersion(() => {
    if (dialog.open) show();
  });

  return {
    get seed() {
      return dialog.open ? seed : null;
    },
    open(chosen) {
      seed = chosen;
      show();
      if (dialog.open) return;
      dialog.returnValue = "";
      dialog.showModal();
    },
    close() {
      dialog.close();
    },
  };
}

/** Return `text` for an attribute of HTML in double quotes. */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
}
