// Elements from plain values. Text goes in as text nodes, so that a title can never become markup.

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * Build an element. attributes: `class`, `on…` functions, booleans (present or absent), anything else as an attribute;
 * null and undefined are left out. children: nodes, texts, numbers, lists of them, or null for nothing.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

/** Replace all that an element holds; children as in `el`. */
export function fill(element, ...children) {
  element.replaceChildren(...flat(children));
}

/** Words for screen readers alone. */
export const unseen = (text) => el("span", { class: "unseen" }, text);

/** A sign for the eye alone. */
export const sign = (text) => el("span", { "aria-hidden": "true" }, text);

function flat(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}

/** Call `work` once nothing has asked for it for `wait_ms`; `.cancel()` drops what is waiting. */
export function debounced(work, wait_ms) {
  let timer = 0;
  const later = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), wait_ms);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Call `work` when the next frame is drawn, once, however often it was asked for. */
export function onFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
