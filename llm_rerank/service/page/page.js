// The page: one user, one question, its answer; what is asked and when. What is drawn of it is in showing.js.

import { ask, setKey } from "./api.js";
import { byId, debounced, el, fill, onFrame } from "./dom.js";
import { recordEvent, watchSearch } from "./events.js";
import { drawHistory } from "./history.js";
import { pairRows } from "./lists.js";
import { changesBetween, decadesOf, keptAt, probabilityAt } from "./moves.js";
import { watchFiles } from "./preview.js";
import { failed, say, settle } from "./saying.js";
import { SHOWN, cutWords, drawAnswer, drawControls, drawLists, userName } from "./showing.js";
import { closeWhy, toggleWhy } from "./why.js";
import { changesInShort, changesInWords, decoded, nameOf, several } from "./words.js";

const RECUT_WAIT_MS = 200;
const MOST_USERS = 200; // offered while a name is typed
const MOST_EVENTS = 200;
const SHOWN_USERS = 8;
const NEWCOMER = "#newcomer";

const threshold = byId("threshold");
const diversity = byId("diversity");

/**
 * What the page knows. user: of the question, null: a newcomer, undefined: none yet. events: what-ifs of the question,
 * oldest first. candidates: of a file, or null: retrieved. least, strength: as the sliders were set, null: as the model
 * has it; of: what both were for the answer that is shown. answer: of the service; items: as shown, which for a moment
 * may be ahead of it. decades: of the threshold's slider. asked: number of the latest question.
 */
const page = {
  users: [],
  user: undefined,
  events: [],
  candidates: null,
  least: null,
  strength: null,
  answer: null,
  items: [],
  decades: 4,
  of: { least: null, strength: null },
  history: [],
  wholeHistory: false,
  limit: SHOWN,
  asked: 0,
  recutting: null,
};

// ---------------------------------------------------------------- asking

/** The id as the service has it: a typed "7" is the number 7 where ids are numbers. */
function idOf(text) {
  const known = page.users.find((id) => String(id) === text);
  if (known !== undefined) return known;
  const numbers = page.users.length > 0 && page.users.every((id) => typeof id === "number");
  return numbers && /^\d{1,15}$/.test(text) ? Number(text) : text;
}

/** Only what is set: the service has defaults of its own for the rest. */
const given = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));

/** The what-ifs as the service reads them. */
const freshEvents = () =>
  page.events.length ? { events: page.events.map(({ item_id, event }) => ({ item_id, event })) } : {};

function question() {
  const set = given({ least_probability: page.least, diversity: page.strength });
  const asked = { user_id: page.user, ...freshEvents(), ...set, remember: false }; // looked at, not shown to the user
  return page.candidates
    ? ["recommend/rerank", { ...asked, candidates: page.candidates.items }]
    : ["recommend", { ...asked, k: null }]; // all that is retrieved: the list before is a part of it
}

/** Say what went wrong and put the sliders back to what the list on the page was made with. */
function refused(error, again) {
  failed(error, "", again);
  if (!page.answer) return;
  Object.assign(page, page.of, { items: page.answer.items });
  drawLists(page, new Map(), onWhy);
}

function busy(on) {
  byId("lists").setAttribute("aria-busy", String(on));
}

/** Let nothing that was asked earlier overwrite what is asked now. Returns a test whether this is still the latest. */
function supersede() {
  const mine = ++page.asked;
  recutLater.cancel();
  page.recutting?.abort();
  busy(true);
  return () => mine === page.asked;
}

/**
 * Ask for the lists of the present question and show them. again: what to do where that failed and is to be tried once
 * more. Returns the changes against what was shown, or null.
 */
async function askLists({ compare, again = () => askLists({ compare }) }) {
  const latest = supersede();
  try {
    const answer = await ask("POST", ...question());
    if (!latest()) return null;
    settle();
    // open reasons were of another question
    for (const row of byId("ours").querySelectorAll(":scope > li")) closeWhy(row);
    return show(answer, compare);
  } catch (error) {
    if (latest()) refused(error, again);
    return null;
  } finally {
    if (latest()) busy(false);
  }
}

