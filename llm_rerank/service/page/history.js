// What the user did, newest first, with the what-ifs of this question on top.

import { byId, el, fill } from "./dom.js";
import { kindOf, moment, nameOf, several } from "./words.js";

const SHOWN = 6;

/**
 * Draw the history. events: newest first, as the service gives them. whatIfs: fresh events of the question alone,
 * newest first; takeBack(event): asked to leave one out again. all: show every event.
 */
export function drawHistory(events, whatIfs, { all, takeBack, showAll }) {
  const shown = all ? events : events.slice(0, SHOWN);
  fill(
    byId("history"),
    whatIfs.map((event) => row(event, "what if", takeBack)),
    shown.map((event) => row(event, moment(event.timestamp))),
  );
  byId("history-note").textContent = events.length ? "" : "Nothing is known of this user.";
  const button = byId("history-all");
  button.hidden = events.length <= SHOWN;
  button.textContent = all ? "Show the newest only" : `Show all ${several(events.length, "event")}`;
  button.setAttribute("aria-expanded", String(all));
  button.onclick = () => showAll(!all);
}

function row(event, when, takeBack = null) {
  const rated = typeof event.rating === "number" ? `rated ${event.rating}` : null;
  const searched = event.query ? `searched for “${event.query}”` : null;
  const title = event.item_id === null || event.item_id === undefined ? (searched ?? "a search") : nameOf(event);
  return el(
    "li",
    { class: takeBack ? "what-if" : null },
    el("span", { class: "title" }, title),
    el(
      "span",
      { class: "soft" },
      [kindOf(event) === "rating" ? null : kindOf(event), rated, event.item_id ? searched : null, when]
        .filter(Boolean)
        .join(" · "),
    ),
    takeBack &&
      el(
        "button",
        {
          type: "button",
          class: "link",
          "aria-label": `Take back: ${kindOf(event)} of ${title}`,
          onclick: () => takeBack(event),
        },
        "take back",
      ),
  );
}
