// "Try it" at /docs: the image and the curl command of the chosen parameters.

import { readSeed } from "./seeds.js";

const form = document.querySelector("form");
const image = document.querySelector("#image");

function show() {
  const seed = readSeed(form.elements.seed);
  if (seed === null) return;
  const url = new URL(image.src);
  url.search = new URLSearchParams(new FormData(form));
  url.searchParams.set("seed", seed); // without the spaces of the field
  if (url.href !== image.src) image.src = url.href;
  document.querySelector("#curl").textContent = `curl '${url}' -o image.${form.elements.format.value}`;
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", show);
show();
