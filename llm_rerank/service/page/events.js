// The search box that finds items of the catalogue and adds one as a fresh event: a what-if, or really recorded.

import { ask } from "./api.js";
import { byId, debounced, el, fill } from "./dom.js";
import { failed } from "./saying.js";
import { nameOf, several } from "./words.js";

const WAIT_MS = 200;
const MOST_FOUND = 6;

const AS_WHAT_IF = "Off: a “what if”, part of the question only. Nothing is stored.";
const AS_RECORD = "On: the event is stored, and every later list of this user knows of it.";

/**
 * Watch the form. add({item_id, title, event}, reallyRecord): what to do with a chosen item; may take its time, and
 * gives what to say of it.
 */
export function watchSearch(add) {
  const words = byId("words");
  const found = byId("found");
  const note = byId("found-note");
  const record = byId("record");
  let asked = null;

  const clear = () => {
    fill(found);
    note.textContent = "";
    byId("see").hidden = true;
  };
  const look = async () => {
    asked?.abort();
    const wanted = words.value.trim();
    if (!wanted) return clear();
    asked = new AbortController();
    try {
      const query = new URLSearchParams({ q: wanted, limit: MOST_FOUND });
      const { items } = await ask("GET", `catalogue?${query}`, undefined, asked);
      show(items);
      byId("see").hidden = true;
      note.textContent = items.length ? `${several(items.length, "item")} found` : `No item has “${wanted}”.`;
    } catch (error) {
      if (error.name !== "AbortError") failed(error);
    }
  };
  const later = debounced(look, WAIT_MS);

  const kind = () => byId("search").elements.kind.value;
  const wordsOf = (item) => `${record.checked ? "Record" : "Add"} ${kind()}: ${nameOf(item)}`;
  function show(items) {
    fill(
      found,
      items.map((item) => {
        const price = typeof item.price === "number" ? item.price.toFixed(2) : null;
        const button = el(
          "button",
          { type: "button", class: "hit", "aria-label": wordsOf(item), onclick: () => choose(item, button) },
          el("span", { class: "title" }, nameOf(item)),
          el("span", { class: "soft" }, [item.brand, price].filter(Boolean).join(" · ")),
        );
        button.item = item;
        return el("li", {}, button);
      }),
    );
  }
  async function choose(item, button) {
    button.setAttribute("aria-busy", "true");
    const said = await add({ item_id: item.item_id, title: item.title, event: kind() }, record.checked);
    button.removeAttribute("aria-busy");
    byId("see").hidden = !said;
    if (said) note.textContent = said;
  }
  const explainSwitch = () => (byId("record-note").textContent = record.checked ? AS_RECORD : AS_WHAT_IF);
  const rename = () =>
    found.querySelectorAll("button").forEach((button) => button.setAttribute("aria-label", wordsOf(button.item)));

  words.addEventListener("input", later);
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    later.cancel();
    look();
  });
  byId("search").addEventListener("change", (event) => {
    explainSwitch();
    rename();
  });
  byId("search").addEventListener("keydown", (event) => {
    const hits = [...found.querySelectorAll("button")];
    const at = hits.indexOf(document.activeElement);
    if (event.key === "Escape" && (at >= 0 || document.activeElement === words)) {
      words.value = "";
      clear();
      words.focus();
    } else if (
      (event.key === "ArrowDown" || event.key === "ArrowUp") &&
      (at >= 0 || document.activeElement === words)
    ) {
      if (!hits.length) return;
      event.preventDefault();
      (hits[at + (event.key === "ArrowDown" ? 1 : -1)] ?? (event.key === "ArrowUp" ? words : hits[at])).focus();
    }
  });
  return {
    /** Start afresh; a newcomer has no name under which anything could be recorded. */
    forUser(user) {
      words.value = "";
      clear();
      record.disabled = user === null;
      if (user === null) record.checked = false;
      explainSwitch();
    },
  };
}

const unsure = new Map(); // ids of events that were sent and perhaps stored, by what they say

/** Have the service store an event. Throws what `ask` does; after a passing failure it goes again by the same id. */
export async function recordEvent(said) {
  const key = JSON.stringify(said);
  const event_id = unsure.get(key) ?? eventId();
  unsure.set(key, event_id); // an answer that is late, or lost, may be of an event that is stored all the same
  try {
    await ask("POST", "events", { event_id, ...said });
    unsure.delete(key);
  } catch (error) {
    if (!error.passing) unsure.delete(key);
    throw error;
  }
}

/** An id of our own, so that an event that is sent twice is stored once. */
function eventId() {
  // crypto.randomUUID is absent where the page comes over plain http from another machine
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
