// "Try it" at /docs: the image and the curl command of the chosen parameters.

const form = document.querySelector("form");
const image = document.querySelector("#image");

function show() {
  if (!form.reportValidity()) return;
  const url = new URL(image.src);
  url.search = new URLSearchParams(new FormData(form));
  if (url.href !== image.src) image.src = url.href;
  document.querySelector("#curl").textContent = `curl '${url}' -o image.${form.elements.format.value}`;
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", show);
show();
