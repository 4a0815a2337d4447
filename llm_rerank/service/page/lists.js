// The two lists side by side: rows, moves, small bars of the parts, and the line where `kept` ends.

import { el, fill, sign, unseen } from "./dom.js";
import { cutLine, moveOf, reasonOf, standingsOf } from "./moves.js";
import { arrow, count, listed, moveInWords, nameOf, percent, several, signed, spoken } from "./words.js";

/** Milliseconds that a row takes to its new place. */
const GLIDE = 350;

/**
 * Draw the list as it was before. before: an `ol`. items: by our rank; limit: how many rows.
 */
export function drawBefore(before, items, limit) {
  const order = items.filter((item) => item.before_rank !== null).sort((a, b) => a.before_rank - b.before_rank);
  fill(
    before,
    order.slice(0, limit).map((item) => {
      const move = moveOf(item);
      return el(
        "li",
        { class: `row small ${item.kept ? "" : "dropped"}`, "data-item": item.item_id },
        place(item.before_rank),
        el("span", { class: "title" }, nameOf(item)),
        el(
          "span",
          { class: `move ${move.way}` },
          sign(`→ ${item.rank} `),
          el("span", { class: "arrow", "aria-hidden": "true" }, arrow(move.by)),
          unseen(`now ${item.rank}${item.kept ? "" : ", cut"}`),
        ),
      );
    }),
  );
}

/**
 * Draw our list. ours: an `ol`; rows of items that stay are kept, with what is open in them, and glide to their place.
 * changes: Map from item_id to what has just changed of it ({from, by}). onWhy(item, row, button): asked for reasons.
 */
export function drawOurs(ours, items, limit, changes, onWhy) {
  const { activeElement: focused } = document;
  const focusedRow = ours.contains(focused) ? focused.closest("[data-item]") : null;
  const shown = items.slice(0, limit);
  const standings = standingsOf(items);
  const most = Math.max(1e-9, ...[...standings.values()].flatMap((parts) => Object.values(parts).map(Math.abs)));
  const old = new Map([...ours.querySelectorAll(":scope > li[data-item]")].map((row) => [row.key, row]));
  const inPlace = [...old.keys()].join("\n") === shown.map((item) => item.item_id).join("\n");
  const tops = new Map(inPlace ? [] : [...old].map(([key, row]) => [key, row.getBoundingClientRect().top]));
  const rows = shown.map((item) => {
    const row = old.get(item.item_id) ?? Object.assign(el("li", { "data-item": item.item_id }), { key: item.item_id });
    drawRow(row, item, standings.get(item.item_id), most, changes.get(item.item_id), onWhy);
    return row;
  });
  const line = cutLine(items);
  const lineRow = line.after <= limit ? cutRow(line, items) : null;
  const places = shown.findIndex((item) => item.rank > line.after);
  if (lineRow) rows.splice(places < 0 ? rows.length : places, 0, lineRow);
  ours.replaceChildren(...rows);
  // what is moved or drawn anew loses the keys; they stay with the item
  if (focusedRow?.isConnected) (focused.isConnected ? focused : whyButton(focusedRow))?.focus({ preventScroll: true });
  if (!inPlace) glide(rows, tops);
}

/** Mark an item in both lists while the mouse is on either row. */
export function pairRows(lists) {
  const mark = (event) => {
    const item = event.target.closest?.("[data-item]")?.dataset.item;
    for (const row of lists.querySelectorAll("[data-item]")) row.classList.toggle("twin", row.dataset.item === item);
  };
  lists.addEventListener("mouseover", mark);
  lists.addEventListener("mouseleave", mark);
}

/** What is said above our list: how its bars are to be read, and where the cut is if none of its rows shows it. */
export function listNote(items, limit) {
  const { after, nKept } = cutLine(items);
  const further = after > limit ? ` The cut is further down, after rank ${count(after)} (${count(nKept)} kept).` : "";
  return `Bars: each part of the score against this list’s mean.${further}`;
}

const whyButton = (row) => row.querySelector("button[aria-expanded]");

