// Seeds are strings of decimal digits, or BigInts: JavaScript's numbers are exact only up to 2^53.

export const MAX_SEED = BigInt(document.body.dataset.maxSeed);

/** Return the seed in `text`, or null if it is not valid. */
export function parseSeed(text) {
  if (text === null || !/^(0|[1-9][0-9]{0,18})$/.test(text.trim())) return null;
  const seed = BigInt(text);
  return seed > MAX_SEED ? null : seed;
}

/** Return the seed in the field, or null after the field shows the allowed values. */
export function readSeed(field) {
  const seed = parseSeed(field.value);
  if (seed === null) refuse(field, `A seed is a whole number from 0 to ${MAX_SEED}.`);
  return seed;
}

/** Show `message` at the field until its text changes. */
export function refuse(field, message) {
  field.setCustomValidity(message);
  field.reportValidity();
  field.addEventListener("input", () => field.setCustomValidity(""), { once: true });
}

/** Return a random seed below a million, short enough to read aloud. */
export function randomSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);
}