/** Cut the present answer again, without scoring. Where it or its model is gone, the question is asked again. */
async function recut() {
  const latest = supersede();
  page.recutting = new AbortController();
  try {
    const wanted = { request_id: page.answer.request_id, least_probability: page.least, diversity: page.strength };
    const answer = await ask("POST", "recommend/recut", given(wanted), page.recutting);
    if (!latest()) return;
    settle();
    const changes = show(answer, true);
    say(changes.length ? `${cutWords(page)} ${changesInWords(changes)}` : cutWords(page));
  } catch (error) {
    if (!latest()) return;
    if (![404, 410].includes(error.status)) return refused(error, null);
    const changes = await askLists({ compare: true });
    if (changes) say(`The list was made anew. ${cutWords(page)} ${changesInWords(changes)}`);
  } finally {
    if (latest()) busy(false);
  }
}

const recutLater = debounced(recut, RECUT_WAIT_MS);

/** Ask what the user did and show it. Returns what went wrong, or null. */
async function askHistory() {
  const user = page.user;
  let events = [];
  try {
    if (user !== null)
      ({ events } = await ask("GET", `users/${encodeURIComponent(user)}/history?limit=${MOST_EVENTS}`));
  } catch (error) {
    if (error.status !== 404) return error; // unknown is no error: it is a newcomer
  }
  if (user !== page.user) return null;
  page.history = events;
  showHistory();
  return null;
}

// ---------------------------------------------------------------- showing

/** Show an answer. compare: against the list that is shown. Returns what changed. */
function show(answer, compare) {
  const changes = compare ? changesBetween(page.items, answer.items) : [];
  page.answer = answer;
  page.items = answer.items;
  page.of = { least: page.least, strength: page.strength };
  if (!compare) page.decades = decadesOf(answer.items);
  drawAnswer(page, new Map(changes.map((change) => [change.item.item_id, change])), onWhy);
  byId("change").textContent = changes.length ? changesInWords(changes) : "";
  return changes;
}

function showHistory() {
  drawHistory(page.history, [...page.events].reverse(), {
    all: page.wholeHistory,
    showAll: (all) => {
      page.wholeHistory = all;
      showHistory();
    },
    takeBack: async (event) => {
      page.events = page.events.filter((other) => other !== event);
      showHistory();
      byId("words").focus();
      const changes = await askLists({ compare: true });
      if (changes) say(`Taken back. ${changesInWords(changes)}`);
    },
  });
}

function onWhy(item, row, button) {
  const { answer, items } = page;
  const asked = { user_id: page.user, item_id: item.item_id, as_of: answer.as_of, ...freshEvents() };
  const scored = (other) => other.upstream_score !== null && other.upstream_score !== undefined;
  const explain = (other) => {
    const both = other === null ? [item] : [item, other];
    return ask("POST", "explain", {
      ...asked,
      ...(other === null ? {} : { versus: other.item_id }),
      ...(items.some(scored) ? { upstream_scores: both.map((one) => (scored(one) ? one.upstream_score : null)) } : {}),
    });
  };
  const at = items.findIndex((other) => other.item_id === item.item_id);
  const known = (other) => (other && other.score !== null ? other : null);
  const neighbours = { above: known(items[at - 1]), below: known(items[at + 1]) };
  return toggleWhy(item, row, button, { explain, neighbours });
}

// ---------------------------------------------------------------- what is done on the page

/** Take up a user: everything of the one before goes. candidates: of a file, or null. */
async function takeUp(user, candidates = null) {
  const fresh = { events: [], least: null, strength: null, limit: SHOWN, history: [], wholeHistory: false };
  Object.assign(page, { user, candidates, ...fresh });
  search.forUser(user);
  byId("user").value = user === null ? "" : String(user);
  say(`Asking for the lists of ${userName(user)} …`);
  const again = () => takeUp(user, candidates);
  const [changes, trouble] = await Promise.all([askLists({ compare: false, again }), askHistory()]);
  if (!changes || page.user !== user) return;
  if (trouble) failed(trouble, "The history: ", again);
  say(`The lists of ${userName(user)}: ${several(page.items.length, "candidate")}. ${cutWords(page)}`);
}

