// An answer on the page: headings, flags, both lists, the sliders' words and the cut. Reads the state, asks nothing.

import { byId, el, fill } from "./dom.js";
import { drawBefore, drawOurs, drawRug, listNote } from "./lists.js";
import { placeOf } from "./moves.js";
import { count, cutInWords, failuresInWords, guaranteeInWords, percent, spoken } from "./words.js";

/** Rows of a list before all are asked for. */
export const SHOWN = 10;

/** What a user is called; null is somebody of whom nothing is known. */
export const userName = (user) => (user === null ? "a newcomer" : String(user));

/** How the list that is shown is cut, in a sentence. */
export function cutWords(page) {
  const kept = page.items.filter((item) => item.kept).length;
  return cutInWords({ ...page.answer.cut, least_probability: leastInUse(page) }, kept, page.items.length);
}

// what the list before is by, where it is no component's
const BEFORE = {
  upstream: "As the recommender upstream had it.",
  retrieval: "As it was retrieved; → is the rank now.",
  popularity: "Best sellers first; → is the rank now.",
};

const leastInUse = (page) => page.least ?? page.answer.cut.least_probability ?? null;

/** Draw all that an answer brings. changed: Map from item_id to its change just now. onWhy: as in `drawOurs`. */
export function drawAnswer(page, changed, onWhy) {
  const { answer, candidates, user } = page;
  byId("work").hidden = false;
  byId("welcome").hidden = true;
  byId("model").textContent = `model ${String(answer.model_version).slice(0, 12)}`;
  byId("lists-title").textContent = candidates
    ? `${userName(user)}: ${candidates.name}`
    : `The lists of ${userName(user)}`;
  byId("history-title").textContent = `What ${userName(user)} did`;
  byId("retrieved").hidden = !candidates;
  drawFlags(page);
  drawLists(page, changed, onWhy);
}

/** Draw the lists and what is said beside them. */
export function drawLists(page, changed, onWhy) {
  const { items, answer, limit } = page;
  const upstream = answer.before === "upstream";
  byId("before-title").textContent = upstream ? "Before: the order given" : `Before: ${spoken(answer.before)}`;
  byId("before-note").textContent = BEFORE[answer.before] ?? "By the best single component; → is the rank now.";
  byId("ours-note").textContent = items.length
    ? listNote(items, limit)
    : "There is nothing to show: no candidate was found for this user.";
  byId("lists").classList.toggle("whole", limit > SHOWN);
  drawBefore(byId("before"), items, limit);
  drawOurs(byId("ours"), items, limit, changed, onWhy);
  const more = byId("more");
  more.hidden = items.length <= SHOWN;
  more.textContent = limit > SHOWN ? `Show the first ${SHOWN}` : `Show all ${count(items.length)}`;
  more.setAttribute("aria-expanded", String(limit > SHOWN));
  drawControls(page);
}

function drawFlags({ answer, user, events }) {
  const flags = failuresInWords(answer);
  const fresh = events.length ? " with these fresh events" : "";
  if (user === null) flags.unshift(`Nothing is known of a newcomer: this is what anyone new is shown${fresh}.`);
  else if (!answer.known_user && !answer.fallback)
    flags.unshift(`${user} is not known here: this is the list of a newcomer${fresh}.`);
  fill(
    byId("flags"),
    flags.map((text) => el("li", {}, text)),
  );
}

/** Put the sliders where they belong, with their values in words, and say how the list is cut. */
export function drawControls(page) {
  const { answer, items, decades } = page;
  const threshold = byId("threshold");
  const least = leastInUse(page) ?? 0;
  threshold.value = Math.round(placeOf(least, decades) * threshold.max);
  const words = least > 0 ? percent(least) : "keep everything";
  const kept = items.filter((item) => item.kept).length;
  byId("threshold-value").textContent = words;
  threshold.setAttribute("aria-valuetext", `${words}; ${count(kept)} of ${count(items.length)} kept`);
  byId("threshold-reset").hidden = page.least === null;
  const known = items.filter((item) => item.probability !== null);
  drawRug(
    byId("rug"),
    known.map((item) => ({ place: placeOf(item.probability, decades), kept: item.kept })),
  );

  const diversity = byId("diversity");
  const strength = page.strength ?? answer.diversity ?? 0;
  const asSet = page.strength === null ? ", as the model is set" : "";
  diversity.value = strength;
  byId("diversity-value").textContent = `${strength.toFixed(2)}${asSet}`;
  diversity.setAttribute("aria-valuetext", `${strength.toFixed(2)} of 1${asSet}`);
  byId("diversity-reset").hidden = page.strength === null;

  const { holds, text } = guaranteeInWords(answer.cut);
  const promise = answer.fallback ? null : el("p", { class: holds ? "promise" : "soft" }, text);
  fill(byId("cut"), el("p", {}, el("b", {}, cutWords(page))), promise);
}