function drawRow(row, item, standing, most, change, onWhy) {
  const panel = row.querySelector(":scope > .why");
  const move = moveOf(item);
  const reason = move.way === "same" || move.way === "new" ? null : reasonOf(move, standing);
  const because = { up: "raised most by ", down: "lowered most by " }[move.way];
  row.className = ["row", item.kept ? "kept" : "dropped", change ? "changed" : ""].join(" ").trim();
  const button =
    onWhy &&
    el(
      "button",
      {
        type: "button",
        class: "quiet",
        "aria-expanded": panel ? "true" : "false",
        "aria-label": `Why is ${nameOf(item)} at ${item.rank}?`,
        onclick: () => onWhy(item, row, button),
      },
      "Why?",
    );
  const body = el(
    "div",
    { class: "body" },
    el(
      "div",
      { class: "first" },
      place(item.rank),
      el("span", { class: "title" }, nameOf(item)),
      el(
        "span",
        { class: `move ${move.way}` },
        sign(move.from === null ? "" : `${move.from} → ${item.rank} `),
        el("span", { class: "arrow", "aria-hidden": "true" }, arrow(move.by)),
        unseen(moveInWords(move)),
      ),
    ),
    el(
      "p",
      { class: "facts" },
      el("span", { class: "state" }, item.kept ? "kept" : "cut"),
      el("span", { class: "probability" }, el("b", {}, percent(item.probability)), " probability"),
      el("span", { class: "score" }, item.score === null ? unscored(item) : `score ${signed(item.score, 3)}`),
      item.upstream_score === null || item.upstream_score === undefined
        ? null
        : el("span", {}, `upstream ${signed(item.upstream_score, 3)}`),
      typeof item.propensity === "number" && item.propensity < 1
        ? el("span", {}, `drawn at random, ${percent(item.propensity)}`)
        : null,
      because ? el("span", { class: "reason" }, reason ? because + spoken(reason) : "others moved") : null,
    ),
    change ? el("p", { class: "just" }, sign(changeSign(change)), unseen(changeInWords(change))) : null,
    el("div", { class: "last" }, bars(standing, most), button),
  );
  const old = row.querySelector(":scope > .body");
  if (old) old.replaceWith(body);
  else row.prepend(body);
}

// an item that the catalogue does not have has no title either
const unscored = (item) => (item.title ? "no score" : "not in the catalogue");

function place(rank) {
  return el("span", { class: "rank" }, unseen("rank "), rank);
}

const changeSign = ({ from, by }) => (by === null ? "new here just now" : `${arrow(by)} just now, was ${from}`);
const changeInWords = (change) => `just now ${change.by === null ? "came into the list" : moveInWords(change)}`;

/** Small bars around a middle line: parts above 0 to the right and full, parts below to the left and hatched. */
export function bars(parts, most, digits = 2) {
  return el(
    "dl",
    { class: "bars" },
    Object.entries(parts).map(([group, value]) => {
      const bar = el("i", { class: value < 0 ? "below" : "above", "aria-hidden": "true" });
      // through the object model: the policy of the service forbids style attributes
      bar.style.width = `${(Math.min(Math.abs(value ?? 0) / most, 1) * 50).toFixed(2)}%`;
      return el(
        "div",
        {},
        el("dt", {}, spoken(group)),
        el("dd", {}, el("span", { class: "track", "aria-hidden": "true" }, bar), el("span", {}, signed(value, digits))),
      );
    }),
  );
}

function cutRow({ after, nKept, nCutAbove }, items) {
  const rest = items.length - nKept;
  const words = [
    after ? `The cut: ${several(nKept, "item")} kept` : "The cut: nothing is kept",
    nCutAbove ? `${several(nCutAbove, "item")} above this line ${nCutAbove === 1 ? "is" : "are"} cut too` : "",
    rest ? `${count(rest)} cut in all` : "nothing is cut",
  ];
  return el("li", { class: "cut-line" }, el("span", {}, `${listed(words.filter(Boolean))}.`));
}

/** Let rows glide from where they were; not where reduced motion is asked for. */
function glide(rows, tops) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const row of rows) {
    const was = tops.get(row.key);
    if (was === undefined) continue;
    const by = was - row.getBoundingClientRect().top;
    if (Math.abs(by) > 1)
      row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], {
        duration: GLIDE,
        easing: "ease-out",
      });
  }
}

/** Tick marks of the candidates' probabilities under the slider. places: 0 … 1 each, with whether it is kept. */
export function drawRug(rug, places) {
  fill(
    rug,
    places.map(({ place: at, kept }) => {
      const tick = el("i", { class: kept ? "kept" : "dropped" });
      tick.style.left = `calc(var(--thumb) / 2 + ${at.toFixed(4)} * (100% - var(--thumb)))`;
      return tick;
    }),
  );
}