/** Add an event: to the question alone, or to the service's store. Returns what to say of it, "" after a failure. */
async function add(event, record) {
  if (record) {
    try {
      await recordEvent({ user_id: page.user, item_id: event.item_id, event: event.event });
    } catch (error) {
      failed(error, error.passing ? "Perhaps not recorded; sent again it is stored once. " : "Not recorded. ");
      return "";
    }
  } else {
    page.events = [...page.events, event]; // without a time it happens just before the list is made
    showHistory();
  }
  const [changes] = await Promise.all([askLists({ compare: true }), record ? askHistory() : null]);
  if (changes === null) return record ? "Recorded." : "";
  return `${record ? "Recorded" : "What if"}: ${event.event} of ${nameOf(event)}. ${changesInShort(changes)}`;
}

const search = watchSearch(add);

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("user").value.trim();
  if (text) goTo(`#user=${encodeURIComponent(text)}`);
});

/** The address names the user behind "#", the part that is sent nowhere and reaches no log. */
function goTo(hash) {
  if (location.hash === hash) fromAddress();
  else location.hash = hash;
}

function fromAddress() {
  const named = /^#user=(.+)$/.exec(location.hash);
  if (named) takeUp(idOf(decoded(named[1])));
  else if (location.hash === NEWCOMER) takeUp(null);
  else startOver();
}

/** Back to the first sight of the page. */
function startOver() {
  supersede();
  Object.assign(page, { user: undefined, answer: null });
  busy(false);
  byId("user").value = "";
  byId("work").hidden = true;
  byId("welcome").hidden = false;
}

const drawSoon = onFrame(() => page.answer && drawLists(page, new Map(), onWhy));

threshold.addEventListener("input", () => {
  page.least = probabilityAt(threshold.value / threshold.max, page.decades);
  page.items = keptAt(page.items, page.least); // at once; the service's own cut follows
  byId("change").textContent = "";
  drawSoon();
  recutLater();
});

diversity.addEventListener("input", () => {
  page.strength = Number(diversity.value);
  drawControls(page);
  recutLater();
});

byId("threshold-reset").addEventListener("click", () => {
  page.least = null;
  threshold.focus();
  recutLater();
});

byId("diversity-reset").addEventListener("click", () => {
  page.strength = null;
  diversity.focus();
  recutLater();
});

byId("more").addEventListener("click", () => {
  page.limit = page.limit > SHOWN ? SHOWN : Infinity;
  drawLists(page, new Map(), onWhy);
});

byId("retrieved").addEventListener("click", () => {
  byId("user").focus();
  takeUp(page.user);
});

function toLists(event) {
  event?.preventDefault(); // the address stays the user's
  const place = page.answer ? byId("lists") : byId("welcome");
  place.scrollIntoView();
  place.focus();
}
byId("skip").addEventListener("click", toLists);
byId("see").addEventListener("click", toLists);

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  settle();
  start();
});

watchFiles(async (list, name) => {
  const order = [...list.items].sort((a, b) => a.before_rank - b.before_rank);
  const items = order.map(({ item_id, upstream_score }) => given({ item_id, upstream_score: upstream_score ?? null }));
  history.replaceState(null, "", "#");
  await takeUp(list.user_id, { name, items });
  toLists();
});

/** Learn some users, then show the one that the address names. */
async function start() {
  try {
    ({ users: page.users } = await ask("GET", `users?limit=${MOST_USERS}`));
  } catch (error) {
    return failed(error, "", start);
  }
  settle();
  fill(
    byId("users"),
    page.users.map((id) => el("option", { value: id })),
  );
  const chip = (text, hash) =>
    el("li", {}, el("button", { type: "button", class: "quiet", onclick: () => goTo(hash) }, text));
  fill(
    byId("some-users"),
    page.users.slice(0, SHOWN_USERS).map((id) => chip(String(id), `#user=${encodeURIComponent(id)}`)),
    chip("a newcomer", NEWCOMER),
  );
  fromAddress();
}

addEventListener("hashchange", fromAddress);
pairRows(byId("lists"));
start();
