// What the page says at its top: errors where they are seen and heard at once, news for screen readers alone.

import { byId, el, fill } from "./dom.js";

/** Tell screen readers, when they have a moment. */
export function say(text) {
  byId("status").textContent = text;
}

/** Show an error. before: said first. again: what to do where it is asked to try once more, null: nothing. */
export function failed(error, before = "", again = null) {
  if (error.name === "AbortError") return;
  if (error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  const words = error.words ? error.words() : `Something went wrong in this page: ${error.message}`;
  const link = (text, onclick) => el("button", { type: "button", class: "link", onclick }, text);
  fill(
    byId("alert"),
    el("span", {}, before + words),
    again && error.passing ? link("Try again", again) : null,
    link("Dismiss", settle),
  );
}

/** Take the error away: what was asked since has come. */
export function settle() {
  fill(byId("alert"));
}
